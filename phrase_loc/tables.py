"""The one reader of texts and tables: lines in any encoding, CSV, TSV, JSON lines and Parquet.

The delimiter is the one of the header (tab, comma, bar or semicolon), and words such as `null` and `NA` are text.
"""

import ast
import csv
import json
import logging
import os
import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from phrase_loc.errors import DataError
from phrase_loc.files import UTF8, encoding_of, once, opened, read_text, to_utf8, told

log = logging.getLogger(__name__)

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")  # those of text may be followed by .gz
#: Told the place ("row 3") of a row that cannot be read, and what is wrong with it.
Bad = Callable[[str, str], object]
#: Its place, the cells that were asked for, None where it lacks one, and what is wrong with it.
Row = tuple[str, Sequence[Any], str]

_LONGEST_LINE = 2**24  # bytes; a binary file with a text's name must not fill the memory
_ROWS_AT_ONCE = 50_000
_MOST_LINES = 1000  # of one row whose text holds line breaks
_NUMBERED = re.compile(r"(?s)(.+)#\d+")  # Flickr's way to number the captions of a photograph
_OPEN = "has a quote that is not closed"


@dataclass(frozen=True)
class Table:
    """The columns of a table, lower case and without blanks, and its rows as often as they are asked for."""

    path: Path
    columns: tuple[str, ...]
    _read: Callable[[Sequence[str]], Iterator[Row]]

    def rows(self, wanted: Sequence[str], bad: Bad | None = None) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Place and cells of these columns, None where there is no such cell, row by row.

        Raises DataError: the file cannot be read on, a wanted column is there twice, or, without `bad`, a row is.
        """
        if twice := [name for name in wanted if self.columns.count(name) > 1]:
            raise DataError(f"the table {self.path} has two columns named {twice[0]}; rename one")
        with told(self.path, "the table"):
            for place, cells, wrong in self._read(wanted):
                if not wrong:
                    yield place, tuple(cells)
                elif bad:
                    bad(place, wrong)
                else:
                    raise DataError(f"the table {self.path} cannot be read: {place} {wrong}")


def is_table(path: str | Path) -> bool:
    """Whether the ending is one of a table."""
    return _ending(Path(path)) in TABLE_ENDINGS


def open_table(path: Path) -> Table:
    """A table of one of TABLE_ENDINGS; raises DataError where it is missing, empty, or broken."""
    with told(path, "the table"):
        return {".parquet": _parquet, ".jsonl": _json_lines}.get(_ending(path), _delimited)(path)


def cell_texts(cell: Any) -> list[str]:
    """The texts in a cell: lines of a string, the strings of a list, or of one written as JSON or as Python does."""
    if isinstance(cell, (list, tuple)):
        return [text for item in cell for text in cell_texts(item)]
    if not isinstance(cell, str):
        return []
    texts = [item for item in _written_list(cell) if isinstance(item, str)] if cell[:1] == "[" else [cell]
    return _stripped(whole("\n".join(texts)))


def _written_list(cell: str) -> list[Any]:
    with suppress(ValueError, RecursionError):
        found: list[Any] = json.loads(cell)
        return found
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        found = ast.literal_eval(cell)
        if repr(found) == cell.strip():  # numpy's ['a' 'b'] would be one string
            return found
    return [cell]


def whole(text: str) -> str:
    """A text without halves of characters, which JSON can hold."""
    return text.encode("utf-8", "replace").decode()


def image_path(folder: Path, name: str) -> Path:
    """The file that a cell names: one of just that name, else without blanks and Flickr's number (`name.jpg#0`)."""
    bare = name.strip()
    plain = numbered[1] if (numbered := _NUMBERED.fullmatch(bare)) else bare
    if name == plain:
        return folder / name
    return next((path for path in (folder / name, folder / bare) if os.path.exists(path)), folder / plain)


def listed_lines(path: Path, what: str) -> list[str]:
    """The lines of a list that somebody wrote, without blank ones and blanks around them.

    Raises DataError where the file is missing, JSON or a table, whose lines would be taken for entries.
    """
    lines = _stripped(read_text(path, what))
    kind = "a table" if _ending(path) in (".csv", ".tsv") else ""
    for text in ("\n".join(lines), *lines[:1]):  # JSON lines too
        with suppress(ValueError, RecursionError):
            kind = kind or ("JSON" if isinstance(json.loads(text), (list, dict)) else "")
    if kind:
        raise DataError(f"{what} {path} is {kind}; write a text (.txt) with one entry a line")
    return lines


def text_lines(path: Path, what: str) -> Iterator[str]:
    """The lines of a text with their ends; what is not UTF-8 is said once, what cannot be read is a DataError."""
    odd, first, number = 0, 0, 0
    with told(path, what):
        for number, line in enumerate(_raw_lines(path, what), start=1):
            text, is_utf8 = decoded(line)
            if not is_utf8:
                odd, first = odd + 1, first or number
            yield text
    if odd:
        said = "%s: %d of %d lines are not UTF-8 and were read as Windows-1252, the first is line %d; "
        log.warning(said + "save the file as UTF-8 if that is wrong", path, odd, number, first)


def decoded(raw: bytes) -> tuple[str, bool]:
    """Bytes as UTF-8, else as Windows-1252 or, where that has gaps, Latin-1; whether they were UTF-8."""
    for encoding in ("utf-8", "cp1252"):
        with suppress(UnicodeDecodeError):
            return raw.decode(encoding), encoding == "utf-8"
    return raw.decode("latin-1"), False


def lines_of(raw: bytes) -> tuple[list[str], str]:
    """The lines of a short text without blanks around them, and what is wrong with its encoding."""
    try:
        text, is_utf8 = decoded(to_utf8(raw, "its text"))
    except DataError as error:
        return [], str(error)
    return _stripped(text), "" if is_utf8 else "its text is not UTF-8 and is read as Windows-1252"


def _stripped(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _raw_lines(path: Path, what: str) -> Iterator[bytes]:
    with opened(path, what) as file:
        start = file.read(2**16)
        file.seek(len(BOM_UTF8) if start.startswith(BOM_UTF8) else 0)
        wide = encoding_of(start, f"{what} {path}") != UTF8
        if wide or (b"\r" in start and b"\n" not in start):  # spreadsheets of Windows, of old Macs
            yield from to_utf8(file.read(), f"{what} {path}").splitlines(keepends=True)
            return
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if len(line) == _LONGEST_LINE:
                raise DataError(f"{what} {path} has a line {number} of more than {_LONGEST_LINE:,} bytes")
            yield line


def _ending(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix if not name.endswith(".parquet.gz") else ".gz"


def _delimited(path: Path) -> Table:
    header = next((line for line in text_lines(path, "the table") if line.strip()), "")
    if not header:
        raise DataError(f"the table {path} is empty; its first line must name the columns")
    first, tab, _ = header.partition("\t")
    headless = bool(tab and _NUMBERED.fullmatch(first))  # `name.jpg#0<tab>caption`, without header and quotes
    unquoted = re.sub(r'"[^"]*"', "", header)
    delimiter = max("\t,|;", key=unquoted.count)
    options: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": f"{delimiter} " in unquoted}
    if headless:
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    names = ["image", "caption"] if headless else next(csv.reader([header.strip()], **options))
    columns = tuple(name.strip().lower() for name in names)

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        chosen = [columns.index(name) for name in wanted]
        lines = text_lines(path, "the table")
        if not headless:
            next(line for line in lines if line.strip())
        for number, (fields, wrong) in enumerate(_records(lines, len(columns), options), start=1):
            yield f"row {number}", [] if wrong else [fields[i] for i in chosen], wrong

    return Table(path, columns, read)


def _records(lines: Iterator[str], width: int, options: dict[str, Any]) -> Iterator[tuple[list[str], str]]:
    """(fields, what is wrong with them) of each row; a quote that never closes costs its own line alone."""
    ahead: deque[str] = deque()  # lines that were looked at

    def following() -> str:
        return ahead.popleft() if ahead else next(lines, "")

    while line := following():
        if not line.strip():
            continue
        fields, wrong = _parsed([line], width, options)
        if wrong == _OPEN:  # the text may go on in the next lines
            more: list[str] = []
            while len(more) < _MOST_LINES and (extra := following()):
                more.append(extra)
                if extra.count('"') % 2:
                    break
            joined, still_wrong = _parsed([line, *more], width, options)
            fields, wrong = (fields, wrong) if still_wrong else (joined, "")
            ahead.extendleft(reversed(more if still_wrong else []))
        yield fields, wrong


def _parsed(lines: list[str], width: int, options: dict[str, Any]) -> tuple[list[str], str]:
    try:
        rows = list(csv.reader(lines, strict=True, **options))
    except csv.Error as error:
        is_open = "unexpected end of data" in str(error)
        return [], _OPEN if is_open else f"cannot be split into fields ({error})"
    if len(rows) > 1 or len(rows[0]) != width:
        return [], f"has {len(rows[0])} fields, the header has {width}; quote the phrase"
    return rows[0], ""


def _json_lines(path: Path) -> Table:
    columns = dict.fromkeys(name for _, found in _objects(path) for name in found or ())
    if not columns:
        raise DataError(f"the table {path} has no line that is a JSON object with each key once; write one")

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for place, found in _objects(path, wanted):
            wrong = "is no JSON object, or has a key twice" if found is None else ""
            yield place, [(found or {}).get(name) for name in wanted], wrong

    return Table(path, tuple(columns), read)


def _objects(path: Path, wanted: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any] | None]]:
    for number, line in enumerate(text_lines(path, "the table"), start=1):
        if line.strip():
            found = None
            with suppress(ValueError, RecursionError, AttributeError):
                own = json.loads(line, object_pairs_hook=once).items()
                cells = [(name.strip().lower(), value) for name, value in own]
                once([cell for cell in cells if cell[0] in wanted])  # of "url" and "URL" perhaps none is
                found = dict(cells)
            yield f"line {number}", found


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    opened(path, "the table").close()
    names = parquet.read_schema(path).names
    columns = tuple(name.strip().lower() for name in names)

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        chosen = [names[columns.index(name)] for name in wanted]
        numbers, number = count(1), 0
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=chosen):
                cells = (map(_as_text, batch.column(name).to_pylist()) for name in chosen)
                for row, number in zip(zip(*cells, strict=True), numbers, strict=False):
                    yield f"row {number}", row, ""
            if number != file.metadata.num_rows:
                said = f"it says {file.metadata.num_rows} rows and holds {number}"
                raise DataError(f"the table {path} is damaged: {said}")

    return Table(path, columns, read)


def _as_text(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_as_text(item) for item in cell]
    text, is_utf8 = decoded(cell) if isinstance(cell, bytes) else (cell, True)
    return text if is_utf8 else cell
