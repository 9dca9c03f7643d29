"""Where pairs of image and text come from: one small interface over shards, tables and folders.

    open_source(["cc3m/{00000..00331}.tar"])              tar shards (web_shards.py)
    open_source("pairs.csv"), ("pairs.parquet")           a table of paths and text (web_tables.py)
    open_source("photos/")                                a folder with a captions file, or a .txt per image

A source is map-style: `len`, and per number the name, the texts, the bytes of the image. Order is the order
of the files; shuffling belongs to the sampler.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phrase_loc.datasets.web_faults import Fault
from phrase_loc.datasets.web_paths import expand, is_remote
from phrase_loc.datasets.web_remote import exists
from phrase_loc.datasets.web_shards import ShardReader, load_index, side_table
from phrase_loc.datasets.web_tables import TableSource, read_folder, read_table
from phrase_loc.errors import DataError

log = logging.getLogger(__name__)

#: Fields of a JSON member or columns of a table that hold text, in the order in which they are read.
TEXT_FIELDS = ("captions", "caption", "text", "texts", "title", "description", "tags", "keywords")
_TABLES = {".csv", ".tsv", ".parquet", ".jsonl"}


class Source(Protocol):
    """Pairs of image and text by number."""

    faults: list[Fault]  # what was wrong when the source was opened
    groups: np.ndarray  # (n,) number of the shard of each sample, ascending; one group for a table

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What the log calls sample `i`."""

    def texts(self, i: int) -> list[str]:
        """The texts of sample `i`; empty when there are none."""

    def image(self, i: int) -> bytes:
        """The file of image `i`, undecoded; raises OSError."""


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
    if all(path.endswith(".tar") for path in files):
        source: Source = ShardSource(files, index, text_fields)
    elif len(files) == 1 and Path(files[0]).is_dir():
        source = TableSource(read_folder(Path(files[0]), text_fields))
    elif len(files) == 1 and Path(files[0]).suffix.lower() in _TABLES:
        source = TableSource(read_table(Path(files[0]), text_fields))
    else:
        raise DataError(
            f"expected .tar shards, one .csv/.tsv/.parquet/.jsonl table or one folder, got {files[0]} "
            f"and {len(files) - 1} more; a .tar.gz must be unpacked to .tar first"
        )
    if len(source) == 0:
        reason = f": {source.faults[0].name} {source.faults[0].detail}" if source.faults else ""
        raise DataError(f"no image with a text was found in {files[0]}{reason}")
    return source


def _there(path: str) -> bool:
    return exists(path) if is_remote(path) else Path(path).exists()


class ShardSource:
    """Samples of tar shards, in the order of the shards; of samples with the same key the first counts."""

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
        self._drop_duplicates()
        self._side: tuple[int, dict[str, str]] = (-1, {})

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """Shard and name within it."""
        shard = int(self.groups[i])
        member = self.reader.name_at(shard, int(self.rows[i]["image"]))
        return f"{self.reader.shards[shard]}:{member.rpartition('.')[0] or member}"

    def texts(self, i: int) -> list[str]:
        """Texts of the .txt, the .json and, where neither is there, the shard's Parquet file."""
        row, shard = self.rows[i], int(self.groups[i])
        found: list[str] = []
        if row["text_size"]:
            raw = self.reader.read(shard, int(row["text"]), int(row["text_size"]))
            found += raw.decode("utf-8", "replace").splitlines()
        if row["json_size"]:
            raw = self.reader.read(shard, int(row["json"]), int(row["json_size"]))
            found += json_texts(raw, self.text_fields)
        if not row["text_size"] and not row["json_size"]:
            found += self._from_side(shard, i)
        return clean(found)

    def image(self, i: int) -> bytes:
        """The image member."""
        row = self.rows[i]
        return self.reader.read(int(self.groups[i]), int(row["image"]), int(row["image_size"]))

    def _from_side(self, shard: int, i: int) -> list[str]:
        if self._side[0] != shard:  # one table at a time: samples of a shard come near one another
            self._side = (shard, side_table(self.reader.shards[shard], self.text_fields))
        key = self.name(i).rpartition(":")[2]
        text = self._side[1].get(key) or self._side[1].get(key.rpartition("/")[2])
        return [text] if text else []

    def _drop_duplicates(self) -> None:
        _, first = np.unique(self.rows["key"], return_index=True)
        if len(first) == len(self.rows):
            return
        keep = np.zeros(len(self.rows), bool)
        keep[first] = True
        self.faults += [Fault("duplicate", self.name(int(i)), "") for i in np.flatnonzero(~keep)]
        self.rows, self.groups = self.rows[keep], self.groups[keep]


def json_texts(raw: bytes, fields: Sequence[str]) -> list[str]:
    """Texts in the given fields of a JSON object: strings, or lists of strings; none in a broken one."""
    try:
        tree = json.loads(raw)
    except ValueError:
        return []
    if not isinstance(tree, dict):
        return []
    return [text for name in fields for text in _strings(tree.get(name))]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (item for item in value if isinstance(item, str))


def clean(texts: Iterable[str]) -> list[str]:
    """Texts without blanks around them, each once, none empty."""
    return list(dict.fromkeys(stripped for text in texts if (stripped := text.strip())))
