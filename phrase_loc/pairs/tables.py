"""Tables of image paths and text (CSV, TSV, JSON lines, Parquet) and folders with a captions file.

The columns are found by their usual names (COLUMNS below, or `data.text_fields`). Rows of the same image are
its several captions. Relative paths count from the table's folder. Text is packed into one byte array
instead of Python strings, so that ten million rows take little more than their characters and forked workers
share them.
"""

import logging
import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phrase_loc import files
from phrase_loc.errors import DataError
from phrase_loc.images import IMAGE_ENDINGS, UNREAD_ENDINGS
from phrase_loc.skipped import Fault
from phrase_loc.tables import cell_texts, image_path, lines_of, open_table

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "file", "filepath", "image_path", "image_name")
CAPTION_FILES = (
    *("captions.csv", "captions.tsv", "captions.txt", "captions.jsonl", "metadata.jsonl"),
    *("metadata.csv", "metadata.parquet", "captions.parquet", "results.csv"),
)
_MANY = 100  # texts of an image from which they are looked up in a set


@dataclass
class Table:
    """Images with their texts, before packing."""

    texts: dict[str, list[str]]  # path -> texts, in the order of the file
    faults: list[Fault]


class PackedStrings:
    """A frozen list of strings in two arrays."""

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


class TableSource:
    """The pairs of a table as a `web_sources.Source`."""

    def __init__(self, table: Table):
        self.paths = PackedStrings(table.texts)
        self._texts = PackedStrings("\n".join(texts) for texts in table.texts.values())
        self.faults = table.faults
        self.groups = np.zeros(len(self.paths), np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The image's path."""
        return self.paths[i]

    def texts(self, i: int) -> list[str]:
        """The texts of the rows of this image."""
        return [text for text in self._texts[i].split("\n") if text]

    def told(self, i: int) -> tuple[list[str], str]:
        """As `texts`; what is wrong with a row is known from the start."""
        return self.texts(i), ""

    def image(self, i: int) -> bytes:
        """The image file; raises DataError."""
        return files.read_bytes(self.paths[i], "the image")


def read_table(path: Path, text_fields: Sequence[str]) -> Table:
    """The pairs of a CSV, TSV, JSON lines or Parquet file; rows that cannot be read are among the faults.

    Raises:
        DataError: unreadable, or no column for image or text.
    """
    source = open_table(path)
    columns = _columns(path, source.columns, text_fields)
    table = Table({}, [])
    known: dict[str, set[str]] = {}

    def bad(place: str, wrong: str) -> None:
        table.faults.append(Fault("row", f"{path}:{place}", wrong))

    for place, (name, *cells) in source.rows(columns, bad):
        if not isinstance(name, str) or not name.strip():
            table.faults.append(Fault("lone", f"{path}:{place}", "names no image"))
            continue
        image = str(image_path(path.parent, name))
        texts = list(dict.fromkeys(text for cell in cells for text in cell_texts(cell)))
        held = table.texts.setdefault(image, [])
        if len(held) > _MANY and image not in known:
            known[image] = set(held)
        before: Collection[str] = known.get(image, held)
        fresh = [text for text in texts if text not in before]
        if texts and not fresh:
            table.faults.append(Fault("duplicate", f"{path}:{place}", "repeats an earlier row"))
        held += fresh
        if image in known:
            known[image].update(fresh)
    return table


def read_folder(folder: Path, text_fields: Sequence[str]) -> Table:
    """A folder with one of CAPTION_FILES, or with a .txt beside each image."""
    named = [name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(named) > 1:
        log.warning("%s: %s is read, and not %s", folder, named[0], ", ".join(named[1:]))
    if named:
        return read_table(folder / named[0], text_fields)
    table = Table({}, [])
    for path in _files(folder):
        ending = path.suffix.lower()
        if ending in UNREAD_ENDINGS:
            table.faults.append(Fault("image", str(path), f"is of a format that is not read ({ending})"))
        if ending not in IMAGE_ENDINGS:
            continue
        sidecar = path.with_suffix(".txt")
        if not sidecar.is_file():
            table.faults.append(Fault("lone", str(path), "has no .txt beside it"))
            continue
        try:
            lines, wrong = lines_of(files.read_bytes(sidecar, "the text"))
        except DataError as error:
            lines, wrong = [], str(error)
        table.texts[str(path)] = lines
        if wrong:
            table.faults.append(Fault("text", str(sidecar), wrong))
    return table


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, sorted; links to folders are followed, each folder is entered once."""
    entered = set()

    def failed(error: OSError) -> None:
        log.warning("the folder %s is left out: %s", error.filename, error.strerror)

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        facts = os.stat(parent)
        if (facts.st_dev, facts.st_ino) in entered:
            folders.clear()
            log.warning("the folder %s is left out: a link leads to it a second time", parent)
            continue
        entered.add((facts.st_dev, facts.st_ino))
        found += [Path(parent, name) for name in names]
    yield from sorted(found)


def text_columns(columns: Sequence[str], text_fields: Sequence[str]) -> list[str]:
    """The columns that hold text."""
    fields = list(dict.fromkeys(name.lower() for name in text_fields if name.lower() in columns))
    return fields or [
        name for name in ("comment",) if name in columns
    ]  # the header of Flickr30k's results.csv


def _columns(path: Path, columns: Sequence[str], text_fields: Sequence[str]) -> list[str]:
    """The column of the image and those of the texts."""
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    fields = text_columns(columns, text_fields)
    if image is None or not fields:
        raise DataError(
            f"{path} needs a column for the image ({', '.join(IMAGE_COLUMNS[:4])}, ...) and one for the text "
            f"({', '.join(text_fields)}), got {', '.join(columns[:12])[:200]}; name it in data.text_fields"
        )
    return [image, *fields]
