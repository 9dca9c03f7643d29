"""Tables of image paths and text (CSV, TSV, JSON lines, Parquet) and folders with a captions file.

The columns are found by their usual names (COLUMNS below, or `data.text_fields`). Rows of the same image are
its several captions. Relative paths count from the table's folder. Text is packed into one byte array
instead of Python strings, so that ten million rows take little more than their characters and forked workers
share them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phrase_loc.datasets.web_faults import Fault
from phrase_loc.datasets.web_shards import IMAGE_SUFFIXES
from phrase_loc.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "file", "filepath", "image_path", "image_name")
CAPTION_FILES = (
    *("captions.csv", "captions.tsv", "captions.txt", "captions.jsonl", "metadata.jsonl"),
    *("metadata.csv", "metadata.parquet", "captions.parquet", "results.csv"),
)
ROWS_AT_ONCE = 100_000


@dataclass
class Table:
    """Images with their texts, before packing."""

    texts: dict[str, list[str]]  # path -> texts, in the order of the file
    faults: list[Fault]


class PackedStrings:
    """A frozen list of strings in two arrays."""

    def __init__(self, strings: Iterable[str]):
        encoded = [text.encode() for text in strings]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.data = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.data[start : int(self.ends[i])].tobytes().decode()


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

    def image(self, i: int) -> bytes:
        """The image file."""
        return Path(self.paths[i]).read_bytes()


def read_table(path: Path, text_fields: Sequence[str]) -> Table:
    """The pairs of a CSV, TSV, JSON lines or Parquet file.

    Raises:
        DataError: unreadable, or no column for image or text.
    """
    try:
        return _collect(path, path.parent, _frames(path), text_fields)
    except (OSError, ValueError, UnicodeDecodeError, ImportError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the table {path} cannot be read: {' '.join(str(error).split())}") from None


def read_folder(folder: Path, text_fields: Sequence[str]) -> Table:
    """A folder with one of CAPTION_FILES, or with a .txt beside each image."""
    for name in CAPTION_FILES:
        if (folder / name).is_file():
            table = read_table(folder / name, text_fields)
            return table
    table = Table({}, [])
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().lstrip(".") not in IMAGE_SUFFIXES:
            continue
        sidecar = path.with_suffix(".txt")
        if sidecar.is_file():
            table.texts[str(path)] = _lines(sidecar.read_text(encoding="utf-8", errors="replace"))
        else:
            table.faults.append(Fault("lone", str(path), "has no .txt beside it"))
    return table


def _frames(path: Path) -> Iterator["pd.DataFrame"]:
    import pandas as pd

    kind = path.suffix.lower()
    if kind == ".parquet":
        yield pd.read_parquet(path)
    elif kind == ".jsonl":
        yield from pd.read_json(path, lines=True, chunksize=ROWS_AT_ONCE, dtype=False)
    else:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
        if "#" in first.split("\t")[0] and "\t" in first:  # Flickr's own: `name.jpg#0<tab>caption`
            options: dict[str, Any] = {"sep": "\t", "names": ["image", "caption"], "quoting": 3}
        else:
            options = {"sep": _separator(first)}
        chunks = pd.read_csv(
            path, chunksize=ROWS_AT_ONCE, dtype=str, encoding_errors="replace", on_bad_lines="warn", **options
        )
        yield from chunks


def _separator(header: str) -> str:
    return max("\t,|;", key=header.count)


def _collect(path: Path, folder: Path, frames: Iterator["pd.DataFrame"], text_fields: Sequence[str]) -> Table:
    table = Table({}, [])
    number = 1
    for frame in frames:
        frame.columns = [str(name).strip().lower() for name in frame.columns]
        image, fields = _columns(path, list(frame.columns), text_fields)
        for row in frame[[image, *fields]].itertuples(index=False, name=None):
            number += 1
            _add(table, folder, row, f"{path}:{number}")
    return table


def _columns(path: Path, columns: list[str], text_fields: Sequence[str]) -> tuple[str, list[str]]:
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    fields = [name for name in text_fields if name.lower() in columns]
    if not fields and "comment" in columns:  # the header of Flickr30k's results.csv
        fields = ["comment"]
    if image is None or not fields:
        raise DataError(
            f"{path} needs a column for the image ({', '.join(IMAGE_COLUMNS[:4])}, ...) and one for the text "
            f"({', '.join(text_fields)}), got {', '.join(columns[:12])}; name it in data.text_fields"
        )
    return image, [name.lower() for name in fields]


def _add(table: Table, folder: Path, row: tuple[Any, ...], place: str) -> None:
    name, *values = row
    texts = [line for value in values for line in _lines(value)]
    if not isinstance(name, str) or not name.strip():
        table.faults.append(Fault("lone", place, "names no image"))
        return
    held = table.texts.setdefault(str(folder / name.strip().partition("#")[0]), [])
    fresh = [text for text in texts if text not in held]
    if texts and not fresh:
        table.faults.append(Fault("duplicate", place, "repeats an earlier row"))
    held += fresh


def _lines(value: Any) -> list[str]:
    if isinstance(value, str):
        return [line.strip() for line in value.splitlines() if line.strip()]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [line for item in value for line in _lines(item)]
    return []
