"""What a proposal source is, and how its boxes come into the frame of an image."""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import ConfigError


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


class MissingLibrary(ConfigError):
    """A source needs a library that is not installed."""


class Source(Protocol):
    """Where candidate boxes come from: from the picture alone, from one attention map, or from both.

    Attributes:
        supervision: "none", or "boxes" if the source was made with the help of annotated boxes; reports
            print it.
    """

    @property
    def supervision(self) -> str:
        """Whether annotated boxes went into the source."""
        ...

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """Boxes from an 8-bit RGB picture in a frame of `size` (H, W): (R, 4), or None."""
        ...

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Boxes from one map (h, w) in a frame of `size` (H, W): (R, 4), or None."""
        ...


@dataclass(frozen=True)
class Mixed:
    """The boxes of several sources, one after the other."""

    sources: tuple[Source, ...]

    @property
    def supervision(self) -> str:
        """What the sources say: "boxes" as soon as one does."""
        return "boxes" if any(s.supervision == "boxes" for s in self.sources) else "none"

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """The boxes of those that look at the picture."""
        return join([source.of_image(picture, size) for source in self.sources])

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The boxes of those that look at the map."""
        return join([source.of_map(attention, size) for source in self.sources])


@dataclass(frozen=True)
class Preferred:
    """The first source, or the second on a machine that lacks the first one's library."""

    first: Source
    second: Source

    @property
    def supervision(self) -> str:
        """That of both."""
        return Mixed((self.first, self.second)).supervision

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


def join(parts: list[Tensor | None]) -> Tensor | None:
    """All boxes one after the other; None where every part is None."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def proposals_for(source: Source, fixed: Tensor | None, attention: Tensor, size: tuple[int, int]) -> Tensor:
    """What one phrase's map is ranked over: the image's own boxes and those of the map.

    Args:
        source: the source that made `fixed`.
        fixed: its `of_image` boxes (R, 4), made once an image.
        attention: (h, w) map of the phrase.
        size: (H, W) frame of the boxes.
    """
    own = source.of_map(attention, size)
    boxes = join([fixed, None if own is None else own.to(attention.device)])
    return attention.new_zeros(0, 4) if boxes is None else boxes.to(attention.device)


def in_frame(fractions: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in shares of width and height, in pixels of a frame of `size` (H, W): (R, 4) -> (R, 4)."""
    return (fractions * fractions.new_tensor([size[1], size[0]] * 2)).float()
