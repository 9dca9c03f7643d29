"""Boxes of all places, sizes and shapes on a coarse grid: the floor that never looks at the image."""

from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import ConfigError
from phrase_loc.proposals.source import in_frame


@dataclass(frozen=True)
class Windows:
    """Every box whose corners lie on a grid of `cells` x `cells`.

    Attributes:
        cells: steps of a side; 8 gives 1,248 boxes.
        aspect: greatest ratio of the longer to the shorter side, in steps.
    """

    cells: int = 8
    aspect: float = 6.0
    supervision: str = "none"

    def __post_init__(self) -> None:
        if self.cells < 1 or self.aspect < 1:
            raise ConfigError(
                f"windows need cells >= 1 and aspect >= 1, got {self.cells} and {self.aspect}; choose larger"
            )

    def of_image(self, picture: Image.Image | None, size: tuple[int, int]) -> Tensor:
        """The grid's boxes in the frame: (R, 4); the picture is not looked at."""
        return in_frame(_grid(self.cells, self.aspect), size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""


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
