"""A file of answers that grows, outlives a kill, and knows what it belongs to.

    answers.jsonl              whole or not there: renamed into place at the end
    answers.jsonl.run.json     what it belongs to, and the digest of the finished file
    .answers.jsonl.partRofS    the answers of process R of S so far, one JSON object a line
    .answers.jsonl.lock        held while a run writes

Process R answers every S-th question from R on, in order. An answer is kept only for the question it was given to.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phrase_loc import files
from phrase_loc.errors import ConfigError, DataError

ENDINGS = (".jsonl", ".parquet")
_LONGEST = 200  # bytes of a name; 255 are allowed, and hidden names are longer
_ROWS = 4096  # of a row group
#: What to do when the disk is full.
ADVICE = "free space there and run the same command again, it goes on"


@dataclass(frozen=True)
class Run:
    """What answers belong to.

    Attributes:
        settings: JSON values by the names in which they are told: method, top-k, model, ...
        questions: for each a digest of the photograph's file and the phrases, in order.
        output: digest of the finished file, None before.
    """

    settings: dict[str, Any]
    questions: tuple[str, ...]
    output: str | None = None


def check_place(output: Path) -> None:
    """Whether a file of answers can be written there; said before a model is loaded.

    Raises:
        ConfigError: the ending is unknown, or the name too long.
        DataError: the folder is missing or read-only, or something else has the name.
    """
    if output.suffix not in ENDINGS:
        raise ConfigError(f"the output must end in .jsonl or .parquet, got {output.name!r}")
    if len(os.fsencode(output.name)) > _LONGEST:
        raise ConfigError(f"the name of the output has more than {_LONGEST} bytes; shorten it")
    folder = output.parent
    if not os.path.isdir(folder):
        reason = "Not a directory" if os.path.exists(folder) else "No such file or directory"
        raise DataError(f"cannot write in {folder}: {reason}; choose a folder that exists")
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write in {folder}: Permission denied; choose a folder that can be written")
    if output.exists() and not output.is_file():
        raise DataError(f"the output {output} is a folder or a device; name a file")


def lock_path(output: Path) -> Path:
    """Of the file that a run holds while it writes."""
    return output.with_name(f".{output.name}.lock")


def part_path(output: Path, rank: int, size: int) -> Path:
    """Of the answers of one process so far."""
    return output.with_name(f".{output.name}.part{rank}of{size}")


def read_run(output: Path) -> Run | None:
    """What the answers in `output`, or in its parts, belong to; None where nothing says it.

    Raises:
        DataError: the record is broken, or something else has its name.
    """
    path = _record(output)
    if not os.path.lexists(path):
        return None
    try:
        values = files.read_json(path, "the record")
        run = Run(values["settings"], tuple(values["questions"]), values["output"])
        good = isinstance(run.settings, dict) and all(isinstance(q, str) for q in run.questions)
    except (KeyError, TypeError, DataError):
        good = False
    if not good:
        raise DataError(
            f"{path} does not say what {output.name} belongs to; move it away or give another --output"
        )
    return run


def write_run(output: Path, run: Run) -> None:
    """Writes what the answers belong to; before the first of them."""
    files.write_text(_record(output), json.dumps(asdict(run)) + "\n", ADVICE)


def is_finished(output: Path, run: Run, overwrite: bool = False) -> bool:
    """Whether `output` holds the answers of this run already; else it is free to be written.

    Args:
        output: whose lock is held.
        run: that is to be answered.
        overwrite: answers of other runs may be replaced, and this one is answered once more.

    Raises:
        DataError: `output` or its parts belong to something else.
    """
    files.remove_leftovers(output.parent, name=output.name)
    files.remove_leftovers(output.parent, name=_record(output).name)
    parts = [part for part in _parts(output) if part.stat().st_size]
    try:
        held = read_run(output)
    except DataError:
        if not overwrite:
            raise
        held = None
        _record(output).unlink()
    if overwrite:
        if held is None or held.settings != run.settings:
            _remove(parts)
        return False
    if output.exists():
        if held is None or held.output != files.digest(output):
            raise DataError(
                f"{output} exists and was not written by this command, or has changed since; give another --output, "
                "or --overwrite to replace it"
            )
        _check_same(output, held, replace(run, settings=run.settings | _processes(held)))
        if held.questions != run.questions:
            raise DataError(
                f"{output} holds answers about other photographs or phrases; give another --output, or --overwrite "
                "to replace it"
            )
        _remove(_parts(output))
        return True
    if parts and held is None:
        raise DataError(
            f"{parts[0]} does not say what its answers belong to; give another --output, or --overwrite to replace it"
        )
    if parts and held is not None:
        _check_same(output, held, run)
    return False


def resume(part: Path, held: Run | None, run: Run, images: Sequence[str], mine: Iterable[int]) -> int:
    """How many leading questions a part answers; what follows them is cut off.

    Args:
        part: of one process; it need not exist.
        held: what it belongs to, by `read_run`.
        run: that goes on.
        images: the name of each question's photograph.
        mine: the numbers of this process's questions, in order.
    """
    if held is None or not part.exists():
        part.unlink(missing_ok=True)
        return 0
    done = end = 0
    with part.open("rb") as lines:
        for number, line in zip(mine, lines):
            same = held.questions[number : number + 1] == run.questions[number : number + 1]
            if not same or not _is_about(line, images[number]):
                break
            done, end = done + 1, end + len(line)
    os.truncate(part, end)
    return done


def join(output: Path, run: Run, size: int) -> None:
    """Makes the finished file of the parts of `size` processes, and removes them."""
    parts = [part_path(output, rank, size) for rank in range(size)]
    with files.writing(output, ADVICE) as temporary:
        lines = _lines(parts, len(run.questions))
        if output.suffix == ".parquet":
            _write_parquet(lines, temporary)
        else:
            with temporary.open("wb") as whole:
                whole.writelines(lines)
        write_run(output, replace(run, output=files.digest(temporary)))
    _remove(parts)


def _record(output: Path) -> Path:
    return output.with_name(f"{output.name}.run.json")


def _parts(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f".{glob.escape(output.name)}.part*of*"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _processes(run: Run) -> dict[str, Any]:
    """What parts depend on, and a finished file does not."""
    return {name: value for name, value in run.settings.items() if name == "processes"}


def _check_same(output: Path, held: Run, run: Run) -> None:
    nothing = object()
    names = [*held.settings, *(name for name in run.settings if name not in held.settings)]
    other = [n for n in names if held.settings.get(n, nothing) != run.settings.get(n, nothing)]
    if other:
        told = ", ".join(f"{name} {held.settings.get(name, 'unknown')}" for name in other)
        raise DataError(
            f"{output} holds answers of other settings ({told}); give another --output, or --overwrite to replace it"
        )


def _is_about(line: bytes, image: str) -> bool:
    """Whether a line is a whole answer about a photograph."""
    try:
        answer = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(answer, dict) and answer.get("image") == image


def _lines(parts: Sequence[Path], total: int) -> Iterator[bytes]:
    """All answers in the order of the questions."""
    with ExitStack() as stack:
        opened = [stack.enter_context(part.open("rb")) for part in parts]
        for number in range(total):
            line = opened[number % len(parts)].readline()
            if not line.endswith(b"\n"):
                raise DataError(f"{parts[number % len(parts)]} was changed by somebody else; run again")
            yield line


def _write_parquet(lines: Iterable[bytes], path: Path) -> None:
    """One row a phrase: image, width, height, error, phrase, present, peak, boxes, scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float32())
    columns = {"image": pa.string(), "width": pa.int32(), "height": pa.int32(), "error": pa.string()}
    columns |= {"phrase": pa.string(), "present": pa.float32(), "peak": numbers, "boxes": pa.list_(numbers)}
    schema = pa.schema(list((columns | {"scores": numbers}).items()))
    rows: list[dict] = []
    with pq.ParquetWriter(path, schema) as writer:
        for line in lines:
            rows += _rows(json.loads(line))
            if len(rows) >= _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _rows(answer: dict) -> list[dict]:
    image = _text(answer["image"])
    if "error" in answer:
        return [{"image": image, "error": _text(answer["error"])}]
    shared = {"image": image, "width": answer["size"][0], "height": answer["size"][1]}
    return [
        shared
        | {"phrase": _text(p["phrase"]), "present": p["present"], "peak": p["peak"]}
        | {"boxes": [b["xyxy"] for b in p["boxes"]], "scores": [b["score"] for b in p["boxes"]]}
        for p in answer["predictions"]
    ]


def _text(name: str) -> str:
    """What Parquet can hold: bytes of a name that are not UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
