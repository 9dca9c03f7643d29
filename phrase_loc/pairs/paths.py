"""What a user's paths mean: globs, brace ranges, `@lists`, and shards at an address (s3://, gs://, https://)."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from phrase_loc import files
from phrase_loc.errors import DataError

_BRACE = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")
_COMMENT = re.compile(r"(^|\s)#.*")
_MOST = 1_000_000  # paths of one pattern


def is_remote(path: str) -> bool:
    """Whether a path is an address (`https://`, `s3://`) and no file."""
    return "://" in path


def remote_version(address: str) -> str:
    """What changes when the shard does: its size and the store's mark of its content."""
    with store(address) as (system, path):
        facts = system.info(path)
    marks = (facts.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created"))
    return f"{address}|{'|'.join(map(str, marks))}"


def exists(path: str) -> bool:
    """Whether a file or a shard is there; raises DataError where its store cannot be asked."""
    if not is_remote(path):
        return os.path.exists(path)
    try:
        with store(path) as (system, inner):
            return bool(system.exists(inner))
    except OSError as error:
        raise DataError(f"{path} cannot be reached: {error}") from None


@contextmanager
def store(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of fsspec for an address, and the path in it; whatever the store raises is an OSError.

    Raises DataError: the store's plug-in (s3fs, gcsfs, aiohttp) is not installed, or there is no account.
    """
    import fsspec

    try:
        found = fsspec.core.url_to_fs(address)
    except Exception as error:
        raise DataError(f"{address} cannot be opened: {files.reason(error)}") from None
    try:
        yield found
    except OSError:
        raise
    except Exception as error:  # each store has its own
        raise OSError(f"{type(error).__name__}: {files.reason(error)}") from None


def expand(patterns: str | Sequence[str]) -> list[str]:
    """Patterns -> paths in a fixed order, each file once; a DataError where one means nothing."""
    kept: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for path in _expand_one(pattern, ()):
            kept.setdefault(path if is_remote(path) else os.path.abspath(path), path)
    if not kept:
        raise DataError("no input files were named; give data.shards a path, a glob or a list")
    return list(kept.values())


def _expand_one(pattern: str, lists: tuple[str, ...]) -> Iterator[str]:
    bare = pattern.strip()
    if not bare:
        return
    if os.path.exists(pattern) or os.path.exists(bare):
        yield pattern if os.path.exists(pattern) else bare
    elif bare in lists:
        raise DataError(f"the list of files {bare[1:]} names itself; write paths in it")
    elif bare.startswith("@"):
        content = files.read_bytes(bare[1:], what := "the list of files")
        content = files.to_utf8(content, f"{what} {bare[1:]}")  # PowerShell writes UTF-16
        for line in map(os.fsdecode, content.splitlines()):  # in the bytes of their names
            yield from _expand_one(
                line if os.path.exists(line.strip()) else _COMMENT.sub("", line), (*lists, bare)
            )
    else:
        cut = 0 if is_remote(bare) else len(bare)  # behind the deepest folder that exists under that name
        while cut > 0 and not (bare[cut - 1] == "/" and os.path.exists(bare[:cut])):
            cut -= 1
        choices = list(islice(_braces(bare[cut:], bare), _MOST + 1))
        if len(choices) > _MOST:
            raise DataError(f"{bare!r} means more than {_MOST:,} paths; write a smaller range")
        for choice in choices:
            path = bare[:cut] + choice
            if is_remote(path) or os.path.exists(path) or not glob.has_magic(choice):
                yield path
            elif found := sorted(glob.glob(glob.escape(bare[:cut]) + choice, recursive=True)):
                yield from found
            else:
                raise DataError(f"no file matches {path!r}; check the folder and the pattern")


def _braces(rest: str, pattern: str) -> Iterator[str]:
    match = _BRACE.search(rest)
    if match is None:
        yield rest
        return
    choices: Iterable[str] = match[1].split(",")
    if span := _RANGE.match(match[1]):
        first, last = span.groups()
        if len(last) > 18 or int(last) < int(first):
            what = f"the range {match[0]} in {pattern!r} runs backwards or too far"
            raise DataError(f"{what}; write the smaller number first")
        choices = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    for choice in choices:
        yield from _braces(rest[: match.start()] + choice + rest[match.end() :], pattern)
