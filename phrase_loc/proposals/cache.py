"""Keep the boxes of an image source on disk, for evaluations that look at the same pictures again.

The name of a file is a digest of the picture's pixels and of the source with all its constants, so a changed
picture or a changed constant is another file and nothing is ever stale. Files appear by a rename: processes
may share a folder.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import DataError
from phrase_loc.proposals.source import Source, in_frame

VERSION = 1  # raise it when a source changes its boxes without changing a constant
UNIT = (1, 1)  # boxes lie on disk in shares of the image's sides


@dataclass(frozen=True)
class Cached:
    """A source whose `of_image` boxes are kept in `folder`, in shares of the sides as float64."""

    source: Source
    folder: Path

    @property
    def supervision(self) -> str:
        """That of the source."""
        return self.source.supervision

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """The source's boxes, from disk if they are there.

        Raises:
            DataError: the file is broken or the folder cannot be written.
        """
        path = self.folder / f"{self.key(picture)}.npy"
        if path.exists():
            return in_frame(_read(path), size)
        boxes = self.source.of_image(picture, picture.size[::-1])
        if boxes is None:
            return None
        width, height = picture.size
        shares = boxes.double() / torch.tensor([width, height] * 2, dtype=torch.float64)
        _write(path, shares.numpy())
        return in_frame(shares, size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The source's boxes; maps are not kept."""
        return self.source.of_map(attention, size)

    def key(self, picture: Image.Image) -> str:
        """Hexadecimal digest of picture and source."""
        digest = hashlib.sha256(f"{VERSION} {self.source!r} {picture.mode} {picture.size}".encode())
        digest.update(picture.tobytes())
        return digest.hexdigest()[:32]


def _read(path: Path) -> Tensor:
    try:
        boxes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cached proposals {path} are broken ({error}); delete the file") from None
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"cached proposals {path} have the shape {boxes.shape}, not (R, 4); delete the file")
    return torch.from_numpy(boxes)


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
        raise DataError(f"cannot keep proposals in {path.parent} ({error}); name a writable folder") from None
