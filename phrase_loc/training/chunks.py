"""Arrays of many samples kept on disk in chunks: what phases with `cache` read instead of computing.

A chunk is one file for CHUNK samples, written whole or not at all: a SHA-256, then arrays in NumPy's format, read
through memory maps. The folder's name is a digest of all that makes its content, and a chunk whose bits have changed
since is made anew, so what is kept never stands for something else.
"""

import hashlib
import io
import json
import logging
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import nn

from phrase_loc import __version__
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.files import SEAL, read_bytes, remove_leftovers, sealed, unsealed, writing

log = logging.getLogger(__name__)

CHUNK = 256
#: Chunks that a reader keeps open: each costs a file descriptor, of which a process often has 1,024.
OPEN = 64
_ABANDONED = 86_400.0  # seconds after which a half-written file has no writer any more
_DECODERS = ("torch", "torchvision", "pillow")


def cache_folder(parent: Path, frozen: nn.Module, facts: dict) -> Path:
    """A folder of its own for each set of frozen weights, facts, and versions of what reads photographs."""
    versions = [__version__, *(version(name) for name in _DECODERS)]
    digest = hashlib.sha256(json.dumps({**facts, "versions": versions}, sort_keys=True).encode())
    for tensor in frozen.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return parent / f"features-{digest.hexdigest()[:16]}"


def missing_chunks(folder: Path, count: int, world: World) -> list[tuple[int, range]]:
    """The chunks that this process shall compute, every size-th of those missing, with their samples' numbers.

    Each process looks at its share of the files, and all share out one list: what one found missing cannot depend on
    how far another has come since.

    Args:
        folder: of the cache; made if it is not there.
        count: of samples.
        world: the processes that share the work.

    Raises:
        DataError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_main:
            remove_leftovers(folder, _ABANDONED)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be written ({error.strerror}); give another data.features"
        ) from None
    chunks = range(-(-count // CHUNK))
    absent = [chunk for chunk in chunks[world.rank :: world.size] if not _is_whole(_path(folder, chunk))]
    missing = sorted(chunk for rank in world.gather(absent) for chunk in rank)
    return [(c, range(c * CHUNK, min(count, (c + 1) * CHUNK))) for c in missing[world.rank :: world.size]]


def write_chunk(folder: Path, number: int, arrays: Sequence[np.ndarray]) -> None:
    """Writes a chunk whole or not at all; raises DataError when the disk is full."""
    path = _path(folder, number)
    with writing(path, "free space there or give another data.features") as temporary:
        content = io.BytesIO()
        for array in arrays:
            np.save(content, array)
        temporary.write_bytes(sealed(content.getvalue()))


class Chunks:
    """Reads chunks of a folder; the OPEN ones that were used last stay open.

    Args:
        folder: whose chunks are all there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[int, list[np.ndarray]] = {}

    def __call__(self, number: int) -> list[np.ndarray]:
        """The arrays of a chunk, as they were written, read-only.

        Raises:
            DataError: its file is gone.
        """
        arrays = self._open.pop(number, None) or _arrays(_path(self.folder, number))
        self._open[number] = arrays
        while len(self._open) > OPEN:
            del self._open[next(iter(self._open))]
        return arrays

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.chunk"


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        whole = unsealed(read_bytes(path)) is not None
    except DataError:
        whole = False
    if not whole:
        log.warning("%s has changed since it was written; it is made anew", path)
    return whole


def _arrays(path: Path) -> list[np.ndarray]:
    arrays = []
    try:
        mapped = np.memmap(path, np.uint8, "r")
        with path.open("rb") as file:
            file.seek(SEAL)
            while file.tell() < len(mapped):
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                begin = file.tell()
                end = file.seek(begin + dtype.itemsize * math.prod(shape))
                arrays.append(mapped[begin:end].view(dtype).reshape(shape))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); start again, and it is computed anew") from None
    return arrays
