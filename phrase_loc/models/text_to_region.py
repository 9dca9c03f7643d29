"""The model: a trunk, a text head over it, and the words it knows.

    images (N,3,H,W), RGB 0..255 -> trunk -> head -> features (N,D,h,w) >= 0
    words: ids (K,) or vectors (K,E) -> units (K,D)
    features x units -> scores at locations (N,K,h,w) -> pooled scores (N,K)

For attention the same chain is cut at a stage: `below(stage)` maps images to activations, `above(stage)` maps
those to features. The last stage, "features", leaves nothing above: there a map is a matrix product.
"""

from collections import OrderedDict
from functools import cached_property

import torch
from torch import Tensor, nn

from phrase_loc.errors import ConfigError
from phrase_loc.models.model_config import ModelConfig
from phrase_loc.models.text_head import TextHead
from phrase_loc.models.word_table import WordTable
from phrase_loc.text.phrases import PhraseEncoder
from phrase_loc.text.vocabulary import Vocabulary

FEATURES = "features"


class TextToRegion(nn.Module):
    """Trunk + text head + words. `assembly.create` makes one from names, `store.load_model` from a folder.

    Args:
        config: what the parts are.
        trunk: chain of named stages.
        head: over its last stage.
        words: vectors of V vocabulary words and M further ones.
        vocabulary: the V words.
        extra: the M further ones, row V + i.
    """

    def __init__(
        self,
        config: ModelConfig,
        trunk: nn.Sequential,
        head: TextHead,
        words: WordTable,
        vocabulary: Vocabulary,
        extra: tuple[str, ...] = (),
    ):
        super().__init__()
        if len(words) != len(vocabulary) + len(extra):
            raise ConfigError(
                f"a model needs a vector a word, got {len(words)} for {len(vocabulary)} + {len(extra)} "
                "words; give both tables in the order of the vectors"
            )
        self.config, self.vocabulary, self.extra = config, vocabulary, extra
        self.trunk, self.head, self.words = trunk, head, words
        self.normalize = Normalize(config.mean, config.std)

    @property
    def image_size(self) -> int:
        """Short side in pixels of the images it was trained on."""
        return self.config.image_size

    @cached_property
    def encoder(self) -> PhraseEncoder:
        """Phrases -> rows of `words`."""
        return PhraseEncoder(self.vocabulary, self.extra)

    # images -> features

    def features(self, images: Tensor) -> Tensor:
        """(N,3,H,W) RGB 0..255, uint8 or float -> (N,D,h,w) >= 0."""
        return self.head.features(self.trunk(self.normalize(images)))

    # words -> units

    def word_vectors(self, words: Tensor) -> Tensor:
        """(K,) row numbers -> (K,E); vectors (K,E) pass as they are."""
        return words if words.is_floating_point() else self.words(words)

    def word_bias(self, words: Tensor) -> Tensor:
        """Row numbers (K,) or vectors (K,E) -> (K,) what is added to their scores at every location."""
        bias: Tensor = self.head.word_bias(self.word_vectors(words))
        return bias[:, 0]

    def units(self, words: Tensor) -> Tensor:
        """Row numbers (K,) or vectors (K,E) -> (K,D): the seeds of a top-down pass."""
        units: Tensor = self.head.project(self.word_vectors(words))
        return units

    # both -> scores

    def location_scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w) and row numbers (K,) or vectors (K,E) -> (N,K,h,w)."""
        return self.head.unit_scores(features, self.units(words), self.word_bias(words))

    def scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w) and row numbers (K,) or vectors (K,E) -> (N,K): is the word in the image."""
        pooled: Tensor = self.head.pool(self.location_scores(features, words))
        return pooled

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """(N,3,H,W) RGB 0..255 and row numbers (K,) or vectors (K,E) -> (N,K) scores, for training."""
        return self.scores(self.features(images), words)

    # cutting

    @property
    def stages(self) -> tuple[str, ...]:
        """Where the model can be cut, from the image up; the last is "features"."""
        return (*(name for name, _ in self.trunk.named_children()), FEATURES)

    def below(self, stage: str = FEATURES) -> nn.Module:
        """The part up to a stage: images (N,3,H,W) RGB 0..255 -> activations (N,C,h,w)."""
        parts = OrderedDict(normalize=self.normalize, **dict(self.trunk.named_children()))
        if stage == FEATURES:
            return Above(parts, self.head)
        return nn.Sequential(OrderedDict(list(parts.items())[: self._index(stage) + 2]))

    def above(self, stage: str = FEATURES) -> nn.Module:
        """The part over a stage: activations (N,C,h,w) -> features (N,D,h',w') >= 0."""
        if stage == FEATURES:
            return nn.Identity()
        parts = list(self.trunk.named_children())[self._index(stage) + 1 :]
        return Above(OrderedDict(parts), self.head)

    def _index(self, stage: str) -> int:
        if stage not in self.stages:
            raise ConfigError(f"unknown stage {stage!r}; this model has {', '.join(self.stages)}")
        return self.stages.index(stage)


class Above(nn.Module):
    """The stages over a cut and the head's features; it shares the model's weights."""

    def __init__(self, stages: OrderedDict[str, nn.Module], head: TextHead):
        super().__init__()
        self.stages, self.head = nn.Sequential(stages), head

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,D,h',w') >= 0."""
        return self.head.features(self.stages(x))


class Normalize(nn.Module):
    """RGB 0..255, uint8 or float -> (x - mean) / std in float32 (float64 stays)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N,3,H,W) -> (N,3,H,W)."""
        return (images - self.mean) / self.std
