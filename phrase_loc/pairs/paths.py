"""Shards at an address (s3://, gs://, https://): ranged reads through fsspec, which has a plug-in for each store.

A shard is read once from front to back when its index is built; then each sample is one request, made in the loader's
workers, so more workers hide the wait. fsspec keeps its connections for each process; an address whose
plug-in is not installed (s3fs, gcsfs, aiohttp) is told in one sentence, and whatever a store raises is an OSError.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from phrase_loc import files
from phrase_loc.errors import DataError
from phrase_loc.tables import is_there

BLOCK = 4 * 2**20


def remote_file(address: str) -> IO[bytes]:
    """A shard as a file that can be sought in, read ahead in large blocks."""
    with _store(address) as (system, path):
        return system.open(path, "rb", block_size=BLOCK)


def remote_read(address: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; raises OSError."""
    with _store(address) as (system, path):
        return system.cat_file(path, start=offset, end=offset + size)


def remote_version(address: str) -> str:
    """What changes when the shard does: its size and the store's mark of its content."""
    with _store(address) as (system, path):
        facts = system.info(path)
    marks = (facts.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created"))
    return f"{address}|{'|'.join(map(str, marks))}"


def exists(address: str) -> bool:
    """Whether there is such a shard; raises OSError where the store cannot be asked."""
    with _store(address) as (system, path):
        return bool(system.exists(path))


@contextmanager
def _store(address: str) -> Iterator[tuple[Any, str]]:
    import fsspec

    try:
        found = fsspec.core.url_to_fs(address)  # cached by fsspec, anew in each forked worker
    except Exception as error:  # no plug-in, no account
        raise DataError(f"{address} cannot be opened: {' '.join(str(error).split())[:200]}") from None
    try:
        yield found
    except OSError:
        raise
    except Exception as error:  # each store has its own
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


_BRACE = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")
_COMMENT = re.compile(r"(^|\s)#.*")
_MOST = 1_000_000  # paths of one pattern


def expand(patterns: str | Sequence[str]) -> list[str]:
    """Patterns -> paths in a fixed order, each file once.

    Raises:
        DataError: nothing was named, a glob finds nothing, a list file is missing, a range runs backwards.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    paths = [path for pattern in wanted for path in _expand_one(pattern, ())]
    if not paths:
        raise DataError("no input files were named; give data.shards a path, a glob or a list")
    kept: dict[str, str] = {}
    for path in paths:
        kept.setdefault(path if is_remote(path) else os.path.abspath(path), path)
    return list(kept.values())


def is_remote(path: str) -> bool:
    """Whether a path is an address (`https://`, `s3://`) and no file."""
    return "://" in path


def _expand_one(pattern: str, lists: tuple[str, ...]) -> Iterator[str]:
    if not pattern.strip():
        return
    if is_there(pattern):
        yield pattern
        return
    pattern = pattern.strip()
    if pattern.startswith("@") and not is_there(pattern):
        if pattern in lists:
            raise DataError(f"the list of files {pattern[1:]} names itself; write paths in it")
        for line in _lines(Path(pattern[1:])):
            yield from _expand_one(line, (*lists, pattern))
        return
    folder, rest = ("", pattern) if is_remote(pattern) else _existing(pattern)
    for number, choice in enumerate(_braces(rest, pattern)):
        if number == _MOST:
            raise DataError(f"{pattern!r} means more than {_MOST:,} paths; write a smaller range")
        path = folder + choice
        if is_remote(path) or is_there(path) or not glob.has_magic(choice):
            yield path
            continue
        found = sorted(glob.glob(glob.escape(folder) + choice, recursive=True))
        if not found:
            raise DataError(f"no file matches {path!r}; check the folder and the pattern")
        yield from found


def _existing(pattern: str) -> tuple[str, str]:
    """A pattern cut behind the deepest of its folders that exists under just that name."""
    cut = len(pattern)
    while (cut := pattern.rfind("/", 0, cut)) >= 0:
        if is_there(pattern[: cut + 1]):
            return pattern[: cut + 1], pattern[cut + 1 :]
    return "", pattern


def _braces(rest: str, pattern: str) -> Iterator[str]:
    match = _BRACE.search(rest)
    if match is None:
        yield rest
        return
    for choice in _choices(match[1], pattern):
        yield from _braces(rest[: match.start()] + choice + rest[match.end() :], pattern)


def _choices(inside: str, pattern: str) -> Iterator[str]:
    span = _RANGE.match(inside)
    if span is None:
        yield from inside.split(",")
        return
    first, last = span[1], span[2]
    if len(last) > 18 or int(last) < int(first):
        raise DataError(
            f"the range {{{inside}}} in {pattern!r} runs backwards or too far; write the smaller number first"
        )
    for number in range(int(first), int(last) + 1):
        yield str(number).zfill(len(first))


def _lines(path: Path) -> list[str]:
    """Paths and patterns of a list, in the bytes of their names; a line that names a file has no comment."""
    content = files.read_bytes(path, "the list of files").removeprefix(b"\xef\xbb\xbf")
    lines = (os.fsdecode(line) for line in content.splitlines())
    return [
        line for raw in lines if (line := raw if is_there(raw.strip()) else _COMMENT.sub("", raw)).strip()
    ]
