"""Texts alone, streamed from captions files, tables and tar shards: what building a vocabulary needs.

    captions.txt, captions.txt.gz    a text a line; `id<tab>text` keeps what follows the last tab
    pairs.csv, .tsv, .jsonl, .parquet   the columns (fields) that hold text, read in chunks
    00000.tar                        members .txt and .json, in the order of the file; images are passed over

Nothing is held: 100 million captions need no more memory than one.
"""

import gzip
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phrase_loc.datasets.web_paths import expand, is_remote
from phrase_loc.datasets.web_sources import TEXT_FIELDS, json_texts
from phrase_loc.errors import DataError

_ROWS = 50_000  # rows of a table at once


def stream_texts(paths: str | Sequence[str], fields: Sequence[str] = TEXT_FIELDS) -> Iterator[str]:
    """The non-empty texts of files, one after another.

    Args:
        paths: files, globs, brace ranges or `@list` files.
        fields: columns of a table, or fields of a JSON object, that hold text (a string or a list of strings).

    Raises:
        DataError: a file is missing, broken, of an unknown kind, or has none of the fields.
    """
    for path in expand(paths):
        if is_remote(path):
            raise DataError(f"{path} is an address; copy the file to a disk first")
        reader = _reader(path)
        try:
            for text in reader(Path(path), tuple(fields)):
                if text := text.strip():
                    yield text
        except (OSError, EOFError, UnicodeDecodeError, tarfile.TarError) as error:
            raise DataError(f"the texts of {path} cannot be read: {error}") from None


def _reader(path: str) -> Any:
    for suffix, reader in READERS.items():
        if path.lower().endswith(suffix):
            return reader
    raise DataError(f"{path} is of no known kind; expected one of {', '.join(READERS)}")


def _lines(path: Path, fields: Sequence[str]) -> Iterator[str]:
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield line.rpartition("\t")[2]


def _json_lines(path: Path, fields: Sequence[str]) -> Iterator[str]:
    with path.open("rb") as lines:
        for line in lines:
            yield from json_texts(line, fields)


def _tar(path: Path, fields: Sequence[str]) -> Iterator[str]:
    with tarfile.open(path, "r|*") as shard:
        for member in shard:
            suffix = member.name.rpartition(".")[2].lower()
            if not member.isfile() or suffix not in ("txt", "json"):
                continue
            opened = shard.extractfile(member)
            raw = opened.read() if opened else b""
            if suffix == "json":
                yield from json_texts(raw, fields)
            else:
                yield from raw.decode("utf-8", "replace").splitlines()


def _csv(path: Path, fields: Sequence[str]) -> Iterator[str]:
    import pandas

    try:
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        columns = _present(path, list(pandas.read_csv(path, sep=separator, nrows=0).columns), fields)
        for frame in pandas.read_csv(path, sep=separator, usecols=columns, dtype=str, chunksize=_ROWS):
            yield from _cells(frame[columns])
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise DataError(f"the table {path} cannot be read: {error}") from None


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow") from None
    try:
        table = parquet.ParquetFile(path)
        columns = _present(path, table.schema_arrow.names, fields)
        for batch in table.iter_batches(_ROWS, columns=columns):
            yield from _cells(batch.to_pandas())
    except ArrowException as error:
        raise DataError(f"the table {path} cannot be read: {error}") from None


def _present(path: Path, columns: Sequence[str], fields: Sequence[str]) -> list[str]:
    found = [name for name in columns if name in fields]
    if not found:
        raise DataError(
            f"{path} has no column named {', '.join(fields)} (it has {', '.join(columns)}); name one with --fields"
        )
    return found


def _cells(frame: Any) -> Iterator[str]:
    """Texts of a pandas frame; a cell may hold a list, or a JSON list written as a string."""
    for row in frame.itertuples(index=False, name=None):
        for cell in row:
            if isinstance(cell, str):
                yield from _listed(cell)
            elif hasattr(cell, "__iter__"):
                yield from (text for text in cell if isinstance(text, str))


def _listed(cell: str) -> list[str]:
    if cell.startswith("["):
        try:
            return [text for text in json.loads(cell) if isinstance(text, str)]
        except ValueError:
            pass
    return [cell]


READERS = {
    ".txt": _lines,
    ".txt.gz": _lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".tar": _tar,
    ".tar.gz": _tar,
}
