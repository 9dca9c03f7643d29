"""The members of a tar as far as they are whole: what is damaged is stepped over and told, never the end of the rest.

`tarfile` reads the headers (ustar, GNU, PAX) and stops at the first that is broken or zero, without a word. Here the
walk goes on from the next header: a member starts at a multiple of 512 bytes, its header carries a checksum, and in
every form but the oldest the word "ustar". Behind the two zero blocks of an end mark, which most writers fill up to a
multiple of 10,240 bytes, may stand a further archive, as after `cat a.tar b.tar`; other zeros are damage.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from phrase_loc.errors import DataError

BLOCK = tarfile.BLOCKSIZE
_CHUNK = 2**16
_MOST_ZEROS = 2**16  # at the end; more are what a half-copied file has
_MAGIC, _MAGIC_AT = b"ustar", 257
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK": "zip",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file, or a link, whose data lie whole in the tar.

    Attributes:
        name: with its folders, as the header has it.
        archive: number of the archive among those that were joined in this file.
        header: offset of the first of its headers.
        data: offset of its content.
        size: bytes of its content.
        unread: why its content is not at `data`; empty where it is.
    """

    name: str
    archive: int
    header: int
    data: int
    size: int
    unread: str = ""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes from `start` to `end` that are no member's, and what is known of them."""

    start: int
    end: int
    what: str


def walk(file: IO[bytes], length: int) -> Iterator[Member | Damage]:
    """The members of a tar in its order, and each damaged stretch between them.

    Args:
        file: can be sought in.
        length: its bytes.

    Raises:
        OSError: it cannot be read.
        DataError: it is packed.
    """
    _refuse_packed(file)
    at = archive = begin = 0
    mark_missing = True
    while at < length:
        start = _behind_zeros(file, at, length)
        if start > at:
            mark_missing = False
            if start < length and (start - at == 2 * BLOCK or (start - begin) % tarfile.RECORDSIZE == 0):
                archive, begin = archive + 1, start  # as writers end an archive
            elif start < length or start - at > _MOST_ZEROS:
                yield Damage(at, start, "zeros stand where files may have been")
            at = start
            continue
        reached = at
        damage = ""
        for member, behind in _run(file, at):
            if behind < reached or member.offset_data + member.size > length:
                reached, damage = max(reached, member.offset_data), f"{member.name} is cut off"
                break
            reached = behind
            if member.isfile() or member.issym() or member.islnk():
                yield _member(member, archive)
        if damage or reached == at:
            end = _next_header(file, reached + (0 if damage else BLOCK), length)
            yield Damage(reached, end, damage or _guess(file, at))
            reached = end
        mark_missing = not damage
        at = reached
    if mark_missing:
        what = "the mark at the end of the archive is missing" if length else "the file is empty"
        yield Damage(length, length, what)


def _run(file: IO[bytes], at: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Members from an offset on, each with the offset behind it, until a header that is none."""
    file.seek(at)
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
            yield member, tar.offset
    except OSError:
        raise
    except Exception:  # tarfile meets damaged extended headers with errors of many kinds
        return


def _member(member: tarfile.TarInfo, archive: int) -> Member:
    unread = "" if member.isreg() else f"is a link to {member.linkname}"
    if member.issparse():
        unread = "is a sparse file"
    return Member(member.name, archive, member.offset, member.offset_data, member.size, unread)


def _refuse_packed(file: IO[bytes]) -> None:
    file.seek(0)
    start = file.read(8)
    for mark, name in _PACKED.items():
        if start.startswith(mark):
            raise DataError(f"is packed with {name}; unpack it to .tar first")


def _behind_zeros(file: IO[bytes], at: int, length: int) -> int:
    """Offset of the first block from `at` on that holds anything but zeros; `length` where none does."""
    while at < length:
        file.seek(at)
        chunk = file.read(_CHUNK)
        kept = len(chunk.lstrip(b"\0"))
        if kept:
            return at + (len(chunk) - kept) // BLOCK * BLOCK
        if not chunk:
            break
        at += len(chunk)
    return length


def _next_header(file: IO[bytes], at: int, length: int) -> int:
    """Offset of the next block from `at` on that is a header, a multiple of 512; `length` where none is."""
    at = -(-at // BLOCK) * BLOCK
    while at < length:
        file.seek(at)
        chunk = file.read(_CHUNK)
        if not chunk:
            break
        found = chunk.find(_MAGIC)
        while found >= 0:
            start = found - _MAGIC_AT
            if start >= 0 and start % BLOCK == 0 and _is_header(chunk[start : start + BLOCK]):
                return at + start
            found = chunk.find(_MAGIC, found + 1)
        at += len(chunk)
    return length


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _guess(file: IO[bytes], at: int) -> str:
    """What a damaged header may have been of."""
    file.seek(at)
    block = file.read(BLOCK)
    name = block[:100].partition(b"\0")[0].decode("ascii", "replace")
    magic = block[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)]
    alike = sum(a == b for a, b in zip(magic, _MAGIC, strict=False))
    return f"the header of {name!r} is damaged" if alike >= 4 and name else "no header of a file stands here"
