"""Which files a user means: globs, brace ranges, lists, `@file` of paths, and addresses left as they are.

    expand("cc3m/{00000..00331}.tar")            332 paths, whether or not they exist
    expand(["a/*.tar", "b/00000.tar"])           what the glob finds, sorted, then the one
    expand("@shards.txt")                        a path or pattern a line, `#` starts a comment

The notation is the one of img2dataset and webdataset; `{a,b}` lists alternatives.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from phrase_loc.errors import DataError

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")


def expand(patterns: str | Sequence[str]) -> list[str]:
    """Patterns -> paths in a fixed order, each once.

    Raises:
        DataError: nothing was named, a glob finds nothing, a list file is missing, a range runs backwards.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    paths = [path for pattern in wanted for path in _expand_one(pattern.strip())]
    if not paths:
        raise DataError("no input files were named; give data.shards a path, a glob or a list")
    return list(dict.fromkeys(paths))


def is_remote(path: str) -> bool:
    """Whether a path is an address (`https://`, `s3://`) and no file."""
    return "://" in path


def _expand_one(pattern: str) -> Iterator[str]:
    if pattern.startswith("@"):
        for line in _lines(Path(pattern[1:])):
            yield from _expand_one(line)
        return
    for path in _braces(pattern):
        if is_remote(path) or not glob.has_magic(path):
            yield path
            continue
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise DataError(f"no file matches {path!r}; check the folder and the pattern")
        yield from found


def _braces(pattern: str) -> Iterator[str]:
    match = _BRACE.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1], pattern):
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(inside: str, pattern: str) -> list[str]:
    span = _RANGE.match(inside)
    if span is None:
        return inside.split(",")
    first, last = span[1], span[2]
    if int(last) < int(first):
        raise DataError(
            f"the range {{{inside}}} in {pattern!r} runs backwards; write the smaller number first"
        )
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of files {path} cannot be read: {error}") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
