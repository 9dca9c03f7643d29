"""The photograph of a sample in the frame of its annotation, or a sentence on why it is in none.

A file and its annotation are of one frame when their sizes agree, or when one is a plain copy of the other at another
scale. Three cases, in this order:

upright    the annotation's size is that of the photograph as it is shown (or of a copy): the usual case.
stored     it is that of the stored pixels, which an EXIF tag turns when shown: the tag is left alone.
squashed   the file is a small square, as networks are fed, of a photograph that was none: the whole frame is in it,
           and boxes are scored in the annotation's frame. Named, since nothing but the size tells it.

Anything else is another photograph, or another crop, and leaves the count.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from phrase_loc.errors import DataError
from phrase_loc.images import load_image, picture_size
from phrase_loc.structures import GroundingSample

SQUASHED = range(
    32, 385
)  # sides of the squares that are taken for squashed copies: inputs of common networks

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class Framed:
    """What to look at, and what must be said of it ('' for nothing)."""

    picture: Path | Image.Image
    note: str = ""


def framed(sample: GroundingSample) -> Framed:
    """The photograph of a sample such that it fills the sample's frame.

    Raises:
        DataError: the file is no image, or shows another frame; a missing file is left to whoever opens it.
    """
    if not sample.path.is_file():
        return Framed(sample.path)
    upright, stored = picture_size(sample.path)
    if same_shape(upright, sample.size):
        return Framed(sample.path)
    if same_shape(stored, sample.size):
        return Framed(_untagged(load_image(sample.path, upright=False)))
    if upright[0] == upright[1] and upright[0] in SQUASHED and upright[0] < max(sample.size):
        return Framed(
            sample.path,
            f"{_shown(upright)} pixels are taken for the whole {_shown(sample.size)} frame, squashed",
        )
    raise DataError(
        f"{sample.path.name} has {_shown(upright)} pixels, but its annotation is of {_shown(sample.size)}: no copy "
        "at another scale; give the photograph that was annotated"
    )


def same_shape(picture: Size, frame: Size) -> bool:
    """Whether one is the other at another scale: the sides it would have, rounded up or down, are those it has.

    >>> same_shape((224, 336), (333, 500)), same_shape((336, 224), (333, 500))
    (True, False)
    """
    small, large = sorted((picture, frame), key=lambda size: size[0] * size[1])
    scales = [((side - 1) / whole, (side + 1) / whole) for side, whole in zip(small, large, strict=True)]
    near = (
        abs(small[0] * large[1] - small[1] * large[0]) <= 0.05 * small[0] * large[1]
    )  # of tiny ones all would do
    return near and max(low for low, _ in scales) < min(high for _, high in scales)


def _untagged(picture: Image.Image) -> Image.Image:
    """The same pixels without EXIF, so that nobody turns them."""
    return Image.fromarray(np.asarray(picture))


def _shown(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
