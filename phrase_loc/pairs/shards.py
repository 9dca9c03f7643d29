"""Tar shards of images and texts (WebDataset's form, what img2dataset writes), read at random by offset.

One pass over the headers of a shard gives an index of byte offsets, kept on disk: for an exact resume in an epoch.
"""

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from phrase_loc import files
from phrase_loc.errors import DataError
from phrase_loc.images import IMAGE_ENDINGS
from phrase_loc.pairs.paths import is_remote, remote_version, store
from phrase_loc.skipped import Fault

log = logging.getLogger(__name__)

#: Of a sample: where the header of its image stands, offset and bytes of its files. 12 million samples take 0.5 GB.
ROW = np.dtype(
    [
        *(("header", "<u8"), ("image", "<u8"), ("image_size", "<u4")),
        *(("text", "<u8"), ("text_size", "<u4"), ("json", "<u8"), ("json_size", "<u4")),
    ]
)
BLOCK = tarfile.BLOCKSIZE
_AHEAD = 4 * 2**20  # bytes read ahead at an address
_VERSION = 2  # of what is kept: the rows, and how a shard is read
_MOST_MEMBER = 2**32 - 1  # bytes
_MOST_ZEROS = 2**16  # at the end of a tar; more are what a half-copied file has
_MAGIC = slice(257, 262)  # of a header: "ustar"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"PK": "zip",
}
_KINDS = {"txt": "text", "caption": "text", "json": "json"} | {end[1:]: "image" for end in IMAGE_ENDINGS}
_NONE = (0, 0, 0)  # parts of a file that a sample lacks

#: 'image' | 'text' | 'json' -> (offset of its header, of its content, bytes) of the files of a sample.
Parts = dict[str, tuple[int, int, int]]


def load_index(shard: str, cache: Path | None, lone: bool = False) -> tuple[np.ndarray, list[Fault]]:
    """(n,) rows of dtype ROW in the order of the shard, and what is wrong with it.

    They are kept in the folder `cache`, if there is one, for as long as the shard's size and time stay. `lone` takes
    in samples without an image, with the header of another of their files and an image of 0 bytes; nothing is kept.
    """
    if cache is None or lone:
        return _index(shard, lone)
    try:
        version = remote_version(shard) if is_remote(shard) else "|".join(map(str, files.fingerprint(shard)))
    except OSError as error:
        return np.zeros(0, ROW), [Fault("shard", shard, f"cannot be read: {files.reason(error)}")]
    stamp = f"{version}|{_VERSION}"
    name = files.digest(stamp.encode("utf-8", "surrogatepass"))[:16]
    path = cache / f"{Path(shard).stem[:40]}-{name}.index"
    if path.is_file():
        content = files.unsealed(files.read_bytes(path, "the index")) or b"{}"
        line, _, data = content.partition(b"\n")
        facts = json.loads(line)
        if facts.get("of") == stamp:
            return np.frombuffer(data, ROW), [Fault(*fields) for fields in facts["faults"]]
        log.warning("the index %s is damaged; it is made anew", path)
    rows, faults = _index(shard)
    if not any(fault.kind == "shard" for fault in faults):  # the next start may find it whole
        advice = "set data.index to a folder that can be written"
        files.make_folder(cache, advice, f"the index folder {cache}")
        line = json.dumps({"of": stamp, "faults": faults}).encode()
        files.write_bytes(path, files.sealed(line + b"\n" + rows.tobytes()), advice)
    return rows, faults


def _index(shard: str, lone: bool = False) -> tuple[np.ndarray, list[Fault]]:
    """A sample is the files of a tar that share a name up to a known ending: `IMG.2020.01.jpg` and `IMG.2020.01.txt`.

    WebDataset itself cuts at the first dot: a file without its counterpart, such as `000001.seg.png`, is a further
    file of the sample `000001` where there is one and is passed over. Names that begin with a dot (macOS writes
    `._000001.jpg`) are no samples. A key is unique within its archive.
    """
    samples: dict[tuple[int, str], Parts] = {}  # by begin of the archive and key
    faults: list[Fault] = []
    try:
        with open_shard(shard) as tar:
            for found in walk(tar):
                faults += _take(found, samples, shard)
    except Exception as error:  # each store of remote shards raises its own
        faults.append(Fault("shard", shard, f"cannot be read: {files.reason(error)}"))
    if any(archive for archive, _ in samples):
        log.warning("%s goes on behind its end mark, as archives joined by cat do; all is used", shard)
    pictured = {key for key, parts in samples.items() if "image" in parts}
    rows, further = [], []
    for (archive, key), parts in samples.items():
        folder, slash, name = key.rpartition("/")
        stems = (name.rsplit(".", cuts)[0] for cuts in range(1, name.count(".") + 1))
        if len(parts) == 1 and any((archive, folder + slash + stem) in pictured for stem in stems):
            further.append(key)
        elif "image" in parts or lone:
            image = parts.get("image") or (*next(iter(parts.values()))[:2], 0)
            rows.append((*image, *parts.get("text", _NONE)[1:], *parts.get("json", _NONE)[1:]))
        else:
            faults.append(Fault("lone", f"{shard}:{key}", "has no image"))
    if further:
        log.info("%s: %d files, such as %s, are passed over", shard, len(further), further[0])
    return np.array(rows, ROW), faults


def _take(found: "Member | Damage", samples: dict[tuple[int, str], Parts], shard: str) -> list[Fault]:
    """Puts a file of a tar to its sample, or says what is wrong with it."""
    if isinstance(found, Damage):
        what = f"{found.what} (bytes {found.start:,} to {found.end:,} are lost)"
        return [Fault("shard", f"{shard}:byte {found.start}", what)]
    path, _, ending = found.name.rpartition(".")
    name = path.rpartition("/")[2]
    kind = _KINDS.get(ending.lower())
    if kind is None or not name or name.startswith("."):
        return []
    if why := found.unread or ("has more than 4 GB" if found.size > _MOST_MEMBER else ""):
        return [Fault(kind if kind == "image" else "text", f"{shard}:{found.name}", why)]
    key = path.removeprefix("./")
    parts = samples.setdefault((found.archive, key), {})
    if kind in parts:
        return [Fault("duplicate", f"{shard}:{key}", f"has two files of the kind {kind}")]
    parts[kind] = (found.offset, found.offset_data, found.size)
    return []


def open_shard(shard: str) -> IO[bytes]:
    """A shard on a disk or at an address, as a file that can be sought in."""
    if not is_remote(shard):
        return files.opened(shard, "the shard")
    with store(shard) as (system, path):
        return system.open(path, "rb", block_size=_AHEAD)


class Member(tarfile.TarInfo):
    """A file, or a link, whose `size` bytes from `offset_data` on lie whole in the tar."""

    archive = 0  # where its archive begins, of those that were joined in this file

    @property
    def unread(self) -> str:
        """Why its content is not at `offset_data`; empty where it is."""
        if self.issparse():
            return "is a sparse file"
        return "" if self.isreg() else f"is a link to {self.linkname}"


class Damage(NamedTuple):
    """Bytes from `start` to `end` that are no member's, and what is known of them."""

    start: int
    end: int
    what: str


def walk(file: IO[bytes]) -> Iterator[Member | Damage]:
    """The members of a tar in its order, and each damaged stretch between them; a DataError where it is packed.

    `tarfile` itself ends at the first header that is broken or zero, without a word. Behind the two zero blocks of an
    end mark, which most writers fill up to a multiple of 10,240 bytes, may stand a further archive, as after
    `cat a.tar b.tar`; other zeros are damage.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head, tar = file.read(8), _tar(file)
    if packed := [name for mark, name in _PACKED.items() if head.startswith(mark)]:
        raise DataError(f"is packed with {packed[0]}; unpack it to .tar first")
    at = begin = 0
    mark_missing = True
    while at < length:
        member = _member(tar, at)
        if member is not None and at < tar.offset and member.offset_data + member.size <= length:
            at, mark_missing = tar.offset, True
            if member.isfile() or member.issym() or member.islnk():
                member.archive = begin
                yield member
            continue
        start, mark_missing = at, False
        if member is not None:
            at = _find(file, max(start + BLOCK, member.offset_data), length, _is_header)
            yield Damage(member.offset_data, at, f"{member.name} is cut off")
        elif (at := _find(file, start, length, lambda block: block.count(0) < len(block))) == start:
            at = _find(file, start + BLOCK, length, _is_header)
            yield Damage(start, at, _guess(file, start))
        elif at < length and (at - start == 2 * BLOCK or (at - begin) % tarfile.RECORDSIZE == 0):
            begin, tar.pax_headers = at, {}  # as writers end an archive
        elif at < length or at - start > _MOST_ZEROS:
            yield Damage(start, at, "zeros stand where files may have been")
    if mark_missing:
        what = "the mark at the end of the archive is missing" if length else "the file is empty"
        yield Damage(length, length, what)


def key_in(headers: bytes) -> str:
    """The name in the headers of a member without its ending; empty where they are damaged."""
    member = _member(_tar(io.BytesIO(headers)), 0)
    return member.name.rpartition(".")[0] if member else ""


def _tar(file: IO[bytes]) -> tarfile.TarFile:
    tar = tarfile.TarFile(fileobj=io.BytesIO(bytes(BLOCK)), encoding="utf-8", errors="surrogateescape")
    tar.fileobj = file
    return tar


def _member(tar: tarfile.TarFile, at: int) -> Member | None:
    """The member whose headers stand there; None where there is no whole header."""
    assert tar.fileobj is not None
    tar.fileobj.seek(at)
    try:
        return Member.fromtarfile(tar)
    except OSError:
        raise
    except Exception:  # tarfile meets damaged extended headers with errors of many kinds
        return None


def _find(file: IO[bytes], at: int, length: int, wanted: Callable[[bytes], bool]) -> int:
    """Offset of the first wanted block from `at` on, a multiple of 512; `length` where there is none."""
    file.seek(at)
    blocks = zip(range(at, length, BLOCK), iter(lambda: file.read(BLOCK), b""))
    return next((start for start, block in blocks if wanted(block)), length)


def _is_header(block: bytes) -> bool:
    with suppress(tarfile.HeaderError, ValueError):
        return block[_MAGIC] == b"ustar" and bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    return False


def _guess(file: IO[bytes], at: int) -> str:
    file.seek(at)
    block = file.read(BLOCK)
    name = block[:100].partition(b"\0")[0].decode("ascii", "replace")
    alike = sum(a == b for a, b in zip(block[_MAGIC], b"ustar", strict=False))
    return f"the header of {name!r} is damaged" if alike >= 4 and name else "no header of a file stands here"
