"""WebImages: weakly labelled images for training, as uint8 tensors with the ids of the words said of them.

A sample never raises for what is wrong with the data: a broken image or a text without a known word gives a
black image of weight 0 with the fault attached, so that one bad file costs one sample and every process keeps
its step. `collate` makes a Batch; who decides how many faults are too many is the run (web_faults.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from phrase_loc.errors import DataError
from phrase_loc.pairs.sampler import FILLER, Item
from phrase_loc.pairs.sources import Source
from phrase_loc.pairs.transforms import Transform, decode_or_none
from phrase_loc.skipped import Fault
from phrase_loc.text.labels import WordLabels

#: texts of an image -> its labels; picklable.
Labeller = Callable[[Sequence[str]], WordLabels]


@dataclass(frozen=True)
class Sample:
    """One image as the model gets it."""

    image: Tensor  # (3,H,W) uint8, or a frozen trunk's output (C,h,w) float16
    labels: WordLabels
    weight: float  # 0 where there is nothing to learn from
    caption: Sequence[int] = ()  # words of the text that was drawn this epoch
    fault: Fault | None = None


@dataclass
class Ragged:
    """Lists of word ids of several images, flat.

    Attributes:
        owner: (T,) number of the image in the batch.
        ids: (T,) rows of the vocabulary.
        values: (T,) a number each.
    """

    owner: Tensor
    ids: Tensor
    values: Tensor

    def to(self, device: torch.device) -> "Ragged":
        """The same on a device."""
        owner, ids = (t.to(device, non_blocking=True) for t in (self.owner, self.ids))
        return Ragged(owner, ids, self.values.to(device, _widest(device), non_blocking=True))


@dataclass
class Batch:
    """Images of a micro-batch with their words.

    Attributes:
        images: (N,3,H,W) uint8, or the output of a frozen trunk, (N,C,h,w) float16.
        weights: (N,) 1, or 0 for fillers and faults.
        words: true words with strengths.
        ignored: words that count neither way.
        captions: words of one text of each image.
        faults: what was skipped.
    """

    images: Tensor
    weights: Tensor
    words: Ragged
    ignored: Ragged
    captions: Ragged
    faults: list[Fault] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        images = self.images.to(device, non_blocking=True)
        weights = self.weights.to(device, _widest(device), non_blocking=True)
        words, ignored, captions = (part.to(device) for part in (self.words, self.ignored, self.captions))
        return Batch(images, weights, words, ignored, captions, self.faults)

    def pin_memory(self) -> "Batch":
        """For the loader: copies to the GPU then overlap with its work."""
        self.images = self.images.pin_memory()
        return self


class WebImages(Dataset[Sample]):
    """The samples of a source, indexed by (epoch, number, which transform).

    Args:
        source: pairs of image and text.
        labeller: texts -> words.
        transforms: image -> training tensor, one for each input size.
        seed: of the run; with epoch and number it fixes every random choice.
    """

    def __init__(self, source: Source, labeller: Labeller, transforms: Sequence[Transform], seed: int):
        self.source, self.labeller, self.transforms, self.seed = source, labeller, transforms, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Item) -> Sample:
        """The image of that number as it looks in that epoch."""
        epoch, number, choice = item
        transform = self.transforms[choice]
        if number == FILLER:
            return _nothing(transform, None)
        try:
            texts, wrong = self.source.told(number)
            data = self.source.image(number)
        except DataError as error:
            return _nothing(transform, Fault("image", self.source.name(number), str(error)))
        labels = self.labeller(texts)
        if not labels.ids:
            unusable = Fault("text", self.source.name(number), wrong) if wrong else None
            return _nothing(transform, unusable or unlabelled(self.source.name(number), texts))
        image, reason = decode_or_none(data)
        if image is None:
            return _nothing(transform, Fault("image", self.source.name(number), reason))
        random = np.random.default_rng([self.seed, epoch, number])
        caption = draw_caption(labels, random)
        fault = (
            Fault("text", self.source.name(number), wrong) if wrong else None
        )  # another of its texts is used
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


def _nothing(transform: Transform, fault: Fault | None) -> Sample:
    black = torch.zeros(3, *transform.size, dtype=torch.uint8)
    return Sample(black, WordLabels((), ()), 0.0, (), fault)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _ragged(ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]] | None = None) -> Ragged:
    flat = [i for row in ids for i in row]
    weights = [1.0] * len(flat) if values is None else [float(v) for row in values for v in row]
    owner = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(row) for row in ids]))
    return Ragged(owner, torch.tensor(flat, dtype=torch.long), torch.tensor(weights, dtype=torch.float64))
