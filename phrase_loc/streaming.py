"""Many photographs, many phrases: questions stream in, answers stream out, and nothing piles up.

    answers.jsonl              whole or not there: renamed into place at the end
    answers.jsonl.run.json     {"settings", "questions": a digest of each, "output": digest of the finished file}
    .answers.jsonl.partR       the answers of process R so far, one a line: digest, that of its question, JSON object
    .answers.jsonl.lock        held while a run writes

An answer is the object that `phrase-loc query --json` prints, or {"image", "error"} for a photograph that cannot be
read. Process R of S (torchrun) answers every S-th question from R on, and the first one joins the parts. An
interrupted run asks what no part answers; an answer is kept only for the question it was given to.
"""

import glob
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from phrase_loc import __version__, files
from phrase_loc.display import answer_dict, write_csv, write_parquet
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.images import IMAGE_ENDINGS, load_image
from phrase_loc.localizer import Inference, PhraseLocalizer, Prepared, prepare
from phrase_loc.models.store import model_digest
from phrase_loc.proposals import Source
from phrase_loc.tables import image_path, is_table, open_table

_LONGEST = 200  # bytes of a name; 255 are allowed, and hidden names are longer
_NAMED = 8  # endings and folders that a note names
_FULL_DISK = "free space there and run the same command again, it goes on"
_ELSEWHERE = "give another --output, or --overwrite to replace it"


@dataclass(frozen=True, slots=True)
class Question:
    """A photograph and what is asked of it."""

    image: str
    phrases: tuple[str, ...]


_Ready: TypeAlias = tuple[str, Question, Prepared | str]
_Record: TypeAlias = dict[str, Any]


def questions_of(
    source: Path, phrases: Sequence[str], note: Callable[[str], None] = lambda _: None
) -> list[Question]:
    """The questions in a folder of photographs (and below it), a table or one photograph.

    A table has the columns `image` (paths relative to the table) and `phrase`; of all else the
    `phrases` are asked. `note` is told what of a folder is left out.
    """
    if is_table(source) and not os.path.isdir(source):
        if phrases:
            raise ConfigError(f"the table {source} brings its own phrases; leave out {phrases[0]!r}")
        return _questions_in_table(source)
    if not phrases:
        raise ConfigError(
            f"expected phrases for {source}: give them after it, or --phrases FILE with one a line"
        )
    if not os.path.isdir(source):
        if not os.path.exists(source):
            raise DataError(f"image file {source} does not exist; check the path")
        return [Question(str(source), tuple(phrases))]
    notes: list[str] = []
    photographs = _photographs_in(source, notes.append)
    if not photographs:
        why = "; ".join(notes) or f"looked for {', '.join(sorted(IMAGE_ENDINGS))}"
        raise DataError(f"no image was found in {source} ({why})")
    for text in notes:
        note(text)
    return [Question(str(path), tuple(phrases)) for path in photographs]


def _questions_in_table(path: Path) -> list[Question]:
    table = open_table(path)
    missing = sorted({"image", "phrase"} - set(table.columns))
    if missing:
        raise DataError(
            f"the table {path} needs the columns image and phrase, it lacks {' and '.join(missing)}"
        )
    asked: dict[str, list[str]] = {}
    for place, cells in table.rows(["image", "phrase"]):
        # a list of Parquet is no phrase
        if not all(isinstance(cell, str) and cell.strip() for cell in cells):
            raise DataError(f"{place} of the table {path} lacks its image or its phrase as text; fill it in")
        image, phrase = cells
        asked.setdefault(str(image_path(path.parent, image)), []).append(phrase)
    if not asked:
        raise DataError(f"the table {path} has no row below its header; write one for each phrase")
    return [Question(image, tuple(phrases)) for image, phrases in asked.items()]


def _photographs_in(folder: Path, note: Callable[[str], None]) -> list[Path]:
    """The photographs in a folder and below it, by their endings alone, sorted; `note` is told what is left out.

    Hidden photographs are taken, hidden files of another ending passed over without a word; folders behind links are
    not entered.
    """
    found: list[Path] = []
    other, linked, closed = Counter[str](), Counter[str](), Counter[str]()
    for parent, folders, names in os.walk(folder, onerror=lambda error: closed.update([error.filename])):
        linked.update(path for name in folders if os.path.islink(path := os.path.join(parent, name)))
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if ending in IMAGE_ENDINGS:
                found.append(Path(parent, name))
            elif not name.startswith("."):
                other[ending or "no ending"] += 1
    left_out = {"left out {} file{} of endings that are not read": other}
    left_out |= {"did not enter {} linked folder{}": linked, "could not read {} folder{}": closed}
    for said, things in left_out.items():
        if count := things.total():
            shown = ", ".join(sorted(things)[:_NAMED]) + (", ..." if len(things) > _NAMED else "")
            note(f"{said.format(count, 's' if count > 1 else '')} ({shown})")
    return sorted(found)


def check_place(output: Path, endings: Sequence[str] = (".jsonl", ".csv", ".parquet")) -> None:
    """Raises ConfigError or DataError where no such file can be written; asked before a model is loaded."""
    if output.suffix not in endings:
        raise ConfigError(f"the output must end in {' or '.join(endings)}, got {output.name!r}")
    if len(os.fsencode(output.name)) > _LONGEST:
        raise ConfigError(f"the name of the output has more than {_LONGEST} bytes; shorten it")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except (OSError, ValueError) as error:
        why = f"{files.reason(error)}; choose a folder that can be written"
        raise DataError(f"cannot write in {output.parent}: {why}") from None
    if output.exists() and not output.is_file():
        raise DataError(f"the output {output} is a folder or a device; name a file")


def answer_many(
    localizer: PhraseLocalizer,
    questions: Sequence[Question],
    output: Path,
    *,
    top_k: int = 5,
    batch_size: int = 8,
    workers: int = 0,
    overwrite: bool = False,
    threshold: float | None = None,
    masks: bool = False,
    world: World = World(),  # noqa: B008 - a frozen value
) -> dict[str, int]:
    """Answer all questions into `output` (.jsonl, .csv or .parquet); how many were answered, resumed, refused.

    The localizer's own source proposes the boxes. `workers` processes decode (0: this one), `batch_size` photographs
    at once. A finished file of the same run is left as it is, `overwrite` replaces whatever is there. All processes
    of the `world` are given the same questions and share them. `threshold`: see `locate`, `masks`: `display`.

    Raises DataError: `output` belongs to something else, or another process is writing it.
    """
    check_place(output)
    keys = [_fingerprint(question) for question in questions]
    run = {"settings": _settings(localizer, top_k, threshold, masks), "questions": keys, "output": None}
    with ExitStack() as locks:
        if world.from_main(lambda: _is_finished(output, run, overwrite, locks)):
            return {"answered": 0, "resumed": len(questions), "refused": 0}
        world.from_main(lambda: _write_record(output, run))
        kept, mine = _kept(output), range(world.rank, len(questions), world.size)
        left: Any = [(keys[i], questions[i]) for i in mine if keys[i] not in kept]
        done, refused = len(mine) - len(left), 0
        bar = tqdm(total=len(mine), initial=done, unit="image", disable=None if world.is_main else True)
        prepared = partial(_prepared, localizer.settings, localizer.source, masks)
        try:
            loader = DataLoader(left, batch_size=batch_size, num_workers=workers, collate_fn=prepared)
            with bar:
                for batch in loader:
                    lines = ""
                    for key, answer in _answers(localizer, batch, top_k, threshold, masks):
                        text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
                        lines += files.sealed_line(f"{key} {text}")
                        refused += "error" in answer
                    files.append_text(_hidden(output, f"part{world.rank}"), lines, _FULL_DISK)
                    bar.update(len(batch))
        except RuntimeError as error:  # of torch's signal handler, wherever it finds this process
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "a decoding process was killed, perhaps for want of memory; give fewer --workers (or 0) or a "
                "smaller --batch-size, the same command goes on"
            ) from None
        world.barrier()
        world.from_main(lambda: _join(output, run))
    counts = world.sum(torch.tensor([len(left) - refused, done, refused], device=world.device))
    return dict(zip(("answered", "resumed", "refused"), counts.tolist(), strict=True))


def _prepared(
    settings: Inference, source: Source, keep: bool, asked: list[tuple[str, Question]]
) -> list[_Ready]:
    """Photographs made ready for the network; a broken one is its sentence."""
    ready: list[_Ready] = []
    for key, question in asked:
        try:
            picture = load_image(question.image)
            ready.append((key, question, prepare(picture, settings, source=source, keep=keep)))
        except DataError as error:
            ready.append((key, question, str(error)))
    return ready


def _answers(
    localizer: PhraseLocalizer, batch: list[_Ready], top_k: int, threshold: float | None, masks: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    scenes = iter(localizer.look_at([ready for *_, ready in batch if not isinstance(ready, str)]))
    for key, question, ready in batch:
        if isinstance(ready, str):
            yield key, {"image": question.image, "error": ready}
        else:
            predictions = localizer.locate(next(scenes), question.phrases, top_k=top_k, threshold=threshold)
            yield key, answer_dict(question.image, ready.size, predictions, masks)


def _settings(localizer: PhraseLocalizer, top_k: int, threshold: float | None, masks: bool) -> dict[str, Any]:
    """All that an answer depends on but photograph and phrase, as JSON values."""
    settings = json.loads(json.dumps(asdict(localizer.settings)))
    first = {"method": settings.pop("method"), "top-k": top_k, "model": model_digest(localizer.model)}
    if synonyms := getattr(getattr(localizer.model, "encoder", None), "synonyms", None):
        settings["synonyms"] = files.digest(json.dumps(synonyms, sort_keys=True).encode())[:12]
    settings |= ({} if threshold is None else {"threshold": threshold}) | ({"masks": True} if masks else {})
    return first | settings | {"version": __version__}


def _fingerprint(question: Question) -> str:
    """Another one when the photograph's file was replaced, or other phrases are asked."""
    try:
        file = files.fingerprint(question.image)
    except (OSError, ValueError):  # it is not there: its answer will be a sentence
        file = []
    return files.digest(json.dumps([file, question.image, question.phrases]).encode())[:12]


def _is_finished(output: Path, run: _Record, overwrite: bool, locks: ExitStack) -> bool:
    """Locks `output`; whether it holds the answers of this run already. Else it is free, or a DataError."""
    sentence = f"another process is writing {output}; wait for it, or give another --output"
    locks.enter_context(files.lock(_hidden(output, "lock"), sentence))
    for path in (output, record_path(output)):
        files.remove_leftovers(output.parent, name=path.name)
    held, settings, parts = None, run["settings"], _parts(output)
    with suppress(DataError) if overwrite else nullcontext():
        held = read_record(output)
    if overwrite:
        if held is None or held["settings"] != settings:
            _remove(record_path(output), *parts)
        return False
    finished = output.exists()
    if not finished and not parts:
        return False
    if finished and (held is None or held["output"] != files.digest(output)):
        raise DataError(
            f"{output} exists and was not written by this command, or has changed since; {_ELSEWHERE}"
        )
    if held is None:
        raise DataError(f"{parts[0]} does not say what its answers belong to; {_ELSEWHERE}")
    said = held["settings"]
    if other := [name for name in said | settings if said.get(name, ...) != settings.get(name, ...)]:
        told = ", ".join(f"{name} {said.get(name, 'unknown')}" for name in other)
        raise DataError(f"{output} holds answers of other settings ({told}); {_ELSEWHERE}")
    # photographs may be replaced while a run is interrupted, but what shares no question is another query
    same = held["questions"] == run["questions"]
    if not same and (finished or set(held["questions"]).isdisjoint(run["questions"])):
        raise DataError(f"{output} holds answers about other photographs or phrases; {_ELSEWHERE}")
    if finished:
        _remove(*parts)
    return finished


def _kept(output: Path) -> dict[str, tuple[Path, int]]:
    """The part and the place in it of each whole answer, by the digest of its question."""
    found = {}
    for part in _parts(output):
        with part.open("rb") as lines:
            place = 0
            for line in lines:
                if (content := files.line_in(line)) is not None:
                    found[content.partition(b" ")[0].decode()] = part, place
                place += len(line)
    return found


def _join(output: Path, run: _Record) -> None:
    """Makes the finished file of the parts, and removes them."""
    kept = _kept(output)
    if not kept.keys() >= set(run["questions"]):
        raise DataError(f"answers in the parts of {output} were changed by somebody else; run again")
    with files.writing(output, _FULL_DISK) as temporary:
        answers = _joined(kept, run["questions"])
        if writer := {".parquet": write_parquet, ".csv": write_csv}.get(output.suffix):
            writer(map(json.loads, answers), temporary)
        else:
            with temporary.open("wb") as whole:
                whole.writelines(answers)
        _write_record(output, run | {"output": files.digest(temporary)})
    _remove(*_parts(output))


def _joined(kept: dict[str, tuple[Path, int]], keys: Sequence[str]) -> Iterator[bytes]:
    """The JSON of all answers, a line each, in the order of the questions."""
    with ExitStack() as stack:
        opened = {part: stack.enter_context(part.open("rb")) for part, _ in kept.values()}
        for key in keys:
            part, place = kept[key]
            opened[part].seek(place)
            _, _, answer = opened[part].readline().rstrip(b"\n").split(b" ", 2)
            yield answer + b"\n"


def _hidden(output: Path, ending: str) -> Path:
    return output.with_name(f".{output.name}.{ending}")


def _parts(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f".{glob.escape(output.name)}.part*"))


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def record_path(output: Path) -> Path:
    """The file that says what the answers in `output` belong to."""
    return output.with_name(f"{output.name}.run.json")


def _write_record(output: Path, run: _Record) -> None:
    files.write_text(record_path(output), json.dumps(run) + "\n", _FULL_DISK)


def read_record(output: Path) -> _Record | None:
    """What the answers in `output`, or in its parts, belong to; None where nothing says it."""
    path = record_path(output)
    if not os.path.lexists(path):
        return None
    with suppress(DataError):
        match files.read_json(path, "the record"):
            case {"settings": dict(settings), "questions": list(), "output": str() | None} as held:
                settings.pop("processes", None)  # which earlier versions did not mix
                return held
    raise DataError(
        f"{path} does not say what {output.name} belongs to; move it away or give another --output"
    )
