"""Text files line by line, plain or .gz, in whatever encoding they come.

A byte-order mark decides (UTF-8, UTF-16); else a line is UTF-8, and where it is not, Windows-1252, which a note in
the log says once.
"""

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
