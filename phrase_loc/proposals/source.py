"""What a proposal source is, and those that need no picture: windows, and what stays connected in the map."""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import ConfigError
from phrase_loc.maps import min_max, resize


class FromImage:
    """A source whose boxes do not depend on the phrase."""

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""


@dataclass(frozen=True)
class Windows(FromImage):
    """Every box whose corners lie on a grid of `cells` x `cells`.

    Attributes:
        cells: steps of a side; 8 gives 1,248 boxes.
        aspect: greatest ratio of the longer to the shorter side, in steps.
    """

    cells: int = 8
    aspect: float = 6.0

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
    """Tight boxes of the map's level sets.

    The map is cut at a ladder of thresholds; each connected component and, for phrases of several things, all
    components of a step together give a box.

    Attributes:
        steps: thresholds, evenly spaced between the map's minimum and maximum, both left out.
        grid: side of the grid on which the map is cut, bicubic; finer than the map, coarser than the image.
        smallest: share of the grid's cells below which a component is no box.
    """

    steps: int = 19
    grid: int = 48
    smallest: float = 0.004

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
