"""An ImageNet classifier that plays with its own 1,000 units: the same queries, no text.

    classifier:efficientnet_lite0            phrases of VOC and COCO classes, each the mean of its kinds
    classifier:efficientnet_lite0@imagenet   phrases of the 1,000 classes, each its own unit

A phrase without an honest unit (datasets/lists/imagenet_units.yaml) is unknown and scores as a miss.
Everything behind the units, the pass, the smoothing and the ranker, is what a text query uses.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from phrase_loc.attention import METHODS
from phrase_loc.datasets.class_names import imagenet_phrases, imagenet_units
from phrase_loc.errors import ConfigError, choose
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models import backbones
from phrase_loc.models.text_to_region import FEATURES, Normalize
from phrase_loc.structures import Scene, Word
from phrase_loc.text.phrases import EncodedPhrase

PREFIX = "classifier:"


class ClassifierLocalizer(PhraseLocalizer):
    """A localizer whose phrases are classes of an image classifier.

    Args:
        trunk: chain of named stages that ends in non-negative features (N, D, h, w), batch norms folded.
        head: (C, D) weights and (C,) biases over the average-pooled features.
        names: phrase -> numbers of its units; several units share the phrase's weight equally.
        preprocessing: what images the trunk expects.
        settings: stage is a stage of the trunk, or "features" for its last.
    """

    def __init__(
        self,
        trunk: nn.Sequential,
        head: tuple[Tensor, Tensor],
        names: Mapping[str, tuple[int, ...]],
        preprocessing: backbones.Preprocessing,
        settings: Inference | None = None,
    ) -> None:
        self.trunk, self.head, self.names, self.preprocessing = trunk, head, names, preprocessing
        self.settings = settings or Inference(image_size=preprocessing.size)
        last = [name for name, _ in trunk.named_children()][-1]
        stage = last if self.settings.stage == FEATURES else self.settings.stage
        below, self._above = backbones.split(trunk, stage)
        mean, std = (tuple(255 * v for v in values) for values in (preprocessing.mean, preprocessing.std))
        self._below = nn.Sequential(Normalize(mean, std), below).to(head[0].device)

    @classmethod
    def named(cls, source: str, device: torch.device | str = "cpu", **settings: Any) -> "ClassifierLocalizer":
        """The classifier that `classifier:BACKBONE[@imagenet]` names, with its ImageNet weights.

        Raises:
            ConfigError: the backbone has no ImageNet classifier, or what follows the @ is not known.
            DataError: its weights are not installed.
        """
        backbone, _, which = source.removeprefix(PREFIX).partition("@")
        names = choose(VOCABULARIES, which or "objects", "classifier vocabulary")()
        weight, bias = backbones.imagenet_classifier(backbone)
        trunk = backbones.fold_batch_norm(backbones.build(backbone, weights=backbones.IMAGENET))
        facts = backbones.preprocessing(backbone)
        chosen = Inference.from_dict({"image_size": facts.size, **settings})
        return cls(trunk.to(device), (weight.to(device), bias.to(device)), names, facts, chosen)

    @property
    def fingerprint(self) -> str:
        """A hash of weights, names and settings: what the results of an image depend on."""
        digest = hashlib.sha256(repr((self.settings, sorted(self.names.items()))).encode())
        for value in (*self.head, *self.trunk.state_dict().values()):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head[0].device

    def with_settings(self, **changes: Any) -> "ClassifierLocalizer":
        """The same weights asked otherwise."""
        settings = Inference.from_dict({**asdict(self.settings), **changes})
        return ClassifierLocalizer(self.trunk, self.head, self.names, self.preprocessing, settings)

    def save_pretrained(self, folder: Any) -> Any:
        """A classifier is named, not saved."""
        raise ConfigError(f"a classifier is loaded by its name and not saved to {folder}; name it instead")

    def encode(self, phrases: Sequence[str]) -> list[EncodedPhrase]:
        """The units of each phrase; a phrase that is no class is unknown."""
        return [self._encode(phrase) for phrase in phrases]

    @torch.inference_mode()
    def classify(self, scene: Scene) -> Tensor:
        """Scores of all classes, mean over the views: (C,), before any softmax."""
        features = self._above(scene.activations)
        weight, bias = self.head
        return (features.flatten(2).mean(2) @ weight.T + bias).mean(0)

    def _encode(self, phrase: str) -> EncodedPhrase:
        numbers = self.names.get(phrase, ())
        word = Word(phrase, known=bool(numbers), weight=1.0 if numbers else 0.0)
        share = torch.full((len(numbers),), 1 / max(len(numbers), 1))
        return EncodedPhrase((word,), torch.tensor(numbers, dtype=torch.long), share)

    def _attend(self, scene: Scene, encoded: Sequence[EncodedPhrase], method: str) -> Tensor:
        f = choose(METHODS, method, "attention method")
        known = [i for i, phrase in enumerate(encoded) if phrase.known]
        maps = torch.zeros(len(encoded), *scene.activations.shape[-2:], device=self.device)
        if not known:
            return maps
        rows = torch.cat([encoded[i].ids for i in known]).to(self.device)
        weights = torch.block_diag(*(encoded[i].weights[None] for i in known)).to(self.device)
        views = f(self._above, scene.activations, self.head[0][rows], weights=weights)
        if self.settings.mirrored:
            views = torch.stack([views[:, 0], views[:, 1].flip(-1)], 1)
        maps[torch.tensor(known, device=self.device)] = views.mean(1).to(maps)
        return maps

    def _present(self, scene: Scene, encoded: Sequence[EncodedPhrase]) -> list[float | None]:
        shares = self.classify(scene).softmax(0)
        return [float(shares[e.ids.to(self.device)].sum()) if e.known else None for e in encoded]


def _each_its_own() -> dict[str, tuple[int, ...]]:
    return {phrase: (number,) for number, phrase in enumerate(imagenet_phrases().values())}


VOCABULARIES = {"objects": imagenet_units, "imagenet": _each_its_own}
