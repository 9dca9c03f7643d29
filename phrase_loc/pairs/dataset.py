"""Image-text pairs as training samples: ordered, decoded, augmented so that their words stay true, and batched.

A sample never raises for what is wrong with the data: it becomes a black image of weight 0 with the fault attached,
so that one bad file costs one sample and every process keeps its step. The order is a pure function of seed, epoch
and step: step t of an epoch is order[t * batch : (t + 1) * batch], its micro-batches are equal runs of that, and
process r of R takes every R-th sample of each from the r-th on. So R processes see the global batches of one.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, Sampler

from phrase_loc.errors import DataError
from phrase_loc.images import load_tensor
from phrase_loc.pairs.sources import Source
from phrase_loc.skipped import Fault
from phrase_loc.text.english import LISTS
from phrase_loc.text.vocabulary import WordLabels

#: (epoch, number of the sample, which of the input sizes).
Item = tuple[int, int, int]
#: The number of an empty sample of weight 0: every rank must run forward and backward as often as the others.
FILLER = -1
#: texts of an image -> its labels; picklable.
Labeller = Callable[[Sequence[str]], WordLabels]

_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise)\b", re.IGNORECASE)
_FURTHER = ("redd(?=ish)", "grey", "blonde?", "crimson", "scarlet", r"(multi)?colou?r\w*")
_COLOURS = re.compile(rf"\b({'|'.join([*LISTS.colours, *_FURTHER])})(ish)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """The order of samples in each epoch: a permutation, or, for a network disk, one within windows of shards."""

    groups: np.ndarray  # (n,) shard of each sample, ascending
    seed: int
    window: int = 0  # shards that are mixed at a time; 0 mixes all
    held_out: Sequence[int] = ()  # samples that never come

    def __len__(self) -> int:
        return len(self.groups) - len(self.held_out)

    def epoch(self, number: int) -> np.ndarray:
        """(n,) int64: each sample that is not held out once."""
        random = np.random.default_rng([self.seed, number])
        shards = int(self.groups[-1]) + 1 if len(self.groups) else 0
        if 0 < self.window < shards:
            bounds = np.searchsorted(self.groups, np.arange(1, shards))
            shard = np.split(np.arange(len(self.groups)), bounds)
            chosen = np.split(random.permutation(shards), range(self.window, shards, self.window))
            windows = (np.concatenate([shard[i] for i in few]) for few in chosen)
            numbers = np.concatenate([random.permutation(window) for window in windows])
        else:
            numbers = random.permutation(len(self.groups))
        return numbers[~np.isin(numbers, self.held_out)] if self.held_out else numbers


def share(batch: np.ndarray, pieces: int, rank: int, size: int) -> list[list[int]]:
    """A process's part of a global batch (b,), as `pieces` micro-batches, those of all ranks equally long."""
    parts = []
    for piece in np.array_split(batch, pieces):
        mine = piece[rank::size].tolist()
        parts.append(mine + [FILLER] * (max(1, math.ceil(len(piece) / size)) - len(mine)))
    return parts


@dataclass(eq=False)
class StepSampler(Sampler[list[Item]]):
    """Micro-batches of one process from step `first` up to, not including, step `last`."""

    order: Order
    batch: int  # images of a global batch, over all ranks and micro-batches
    pieces: int  # micro-batches of a step
    first: int  # steps are counted from the begin of the phase over all its epochs
    last: int
    rank: int
    size: int
    choices: int = 1  # input sizes, one of which is drawn for each step

    def __len__(self) -> int:
        return (self.last - self.first) * self.pieces

    def __iter__(self) -> Iterator[list[Item]]:
        current, numbers = -1, np.empty(0, np.int64)
        for step in range(self.first, self.last):
            epoch, place = divmod(step, math.ceil(len(self.order) / self.batch))  # the last may be smaller
            if epoch != current:
                current, numbers = epoch, self.order.epoch(epoch)
            batch = numbers[place * self.batch : (place + 1) * self.batch]
            choice = int(np.random.default_rng([self.order.seed, step, 1]).integers(self.choices))
            for part in share(batch, self.pieces, self.rank, self.size):
                yield [(epoch, i, choice) for i in part]


class Sample(NamedTuple):
    """One image as the model gets it."""

    image: Tensor  # (3,H,W) uint8, or a frozen trunk's output (C,h,w) float16
    labels: WordLabels = WordLabels((), ())
    weight: float = 0.0  # where there is nothing to learn from
    fault: Fault | None = None


class Ragged(NamedTuple):
    """Lists of word ids of several images, flat."""

    owner: Tensor  # (T,) number of the image in the batch
    ids: Tensor  # (T,) rows of the vocabulary
    values: Tensor  # (T,) a number each


class Batch(NamedTuple):
    """Images of a micro-batch with their words."""

    images: Tensor  # (N,3,H,W) uint8, or the output of a frozen trunk, (N,C,h,w) float16
    weights: Tensor  # (N,) 1, or 0 for fillers and faults
    words: Ragged  # true words with strengths
    ignored: Ragged  # words that count neither way
    faults: Sequence[Fault] = ()

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return cast(Batch, tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), self))


@dataclass(frozen=True)
class Transform:
    """How a training image is made: not mirrored where a text says "left", its hue kept where one names a colour."""

    size: tuple[int, int] = (224, 224)  # (H, W) of the result
    crop: float = 1.0  # smallest share of the area that is kept, as what a caption names may stand anywhere
    mirror: float = 0.0  # probability
    jitter: float = 0.0  # strength of changes of brightness, contrast, and saturation and hue

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


@dataclass(eq=False)
class WebImages(Dataset[Sample]):
    """The samples of a source by `Item`; `seed`, epoch and number fix every random choice, in whichever process.

    With `negatives`, photographs whose texts hold no word of the vocabulary are samples too, of none of its words.
    """

    source: Source
    labeller: Labeller
    transforms: Sequence[Transform]
    seed: int
    negatives: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> Sample:
        """The image of that number as it looks in that epoch."""
        epoch, number, choice = item
        nothing = Sample(self.nothing(number, choice))
        if number == FILLER:
            return nothing
        name = self.source.name(number)
        try:
            texts, wrong = self.source.told(number)
            labels, fault = self.labeller(texts), Fault("text", name, wrong) if wrong else None
            if not labels.ids and not (texts and self.negatives):  # other words alone are nothing broken
                other = Fault("words", name) if texts else Fault("text", name, "has no text")
                return nothing._replace(fault=fault or other)
            image = self.image(number, choice, texts, np.random.default_rng([self.seed, epoch, number]))
        except DataError as error:
            return nothing._replace(fault=Fault("image", name, str(error)))
        return Sample(image, labels, 1.0, fault)

    def nothing(self, number: int, choice: int) -> Tensor:
        """What stands for an image that is not there."""
        return torch.zeros(3, *self.transforms[choice].size, dtype=torch.uint8)

    def image(self, number: int, choice: int, texts: Sequence[str], random: np.random.Generator) -> Tensor:
        """An image, transformed; raises DataError."""
        return self.transforms[choice](load_tensor(self.source.image(number)), texts, random)


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples of equal image size."""
    labels = [sample.labels for sample in samples]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        weights=torch.tensor([sample.weight for sample in samples]),
        words=_ragged([one.ids for one in labels], [one.strengths for one in labels]),
        ignored=_ragged([one.ignored for one in labels]),
        faults=[sample.fault for sample in samples if sample.fault],
    )


def in_order(images: Dataset, numbers: Sequence[int], batch: int, workers: int = 0) -> DataLoader:
    """Batches of these samples as they come, `batch` at a time."""
    items: Any = [[(0, n, 0) for n in numbers[i : i + batch]] for i in range(0, len(numbers), batch)]
    return DataLoader(images, batch_sampler=items, collate_fn=collate, num_workers=workers)


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


def _ragged(ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]] | None = None) -> Ragged:
    flat = [i for row in ids for i in row]
    weights = [1.0] * len(flat) if values is None else [float(v) for row in values for v in row]
    owner = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(row) for row in ids]))
    return Ragged(owner, torch.tensor(flat, dtype=torch.long), torch.tensor(weights))
