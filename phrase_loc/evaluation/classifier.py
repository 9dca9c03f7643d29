"""An ImageNet classifier that plays with its own 1,000 units: the same queries, no text.

    classifier:efficientnet_lite0            phrases of VOC and COCO classes, each by its kinds' units
    classifier:efficientnet_lite0@imagenet   phrases of the 1,000 classes, each its own unit
    classifier:vgg16_fc, classifier:timm:resnet50.a1_in1k, classifier:resnet50=resnet50-0676ba61.pth

A phrase without an honest unit (datasets/lists/imagenet_units.yaml) is unknown and scores as a miss. The classifier
is a text-to-region model with a free head, whose "words" are its 1,000 units: everything behind the units, the pass,
the smoothing and the ranker, is what a text query uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phrase_loc.datasets.annotations import imagenet_phrases, imagenet_units
from phrase_loc.errors import ConfigError, choose
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models import backbones
from phrase_loc.models.build import create
from phrase_loc.structures import Scene, Word
from phrase_loc.text.phrases import EncodedPhrase
from phrase_loc.text.vocabulary import Vocabulary

PREFIX = "classifier:"
Units = Mapping[str, tuple[int, ...]]  # phrase -> numbers of its units
VOCABULARIES: dict[str, Callable[[], Units]] = {
    "objects": imagenet_units,
    "imagenet": lambda: {phrase: (n,) for n, phrase in enumerate(imagenet_phrases().values())},
}


@dataclass(frozen=True)
class ClassEncoder:
    """Phrases by the numbers of their units."""

    names: Units

    def encode(self, phrase: str) -> EncodedPhrase:
        """The units of a phrase with equal shares; K = 0 for a phrase that is no class."""
        numbers = self.names.get(phrase, ())
        word = Word(phrase, known=bool(numbers), weight=1.0 if numbers else 0.0)
        return EncodedPhrase((word,), numbers, (1 / max(len(numbers), 1),) * len(numbers))


class ClassifierLocalizer(PhraseLocalizer):
    """A localizer whose phrases are classes of an image classifier, so it has no calibration.

    Several kinds of a thing ('dog' has 118) count by their softmax among each other in the image: the seed of the
    logarithm of their summed probability.
    """

    model: Any  # a TextToRegion with a ClassEncoder
    vocabulary: Any = None  # it was trained on no text

    def save_pretrained(self, folder: Any, weights: Any = None) -> Path:
        """A classifier is named, not saved."""
        raise ConfigError(f"a classifier is loaded by its name and not saved to {folder}; name it instead")

    @property
    def names(self) -> Units:
        """Phrase -> numbers of its units."""
        return self.model.encoder.names

    @torch.inference_mode()
    def classify(self, scene: Scene) -> Tensor:
        """Scores of all classes, mean over sizes: (C,), before any softmax."""
        classes = torch.arange(len(self.model.vocabulary), device=self.device)
        units, bias = self.model.units(classes), self.model.word_bias(classes)
        return torch.cat([h.flatten(2).mean(2) @ units.T + bias for h in self._features(scene)]).mean(0)

    def class_ranks(self, scene: Scene, phrases: Sequence[str]) -> Tensor:
        """How many classes score above the best of each phrase's own: (P,), NaN for one that has none."""
        scores = self.classify(scene).cpu()
        own = [scores[list(self.names.get(phrase, ()))].tolist() for phrase in phrases]
        best = torch.tensor([max(units, default=torch.nan) for units in own])
        return torch.where(best.isnan(), torch.nan, (scores > best[:, None]).sum(1).float())

    def _attend(self, scene: Scene, encoded: Sequence[EncodedPhrase], method: str, *seen: Any) -> Tensor:
        scores = self.classify(scene).cpu()
        by_kind = [replace(e, weights=tuple(scores[list(e.ids)].softmax(0).tolist())) for e in encoded]
        return super()._attend(scene, by_kind, method, *seen)


def classifier(
    backbone: str, weights: str | None, weight: Tensor, bias: Tensor, names: Units, **settings: Any
) -> ClassifierLocalizer:
    """A localizer of units (C, D) and biases (C,) over a backbone; `names` are the numbers of each phrase's units."""
    vocabulary = Vocabulary(tuple(map(str, range(len(bias)))), (0,) * len(bias))
    vectors = torch.cat([weight, bias[:, None]], 1)
    own: Any = {"backbone": backbone, "weights": weights, "hidden": None, "free": True, "pool": "average"}
    model: Any = create(vocabulary, vectors, **own)
    model.encoder = ClassEncoder(names)
    inference = Inference.from_dict({"image_sizes": (model.config.image_size,), **settings})
    return ClassifierLocalizer(model.eval().requires_grad_(False), inference)


def load_classifier(source: str, device: torch.device | str = "cpu", **settings: Any) -> ClassifierLocalizer:
    """The classifier that `classifier:BACKBONE[@imagenet][=FILE]` names, with its ImageNet weights or the file's."""
    name, _, file = source.removeprefix(PREFIX).partition("=")
    backbone, _, which = name.partition("@")
    names = choose(VOCABULARIES, which or "objects", "classifier vocabulary")()
    weights = file or backbones.IMAGENET
    units = backbones.imagenet_classifier(backbone, weights)
    made = classifier(backbone, weights, *units, names, **settings)
    return ClassifierLocalizer(made.model.to(device), made.settings)
