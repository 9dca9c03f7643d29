"""An ImageNet classifier that plays with its own 1,000 units: the same queries, no text.

    classifier:efficientnet_lite0            phrases of VOC and COCO classes, each by its kinds' units
    classifier:efficientnet_lite0@imagenet   phrases of the 1,000 classes, each its own unit

A phrase without an honest unit (datasets/lists/imagenet_units.yaml) is unknown and scores as a miss.
Everything behind the units, the pass, the smoothing and the ranker, is what a text query uses: the classifier
stands in for the model of a PhraseLocalizer.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from phrase_loc.datasets.classes import imagenet_phrases, imagenet_units
from phrase_loc.errors import ConfigError, choose
from phrase_loc.evaluation.controls import shuffled
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models import backbones
from phrase_loc.models.build import fold_batch_norm
from phrase_loc.models.model import Normalize, Staged
from phrase_loc.structures import Scene, Word
from phrase_loc.text.phrases import EncodedPhrase

PREFIX = "classifier:"


class Classifier(Staged):
    """A trunk and a linear layer over its average, with what a PhraseLocalizer reads of a model.

    Args:
        trunk: chain of named stages that ends in non-negative features (N, D, h, w), batch norms folded.
        weight: (C, D) the classes' units.
        bias: (C,).
        names: phrase -> numbers of its units.
        preprocessing: what images the trunk expects.
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        weight: Tensor,
        bias: Tensor,
        names: Mapping[str, tuple[int, ...]],
        preprocessing: backbones.Preprocessing,
    ) -> None:
        self.trunk, self.weight, self.bias, self.names = trunk, weight, bias, names
        mean, std = (tuple(255 * v for v in values) for values in (preprocessing.mean, preprocessing.std))
        self.normalize = Normalize(mean, std).to(weight.device)
        self.encoder, self.words = self, SimpleNamespace(vectors=weight)
        self.head = SimpleNamespace(features=nn.Identity())
        inference = {"image_sizes": (preprocessing.size,)}
        # no calibration: a softmax share says which one class a photograph is of, not whether a thing is there
        self.config = SimpleNamespace(inference=inference, calibration={})

    def encode(self, phrase: str) -> EncodedPhrase:
        """The units of a phrase with equal shares; K = 0 for a phrase that is no class."""
        numbers = self.names.get(phrase, ())
        word = Word(phrase, known=bool(numbers), weight=1.0 if numbers else 0.0)
        shares = torch.full((len(numbers),), 1 / max(len(numbers), 1))
        return EncodedPhrase((word,), torch.tensor(numbers, dtype=torch.long), shares)

    def units(self, words: Tensor) -> Tensor:
        """Numbers (K,) -> (K, D)."""
        return self.weight[words]

    def scores(self, features: Tensor, words: Tensor | None = None) -> Tensor:
        """(N, D, h, w) and numbers (K,), None for all -> (N, K), before any softmax."""
        rows = slice(None) if words is None else words
        return features.flatten(2).mean(2) @ self.weight[rows].T + self.bias[rows]

    def state_dict(self) -> dict[str, Tensor]:
        """All weights: what the results of an image depend on."""
        return {"weight": self.weight, "bias": self.bias, **self.trunk.state_dict()}

    def with_random_top(self) -> "Classifier":
        """The control of controls.py: every unit's weights shuffled, each in its own fixed order."""
        other = copy(self)
        other.encoder = other
        other.weight = torch.stack([shuffled(unit, number) for number, unit in enumerate(self.weight)])
        return other


class ClassifierLocalizer(PhraseLocalizer):
    """A localizer whose phrases are classes of an image classifier.

    Several kinds of a thing ('dog' has 118) count by their softmax among each other in the image: the seed of
    the logarithm of their summed probability.
    """

    model: Any  # a Classifier

    def save_pretrained(self, folder: Any) -> Any:
        """A classifier is named, not saved."""
        raise ConfigError(f"a classifier is loaded by its name and not saved to {folder}; name it instead")

    @property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Phrase -> numbers of its units."""
        return self.model.names

    @torch.inference_mode()
    def classify(self, scene: Scene) -> Tensor:
        """Scores of all classes, mean over sizes: (C,), before any softmax."""
        return torch.cat([self.model.scores(h) for h in self._features(scene)]).mean(0)

    def class_ranks(self, scene: Scene, phrases: Sequence[str]) -> Tensor:
        """How many classes score above the best of each phrase's own: (P,), NaN for one that has none."""
        scores = self.classify(scene).cpu()
        own = [scores[list(units)].max() if (units := self.names.get(p)) else torch.nan for p in phrases]
        best = torch.tensor([float(score) for score in own])
        return torch.where(best.isnan(), torch.nan, (scores > best[:, None]).sum(1).float())

    def _attend(self, scene: Scene, encoded: Sequence[EncodedPhrase], method: str) -> Tensor:
        scores = self.classify(scene).cpu()
        by_kind = [replace(e, weights=scores[e.ids].softmax(0)) if e.known else e for e in encoded]
        return super()._attend(scene, by_kind, method)


def load_classifier(source: str, device: torch.device | str = "cpu", **settings: Any) -> ClassifierLocalizer:
    """The classifier that `classifier:BACKBONE[@imagenet]` names, with its ImageNet weights.

    Raises:
        ConfigError: the backbone has no ImageNet classifier, or what follows the @ is not known.
        DataError: its weights are not installed.
    """
    backbone, _, which = source.removeprefix(PREFIX).partition("@")
    names = choose(VOCABULARIES, which or "objects", "classifier vocabulary")()
    weight, bias = (part.to(device) for part in backbones.imagenet_classifier(backbone))
    trunk = fold_batch_norm(backbones.build(backbone, weights=backbones.IMAGENET)).to(device)
    stages = cast(nn.Sequential, trunk.requires_grad_(False))
    model = Classifier(stages, weight, bias, names, backbones.preprocessing(backbone))
    return ClassifierLocalizer(model, Inference.from_dict({**model.config.inference, **settings}))  # type: ignore[arg-type]


VOCABULARIES: dict[str, Callable[[], Mapping[str, tuple[int, ...]]]] = {
    "objects": imagenet_units,
    "imagenet": lambda: {phrase: (n,) for n, phrase in enumerate(imagenet_phrases().values())},
}
