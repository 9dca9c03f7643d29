"""Image-text pairs as people keep them: tar shards, a table, or a folder.

`open_source` gives pairs by number, for `train`; `stream_texts` texts alone, one after another, for a vocabulary: 100
million captions need no more memory than one.
"""

import json
import logging
import os
import shutil
import tempfile
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from phrase_loc import files, tables
from phrase_loc.errors import DataError
from phrase_loc.images import IMAGE_ENDINGS, UNREAD_ENDINGS
from phrase_loc.pairs.paths import exists, expand, is_remote
from phrase_loc.pairs.shards import ShardReader, load_index, read_samples, side_table
from phrase_loc.skipped import Fault, Skipped

log = logging.getLogger(__name__)

#: Fields of a JSON member or columns of a table that hold text, in the order in which they are read.
TEXT_FIELDS = ("captions", "caption", "text", "texts", "title", "description", "tags", "keywords")
IMAGE_COLUMNS = (
    "image",
    "path",
    "file_name",
    "filename",
    "file",
    "filepath",
    "image_path",
    "image_name",
)
CAPTION_FILES = (
    *("captions.csv", "captions.tsv", "captions.txt", "captions.jsonl", "metadata.jsonl"),
    *("metadata.csv", "metadata.parquet", "captions.parquet", "results.csv"),
)
_SHARDS = (".tar", ".tar.gz")
_CAPTIONS = (".txt", ".txt.gz")
_MANY = 100  # texts of an image from which they are looked up in a set

#: Path of an image -> its texts, in the order of the file; what was wrong.
Pairs = tuple[dict[str, list[str]], list[Fault]]


class Source(Protocol):
    """Pairs of image and text by number."""

    faults: list[Fault]  # what was wrong when the source was opened
    groups: np.ndarray  # (n,) number of the shard of each sample, ascending; one group for a table

    def __len__(self) -> int:
        return len(self.groups)

    def name(self, i: int) -> str:
        """What the log calls sample `i`."""

    def told(self, i: int) -> tuple[list[str], str]:
        """The texts of sample `i`, and what is wrong with them; raises DataError."""

    def texts(self, i: int) -> list[str]:
        """The texts of sample `i`, empty when there are none; raises DataError."""
        return self.told(i)[0]

    def image(self, i: int) -> bytes:
        """The file of image `i`, undecoded; raises DataError."""


def open_source(
    paths: str | Sequence[str], index: Path | None = None, text_fields: Sequence[str] = TEXT_FIELDS
) -> Source:
    """The source that paths describe: tars, one table, or one folder.

    `index` is a folder where the shards' offset indices are kept, `text_fields` are JSON fields or columns of text.

    Raises:
        DataError: nothing there, kinds mixed, or no usable sample at all.
    """
    found = expand(paths)
    first = Path(found[0])
    missing = next((path for path in found if not exists(path)), None)
    if missing:
        raise DataError(f"{missing} does not exist; check data.shards")
    odd = [path for path in found if not path.lower().endswith(".tar")]
    if len(found) == 1 and first.is_dir():
        source: Source = TableSource(*read_folder(first, text_fields))
    elif not odd:
        source = ShardSource(found, index, text_fields)
    elif len(found) == 1 and tables.is_table(first):
        source = TableSource(*read_table(first, text_fields))
    else:
        raise DataError(
            f"expected .tar shards, one .csv/.tsv/.parquet/.jsonl table or one folder, got {odd[0]} "
            f"and {len(found) - 1} more; a .tar.gz must be unpacked to .tar first"
        )
    if len(source) == 0:
        reason = f": {source.faults[0].name} {source.faults[0].detail}" if source.faults else ""
        raise DataError(f"no image with a text was found in {first}{reason}")
    return source


class PackedStrings:
    """A frozen list of strings in two arrays, little larger than the characters; forked workers share them."""

    def __init__(self, strings: Iterable[str]):
        data, ends = bytearray(), array("q")
        for text in strings:
            data += text.encode("utf-8", "surrogatepass")  # file names need not be UTF-8
            ends.append(len(data))
        self.ends = np.frombuffer(ends, np.int64)
        self.data = np.frombuffer(data, np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.data[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogatepass")


class TableSource(Source):
    """The pairs of a table or a folder; what is wrong with a row is known from the start."""

    def __init__(self, texts: dict[str, list[str]], faults: list[Fault]):
        self.paths = PackedStrings(texts)
        self._texts = PackedStrings("\n".join(several) for several in texts.values())
        self.faults = faults
        self.groups = np.zeros(len(self.paths), np.int64)

    def name(self, i: int) -> str:
        """The image's path."""
        return self.paths[i]

    def told(self, i: int) -> tuple[list[str], str]:
        """The texts of the rows of this image."""
        return [text for text in self._texts[i].split("\n") if text], ""

    def image(self, i: int) -> bytes:
        """The image file."""
        return files.read_bytes(self.paths[i], "the image")


def read_table(path: Path, text_fields: Sequence[str]) -> Pairs:
    """The pairs of a table; rows of one image are its several captions, paths count from the table's folder."""
    table = tables.open_table(path)
    image_column = next((name for name in IMAGE_COLUMNS if name in table.columns), None)
    columns = text_columns(table.columns, text_fields)
    if image_column is None or not columns:
        raise DataError(
            f"{path} needs a column for the image ({', '.join(IMAGE_COLUMNS[:4])}, ...) and one for the text "
            f"({', '.join(text_fields)}), got {', '.join(table.columns[:12])[:200]}; name it in data.text_fields"
        )
    texts: dict[str, list[str]] = {}
    faults: list[Fault] = []
    many: dict[str, set[str]] = {}

    def bad(place: str, wrong: str, kind: str = "row") -> None:
        faults.append(Fault(kind, f"{path}:{place}", wrong))

    for place, (name, *cells) in table.rows([image_column, *columns], bad):
        if not isinstance(name, str) or not name.strip():
            bad(place, "names no image", "lone")
            continue
        image = str(tables.image_path(path.parent, name))
        held = texts.setdefault(image, [])
        if len(held) > _MANY and image not in many:
            many[image] = set(held)
        known: Collection[str] = many.get(image, held)
        found = dict.fromkeys(text for cell in cells for text in tables.cell_texts(cell))
        fresh = [text for text in found if text not in known]
        if found and not fresh:
            bad(place, "repeats an earlier row", "duplicate")
        held += fresh
        if image in many:
            many[image].update(fresh)
    return texts, faults


def read_folder(folder: Path, text_fields: Sequence[str]) -> Pairs:
    """The pairs of a folder with one of CAPTION_FILES, or with a .txt beside each image."""
    named = [name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(named) > 1:
        log.warning("%s: %s is read, and not %s", folder, named[0], ", ".join(named[1:]))
    if named:
        return read_table(folder / named[0], text_fields)
    texts: dict[str, list[str]] = {}
    faults: list[Fault] = []
    for path in _files_below(folder):
        ending, sidecar = path.suffix.lower(), path.with_suffix(".txt")
        if ending in UNREAD_ENDINGS:
            faults.append(Fault("image", str(path), f"is of a format that is not read ({ending})"))
        elif ending in IMAGE_ENDINGS and not sidecar.is_file():
            faults.append(Fault("lone", str(path), "has no .txt beside it"))
        elif ending in IMAGE_ENDINGS:
            try:
                lines, wrong = tables.lines_of(files.read_bytes(sidecar, "the text"))
            except DataError as error:
                lines, wrong = [], str(error)
            texts[str(path)] = lines
            faults += [Fault("text", str(sidecar), wrong)] if wrong else []
    return texts, faults


def _files_below(folder: Path) -> list[Path]:
    """The files below a folder, sorted; links to folders are followed, each folder is entered once."""
    entered: set[str] = set()
    found: list[Path] = []

    def failed(error: OSError) -> None:
        log.warning("the folder %s is left out: %s", error.filename, error.strerror)

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        if (real := os.path.realpath(parent)) in entered:
            folders.clear()
            log.warning("the folder %s is left out: a link leads to it a second time", parent)
            continue
        entered.add(real)
        found += [Path(parent, name) for name in names]
    return sorted(found)


def text_columns(columns: Sequence[str], text_fields: Sequence[str]) -> list[str]:
    """The columns that hold text; `comment` is what Flickr30k's results.csv calls it."""
    fields = list(dict.fromkeys(name.lower() for name in text_fields if name.lower() in columns))
    return fields or [name for name in ("comment",) if name in columns]


class ShardSource(Source):
    """Samples of tar shards, in the order of the shards; a key is unique within its shard."""

    def __init__(self, shards: Sequence[str], index: Path | None, text_fields: Sequence[str] = TEXT_FIELDS):
        self.reader = ShardReader(shards)
        self.text_fields = tuple(text_fields)
        rows, faults = zip(*(load_index(shard, index) for shard in shards), strict=True)
        self.faults = [fault for several in faults for fault in several]
        self.rows = np.concatenate(rows)
        self.groups = np.repeat(np.arange(len(shards)), list(map(len, rows)))
        self._bare = np.flatnonzero((self.rows["text_size"] == 0) & (self.rows["json_size"] == 0))
        self._beside = PackedStrings(self._texts_beside())

    def name(self, i: int) -> str:
        """Shard and name within it."""
        return f"{self.reader.shards[int(self.groups[i])]}:{self._key(i)}"

    def told(self, i: int) -> tuple[list[str], str]:
        """Texts of the .txt, the .json and, where neither is there, the shard's Parquet file; what is wrong."""
        row = self.rows[i]
        text, record = (self._read(i, kind) if row[f"{kind}_size"] else None for kind in ("text", "json"))
        texts, wrong = member_texts(text, record, self.text_fields)
        if text is None and record is None:
            texts = self._beside[int(np.searchsorted(self._bare, i))].split("\n")
        return list(dict.fromkeys(stripped for one in texts if (stripped := one.strip()))), wrong

    def image(self, i: int) -> bytes:
        """The image member."""
        return self._read(i, "image")

    def _read(self, i: int, kind: str) -> bytes:
        row = self.rows[i]
        return self.reader.read(int(self.groups[i]), int(row[kind]), int(row[f"{kind}_size"]))

    def _key(self, i: int) -> str:
        row = self.rows[i]
        return self.reader.name_at(int(self.groups[i]), int(row["header"]), int(row["image"]))

    def _texts_beside(self) -> Iterator[str]:
        """A text for each sample that has none in its shard: read once, since samples are asked for in any order."""
        for shard, numbers in groupby(
            map(int, self._bare), lambda i: self.reader.shards[int(self.groups[i])]
        ):
            try:
                table = side_table(shard, self.text_fields)
            except DataError as error:
                self.faults.append(Fault("shard", f"{shard}:table", str(error)))
                table = {}
            for i in numbers:
                yield _beside(table, self._key(i)) if table else ""


def _beside(table: dict[str, str], key: str) -> str:
    return table.get(key) or table.get(key.rpartition("/")[2]) or ""


def member_texts(text: bytes | None, record: bytes | None, fields: Sequence[str]) -> tuple[list[str], str]:
    """The texts of a sample's .txt and .json, None for what is missing, and what is wrong with them."""
    texts, wrong = tables.lines_of(text or b"")
    if record is None:
        return texts, wrong
    try:
        tree = json.loads(record)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        return texts, "its .json is no JSON object"
    values = (tree.get(name) for name in fields)
    found = (one for value in values for one in (value if isinstance(value, list) else [value]))
    return texts + [tables.whole(one) for one in found if isinstance(one, str)], wrong


def stream_texts(
    paths: str | Sequence[str], fields: Sequence[str] = TEXT_FIELDS, skipped: Skipped | None = None
) -> Iterator[str]:
    """The non-empty texts of captions files (a text a line, behind the last tab), tables, folders and tar shards.

    `fields` are columns of a table or fields of a JSON object that hold text (a string or a list of strings). What
    cannot be read of a file is counted in `skipped`.

    Raises:
        DataError: a file is missing, broken, of an unknown kind, or has none of the fields.
    """
    skipped = skipped or Skipped()
    for path in expand(paths):
        if is_remote(path):
            raise DataError(f"{path} is an address; copy the file to a disk first")
        yield from filter(None, map(str.strip, _texts(Path(path), fields, skipped)))


def _texts(path: Path, fields: Sequence[str], skipped: Skipped) -> Iterator[str]:
    name = path.name.lower()
    if path.is_dir():
        pairs, faults = read_folder(path, fields)
        for fault in faults:
            skipped.add(fault)
        yield from (text for texts in pairs.values() for text in texts)
    elif name.endswith(_SHARDS):
        yield from _shard_texts(path, fields, skipped)
    elif tables.is_table(path):
        yield from _table_texts(path, fields, skipped)
    elif name.endswith(_CAPTIONS):
        header = next(tables.text_lines(path, "the texts"), "")
        names = tables.open_table(path).columns if header.strip() else ()
        if text_columns(names, fields) and set(names) & set(IMAGE_COLUMNS):
            yield from _table_texts(path, fields, skipped)
        else:
            yield from (
                line.rstrip("\r\n").rpartition("\t")[2] for line in tables.text_lines(path, "the texts")
            )
    else:
        kinds = ", ".join((*_CAPTIONS, *tables.TABLE_ENDINGS, *_SHARDS))
        raise DataError(f"{path} is of no known kind; expected one of {kinds}, or a folder")


def _table_texts(path: Path, fields: Sequence[str], skipped: Skipped) -> Iterator[str]:
    table = tables.open_table(path)
    columns = text_columns(table.columns, fields)
    if not columns:
        raise DataError(
            f"{path} has no column named {', '.join(fields)} (it has {', '.join(table.columns)[:200]}); "
            "name one with --fields"
        )

    def bad(place: str, wrong: str) -> None:
        skipped.add(Fault("row", f"{path}:{place}", wrong))

    for _, cells in table.rows(columns, bad):
        yield from (text for cell in cells for text in tables.cell_texts(cell))


def _shard_texts(path: Path, fields: Sequence[str], skipped: Skipped) -> Iterator[str]:
    """The texts of a shard's samples, those without an image among them."""
    shard = str(path)
    with files.opened(path, "the shard") as file, tempfile.TemporaryFile() as unpacked:
        if path.suffix.lower() == ".gz":  # its checksum stands at its end
            with files.told(path, "the shard"):
                shutil.copyfileobj(file, unpacked)
            file = unpacked  # type: ignore[assignment]
        samples, faults = read_samples(shard, file)
        for fault in faults:
            if not samples and fault.kind == "shard":
                raise DataError(f"the shard {path} holds no samples: {fault.detail}")
            if fault.kind != "lone":
                skipped.add(fault)
        bare = any(parts.keys() == {"image"} for parts in samples.values())
        table = side_table(shard, fields) if bare else {}
        for (_, key), parts in samples.items():
            if parts.keys() == {"image"}:
                yield _beside(table, key)
                continue
            found: dict[str, bytes] = {}
            for kind in parts.keys() - {"image"}:
                _, offset, size = parts[kind]
                file.seek(offset)
                found[kind] = file.read(size)
            texts, wrong = member_texts(found.get("text"), found.get("json"), fields)
            if wrong:
                skipped.add(Fault("text", f"{shard}:{key}", wrong))
            yield from texts
