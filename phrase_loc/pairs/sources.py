"""Image-text pairs as people keep them: tar shards, a table, or a folder.

`open_source` gives pairs by number, for `train`; `stream_texts` texts alone, one after another, for a vocabulary: 100
million captions need no more memory than one.
"""

import json
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phrase_loc import files, tables
from phrase_loc.errors import DataError
from phrase_loc.images import IMAGE_ENDINGS, UNREAD_ENDINGS
from phrase_loc.pairs.paths import exists, expand, is_remote, store
from phrase_loc.pairs.shards import key_in, load_index
from phrase_loc.skipped import Fault, Skipped

log = logging.getLogger(__name__)

#: Fields of a JSON member or columns of a table that hold text, in the order in which they are read.
TEXT_FIELDS = ("captions", "caption", "text", "texts", "title", "description", "tags", "keywords")
IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "file", "filepath", "image_path", "image_name")
CAPTION_FILES = (
    *("captions.csv", "captions.tsv", "captions.txt", "captions.jsonl", "metadata.jsonl"),
    *("metadata.csv", "metadata.parquet", "captions.parquet", "results.csv"),
)

Texts = Mapping[str, Iterable[str]]  # path of an image -> its texts, in the order of the file
Note = Callable[[Fault], None]  # told what is wrong with a pair


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
        """The texts of sample `i` alone."""
        return self.told(i)[0]

    def image(self, i: int) -> bytes:
        """The file of image `i`, undecoded; raises DataError."""


def open_source(
    paths: str | Sequence[str], index: Path | None = None, text_fields: Sequence[str] = TEXT_FIELDS
) -> Source:
    """The source that paths describe: tars, whose indices are kept in the folder `index`, one table, or one folder.

    Raises DataError: nothing there, kinds mixed, or no usable sample at all.
    """
    found = expand(paths)
    first = Path(found[0])
    if missing := next((path for path in found if not exists(path)), None):
        raise DataError(f"{missing} does not exist; check data.shards")
    read = read_folder if first.is_dir() else read_table if tables.is_table(first) else None
    if len(found) == 1 and read:
        faults: list[Fault] = []
        source: Source = TableSource(read(first, text_fields, faults.append), faults)
    elif odd := [path for path in found if not path.lower().endswith(".tar")]:
        raise DataError(
            f"expected .tar shards, one .csv/.tsv/.parquet/.jsonl table or one folder, got {odd[0]} "
            f"and {len(found) - 1} more; a .tar.gz must be unpacked to .tar first"
        )
    else:
        source = ShardSource(found, index, text_fields)
    if len(source) == 0:
        reason = f": {source.faults[0].name} {source.faults[0].detail}" if source.faults else ""
        raise DataError(f"no image with a text was found in {first}{reason}")
    return source


def texts_of(source: Source, numbers: Iterable[int]) -> Iterator[list[str]]:
    """The texts of these samples; none where they cannot be read, which the loader counts and names."""
    for i in numbers:
        texts: list[str] = []
        with suppress(DataError):
            texts = source.texts(i)
        yield texts


class PackedStrings:
    """A frozen list of strings in two arrays, little larger than the characters; forked workers share them."""

    def __init__(self, strings: Iterable[str]):
        data, ends = bytearray(), array("q", [0])
        for text in strings:
            data += text.encode("utf-8", "surrogatepass")  # file names need not be UTF-8
            ends.append(len(data))
        self.data, self.ends = np.frombuffer(data, np.uint8), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:
        return self.data[self.ends[i] : self.ends[i + 1]].tobytes().decode("utf-8", "surrogatepass")


class TableSource(Source):
    """The pairs of a table or a folder; what is wrong with a row is known from the start."""

    def __init__(self, texts: Texts, faults: list[Fault]):
        self.paths = PackedStrings(texts)
        self._texts = PackedStrings(map("\n".join, texts.values()))
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


class ShardSource(Source):
    """Samples of tar shards, in their order; at most `open_files` shards stay open, anew in each process.

    `lone` takes in samples without an image, for their texts.
    """

    def __init__(
        self,
        shards: Sequence[str],
        index: Path | None,
        fields: Sequence[str] = TEXT_FIELDS,
        open_files: int = 256,
        lone: bool = False,
    ):
        self.shards, self.text_fields, self.open_files = list(shards), tuple(fields), open_files
        rows, faults = zip(*(load_index(shard, index, lone) for shard in shards), strict=True)
        self.rows, self.faults = np.concatenate(rows), list(chain(*faults))
        self.groups = np.repeat(np.arange(len(shards)), list(map(len, rows)))
        self._open: dict[str, int] = {}
        self._bare = np.flatnonzero((self.rows["text_size"] == 0) & (self.rows["json_size"] == 0))
        self._beside = PackedStrings(self._texts_beside())

    def name(self, i: int) -> str:
        """Shard and name within it."""
        return f"{self.shards[self.groups[i]]}:{self._key(i)}"

    def told(self, i: int) -> tuple[list[str], str]:
        """Texts of the .txt, the .json and, where neither is there, the shard's Parquet file, each text once."""
        row = self.rows[i]
        text, record = (self._member(i, kind) if row[f"{kind}_size"] else None for kind in ("text", "json"))
        if text is None and record is None:
            texts, wrong = self._beside[int(np.searchsorted(self._bare, i))].split("\n"), ""
        else:
            texts, wrong = member_texts(text, record, self.text_fields)
        return list(dict.fromkeys(filter(None, map(str.strip, texts)))), wrong

    def image(self, i: int) -> bytes:
        """The image member."""
        return self._member(i, "image")

    def _member(self, i: int, kind: str) -> bytes:
        return self._read(i, int(self.rows[i][kind]), int(self.rows[i][f"{kind}_size"]))

    def _key(self, i: int) -> str:
        start, end = (int(self.rows[i][field]) for field in ("header", "image"))
        with suppress(DataError):  # changed since it was indexed
            if key := key_in(self._read(i, start, end - start)):
                return key
        return f"byte {start}"

    def _read(self, i: int, offset: int, size: int) -> bytes:
        shard = self.shards[self.groups[i]]
        with files.told(shard, "the shard"):
            if is_remote(shard):
                with store(shard) as (system, inner):
                    data = system.cat_file(inner, start=offset, end=offset + size)
            else:
                data = os.pread(self._descriptor(shard), size, offset)
        if len(data) != size:
            raise DataError(f"the shard {shard} ends before byte {offset + size}; it has changed, start anew")
        return data

    def _descriptor(self, shard: str) -> int:
        if shard not in self._open:
            if len(self._open) >= self.open_files:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(shard, os.O_RDONLY)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _texts_beside(self) -> Iterator[str]:
        """A text for each sample that has none in its shard: read once, since samples are asked for in any order."""
        for shard, numbers in groupby(map(int, self._bare), lambda i: self.shards[self.groups[i]]):
            try:
                table = side_table(shard, self.text_fields)
            except DataError as error:
                self.faults.append(Fault("shard", f"{shard}:table", str(error)))
                table = {}
            for i in numbers:
                key = self._key(i) if table else ""
                yield table.get(key) or table.get(key.rpartition("/")[2]) or ""


def side_table(shard: str, fields: Sequence[str]) -> dict[str, str]:
    """Key -> text from the Parquet file that img2dataset writes beside a shard; empty when there is none."""
    path = Path(shard).with_suffix(".parquet")
    table = tables.open_table(path) if not is_remote(shard) and path.is_file() else None
    found = [name for name in map(str.lower, fields) if table and name in table.columns]
    if not table or not found or "key" not in table.columns:
        return {}
    return {str(key): text for _, (key, text) in table.rows(["key", found[0]]) if isinstance(text, str)}


def member_texts(text: bytes | None, record: bytes | None, fields: Sequence[str]) -> tuple[list[str], str]:
    """The texts of a sample's .txt and .json, None for what is missing, and what is wrong with them."""
    texts, wrong = tables.lines_of(text or b"")
    if record is None:
        return texts, wrong
    tree = None
    with suppress(ValueError, RecursionError):
        tree = json.loads(record, object_pairs_hook=files.once)
    if not isinstance(tree, dict):
        return texts, "its .json is no JSON object, or has a key twice"
    values = (tree.get(name) for name in fields)
    found = chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
    return texts + [tables.whole(one) for one in found if isinstance(one, str)], wrong


def read_table(path: Path, fields: Sequence[str], note: Note) -> Texts:
    """The pairs of a table; rows of one image are its several captions."""
    texts: dict[str, dict[str, None]] = {}
    for place, name, found in _rows(path, fields, note, pictured=True):
        if not isinstance(name, str) or not name.strip():
            note(Fault("lone", f"{path}:{place}", "names no image"))
            continue
        held = texts.setdefault(str(tables.image_path(path.parent, name)), {})
        if found and all(text in held for text in found):
            note(Fault("duplicate", f"{path}:{place}", "repeats an earlier row"))
        held.update(dict.fromkeys(found))
    return texts


def _rows(
    path: Path, fields: Sequence[str], note: Note, pictured: bool = False
) -> Iterator[tuple[str, Any, list[str]]]:  # place, cell that names the image, texts
    table = tables.open_table(path)
    images = [name for name in IMAGE_COLUMNS if pictured and name in table.columns][:1]
    columns = _text_columns(table, fields)
    if not columns or len(images) < pictured:
        wanted = f"for the image ({', '.join(IMAGE_COLUMNS[:4])}, ...) and one " if pictured else ""
        raise DataError(
            f"{path} needs a column {wanted}for the text ({', '.join(fields)}), got "
            f"{', '.join(table.columns[:12])[:200]}; name it in {'data.text_fields' if pictured else '--fields'}"
        )
    if pictured and "split" in table.columns:
        log.warning("%s has a column split, and the rows of all splits are read", path)
    rows = table.rows([*images, *columns], lambda place, wrong: note(Fault("row", f"{path}:{place}", wrong)))
    for place, cells in rows:
        yield place, cells[0], [text for cell in cells[len(images) :] for text in tables.cell_texts(cell)]


def _text_columns(table: tables.Table, fields: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(name.lower() for name in fields if name.lower() in table.columns))
    return found or [name for name in ("comment",) if name in table.columns]  # of Flickr30k's results.csv


def read_folder(folder: Path, fields: Sequence[str], note: Note) -> Texts:
    """The pairs of a folder with one of CAPTION_FILES, or with a .txt beside each image."""
    named = [name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(named) > 1:
        log.warning("%s: %s is read, and not %s", folder, named[0], ", ".join(named[1:]))
    if named:
        return read_table(folder / named[0], fields, note)
    texts: dict[str, list[str]] = {}
    for path in files_below(folder):
        ending, sidecar = path.suffix.lower(), path.with_suffix(".txt")
        if ending in UNREAD_ENDINGS:
            note(Fault("image", str(path), f"is of a format that is not read ({ending})"))
        elif ending in IMAGE_ENDINGS and not sidecar.is_file():
            note(Fault("lone", str(path), "has no .txt beside it"))
        elif ending in IMAGE_ENDINGS:
            try:
                texts[str(path)], wrong = tables.lines_of(files.read_bytes(sidecar, "the text"))
            except DataError as error:
                texts[str(path)], wrong = [], str(error)
            if wrong:
                note(Fault("text", str(sidecar), wrong))
    return texts


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and below it, sorted; links to folders are followed, each folder is entered once."""
    found: dict[str, list[Path]] = {}
    left_out = partial(log.warning, "the folder %s is left out: %s")
    walked = os.walk(folder, followlinks=True, onerror=lambda error: left_out(error.filename, error.strerror))
    for parent, folders, names in walked:
        if (real := os.path.realpath(parent)) in found:
            folders.clear()
            left_out(parent, "a link leads to it a second time")
        else:
            found[real] = [Path(parent, name) for name in names]
    return sorted(chain(*found.values()))


def stream_texts(
    paths: str | Sequence[str], fields: Sequence[str] = TEXT_FIELDS, skipped: Skipped | None = None
) -> Iterator[str]:
    """The non-empty texts of captions files (a text a line, behind the last tab), tables, folders and tar shards.

    What cannot be read of a file is counted in `skipped`.

    Raises DataError: a file is missing, broken, of an unknown kind, or has none of the fields.
    """
    note = (skipped or Skipped()).add
    for path in expand(paths):
        if is_remote(path):
            raise DataError(f"{path} is an address; copy the file to a disk first")
        yield from filter(None, map(str.strip, _texts(Path(path), fields, note)))


def _texts(path: Path, fields: Sequence[str], note: Note) -> Iterator[str]:
    name = path.name.lower()
    if path.is_dir():
        return chain.from_iterable(read_folder(path, fields, note).values())
    if name.endswith(".tar"):
        return _shard_texts(str(path), fields, note)
    if name.endswith((".txt", ".txt.gz")):
        table = None
        with suppress(DataError):  # no header: a text, and if it cannot be read that is told below
            table = tables.open_table(path)
        if not (table and _text_columns(table, fields) and set(table.columns) & set(IMAGE_COLUMNS)):
            lines = tables.text_lines(path, "the texts")
            return (line.rstrip("\r\n").rpartition("\t")[2] for line in lines)
    elif not tables.is_table(path):
        files.opened(path, "the source", unpack=False).close()
        raise DataError(
            f"{path} is of no known kind; expected a folder, or one of .txt, .txt.gz, .tar, "
            f"{', '.join(tables.TABLE_ENDINGS)}; a .tar.gz must be unpacked to .tar first"
        )
    return chain.from_iterable(texts for _, _, texts in _rows(path, fields, note))


def _shard_texts(shard: str, fields: Sequence[str], note: Note) -> Iterator[str]:
    source = ShardSource([shard], None, fields, lone=True)
    for fault in source.faults:
        if len(source) == 0 and fault.kind == "shard":
            raise DataError(f"the shard {shard} holds no samples: {fault.detail}")
        note(fault)
    for i in range(len(source)):
        texts, wrong = source.told(i)
        if wrong:
            note(Fault("text", source.name(i), wrong))
        yield from texts
