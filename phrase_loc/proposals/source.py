"""What a proposal source is; those that need no picture; and one that keeps the boxes of another on disk."""

import hashlib
import io
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import digest, sealed, unsealed, write_bytes
from phrase_loc.maps import min_max, resize

SEAL = len(sealed(b""))  # bytes: of key and array, behind the array, so that numpy reads the file as well
ROOM = 1 << 30  # bytes that a folder keeps when it is tidied: boxes of some 250,000 pictures


class FromImage:
    """A source whose boxes do not depend on the phrase."""

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""


@dataclass(frozen=True)
class Windows(FromImage):
    """Every box whose corners lie on a grid of `cells` x `cells`; 8 gives 1,248 boxes."""

    cells: int = 8
    aspect: float = 6.0  # greatest ratio of the longer to the shorter side, in steps

    def __post_init__(self) -> None:
        if self.cells < 1 or self.aspect < 1:
            raise ConfigError(
                f"windows need cells >= 1 and aspect >= 1, got {self.cells} and {self.aspect}; choose larger"
            )

    def of_image(self, picture: Image.Image | None, size: tuple[int, int]) -> Tensor:
        """The grid's boxes in the frame: (R, 4); the picture is not looked at."""
        return in_frame(_grid(self.cells, self.aspect), size)


@cache
def _grid(cells: int, aspect: float) -> Tensor:
    """All boxes on the grid in shares of the side: (R, 4)."""
    first, last = torch.triu_indices(cells + 1, cells + 1, offset=1)
    spans = torch.stack([first, last], -1)  # (S, 2) every way to choose a start and an end
    x, y = (index.flatten() for index in torch.meshgrid(*[torch.arange(len(spans))] * 2, indexing="ij"))
    wide, high = spans[x].diff()[:, 0], spans[y].diff()[:, 0]
    kept = torch.maximum(wide / high, high / wide) <= aspect
    boxes = torch.stack([spans[x, 0], spans[y, 0], spans[x, 1], spans[y, 1]], -1)[kept]
    return boxes.double() / cells


@dataclass(frozen=True)
class LevelSets:
    """Tight boxes of the map's level sets: of each connected component and, for phrases of several things, of all."""

    steps: int = 19  # thresholds, evenly spaced between the map's minimum and maximum, both left out
    grid: int = (
        48  # side of the grid on which the map is cut, bicubic; finer than the map, coarser than the image
    )
    smallest: float = 0.004  # share of the grid's cells below which a component is no box

    def __post_init__(self) -> None:
        if self.steps < 1 or self.grid < 2:
            raise ConfigError(
                f"level sets need steps >= 1 and grid >= 2, got {self.steps} and {self.grid}; choose larger"
            )

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> None:
        """None: the boxes depend on the phrase."""

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """Distinct boxes of one map (h, w), largest sets first: (R, 4); the whole image if it is flat."""
        fine = resize(attention.detach().float().cpu(), (self.grid, self.grid))
        levels = min_max(fine).numpy()
        found = [(0, 0, self.grid, self.grid)]
        for step in range(1, self.steps + 1):
            found += self._boxes(levels > step / (self.steps + 1))
        boxes = torch.tensor(list(dict.fromkeys(found)), dtype=torch.float64)
        return in_frame(boxes / self.grid, size)

    def _boxes(self, mask: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Boxes of the components of a mask, and of all of them together, in cells."""
        from scipy import ndimage

        slices = ndimage.find_objects(ndimage.label(mask)[0])
        boxes = [
            (c.start, r.start, c.stop, r.stop)
            for r, c in slices
            if mask[r, c].sum() >= self.smallest * mask.size
        ]
        if len(boxes) > 1:
            x1, y1, x2, y2 = zip(*boxes)
            boxes.append((min(x1), min(y1), max(x2), max(y2)))
        return boxes


class MissingLibrary(ConfigError):
    """A source needs a library that is not installed."""


class Source(Protocol):
    """Where candidate boxes come from: from the picture alone, from one attention map, or from both."""

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """Boxes from an 8-bit RGB picture in a frame of `size` (H, W): (R, 4), or None."""
        ...

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Boxes from one map (h, w) in a frame of `size` (H, W): (R, 4), or None."""
        ...


@dataclass(frozen=True)
class Preferred:
    """The first source, or the second on a machine that lacks the first one's library."""

    first: Source
    second: Source

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """The boxes of the first that can work; a warning says so when it is the second."""
        try:
            return self.first.of_image(picture, size)
        except MissingLibrary as error:
            warnings.warn(f"{error}; until then boxes are coarser", RuntimeWarning, stacklevel=2)
            return self.second.of_image(picture, size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The boxes that the first has of maps, which need no library."""
        return self.first.of_map(attention, size)


def in_frame(fractions: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in shares of width and height, in pixels of a frame of `size` (H, W): (R, 4) -> (R, 4)."""
    return (fractions * fractions.new_tensor([size[1], size[0]] * 2)).float()


@dataclass(frozen=True)
class Cached:
    """A source whose `of_image` boxes are kept in `folder`, for who looks at the same pictures again.

    The name of a file is a digest of all that its boxes depend on, so nothing is ever stale; their own digest stands
    behind them. Processes may share a folder. A file in which a bit has changed is made again and named on stderr; a
    folder that cannot be written to costs a warning and time, no answer.
    """

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
