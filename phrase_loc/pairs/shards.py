"""Tar shards of images and texts (WebDataset's form, what img2dataset writes), read at random by offset.

A sample is the files of a tar that share a name up to an ending that is known: `000001.jpg`, `000001.txt`,
`000001.json`, `IMG.2020.01.jpg` with `IMG.2020.01.txt`. WebDataset itself cuts at the first dot: a file without its
counterpart, such as `000001.seg.png`, is a further file of the sample `000001` where there is one and is passed over.
Names that begin with a dot (macOS writes `._000001.jpg`) are no samples. A key is unique within its archive.

One pass over the headers of a shard gives an index of byte offsets, kept on disk; from then
on `os.pread`, or a ranged request to an object store (web_remote.py), fetches any sample in any order, which is
what makes an exact resume in the middle of an epoch possible (a stream can only resume by shard). A row of the index
takes 44 bytes: 12 million samples, 0.5 GB, which forked workers share.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np

from phrase_loc import files
from phrase_loc.errors import DataError
from phrase_loc.images import IMAGE_ENDINGS
from phrase_loc.pairs.paths import is_remote, remote_file, remote_read, remote_version
from phrase_loc.pairs.tar import Damage, walk
from phrase_loc.skipped import Fault
from phrase_loc.tables import open_table, opened

log = logging.getLogger(__name__)

ROW = np.dtype(
    [
        ("header", "<u8"),  # of the image, where its name stands
        ("image", "<u8"),
        ("image_size", "<u4"),
        ("text", "<u8"),
        ("text_size", "<u4"),
        ("json", "<u8"),
        ("json_size", "<u4"),
    ]
)
_VERSION = 2  # of what is kept: the rows, and how a shard is read
_MAX_MEMBER = 2**32 - 1
_KINDS = {".txt": "text", ".caption": "text", ".json": "json"} | dict.fromkeys(IMAGE_ENDINGS, "image")

#: 'image' | 'text' | 'json' -> (offset of its header, of its content, bytes) of the files of a sample.
Parts = dict[str, tuple[int, int, int]]


def load_index(shard: str, cache: Path | None) -> tuple[np.ndarray, list[Fault]]:
    """The index of a shard, from the cache when its size and time are still those of the file.

    Args:
        shard: path of the tar.
        cache: folder of indices, or None to build anew each time.

    Returns:
        (n,) rows of dtype ROW in the order of the file; what is wrong with the shard.
    """
    try:
        stamp = "" if cache is None else f"{_stamp(shard)}|{_VERSION}"
    except OSError as error:
        return np.zeros(0, ROW), [_unreadable(shard, error)]
    if cache is None:
        return build_index(shard)
    name = hashlib.sha256(stamp.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    path = cache / f"{Path(shard).stem[:40]}-{name}.index"
    if path.is_file():
        kept = _unpacked(files.read_bytes(path, "the index"), stamp)
        if kept is not None:
            return kept
        log.warning("the index %s is damaged; it is made anew", path)
    rows, faults = build_index(shard)
    if not any(fault.kind == "shard" for fault in faults):  # the next start may find it whole
        advice = "set data.index to a folder that can be written"
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"the index folder {cache} cannot be made ({error.strerror}); {advice}") from None
        files.write_bytes(path, _packed(rows, faults, stamp), advice)
    return rows, faults


def _stamp(shard: str) -> str:
    """What changes when a shard's content does."""
    return remote_version(shard) if is_remote(shard) else "|".join(map(str, files.fingerprint(shard)))


def _packed(rows: np.ndarray, faults: Sequence[Fault], stamp: str) -> bytes:
    """A line of JSON and the rows, behind their digest."""
    facts = {"of": stamp, "faults": [(f.kind, f.name, f.detail) for f in faults]}
    return files.sealed(json.dumps(facts).encode() + b"\n" + rows.tobytes())


def _unpacked(blob: bytes, stamp: str) -> tuple[np.ndarray, list[Fault]] | None:
    """What `_packed` was given; None where a bit of it has changed, or it is another shard's."""
    content = files.unsealed(blob)
    if content is None:
        return None
    line, _, data = content.partition(b"\n")
    facts = json.loads(line)
    if facts["of"] != stamp:
        return None
    return np.frombuffer(data, ROW), [Fault(*fields) for fields in facts["faults"]]


def build_index(shard: str) -> tuple[np.ndarray, list[Fault]]:
    """One pass over a shard's headers; what is damaged is named, and the samples around it are kept."""
    samples, faults = read_samples(shard)
    rows = [_row(parts) for parts in samples.values() if "image" in parts]
    return np.array(rows, ROW), faults


def read_samples(
    shard: str, file: IO[bytes] | None = None
) -> tuple[dict[tuple[int, str], Parts], list[Fault]]:
    """(number of the archive, key) -> parts of each sample of a shard, and what is wrong with it.

    Samples without an image are among the faults, and among the samples. `file` is the shard where it is open.
    """
    samples: dict[tuple[int, str], Parts] = {}
    faults: list[Fault] = []
    try:
        for found in _members(shard, file):
            if isinstance(found, Fault):
                faults.append(found)
                continue
            key, kind, place = found
            parts = samples.setdefault(key, {})
            if kind in parts:
                faults.append(Fault("duplicate", f"{shard}:{key[1]}", f"has two files of the kind {kind}"))
            else:
                parts[kind] = place
    except Exception as error:  # each store of remote shards raises its own
        faults.append(_unreadable(shard, error))
    further = [key for key, parts in samples.items() if len(parts) == 1 and _belongs(key, samples)]
    for key in further:
        del samples[key]
    if further:
        log.info(
            "%s: %d further files of samples, such as %s, are passed over", shard, len(further), further[0][1]
        )
    faults += [
        Fault("lone", f"{shard}:{key[1]}", "has no image")
        for key, parts in samples.items()
        if "image" not in parts
    ]
    return samples, faults


def _members(
    shard: str, file: IO[bytes] | None
) -> Iterator[Fault | tuple[tuple[int, str], str, tuple[int, int, int]]]:
    """(key, kind, place) of each file of use, and what is wrong between them."""
    joined = 0
    with nullcontext(file) if file else _opened(shard) as tar:
        for member in walk(tar, tar.seek(0, os.SEEK_END)):
            if isinstance(member, Damage):
                what = f"{member.what} (bytes {member.start:,} to {member.end:,} are lost)"
                yield Fault("shard", f"{shard}:byte {member.start}", what)
                continue
            if member.archive > joined:
                joined = member.archive
                log.warning(
                    "%s goes on behind its end mark, as archives joined by cat do; all is used", shard
                )
            folder, slash, name = member.name.rpartition("/")
            stem, dot, ending = name.rpartition(".")
            kind = _KINDS.get(dot + ending.lower())
            if kind is None or not stem or name.startswith("."):
                continue
            if member.unread or member.size > _MAX_MEMBER:
                why = member.unread or "has more than 4 GB"
                yield Fault(kind if kind == "image" else "text", f"{shard}:{member.name}", why)
                continue
            key = f"{folder}{slash}{stem}".removeprefix("./")
            yield (member.archive, key), kind, (member.header, member.data, member.size)


def _belongs(key: tuple[int, str], samples: dict[tuple[int, str], Parts]) -> bool:
    """Whether `a.seg` is a further file of a sample `a`."""
    archive, name = key
    folder, slash, stem = name.rpartition("/")
    while "." in stem:
        stem = stem.rpartition(".")[0]
        if "image" in samples.get((archive, folder + slash + stem), {}):
            return True
    return False


def _opened(shard: str) -> IO[bytes]:
    return remote_file(shard) if is_remote(shard) else opened(Path(shard), "the shard")


def _unreadable(shard: str, error: Exception) -> Fault:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    return Fault("shard", shard, f"cannot be read: {reason}")


def _row(parts: Parts) -> tuple[int, ...]:
    nothing = (0, 0, 0)
    return (*parts["image"], *parts.get("text", nothing)[1:], *parts.get("json", nothing)[1:])


class ShardReader:
    """Bytes of shards by position; files stay open, and are opened anew in each process.

    Args:
        shards: paths of tars.
        open_files: most files that are held open.
    """

    def __init__(self, shards: Sequence[str], open_files: int = 256):
        self.shards = list(shards)
        self.open_files = open_files
        self._files: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of a shard.

        Raises:
            DataError: it cannot be read, or is shorter by now.
        """
        path = self.shards[shard]
        try:
            if is_remote(path):
                data = remote_read(path, offset, size)
            else:
                data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise DataError(f"the shard {path} cannot be read: {error.strerror or error}") from None
        if len(data) != size:
            raise DataError(f"the shard {path} ends before byte {offset + size}; it has changed, start anew")
        return data

    def name_at(self, shard: int, header: int, data: int) -> str:
        """The name in the tar headers that stand between `header` and `data`, without its ending."""
        try:
            with tarfile.TarFile(
                fileobj=io.BytesIO(self.read(shard, header, data - header)), errors="surrogateescape"
            ) as tar:
                return tar.next().name.rpartition(".")[0]  # type: ignore[union-attr]
        except Exception:  # changed since it was indexed
            return f"byte {header}"

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= self.open_files:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._files[shard]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    def close(self) -> None:
        """Closes all files."""
        while self._files:
            os.close(self._files.popitem()[1])


def side_table(shard: str, columns: Sequence[str]) -> dict[str, str]:
    """Key -> text from the Parquet file that img2dataset writes beside a shard; empty when there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(shard).with_suffix(".parquet")
    if is_remote(shard) or not path.is_file():
        return {}
    table = open_table(path, "the table")
    found = [name.lower() for name in columns if name.lower() in table.columns]
    if "key" not in table.columns or not found:
        return {}
    rows = table.rows(["key", found[0]])
    return {str(key): text for _, (key, text) in rows if isinstance(text, str)}
