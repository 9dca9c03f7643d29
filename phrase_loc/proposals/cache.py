"""Keep the boxes of an image source on disk, for evaluations that look at the same pictures again.

The name of a file is a digest of all that its boxes depend on, so nothing is ever stale; their own digest stands
behind them. Files appear by a rename: processes may share a folder. A file in which a bit has changed is made
again and named on stderr; a folder that cannot be written to costs a warning and time, no answer.
"""

import hashlib
import io
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import DataError
from phrase_loc.files import digest, sealed, unsealed, write_bytes
from phrase_loc.proposals.source import Source

SEAL = len(sealed(b""))  # bytes: of key and array, behind the array, so that numpy reads the file as well
ROOM = 1 << 30  # bytes that a folder keeps when it is tidied: boxes of some 250,000 pictures


@dataclass(frozen=True)
class Cached:
    """A source whose `of_image` boxes are kept in `folder`."""

    source: Source
    folder: Path

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """The source's boxes, from disk if they are there."""
        path = self.folder / f"{self.key(picture, size)}.npy"
        boxes = _read(path)
        if boxes is None:
            boxes = self.source.of_image(picture, size)
            if boxes is not None:
                _write(path, boxes.numpy())
        return boxes

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The source's boxes; maps are not kept."""
        return self.source.of_map(attention, size)

    def key(self, picture: Image.Image, size: tuple[int, int]) -> str:
        """Hexadecimal digest of picture, frame and source."""
        about = f"{_makers()} {self.source!r} {picture.mode} {picture.size} {tuple(size)}"
        hashed = hashlib.sha256(about.encode())
        hashed.update(picture.tobytes())
        return hashed.hexdigest()[:32]


def tidy(folder: Path, room: int = ROOM) -> None:
    """Delete the boxes that were used longest ago until `room` bytes are left; other files stay."""
    found = []
    for path in folder.glob("*.npy"):
        try:
            facts = path.stat()
        except OSError:  # another process was faster
            continue
        found.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= room:
            return
        path.unlink(missing_ok=True)
        total -= size


@cache
def _makers() -> str:
    """What boxes come from beside a source's constants: our code and libraries, which may change."""
    code = digest(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    own = f"{code} Pillow {PIL.__version__}, numpy {np.__version__}, torch {torch.__version__}"
    try:
        import cv2
    except ImportError:
        return own
    return f"{own}, OpenCV {cv2.__version__} {hasattr(cv2, 'ximgproc')}"  # without ximgproc windows stand in


def _read(path: Path) -> Tensor | None:
    """Boxes (R, 4), marked as just used; None where there is no whole file of them."""
    try:
        blob = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    key, content = path.stem.encode(), blob[:-SEAL]
    if unsealed(blob[-SEAL:] + key + content) is None:
        print(f"{path}: the kept proposals were damaged and are made anew", file=sys.stderr)
        return None
    return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))


def _write(path: Path, boxes: np.ndarray) -> None:
    """Whole or not at all."""
    file = io.BytesIO()
    np.save(file, boxes)
    content = file.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content + sealed(path.stem.encode() + content)[:SEAL])
    except (OSError, DataError) as error:
        warnings.warn(f"proposals are not kept in {path.parent} ({error})", RuntimeWarning, stacklevel=4)
