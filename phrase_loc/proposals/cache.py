"""Keep the boxes of an image source on disk, for evaluations that look at the same pictures again.

The name of a file is a digest of the picture's pixels, of the frame, of the source with all its constants and
of the libraries it computes with, so a changed picture or constant is another file and nothing is ever stale.
Boxes lie there as the source gave them: with a cache, cold or full, and without one they are the same bits.
Files appear by a rename: processes may share a folder. A broken file is made again; a folder that cannot be
written to costs a warning and time, no answer.
"""

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.proposals.source import Source

VERSION = 2  # raise it when a source changes its boxes without changing a constant
ROOM = 1 << 30  # bytes that a folder keeps when it is tidied: boxes of some 250,000 pictures


@dataclass(frozen=True)
class Cached:
    """A source whose `of_image` boxes are kept in `folder`."""

    source: Source
    folder: Path

    @property
    def supervision(self) -> str:
        """That of the source."""
        return self.source.supervision

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
        about = f"{VERSION} {_libraries()} {self.source!r} {picture.mode} {picture.size} {tuple(size)}"
        digest = hashlib.sha256(about.encode())
        digest.update(picture.tobytes())
        return digest.hexdigest()[:32]


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
def _libraries() -> str:
    """What computes boxes: another OpenCV may cut otherwise, and without its ximgproc windows stand in."""
    try:
        import cv2
    except ImportError:
        return f"Pillow {PIL.__version__}"
    return f"Pillow {PIL.__version__}, OpenCV {cv2.__version__} {hasattr(cv2, 'ximgproc')}"


def _read(path: Path) -> Tensor | None:
    """Boxes (R, 4), marked as just used; None where there is no whole file of them."""
    try:
        boxes = np.load(path, allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    whole = isinstance(boxes, np.ndarray) and boxes.ndim == 2 and boxes.shape[1] == 4
    return torch.from_numpy(boxes) if whole and boxes.dtype == np.float32 else None


def _write(path: Path, boxes: np.ndarray) -> None:
    """Write beside the place and rename, so that a reader finds a whole file or none."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.save(file, boxes)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(f"proposals are not kept in {path.parent} ({error})", RuntimeWarning, stacklevel=4)
