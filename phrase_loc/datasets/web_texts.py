"""Texts alone, streamed from what `train` reads: captions files, tables, folders and tar shards, for a vocabulary.

    captions.txt, captions.txt.gz       a text a line; `id<tab>text` keeps what follows the last tab
    pairs.csv, .tsv, .jsonl, .parquet   the columns (fields) that hold text; a .txt with such a header is a table, too
    photos/                             a folder with a captions file, or a .txt beside each image
    00000.tar, 00000.tar.gz             the texts of its samples

Tables and captions are not held: 100 million captions need no more memory than one.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from phrase_loc.datasets.web_faults import Fault, Faults
from phrase_loc.datasets.web_paths import expand, is_remote
from phrase_loc.datasets.web_shards import read_samples, side_table
from phrase_loc.datasets.web_sources import TEXT_FIELDS, json_fields
from phrase_loc.datasets.web_tables import IMAGE_COLUMNS, read_folder, text_columns
from phrase_loc.errors import DataError
from phrase_loc.tables import Table, cell_texts, is_table, open_table
from phrase_loc.text_files import lines_of, opened, text_lines, told

_SHARDS = (".tar", ".tar.gz")
_CAPTIONS = (".txt", ".txt.gz")


def stream_texts(
    paths: str | Sequence[str], fields: Sequence[str] = TEXT_FIELDS, faults: Faults | None = None
) -> Iterator[str]:
    """The non-empty texts of files, one after another.

    Args:
        paths: files, folders, globs, brace ranges or `@list` files.
        fields: columns of a table, or fields of a JSON object, that hold text (a string or a list of strings).
        faults: what cannot be read of a file is counted there, and named in the log.

    Raises:
        DataError: a file is missing, broken, of an unknown kind, or has none of the fields.
    """
    faults = faults or Faults()
    for path in expand(paths):
        if is_remote(path):
            raise DataError(f"{path} is an address; copy the file to a disk first")
        for text in _texts(Path(path), tuple(fields), faults):
            if text := text.strip():
                yield text


def _texts(path: Path, fields: Sequence[str], faults: Faults) -> Iterator[str]:
    name = path.name.lower()
    if path.is_dir():
        yield from _folder(path, fields, faults)
    elif name.endswith(_SHARDS):
        yield from _shard(path, fields, faults)
    elif is_table(path):
        table = open_table(path)
        columns = text_columns(table.columns, fields)
        if not columns:
            raise DataError(
                f"{path} has no column named {', '.join(fields)} (it has {', '.join(table.columns)[:200]}); "
                "name one with --fields"
            )
        yield from _cells(table, columns, faults)
    elif name.endswith(_CAPTIONS):
        yield from _captions(path, fields, faults)
    else:
        kinds = ", ".join((*_CAPTIONS, ".csv", ".tsv", ".jsonl", ".parquet", *_SHARDS))
        raise DataError(f"{path} is of no known kind; expected one of {kinds}, or a folder")


def _cells(table: Table, columns: Sequence[str], faults: Faults) -> Iterator[str]:
    def bad(place: str, wrong: str) -> None:
        faults.add(Fault("row", f"{table.path}:{place}", wrong))

    for _, cells in table.rows(columns, bad):
        for cell in cells:
            yield from cell_texts(cell)


def _captions(path: Path, fields: Sequence[str], faults: Faults) -> Iterator[str]:
    first = next(text_lines(path, "the texts"), "")
    table = open_table(path) if first.strip() else None
    columns = text_columns(table.columns, fields) if table else []
    if table and columns and any(name in IMAGE_COLUMNS for name in table.columns):
        yield from _cells(table, columns, faults)
        return
    for line in text_lines(path, "the texts"):
        yield line.rstrip("\r\n").rpartition("\t")[2]


def _folder(path: Path, fields: Sequence[str], faults: Faults) -> Iterator[str]:
    table = read_folder(path, fields)
    for fault in table.faults:
        faults.add(fault)
    for texts in table.texts.values():
        yield from texts


def _shard(path: Path, fields: Sequence[str], faults: Faults) -> Iterator[str]:
    """The texts of a shard's samples, those without an image among them."""
    shard = str(path)
    with opened(path, "the shard") as packed, tempfile.TemporaryFile() as unpacked:
        file = packed
        if path.suffix.lower() == ".gz":  # its checksum stands at its end
            with told(path, "the shard"):
                shutil.copyfileobj(packed, unpacked)
            file = unpacked  # type: ignore[assignment]
        samples, found = read_samples(shard, file)
        for fault in found:
            if not samples and fault.kind == "shard":
                raise DataError(f"the shard {path} holds no samples: {fault.detail}")
            if fault.kind != "lone":
                faults.add(fault)
        bare = any(parts.keys() == {"image"} for parts in samples.values())
        beside = side_table(shard, fields) if bare else {}
        for (_, key), parts in samples.items():
            if parts.keys() == {"image"}:
                yield beside.get(key) or beside.get(key.rpartition("/")[2]) or ""
            for kind in ("text", "json"):
                _, offset, size = parts.get(kind, (0, 0, 0))
                file.seek(offset)
                raw = file.read(size)
                texts, wrong = lines_of(raw) if kind == "text" else _json(raw, fields)
                if wrong and kind in parts:
                    faults.add(Fault("text", f"{shard}:{key}", wrong))
                yield from texts


def _json(raw: bytes, fields: Sequence[str]) -> tuple[list[str], str]:
    texts = json_fields(raw, fields)
    return texts or [], "its .json is no JSON object" if texts is None else ""
