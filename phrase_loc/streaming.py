"""Many photographs, many phrases: questions stream in, answers stream out, and nothing piles up.

A question is an image and its phrases; an answer is the object that `phrase-loc query --json` prints, one a
line (JSON Lines), or {"image", "error"} for a photograph that could not be read. Decoding runs in worker
processes, the network in batches. Each process of `torchrun` takes every size-th question and writes a part
of its own; the first one joins the parts in the order of the questions. A run that was interrupted continues
where its parts end.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from phrase_loc.display import to_dict
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.images import load_image
from phrase_loc.localizer import Inference, PhraseLocalizer, Prepared, prepare
from phrase_loc.tables import image_path, open_table

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class Question:
    """A photograph and what is asked of it."""

    image: str
    phrases: tuple[str, ...]


def questions_of(source: Path, phrases: Sequence[str]) -> list[Question]:
    """The questions in a folder of photographs, a table or one photograph.

    Args:
        source: a folder (searched below as well), a .csv or .parquet table with the columns `image` and
            `phrase` (paths relative to the table), or an image file.
        phrases: asked of every photograph; a table brings its own.

    Raises:
        DataError: nothing to ask about, a column is missing.
    """
    if source.suffix.lower() in {".csv", ".parquet"}:
        if phrases:
            raise ConfigError(f"the table {source} brings its own phrases; leave out {phrases[0]!r}")
        return _table(source)
    if not phrases:
        raise ConfigError(
            f"expected phrases for {source}: give them after it, or --phrases FILE with one a line"
        )
    if not source.is_dir():
        return [Question(str(source), tuple(phrases))]
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise DataError(f"no image was found in {source} (looked for {', '.join(sorted(IMAGE_ENDINGS))})")
    return [Question(str(path), tuple(phrases)) for path in found]


def read_phrases(path: Path) -> tuple[str, ...]:
    """One phrase a line; empty lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors put a mark in front
    except UnicodeDecodeError:
        raise DataError(f"the file of phrases {path} is no UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"the file of phrases {path} cannot be read: {error.strerror}") from None
    phrases = tuple(line.strip() for line in lines if line.strip())
    if not phrases:
        raise DataError(f"the file of phrases {path} is empty; write one phrase a line")
    return phrases


def answer_many(
    localizer: PhraseLocalizer,
    questions: Sequence[Question],
    output: Path,
    *,
    top_k: int = 5,
    batch_size: int = 8,
    workers: int = 0,
    world: World = World(),  # noqa: B008 - a frozen value
) -> dict[str, int]:
    """Answer all questions into `output` (.jsonl or .parquet); how many were answered, resumed, refused.

    Raises:
        ConfigError: `output` has another ending, or parquet is asked for without pyarrow.
        DataError: the folder of `output` is missing or not writable.
    """
    if output.suffix not in {".jsonl", ".parquet"}:
        raise ConfigError(f"the output must end in .jsonl or .parquet, got {output.name!r}")
    if output.suffix == ".parquet":
        _require_pyarrow()
    part = output.with_name(f".{output.name}.part{world.rank}of{world.size}")
    mine = list(range(world.rank, len(questions), world.size))
    done = _resume(part, [questions[i] for i in mine])
    counts = {"answered": 0, "resumed": done, "refused": 0}
    loader = DataLoader(
        _Decoded([questions[i] for i in mine[done:]], localizer.settings),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_as_list,
    )
    bar = tqdm(total=len(mine), initial=done, unit="image", disable=None if world.is_main else True)
    with _opened(part) as lines, bar:
        for batch in loader:
            for answer in _answers(localizer, batch, top_k):
                counts["refused" if "error" in answer else "answered"] += 1
                lines.write(json.dumps(answer, ensure_ascii=False) + "\n")
            lines.flush()
            bar.update(len(batch))
    world.barrier()
    if world.is_main:
        _join(output, len(questions), world.size)
    world.barrier()
    totals = world.sum(torch.tensor(list(counts.values())))
    return dict(zip(counts, totals.tolist(), strict=True))


def _answers(localizer: PhraseLocalizer, batch: list["_Item"], top_k: int) -> Iterator[dict]:
    scenes = iter(localizer.look_at([item.prepared for item in batch if item.prepared is not None]))
    for item in batch:
        if item.prepared is None:
            yield {"image": item.question.image, "error": item.error}
            continue
        predictions = localizer.locate(next(scenes), item.question.phrases, top_k=top_k)
        height, width = item.prepared.size
        found = [to_dict(p) for p in predictions]
        yield {"image": item.question.image, "size": [width, height], "predictions": found}


@dataclass(slots=True)
class _Item:
    question: Question
    prepared: Prepared | None
    error: str = ""


class _Decoded(Dataset):
    """Photographs made ready for the network; a broken one brings its sentence."""

    def __init__(self, questions: list[Question], settings: Inference):
        self.questions, self.settings = questions, settings

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> _Item:
        question = self.questions[index]
        try:
            return _Item(question, prepare(load_image(question.image), self.settings))
        except DataError as error:
            return _Item(question, None, str(error))


def _as_list(items: list[_Item]) -> list[_Item]:
    return items


def _opened(part: Path) -> TextIO:
    try:
        return part.open("a", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write in {part.parent}: {error.strerror}; choose a folder that exists"
        ) from None


def _resume(part: Path, questions: Sequence[Question]) -> int:
    """How many leading questions `part` answers already; a torn or foreign tail is cut off."""
    if not part.exists():
        return 0
    kept = []
    for line, question in zip(part.read_bytes().split(b"\n"), questions, strict=False):
        try:
            answer = json.loads(line)
        except ValueError:
            break
        asked = [p["phrase"] for p in answer.get("predictions", [])]
        if answer.get("image") != question.image or (
            "error" not in answer and asked != list(question.phrases)
        ):
            break
        kept.append(line + b"\n")
    whole = part.with_name(part.name + ".whole")
    whole.write_bytes(b"".join(kept))
    whole.replace(part)
    return len(kept)


def _join(output: Path, total: int, size: int) -> None:
    parts = [output.with_name(f".{output.name}.part{rank}of{size}") for rank in range(size)]
    files = [part.open(encoding="utf-8") for part in parts]
    whole = output.with_name(f".{output.name}.whole")
    with whole.open("w", encoding="utf-8") as joined:
        for number in range(total):
            joined.write(files[number % size].readline())
    for file in files:
        file.close()
    if output.suffix == ".parquet":
        _to_parquet(whole, output)
    else:
        whole.replace(output)
    for leftover in [*parts, whole]:
        leftover.unlink(missing_ok=True)


def _to_parquet(lines: Path, output: Path) -> None:
    """One row a phrase: image, width, height, error, phrase, present, peak, boxes, scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float32())
    columns = {"image": pa.string(), "width": pa.int32(), "height": pa.int32(), "error": pa.string()}
    columns |= {"phrase": pa.string(), "present": pa.float32(), "peak": numbers, "boxes": pa.list_(numbers)}
    schema = pa.schema(list((columns | {"scores": numbers}).items()))
    part = output.with_name(f".{output.name}.{os.getpid()}")
    with pq.ParquetWriter(part, schema) as writer, lines.open(encoding="utf-8") as file:
        for line in file:
            writer.write_table(pa.Table.from_pylist(_rows(json.loads(line)), schema=schema))
    part.replace(output)


def _rows(answer: dict) -> list[dict]:
    if "error" in answer:
        return [{"image": answer["image"], "error": answer["error"]}]
    shared = {"image": answer["image"], "width": answer["size"][0], "height": answer["size"][1]}
    return [
        shared
        | {key: p[key] for key in ("phrase", "present", "peak")}
        | {"boxes": [b["xyxy"] for b in p["boxes"]], "scores": [b["score"] for b in p["boxes"]]}
        for p in answer["predictions"]
    ]


def _table(path: Path) -> list[Question]:
    if path.suffix.lower() == ".parquet":
        _require_pyarrow()
    table = open_table(path)
    missing = sorted({"image", "phrase"} - set(table.columns))
    if missing:
        raise DataError(
            f"the table {path} needs the columns image and phrase, it lacks {' and '.join(missing)}"
        )
    asked: dict[str, list[str]] = {}
    for place, cells in table.rows(["image", "phrase"]):
        image, phrase = ("" if cell is None else str(cell) for cell in cells)
        if not image.strip() or not phrase.strip():
            raise DataError(f"{place} of the table {path} lacks its image or its phrase; fill it in")
        asked.setdefault(str(image_path(path.parent, image)), []).append(phrase)
    if not asked:
        raise DataError(f"the table {path} has no row below its header; write one for each phrase")
    return [Question(image, tuple(phrases)) for image, phrases in asked.items()]


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ConfigError(
            "parquet needs pyarrow; install it with: pip install 'phrase_loc[parquet]'"
        ) from None
