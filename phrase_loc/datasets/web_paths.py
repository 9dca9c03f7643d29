"""Which files a user means: globs, brace ranges, lists, `@file` of paths, and addresses left as they are.

    expand("cc3m/{00000..00331}.tar")            332 paths, whether or not they exist
    expand(["a/*.tar", "b/00000.tar"])           what the glob finds, sorted, then the one
    expand("@shards.txt")                        a path or pattern a line, `#` starts a comment
    expand("photos [2023]/*.tar")                what exists is taken by its name, up to the folder that does

The notation is the one of img2dataset and webdataset; `{a,b}` lists alternatives. A path that exists is that path,
whatever signs it holds; only what does not exist is read as a pattern.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from phrase_loc import files
from phrase_loc.errors import DataError
from phrase_loc.tables import is_there

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
