"""Texts alone, streamed from what `train` reads: captions files, tables, folders and tar shards, for a vocabulary.

    captions.txt, captions.txt.gz       a text a line; `id<tab>text` keeps what follows the last tab
    pairs.csv, .tsv, .jsonl, .parquet   the columns (fields) that hold text; a .txt with such a header is a table, too
    photos/                             a folder with a captions file, or a .txt beside each image
    00000.tar, 00000.tar.gz             the texts of its samples

Tables and captions are not held: 100 million captions need no more memory than one.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phrase_loc.errors import DataError
from phrase_loc.pairs.paths import exists, expand, is_remote
from phrase_loc.pairs.shards import ShardReader, load_index, read_samples, side_table
from phrase_loc.pairs.tables import (
    IMAGE_COLUMNS,
    PackedStrings,
    TableSource,
    read_folder,
    read_table,
    text_columns,
)
from phrase_loc.skipped import Fault, Faults
from phrase_loc.tables import (
    Table,
    cell_texts,
    is_table,
    is_there,
    lines_of,
    open_table,
    opened,
    text_lines,
    told,
)

#: Fields of a JSON member or columns of a table that hold text, in the order in which they are read.
TEXT_FIELDS = ("captions", "caption", "text", "texts", "title", "description", "tags", "keywords")


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


class Source(Protocol):
    """Pairs of image and text by number."""

    faults: list[Fault]  # what was wrong when the source was opened
    groups: np.ndarray  # (n,) number of the shard of each sample, ascending; one group for a table

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What the log calls sample `i`."""

    def texts(self, i: int) -> list[str]:
        """The texts of sample `i`, empty when there are none; raises DataError."""

    def told(self, i: int) -> tuple[list[str], str]:
        """As `texts`, and what is wrong with them."""

    def image(self, i: int) -> bytes:
        """The file of image `i`, undecoded; raises DataError."""


def open_source(
    paths: str | Sequence[str], index: Path | None = None, text_fields: Sequence[str] = TEXT_FIELDS
) -> Source:
    """The source that a user's paths describe.

    Args:
        paths: tars (globs, ranges, lists, `@file`), one table, or one folder.
        index: folder where the shards' offset indices are kept.
        text_fields: JSON fields or columns that hold text.

    Raises:
        DataError: nothing there, kinds mixed, or no usable sample at all.
    """
    files = expand(paths)
    missing = next((path for path in files if not _there(path)), None)
    if missing:
        raise DataError(f"{missing} does not exist; check data.shards")
    if len(files) == 1 and Path(files[0]).is_dir():
        source: Source = TableSource(read_folder(Path(files[0]), text_fields))
    elif all(path.lower().endswith(".tar") for path in files):
        source = ShardSource(files, index, text_fields)
    elif len(files) == 1 and is_table(files[0]):
        source = TableSource(read_table(Path(files[0]), text_fields))
    else:
        odd = next((path for path in files if not path.lower().endswith(".tar")), files[0])
        raise DataError(
            f"expected .tar shards, one .csv/.tsv/.parquet/.jsonl table or one folder, got {odd} "
            f"and {len(files) - 1} more; a .tar.gz must be unpacked to .tar first"
        )
    if len(source) == 0:
        reason = f": {source.faults[0].name} {source.faults[0].detail}" if source.faults else ""
        raise DataError(f"no image with a text was found in {files[0]}{reason}")
    return source


def _there(path: str) -> bool:
    if not is_remote(path):
        return is_there(path)
    try:
        return exists(path)
    except OSError as error:
        raise DataError(f"{path} cannot be reached: {error}") from None


class ShardSource:
    """Samples of tar shards, in the order of the shards; a key is unique within its shard."""

    def __init__(self, shards: Sequence[str], index: Path | None, text_fields: Sequence[str] = TEXT_FIELDS):
        self.reader = ShardReader(shards)
        self.text_fields = tuple(text_fields)
        self.faults: list[Fault] = []
        tables = []
        for shard in shards:
            rows, faults = load_index(shard, index)
            tables.append(rows)
            self.faults += faults
        self.rows = np.concatenate(tables)
        self.groups = np.repeat(np.arange(len(shards)), [len(rows) for rows in tables])
        self._bare = np.flatnonzero((self.rows["text_size"] == 0) & (self.rows["json_size"] == 0))
        self._beside = self._from_tables()

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """Shard and name within it."""
        return f"{self.reader.shards[int(self.groups[i])]}:{self._key(i)}"

    def texts(self, i: int) -> list[str]:
        """Texts of the .txt, the .json and, where neither is there, the shard's Parquet file."""
        return self.told(i)[0]

    def told(self, i: int) -> tuple[list[str], str]:
        """The texts of sample `i`, and what is wrong with its text files."""
        row, shard = self.rows[i], int(self.groups[i])
        found: list[str] = []
        wrong = ""
        if row["text_size"]:
            lines, wrong = lines_of(self.reader.read(shard, int(row["text"]), int(row["text_size"])))
            found += lines
        if row["json_size"]:
            raw = self.reader.read(shard, int(row["json"]), int(row["json_size"]))
            fields = json_fields(raw, self.text_fields)
            found += fields or []
            wrong = "its .json is no JSON object" if fields is None else wrong
        if not row["text_size"] and not row["json_size"]:
            found += self._beside[int(np.searchsorted(self._bare, i))].split("\n")
        return clean(found), wrong

    def image(self, i: int) -> bytes:
        """The image member."""
        row = self.rows[i]
        return self.reader.read(int(self.groups[i]), int(row["image"]), int(row["image_size"]))

    def _key(self, i: int) -> str:
        row = self.rows[i]
        return self.reader.name_at(int(self.groups[i]), int(row["header"]), int(row["image"]))

    def _from_tables(self) -> PackedStrings:
        """A text for each sample that has none in its shard: read once, since samples are asked for in any order."""
        texts = []
        shard, table = -1, dict[str, str]()
        for i in map(int, self._bare):
            if self.groups[i] != shard:
                shard = int(self.groups[i])
                table = self._side_table(self.reader.shards[shard])
            key = self._key(i) if table else ""
            texts.append(table.get(key) or table.get(key.rpartition("/")[2]) or "")
        return PackedStrings(texts)

    def _side_table(self, shard: str) -> dict[str, str]:
        try:
            return side_table(shard, self.text_fields)
        except DataError as error:
            self.faults.append(Fault("shard", f"{shard}:table", str(error)))
            return {}


def json_texts(raw: bytes, fields: Sequence[str]) -> list[str]:
    """Texts in the given fields of a JSON object: strings, or lists of strings; none in a broken one."""
    return json_fields(raw, fields) or []


def json_fields(raw: bytes, fields: Sequence[str]) -> list[str] | None:
    """As `json_texts`, but None where the bytes are no JSON object."""
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict):
        return None
    return [text for name in fields for text in _strings(tree.get(name))]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (item for item in value if isinstance(item, str))


def clean(texts: Iterable[str]) -> list[str]:
    """Texts without blanks around them, each once, none empty."""
    whole = (text.encode("utf-8", "replace").decode() for text in texts)  # JSON can hold halves of characters
    return list(dict.fromkeys(stripped for text in whole if (stripped := text.strip())))
