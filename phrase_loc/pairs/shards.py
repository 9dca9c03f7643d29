"""Tar shards of images and texts (WebDataset's form, what img2dataset writes), read at random by offset.

One pass over the headers of a shard gives an index of byte offsets, kept on disk; from then on any sample is fetched
in any order, which makes an exact resume in the middle of an epoch possible.
"""

import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
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
    **{b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"},
    **{b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"},
}
_KINDS = {".txt": "text", ".caption": "text", ".json": "json"} | dict.fromkeys(IMAGE_ENDINGS, "image")

#: (number of the archive, name without its ending) of a sample.
Key = tuple[int, str]
#: 'image' | 'text' | 'json' -> (offset of its header, of its content, bytes) of the files of a sample.
Parts = dict[str, tuple[int, int, int]]
_ABSENT: Parts = {"text": (0, 0, 0), "json": (0, 0, 0)}


def load_index(shard: str, cache: Path | None) -> tuple[np.ndarray, list[Fault]]:
    """(n,) rows of dtype ROW in the order of the shard, and what is wrong with it.

    They are kept in the folder `cache`, if there is one, for as long as the shard's size and time stay.
    """
    if cache is None:
        return _index(shard)
    try:
        version = remote_version(shard) if is_remote(shard) else "|".join(map(str, files.fingerprint(shard)))
    except OSError as error:
        return np.zeros(0, ROW), [_unreadable(shard, error)]
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
        with files.refusing(f"the index folder {cache}", advice):
            cache.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"of": stamp, "faults": faults}).encode()
        files.write_bytes(path, files.sealed(line + b"\n" + rows.tobytes()), advice)
    return rows, faults


def _index(shard: str) -> tuple[np.ndarray, list[Fault]]:
    samples, faults = read_samples(shard)
    pictured = [{**_ABSENT, **parts} for parts in samples.values() if "image" in parts]
    rows = [(*parts["image"], *parts["text"][1:], *parts["json"][1:]) for parts in pictured]
    return np.array(rows, ROW), faults


def read_samples(shard: str, file: IO[bytes] | None = None) -> tuple[dict[Key, Parts], list[Fault]]:
    """The samples of a shard, or of `file` where it is open, and what is wrong with it.

    A sample is the files of a tar that share a name up to a known ending: `IMG.2020.01.jpg` and `IMG.2020.01.txt`.
    WebDataset itself cuts at the first dot: a file without its counterpart, such as `000001.seg.png`, is a further
    file of the sample `000001` where there is one and is passed over. Names that begin with a dot (macOS writes
    `._000001.jpg`) are no samples. A key is unique within its archive. Samples without an image are among both.
    """
    samples: dict[Key, Parts] = {}
    faults: list[Fault] = []
    try:
        with nullcontext(file) if file else open_shard(shard) as tar:
            for found in walk(tar):
                if isinstance(found, Damage):
                    what = f"{found.what} (bytes {found.start:,} to {found.end:,} are lost)"
                    faults.append(Fault("shard", f"{shard}:byte {found.start}", what))
                elif wrong := _take(found, samples):
                    faults.append(Fault(wrong[0], f"{shard}:{wrong[1]}", wrong[2]))
    except Exception as error:  # each store of remote shards raises its own
        faults.append(_unreadable(shard, error))
    if any(archive for archive, _ in samples):
        log.warning("%s goes on behind its end mark, as archives joined by cat do; all is used", shard)
    further = [key for key, parts in samples.items() if len(parts) == 1 and _belongs(key, samples)]
    for key in further:
        del samples[key]
    if further:
        log.info("%s: %d files, such as %s, are passed over", shard, len(further), further[0][1])
    lone = [key for (_, key), parts in samples.items() if "image" not in parts]
    return samples, faults + [Fault("lone", f"{shard}:{key}", "has no image") for key in lone]


def _take(found: "Member", samples: dict[Key, Parts]) -> Fault | None:
    """Puts a file of a tar to its sample; a fault without the shard's name where that cannot be."""
    folder, slash, name = found.name.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    kind = _KINDS.get(dot + ending.lower())
    if kind is None or not stem or name.startswith("."):
        return None
    if why := found.unread or ("has more than 4 GB" if found.size > _MOST_MEMBER else ""):
        return Fault(kind if kind == "image" else "text", found.name, why)
    key = f"{folder}{slash}{stem}".removeprefix("./")
    parts = samples.setdefault((found.archive, key), {})
    if kind in parts:
        return Fault("duplicate", key, f"has two files of the kind {kind}")
    parts[kind] = (found.offset, found.offset_data, found.size)
    return None


def _belongs(key: Key, samples: dict[Key, Parts]) -> bool:
    """Whether `a.seg` is a further file of a sample `a`."""
    archive, name = key
    folder, slash, stem = name.rpartition("/")
    stems = (stem.rsplit(".", cuts)[0] for cuts in range(1, stem.count(".") + 1))
    return any("image" in samples.get((archive, folder + slash + stem), {}) for stem in stems)


def open_shard(shard: str) -> IO[bytes]:
    """A shard on a disk or at an address, as a file that can be sought in."""
    if not is_remote(shard):
        return files.opened(shard, "the shard")
    with store(shard) as (system, path):
        return system.open(path, "rb", block_size=_AHEAD)


def _unreadable(shard: str, error: Exception) -> Fault:
    return Fault("shard", shard, f"cannot be read: {files.reason(error)}")


class Member(tarfile.TarInfo):
    """A file, or a link, whose `size` bytes from `offset_data` on lie whole in the tar."""

    archive = 0  # its number among those that were joined in this file

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
    """The members of a tar in its order, and each damaged stretch between them.

    `tarfile` reads the headers (ustar, GNU, PAX) but ends at the first that is broken or zero, without a word. A
    member starts at a multiple of 512 bytes, its header carries a checksum, and in every form but the oldest "ustar".
    Behind the two zero blocks of an end mark, which most writers fill up to a multiple of 10,240 bytes, may stand a
    further archive, as after `cat a.tar b.tar`; other zeros are damage.

    Raises:
        OSError: it cannot be read.
        DataError: it is packed.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head, tar = file.read(8), _tar(file)
    for mark, name in _PACKED.items():
        if head.startswith(mark):
            raise DataError(f"is packed with {name}; unpack it to .tar first")
    at = archive = begin = 0
    mark_missing = True
    while at < length:
        member = _member(tar, at)
        if member is not None and at < tar.offset and member.offset_data + member.size <= length:
            at, mark_missing = tar.offset, True
            if member.isfile() or member.issym() or member.islnk():
                member.archive = archive
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
            archive, begin, tar.pax_headers = archive + 1, at, {}  # as writers end an archive
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
    """What `fromtarfile` needs of a TarFile, which itself would read on to the first damage."""
    tar = tarfile.TarFile(fileobj=io.BytesIO(bytes(BLOCK)), encoding="utf-8", errors="surrogateescape")
    tar.fileobj = file
    return tar


def _member(tar: tarfile.TarFile, at: int) -> Member | None:
    """The member whose headers stand there, `tar.offset` behind it; None where there is no whole header."""
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
    for start, block in zip(range(at, length, BLOCK), iter(lambda: file.read(BLOCK), b"")):
        if wanted(block):
            return start
    return length


def _is_header(block: bytes) -> bool:
    with suppress(tarfile.HeaderError, ValueError):
        return block[_MAGIC] == b"ustar" and bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    return False


def _guess(file: IO[bytes], at: int) -> str:
    """What a damaged header may have been of."""
    file.seek(at)
    block = file.read(BLOCK)
    name = block[:100].partition(b"\0")[0].decode("ascii", "replace")
    alike = sum(a == b for a, b in zip(block[_MAGIC], b"ustar", strict=False))
    return f"the header of {name!r} is damaged" if alike >= 4 and name else "no header of a file stands here"
