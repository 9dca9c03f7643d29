"""The one reader of tables: CSV, TSV, JSON lines and Parquet.

    table = open_table(path)                                   # its columns: lower case, without blanks
    for place, (image, phrase) in table.rows(["image", "phrase"]): ...

`query`, `train` and `vocab` read the same file alike. The delimiter is the one of the header (tab, comma, bar or
semicolon), encodings are those of text_files.py, and words such as `null` and `NA` are text. A row that cannot be
read is handed to `bad`, which refuses the table unless the caller counts it.
"""

import csv
import gzip
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from phrase_loc.errors import DataError, PhraseLocError

log = logging.getLogger(__name__)

_LONGEST_LINE = 2**24  # bytes; a binary file with a text's name must not fill the memory
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def told(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as one sentence."""
    try:
        yield
    except PhraseLocError:
        raise
    except Exception as error:  # decoders of damaged files fail in any way
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise DataError(f"{what} {path} cannot be read: {reason or type(error).__name__}") from None


def opened(path: Path, what: str) -> IO[bytes]:
    """A regular file, unpacked if it ends in .gz; raises DataError when there is none."""
    if not path.exists():
        raise DataError(f"{what} {path} does not exist; check the path")
    if not path.is_file():
        raise DataError(f"{what} {path} is no file; check the path")
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def text_lines(path: Path, what: str) -> Iterator[str]:
    """The lines of a text file with their ends; what is not UTF-8 is said once, with the number of lines.

    Raises:
        DataError: there is no such file, or a line is no text's.
    """
    odd, first, number = 0, 0, 0
    with told(path, what):
        for number, line in enumerate(_raw_lines(path, what), start=1):
            text, is_utf8 = decoded(line)
            if not is_utf8:
                odd, first = odd + 1, first or number
            yield text
    if odd:
        log.warning(
            "%s: %d of %d lines are not UTF-8 and were read as Windows-1252, the first is line %d; "
            "save the file as UTF-8 if that is wrong",
            *(path, odd, number, first),
        )


def decoded(raw: bytes) -> tuple[str, bool]:
    """Bytes as UTF-8, else as Windows-1252 or, where that has gaps, Latin-1; whether they were UTF-8."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return raw.decode(encoding), encoding == "utf-8"
        except UnicodeDecodeError:
            pass
    return raw.decode("latin-1"), False


def lines_of(raw: bytes) -> tuple[list[str], str]:
    """The lines of a short text without blanks around them, and what is wrong with its encoding."""
    text, is_utf8 = decoded(raw.removeprefix(b"\xef\xbb\xbf"))
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    return lines, "" if is_utf8 else "its text is not UTF-8 and is read as Windows-1252"


def _raw_lines(path: Path, what: str) -> Iterator[bytes]:
    with opened(path, what) as file:
        start = file.read(2**16)
        file.seek(0)
        if start.startswith(_UTF16):
            yield from file.read().decode("utf-16").encode().splitlines(keepends=True)
            return
        if b"\r" in start and b"\n" not in start:  # spreadsheets of old Macs
            yield from file.read().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
            return
        file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise DataError(f"{what} {path} has a line {number} of more than {_LONGEST_LINE:,} bytes")
            yield line


#: Endings of tables; those of text may be followed by .gz.
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
#: What is told of a row that cannot be read: its place ("row 3") and what is wrong with it.
Bad = Callable[[str, str], None]
#: A row: its place and the cells of the columns that were asked for, None where it lacks one.
Row = tuple[str, tuple[Any, ...]]

_ROWS_AT_ONCE = 50_000
_MOST_LINES = 1000  # of one row whose text holds line breaks
_NUMBERED = re.compile(r"(?s)(.+)#\d+")  # Flickr's way to number the captions of a photograph
_OPEN = "has a quote that is not closed"


@dataclass(frozen=True)
class Table:
    """The columns of a table, and its rows as often as they are asked for."""

    path: Path
    columns: tuple[str, ...]
    _read: Callable[[Sequence[str], Bad], Iterator[Row]]

    def rows(self, wanted: Sequence[str], bad: Bad | None = None) -> Iterator[Row]:
        """The rows in the order of the file.

        Args:
            wanted: columns of this table, whose cells are given.
            bad: told of each row that cannot be read; without it such a row is a DataError.

        Raises:
            DataError: the file cannot be read on, or a wanted column is there twice.
        """
        twice = [name for name in wanted if self.columns.count(name) > 1]
        if twice:
            raise DataError(f"the table {self.path} has two columns named {twice[0]}; rename one")
        with told(self.path, "the table"):
            yield from self._read(wanted, bad or self._refuse)

    def _refuse(self, place: str, wrong: str) -> None:
        raise DataError(f"the table {self.path} cannot be read: {place} {wrong}")


def is_table(path: str | Path) -> bool:
    """Whether the ending is one of a table."""
    return _kind(Path(path)) in TABLE_ENDINGS


def open_table(path: Path, what: str = "the table") -> Table:
    """A table of one of TABLE_ENDINGS.

    Raises:
        DataError: it is missing, empty, or broken.
    """
    kind = _kind(path)
    with told(path, what):
        if kind == ".parquet":
            return _parquet(path, what)
        return _json_lines(path, what) if kind == ".jsonl" else _delimited(path, what)


def cell_texts(cell: Any) -> list[str]:
    """The texts in a cell: lines of a string, the strings of a list, or of a JSON list written as a string."""
    if isinstance(cell, str):
        if cell.startswith("["):
            try:
                listed = json.loads(cell)
                return [text for item in listed if isinstance(item, str) for text in _lines_of(item)]
            except (ValueError, RecursionError):
                pass
        return _lines_of(cell)
    if isinstance(cell, (list, tuple)):
        return [text for item in cell for text in cell_texts(item)]
    return []


def image_path(folder: Path, name: str) -> Path:
    """The file that a cell names, counted from the table's folder.

    A file of just that name goes first; else blanks around it and Flickr's numbering (`name.jpg#0`) are left out.
    """
    if not (numbered := _NUMBERED.fullmatch(name.strip())) and name == name.strip():
        return folder / name
    candidates = [folder / name, folder / name.strip(), folder / (numbered[1] if numbered else name.strip())]
    return next((path for path in candidates[:-1] if is_there(path)), candidates[-1])


def is_there(path: str | Path) -> bool:
    """Whether a path exists; False for what can be no path (too long, a null character)."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _kind(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix if not name.endswith(".parquet.gz") else ".gz"


def _delimited(path: Path, what: str) -> Table:
    lines = text_lines(path, what)
    header = next((line for line in lines if line.strip()), "")
    if not header:
        raise DataError(f"{what} {path} is empty; its first line must name the columns")
    first, tab, _ = header.partition("\t")
    headless = bool(tab and _NUMBERED.fullmatch(first))  # `name.jpg#0<tab>caption`, without header and quotes
    if headless:
        columns: tuple[str, ...] = ("image", "caption")
        options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    else:
        unquoted = re.sub(r'"[^"]*"', "", header)
        delimiter = max("\t,|;", key=unquoted.count)
        options = {"delimiter": delimiter, "skipinitialspace": f"{delimiter} " in unquoted}
        columns = tuple(name.strip().lower() for name in next(csv.reader([header.strip()], **options)))

    def read(wanted: Sequence[str], bad: Bad) -> Iterator[Row]:
        chosen = [columns.index(name) for name in wanted]
        found = text_lines(path, what)
        if not headless:
            next(line for line in found if line.strip())
        for number, (fields, wrong) in enumerate(_records(found, len(columns), options), start=1):
            if wrong:
                bad(f"row {number}", wrong)
            else:
                yield f"row {number}", tuple(fields[i] for i in chosen)

    return Table(path, columns, read)


def _records(
    lines: Iterator[str], width: int, options: dict[str, Any]
) -> Iterator[tuple[Sequence[str], str]]:
    """(fields, what is wrong with them) of each row; a quote that never closes costs its own line alone."""
    ahead: deque[str] = deque()

    def following() -> str | None:
        return ahead.popleft() if ahead else next(lines, None)

    while (line := following()) is not None:
        if not line.strip():
            continue
        fields, wrong = _parsed([line], width, options)
        if wrong == _OPEN:  # the text may go on in the next lines
            more: list[str] = []
            while len(more) < _MOST_LINES and (extra := following()) is not None:
                more.append(extra)
                if extra.count('"') % 2:
                    break
            whole, still_wrong = _parsed([line, *more], width, options)
            if still_wrong:
                ahead.extendleft(reversed(more))
            else:
                fields, wrong = whole, ""
        yield fields, wrong


def _parsed(lines: Sequence[str], width: int, options: dict[str, Any]) -> tuple[Sequence[str], str]:
    """The fields of one row on these lines, or what is wrong with it."""
    try:
        rows = list(csv.reader(lines, strict=True, **options))
    except csv.Error as error:
        is_open = "unexpected end of data" in str(error)
        return (), _OPEN if is_open else f"cannot be split into fields ({error})"
    if len(rows) > 1 or len(rows[0]) != width:
        return (), f"has {len(rows[0])} fields, the header has {width}; quote the phrase"
    return rows[0], ""


def _json_lines(path: Path, what: str) -> Table:
    columns = dict.fromkeys(
        name for _, found in _objects(path, what) if isinstance(found, dict) for name in found
    )
    if not columns:
        raise DataError(f"{what} {path} has no line that is a JSON object; write one on each line")

    def read(wanted: Sequence[str], bad: Bad) -> Iterator[Row]:
        for place, found in _objects(path, what):
            if isinstance(found, dict):
                yield place, tuple(found.get(name) for name in wanted)
            else:
                bad(place, found)

    return Table(path, tuple(columns), read)


def _objects(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(place, object or what is wrong with the line) of each line that is not blank."""
    for number, line in enumerate(text_lines(path, what), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            yield f"line {number}", {name.strip().lower(): value for name, value in found.items()}
        else:
            yield f"line {number}", "is no JSON object"


def _parquet(path: Path, what: str) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow") from None
    opened(path, what).close()
    with parquet.ParquetFile(path) as file:
        names = {name.strip().lower(): name for name in file.schema_arrow.names}
        columns = tuple(name.strip().lower() for name in file.schema_arrow.names)

    def read(wanted: Sequence[str], bad: Bad) -> Iterator[Row]:
        number = 0
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[names[name] for name in wanted]):
                cells = [map(_as_text, batch.column(names[name]).to_pylist()) for name in wanted]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield f"row {number}", row
            if number != file.metadata.num_rows:
                raise DataError(
                    f"{what} {path} is damaged: it says {file.metadata.num_rows} rows and holds {number}"
                )

    return Table(path, columns, read)


def _as_text(cell: Any) -> Any:
    """Strings that an older writer stored as plain bytes, and lists of them, as strings."""
    if isinstance(cell, list):
        return [_as_text(item) for item in cell]
    if isinstance(cell, bytes):
        text, is_utf8 = decoded(cell)
        return text if is_utf8 else cell
    return cell


def _lines_of(text: str) -> list[str]:
    whole = text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters
    return [line.strip() for line in whole.splitlines() if line.strip()]
