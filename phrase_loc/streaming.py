"""Many photographs, many phrases: questions stream in, answers stream out, and nothing piles up.

A question is an image and its phrases; an answer is the object that `phrase-loc query --json` prints, one a
line (JSON Lines), or {"image", "error"} for a photograph that could not be read. Decoding runs in worker
processes, the network in batches. Each process of `torchrun` takes every size-th question and writes a part
of its own; the first one joins the parts in the order of the questions. A run that was interrupted continues
where its parts end: `answer_file` knows what they belong to.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from phrase_loc import __version__, answer_file, files
from phrase_loc.answer_file import Run
from phrase_loc.display import to_dict
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.images import IMAGE_ENDINGS, load_image
from phrase_loc.localizer import Inference, PhraseLocalizer, Prepared, prepare
from phrase_loc.models.store import model_digest
from phrase_loc.proposals import Source
from phrase_loc.tables import image_path, open_table

_NAMED = 8  # endings and folders that a sentence names


@dataclass(frozen=True, slots=True)
class Question:
    """A photograph and what is asked of it."""

    image: str
    phrases: tuple[str, ...]


def questions_of(
    source: Path, phrases: Sequence[str], note: Callable[[str], None] = lambda _: None
) -> list[Question]:
    """The questions in a folder of photographs, a table or one photograph.

    Args:
        source: a folder (searched below as well), a .csv or .parquet table with the columns `image` and
            `phrase` (paths relative to the table), or an image file.
        phrases: asked of every photograph; a table brings its own.
        note: told what of a folder is left out.

    Raises:
        DataError: nothing to ask about, a column is missing.
    """
    if source.suffix.lower() in {".csv", ".parquet"} and not os.path.isdir(source):
        if phrases:
            raise ConfigError(f"the table {source} brings its own phrases; leave out {phrases[0]!r}")
        return _table(source)
    if not phrases:
        raise ConfigError(
            f"expected phrases for {source}: give them after it, or --phrases FILE with one a line"
        )
    if not os.path.isdir(source):
        if not os.path.exists(source):
            raise DataError(f"image file {source} does not exist; check the path")
        return [Question(str(source), tuple(phrases))]
    photographs = _photographs_in(source, note)
    if not photographs:
        raise DataError(f"no image was found in {source} (looked for {', '.join(sorted(IMAGE_ENDINGS))})")
    return [Question(str(path), tuple(phrases)) for path in photographs]


def read_phrases(path: Path) -> tuple[str, ...]:
    """One phrase a line, as it stands; empty lines are passed over."""
    what = "the file of phrases"
    try:
        piped = os.fspath(path).startswith("/dev/") and path.is_fifo()  # a shell's <(...), or /dev/stdin
        text = path.read_text(encoding="utf-8-sig") if piped else files.read_text(path, what)
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{what} {path} cannot be read as UTF-8 text; save it as a file") from None
    if "\0" in text:
        raise DataError(f"{what} {path} holds null characters and is no UTF-8 text; save it as UTF-8")
    phrases = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not phrases:
        raise DataError(f"{what} {path} is empty; write one phrase a line")
    return phrases


def answer_many(
    localizer: PhraseLocalizer,
    questions: Sequence[Question],
    output: Path,
    *,
    top_k: int = 5,
    batch_size: int = 8,
    workers: int = 0,
    overwrite: bool = False,
    world: World = World(),  # noqa: B008 - a frozen value
) -> dict[str, int]:
    """Answer all questions into `output` (.jsonl or .parquet); how many were answered, resumed, refused.

    Args:
        localizer: that answers; its own source proposes the boxes.
        questions: the same on all processes.
        output: a finished file of the same run is left as it is, one of another run is refused.
        top_k: boxes a phrase.
        batch_size: photographs at once.
        workers: decoding processes, 0 to decode in this one.
        overwrite: replace what is in `output`, whatever it belongs to.
        world: the processes that share the questions.

    Raises:
        ConfigError: `output` has another ending, or parquet is asked for without pyarrow.
        DataError: the folder of `output` is missing or not writable, `output` belongs to something else, or
            another process is writing it.
    """
    answer_file.check_place(output)
    if output.suffix == ".parquet":
        _require_pyarrow()
    run = Run(settings_of(localizer, top_k, world.size), tuple(map(_fingerprint, questions)))
    mine = range(world.rank, len(questions), world.size)
    with _claimed(output, run, overwrite, world) as finished:
        if finished:
            return {"answered": 0, "resumed": len(questions), "refused": 0}
        part = answer_file.part_path(output, world.rank, world.size)
        held = answer_file.read_run(output)
        done = answer_file.resume(part, held, run, [q.image for q in questions], mine)
        world.barrier()
        if world.is_main:
            answer_file.write_run(output, run)
        world.barrier()
        decoded = _Decoded([questions[i] for i in mine[done:]], localizer.settings, localizer.source)
        counts = {"answered": 0, "resumed": done, "refused": 0}
        part.touch()
        bar = tqdm(total=len(mine), initial=done, unit="image", disable=None if world.is_main else True)
        loader = DataLoader(decoded, batch_size=batch_size, num_workers=workers, collate_fn=_as_list)
        with bar, _dying_workers_told():
            for batch in loader:
                answers = list(_answers(localizer, batch, top_k))
                refused = sum("error" in answer for answer in answers)
                counts["refused"] += refused
                counts["answered"] += len(answers) - refused
                files.append_text(part, "".join(map(_line, answers)), answer_file.ADVICE)
                bar.update(len(batch))
        world.barrier()
        if world.is_main:
            answer_file.join(output, run, world.size)
        world.barrier()
    totals = world.sum(torch.tensor(list(counts.values()), device=world.device))
    return dict(zip(counts, totals.tolist(), strict=True))


def settings_of(localizer: PhraseLocalizer, top_k: int, processes: int = 1) -> dict[str, Any]:
    """All that an answer depends on but photograph and phrase, as JSON values."""
    settings = json.loads(json.dumps(asdict(localizer.settings)))
    first = {"method": settings.pop("method"), "top-k": top_k, "model": model_digest(localizer.model)}
    return first | settings | {"processes": processes, "version": __version__}


def _fingerprint(question: Question) -> str:
    """Another one when the photograph's file was replaced, or other phrases are asked."""
    try:
        file = files.fingerprint(question.image)
    except (OSError, ValueError):  # it is not there: its answer will be a sentence
        file = []
    return files.digest(json.dumps([file, question.image, question.phrases]).encode())[:12]


@contextmanager
def _claimed(output: Path, run: Run, overwrite: bool, world: World) -> Iterator[bool]:
    """Holds the output for all processes of this run; whether it is finished already.

    The first process looks and says no; the others end without a word.
    """
    refusal, finished = None, False
    sentence = f"another process is writing {output}; wait for it, or give another --output"
    with ExitStack() as stack:
        if world.is_main:
            try:
                stack.enter_context(files.lock(answer_file.lock_path(output), sentence))
                finished = answer_file.is_finished(output, run, overwrite)
            except DataError as error:
                refusal = error
        told = world.sum(
            torch.tensor([refusal is not None, finished], dtype=torch.int64, device=world.device)
        )
        if refusal is not None:
            raise refusal
        if told[0]:
            raise SystemExit(2)
        yield bool(told[1])


@contextmanager
def _dying_workers_told() -> Iterator[None]:
    """A decoding process that dies is one sentence, wherever torch's signal finds this process."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a decoding process was killed, perhaps for want of memory; give fewer --workers (or 0) or a "
            "smaller --batch-size, the same command goes on"
        ) from None


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

    def __init__(self, questions: list[Question], settings: Inference, source: Source):
        self.questions, self.settings, self.source = questions, settings, source

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> _Item:
        question = self.questions[index]
        try:
            return _Item(question, prepare(load_image(question.image), self.settings, source=self.source))
        except DataError as error:
            return _Item(question, None, str(error))


def _as_list(items: list[_Item]) -> list[_Item]:
    return items


def _line(answer: dict) -> str:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n"


def _photographs_in(folder: Path, note: Callable[[str], None]) -> list[Path]:
    """The photographs in a folder and below it, by their endings alone, sorted; `note` is told what is left out.

    Hidden photographs are taken, hidden files of another ending passed over without a word; folders behind links are
    not entered.
    """
    found: list[Path] = []
    other: Counter[str] = Counter()
    linked: list[str] = []
    closed: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: closed.append(error.filename)):
        linked += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if ending in IMAGE_ENDINGS:
                found.append(Path(parent, name))
            elif not name.startswith("."):
                other[ending or "no ending"] += 1
    for sentence, count, left_out in (
        ("left out {} file{} of endings that are not read", other.total(), other),
        ("did not enter {} linked folder{}", len(linked), linked),
        ("could not read {} folder{}", len(closed), closed),
    ):
        if count:
            few = ", ".join(sorted(left_out)[:_NAMED]) + (", ..." if len(left_out) > _NAMED else "")
            note(f"{sentence.format(count, '' if count == 1 else 's')} ({few})")
    return sorted(found)


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
