"""From the bytes of an image to a training tensor, changed only in ways that keep its words true.

A mirrored photograph makes "left" and "right" false, so images whose texts hold such a word are not mirrored;
shifted hues make "a red hat" false, so saturation and hue are left alone where a text names a colour. A crop
keeps most of the frame, because what a caption names may stand anywhere in it.

All randomness comes from the generator that is handed in, seeded by (seed, epoch, sample): the same picture
is made in whichever worker or process the sample falls.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from phrase_loc.errors import DataError
from phrase_loc.images import load_tensor

_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise)\b", re.IGNORECASE)
_COLOURS = re.compile(
    r"\b(red(d(?=ish))?|green|blue|yellow|orange|purple|pink|brown|black|white|gr[ae]y|tan|beige|gold(en)?|silver|"
    r"teal|violet|maroon|navy|turquoise|khaki|blond[e]?|crimson|scarlet|lavender|colou?r\w*|multicolou?red)"
    r"(ish)?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Transform:
    """How a training image is made.

    Attributes:
        size: (H, W) of the result.
        crop: smallest share of the area that a random crop keeps; 1 keeps the whole frame.
        mirror: probability of mirroring.
        jitter: strength of brightness and contrast changes, and of saturation and hue where no colour is named.
    """

    size: tuple[int, int] = (224, 224)
    crop: float = 1.0
    mirror: float = 0.0
    jitter: float = 0.0

    def __call__(self, image: Tensor, texts: Sequence[str], random: np.random.Generator) -> Tensor:
        """(3, H, W) uint8 -> (3, *size) uint8."""
        top, left, height, width = _window(image.shape[-2:], self.crop, random.random(4))
        image = image[:, top : top + height, left : left + width]
        if image.shape[-2:] != self.size:
            image = interpolate(image[None], self.size, mode="bilinear", antialias=True)[0]
        if random.random() < self.mirror and not names_a_side(texts):
            image = image.flip(-1)
        return (
            _jittered(image, self.jitter, random.random(4), names_a_colour(texts)) if self.jitter else image
        )


def names_a_side(texts: Sequence[str]) -> bool:
    """Whether mirroring would make a text false."""
    return any(_SIDES.search(text) for text in texts)


def names_a_colour(texts: Sequence[str]) -> bool:
    """Whether other hues would make a text false."""
    return any(_COLOURS.search(text) for text in texts)


def decode(data: bytes) -> Tensor:
    """The bytes of an image file -> (3, H, W) uint8 RGB, upright, by the decoder that queries use.

    Raises:
        DataError: not an image, or a truncated one.
    """
    return load_tensor(data)


def decode_or_none(data: bytes) -> tuple[Tensor | None, str]:
    """The image, or None and what is wrong with it."""
    try:
        return decode(data), ""
    except DataError as error:
        return None, str(error)


def _window(size: Sequence[int], smallest: float, draws: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of at least `smallest` of the area, its aspect near the old."""
    height, width = size
    if smallest >= 1:
        return 0, 0, height, width
    area = smallest + (1 - smallest) * draws[0]
    stretch = np.exp((2 * draws[1] - 1) * np.log(4 / 3) / 2)
    tall = round(height * min(1.0, float(np.sqrt(area) * stretch)))
    wide = round(width * min(1.0, float(np.sqrt(area) / stretch)))
    tall, wide = max(1, tall), max(1, wide)
    return int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1)), tall, wide


def _jittered(image: Tensor, strength: float, draws: np.ndarray, keep_colour: bool) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    factors = 1 + strength * (2 * draws - 1)
    image = F.adjust_contrast(F.adjust_brightness(image, factors[0]), factors[1])
    if keep_colour:
        return image
    hue = min(0.5, 0.1 * strength) * (2 * draws[3] - 1)
    return F.adjust_hue(F.adjust_saturation(image, factors[2]), hue)
