"""Boxes from the map itself: what stays connected as the water rises.

A map is cut at a ladder of thresholds between its minimum and its maximum; each connected component and,
for phrases of several things, all components of a step together give a box. No image is needed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import ConfigError
from phrase_loc.maps import min_max, resize
from phrase_loc.proposals.source import in_frame


@dataclass(frozen=True)
class LevelSets:
    """Tight boxes of the map's level sets.

    Attributes:
        steps: thresholds, evenly spaced between the map's minimum and maximum, both left out.
        grid: side of the grid on which the map is cut, bicubic; finer than the map, coarser than the image.
        smallest: share of the grid's cells below which a component is no box.
    """

    steps: int = 19
    grid: int = 48
    smallest: float = 0.004
    supervision: str = "none"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.grid < 2:
            raise ConfigError(
                f"level sets need steps >= 1 and grid >= 2, got {self.steps} and {self.grid}; choose larger"
            )

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> None:
        """None: the boxes depend on the phrase."""

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """Distinct boxes of one map (h, w), largest sets first: (R, 4); the whole image if it is flat."""
        fine = resize(attention.detach().float().cpu(), (self.grid, self.grid), mode="bicubic")
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
