"""Tar shards of images and texts (WebDataset's form, what img2dataset writes), read at random by offset.

A sample is the run of files in a tar that share a name up to the first dot: `000001.jpg`, `000001.txt`,
`000001.json`. One pass over the headers of a shard gives an index of byte offsets, kept on disk; from then
on `os.pread`, or a ranged request to an object store (web_remote.py), fetches any sample in any order, which is
what makes an exact resume in the middle of an epoch possible (a stream can only resume by shard). A row of the index
takes 44 bytes: 12 million samples, 0.5 GB, which forked workers share.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from phrase_loc.datasets.web_faults import Fault
from phrase_loc.datasets.web_paths import is_remote
from phrase_loc.datasets.web_remote import remote_file, remote_read, remote_size, remote_version
from phrase_loc.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
ROW = np.dtype(
    [
        ("key", "<u8"),  # 64-bit hash of the sample's name, to find duplicates
        ("image", "<u8"),
        ("image_size", "<u4"),
        ("text", "<u8"),
        ("text_size", "<u4"),
        ("json", "<u8"),
        ("json_size", "<u4"),
    ]
)
_MAX_MEMBER = 2**32 - 1


def load_index(shard: str, cache: Path | None) -> tuple[np.ndarray, list[Fault]]:
    """The index of a shard, from the cache when its size and time are still those of the file.

    Args:
        shard: path of the tar.
        cache: folder of indices, or None to build anew each time.

    Returns:
        (n,) rows of dtype ROW in the order of the file; what is wrong with the shard.
    """
    if cache is None or not (is_remote(shard) or os.path.isfile(shard)):
        return build_index(shard)
    stamp = f"{_version(shard)}|{ROW.itemsize}"
    path = cache / f"{Path(shard).stem}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path) as held:
            faults = [Fault(*fields) for fields in json.loads(str(held["faults"]))]
            return held["rows"], faults
    rows, faults = build_index(shard)
    if not any(fault.kind == "shard" for fault in faults):  # the next start may find it whole
        _write_whole(path, rows, faults)
    return rows, faults


def _version(shard: str) -> str:
    """What changes when a shard's content does."""
    if is_remote(shard):
        return remote_version(shard)
    status = os.stat(shard)
    return f"{os.path.abspath(shard)}|{status.st_size}|{status.st_mtime_ns}"


def build_index(shard: str) -> tuple[np.ndarray, list[Fault]]:
    """One pass over a shard's headers; a truncated shard keeps the samples before the break."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    faults: list[Fault] = []
    try:
        for key, suffix, offset, size in _members(shard):
            parts = samples.setdefault(key, {})
            if suffix in parts:
                faults.append(Fault("duplicate", f"{shard}:{key}", f"has two .{suffix}"))
            elif size <= _MAX_MEMBER:
                parts[suffix] = (offset, size)
    except (tarfile.TarError, EOFError, OSError) as error:
        faults.append(Fault("shard", shard, f"after {len(samples)} samples: {error}"))
    rows = np.zeros(len(samples), ROW)
    kept = 0
    for key, parts in samples.items():
        if parts.keys() & {"image"}:
            rows[kept] = _row(key, parts)
            kept += 1
        else:
            faults.append(Fault("lone", f"{shard}:{key}", "has no image"))
    return rows[:kept], faults


def _members(shard: str) -> Iterator[tuple[str, str, int, int]]:
    """(key, 'image' | 'text' | 'json', offset, size) of each file of use that lies whole in the tar."""
    length = remote_size(shard) if is_remote(shard) else os.path.getsize(shard)
    file = remote_file(shard) if is_remote(shard) else open(shard, "rb")  # noqa: SIM115
    with file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
            if not member.isfile():
                continue
            if member.offset_data + member.size > length:
                raise EOFError(f"{member.name} is cut off")
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            kind = _kind(suffix.lower())
            if kind and stem:
                yield f"{folder}/{stem}".lstrip("./"), kind, member.offset_data, member.size
        file.seek(max(0, length - tarfile.BLOCKSIZE))
        if file.read().strip(b"\0"):  # cut between two files: tarfile itself is content with that
            raise EOFError("the mark at the end of the archive is missing")


def _kind(suffix: str) -> str | None:
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return {"txt": "text", "caption": "text", "json": "json"}.get(suffix)


def _row(key: str, parts: dict[str, tuple[int, int]]) -> tuple[int, ...]:
    nothing = (0, 0)
    hashed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return (hashed, *parts["image"], *parts.get("text", nothing), *parts.get("json", nothing))


def _write_whole(path: Path, rows: np.ndarray, faults: Sequence[Fault]) -> None:
    """Writes the cache file whole or not at all, also when several processes do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            notes = json.dumps([(f.kind, f.name, f.detail) for f in faults])
            np.savez(file, rows=rows, faults=np.array(notes))
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"the index folder {path.parent} cannot be written: {error}; set data.index"
        ) from None


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
        """`size` bytes from `offset` of a shard."""
        if is_remote(self.shards[shard]):
            data = remote_read(self.shards[shard], offset, size)
        else:
            data = os.pread(self._descriptor(shard), size, offset)
        if len(data) != size:
            raise OSError(f"{self.shards[shard]} ends before byte {offset + size}")
        return data

    def name_at(self, shard: int, offset: int) -> str:
        """The name in the tar header that stands before the data at `offset`."""
        try:
            header = self.read(shard, offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
            return tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
        except (tarfile.TarError, OSError):
            return f"byte {offset}"

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
    """Key -> text from the Parquet file that img2dataset writes beside a shard; empty when there is none."""
    path = Path(shard).with_suffix(".parquet")
    if is_remote(shard) or not path.is_file():
        return {}
    import pandas as pd

    table = pd.read_parquet(io.BytesIO(path.read_bytes()))
    found = [name for name in columns if name in table]
    if "key" not in table or not found:
        return {}
    texts = table[found[0]].fillna("").astype(str)
    return dict(zip(table["key"].astype(str), texts, strict=True))
