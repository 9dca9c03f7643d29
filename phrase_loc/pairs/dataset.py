"""Image-text pairs as training samples: decoded, augmented so that their words stay true, labelled, and batched.

A sample never raises for what is wrong with the data: it becomes a black image of weight 0 with the fault attached,
so that one bad file costs one sample and every process keeps its step.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from phrase_loc.errors import DataError
from phrase_loc.images import load_tensor
from phrase_loc.pairs.sampler import FILLER, Item
from phrase_loc.pairs.sources import Source
from phrase_loc.skipped import Fault
from phrase_loc.text.labels import WordLabels

#: texts of an image -> its labels; picklable.
Labeller = Callable[[Sequence[str]], WordLabels]

_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise)\b", re.IGNORECASE)
_COLOURS = re.compile(
    r"\b(red(d(?=ish))?|green|blue|yellow|orange|purple|pink|brown|black|white|gr[ae]y|tan|beige|gold(en)?|silver|"
    r"teal|violet|maroon|navy|turquoise|khaki|blond[e]?|crimson|scarlet|lavender|colou?r\w*|multicolou?red)"
    r"(ish)?\b",
    re.IGNORECASE,
)


class Sample(NamedTuple):
    """One image as the model gets it."""

    image: Tensor  # (3,H,W) uint8, or a frozen trunk's output (C,h,w) float16
    labels: WordLabels
    weight: float  # 0 where there is nothing to learn from
    caption: Sequence[int] = ()  # words of the text that was drawn this epoch
    fault: Fault | None = None


class Ragged(NamedTuple):
    """Lists of word ids of several images, flat."""

    owner: Tensor  # (T,) number of the image in the batch
    ids: Tensor  # (T,) rows of the vocabulary
    values: Tensor  # (T,) a number each

    def to(self, device: torch.device) -> "Ragged":
        """The same on a device."""
        owner, ids = (t.to(device, non_blocking=True) for t in (self.owner, self.ids))
        return Ragged(owner, ids, self.values.to(device, _widest(device), non_blocking=True))


class Batch(NamedTuple):
    """Images of a micro-batch with their words."""

    images: Tensor  # (N,3,H,W) uint8, or the output of a frozen trunk, (N,C,h,w) float16
    weights: Tensor  # (N,) 1, or 0 for fillers and faults
    words: Ragged  # true words with strengths
    ignored: Ragged  # words that count neither way
    captions: Ragged  # words of one text of each image
    faults: Sequence[Fault] = ()

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        images = self.images.to(device, non_blocking=True)
        weights = self.weights.to(device, _widest(device), non_blocking=True)
        words, ignored, captions = (part.to(device) for part in (self.words, self.ignored, self.captions))
        return Batch(images, weights, words, ignored, captions, self.faults)


@dataclass(frozen=True)
class Transform:
    """How a training image is made.

    Mirroring makes "left" and "right" false, so images whose texts hold such a word are not mirrored; shifted hues
    make "a red hat" false, so saturation and hue are left alone where a text names a colour.

    Attributes:
        size: (H, W) of the result.
        crop: smallest share of the area that a random crop keeps, as what a caption names may stand anywhere.
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
        if not self.jitter:
            return image
        from torchvision.transforms.v2 import functional as F

        draws = 2 * random.random(4) - 1
        factors = 1 + self.jitter * draws
        image = F.adjust_contrast(F.adjust_brightness(image, factors[0]), factors[1])
        if names_a_colour(texts):
            return image
        hue = min(0.5, 0.1 * self.jitter) * draws[3]
        return F.adjust_hue(F.adjust_saturation(image, factors[2]), hue)


class WebImages(Dataset[Sample]):
    """The samples of a source, indexed by (epoch, number, which of the transforms).

    `seed`, epoch and number fix every random choice, in whichever process. With `negatives`, photographs whose texts
    hold no word of the vocabulary are samples too, of none of its words.
    """

    def __init__(
        self,
        source: Source,
        labeller: Labeller,
        transforms: Sequence[Transform],
        seed: int,
        negatives: bool = False,
    ):
        self.source, self.labeller, self.transforms, self.seed = source, labeller, transforms, seed
        self.negatives = negatives

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> Sample:
        """The image of that number as it looks in that epoch."""
        epoch, number, choice = item
        transform = self.transforms[choice]
        black = torch.zeros(3, *transform.size, dtype=torch.uint8)
        if number == FILLER:
            return _nothing(black)
        try:
            texts, wrong = self.source.told(number)
            data = self.source.image(number)
            fault = Fault("text", self.source.name(number), wrong) if wrong else None
            labels = self.labeller(texts)
            if not labels.ids and not (texts and self.negatives):
                return _nothing(black, fault or unlabelled(self.source.name(number), texts))
            image = load_tensor(data)
        except DataError as error:
            return _nothing(black, Fault("image", self.source.name(number), str(error)))
        random = np.random.default_rng([self.seed, epoch, number])
        caption = draw_caption(labels, random)
        return Sample(transform(image, texts, random), labels, 1.0, caption, fault)


def unlabelled(name: str, texts: Sequence[str]) -> Fault:
    """The fault of a sample whose texts gave no label: nothing is broken where they hold only other words."""
    return Fault("words", name) if texts else Fault("text", name, "has no text")


def draw_caption(labels: WordLabels, random: np.random.Generator) -> Sequence[int]:
    """The words of one of an image's texts; all its words are one text where the labeller keeps no texts apart."""
    told = [caption for caption in labels.captions if caption]
    return told[int(random.integers(len(told)))] if told else labels.ids


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of equal image size -> Batch."""
    labels = [sample.labels for sample in samples]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        weights=torch.tensor([sample.weight for sample in samples], dtype=torch.float64),
        words=_ragged([one.ids for one in labels], [one.strengths for one in labels]),
        ignored=_ragged([one.ignored for one in labels]),
        captions=_ragged([sample.caption for sample in samples]),
        faults=[sample.fault for sample in samples if sample.fault],
    )


def names_a_side(texts: Sequence[str]) -> bool:
    """Whether mirroring would make a text false."""
    return any(_SIDES.search(text) for text in texts)


def names_a_colour(texts: Sequence[str]) -> bool:
    """Whether other hues would make a text false."""
    return any(_COLOURS.search(text) for text in texts)


def _window(size: Sequence[int], smallest: float, draws: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of at least `smallest` of the area, its aspect near the old."""
    height, width = size
    if smallest >= 1:
        return 0, 0, height, width
    area = smallest + (1 - smallest) * draws[0]
    stretch = np.exp((2 * draws[1] - 1) * np.log(4 / 3) / 2)
    tall = max(1, round(height * min(1.0, float(np.sqrt(area) * stretch))))
    wide = max(1, round(width * min(1.0, float(np.sqrt(area) / stretch))))
    return int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1)), tall, wide


def _nothing(image: Tensor, fault: Fault | None = None) -> Sample:
    return Sample(image, WordLabels((), ()), 0.0, (), fault)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _ragged(ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]] | None = None) -> Ragged:
    flat = [i for row in ids for i in row]
    weights = [1.0] * len(flat) if values is None else [float(v) for row in values for v in row]
    owner = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(row) for row in ids]))
    return Ragged(owner, torch.tensor(flat, dtype=torch.long), torch.tensor(weights, dtype=torch.float64))
