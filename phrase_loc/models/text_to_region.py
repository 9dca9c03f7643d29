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
from phrase_loc.models.backbones import between
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
        head: over its last stage (and `config.fuse`).
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

    def activations(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N,3,H,W) RGB 0..255, uint8 or float -> what the head reads: (coarse,) or (coarse, fine)."""
        x, fine = self.normalize(images), None
        for name, stage in self.trunk.named_children():
            x = stage(x)
            if name == self.config.fuse:
                fine = x
        return (x,) if fine is None else (x, fine)

    def features(self, images: Tensor) -> Tensor:
        """(N,3,H,W) RGB 0..255 -> (N,D,h,w) >= 0."""
        return self.head.features(*self.activations(images))

    # words -> units

    def word_vectors(self, words: Tensor) -> Tensor:
        """(K,) row numbers -> (K,E); vectors (K,E) pass as they are."""
        return words if words.is_floating_point() else self.words(words)

    def word_bias(self, words: Tensor) -> Tensor:
        """Row numbers (K,) or vectors (K,E) -> (K,) what is added to their scores at every location."""
        return self.head.word_bias(self.word_vectors(words))[:, 0]

    def units(self, words: Tensor) -> Tensor:
        """Row numbers (K,) or vectors (K,E) -> (K,D): the seeds of a top-down pass."""
        return self.head.units(self.word_vectors(words))

    # both -> scores

    def location_scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w) and row numbers (K,) or vectors (K,E) -> (N,K,h,w)."""
        return self.head.location_scores(features, self.word_vectors(words))

    def scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w) and row numbers (K,) or vectors (K,E) -> (N,K): is the word in the image."""
        return self.head(features, self.word_vectors(words))

    def posterior(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w) and row numbers (K,) or vectors (K,E) -> (K,N,h,w), each map sums to 1."""
        return self.head.posterior(features, self.word_vectors(words))

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
        end = self.stage_index(stage) + 1
        parts = OrderedDict(normalize=self.normalize, **dict(list(self.trunk.named_children())[:end]))
        if stage != FEATURES:
            return nn.Sequential(parts)
        parts.pop("normalize")
        return nn.Sequential(self.normalize, Above(parts, self.head, self.config.fuse))

    def above(self, stage: str = FEATURES) -> nn.Module:
        """The part over a stage: activations (N,C,h,w) -> features (N,D,h',w') >= 0.

        Raises:
            ConfigError: the stage lies over the finer stage that the head reads as well.
        """
        if stage == FEATURES:
            return nn.Identity()
        start = self.stage_index(stage) + 1
        fuse = self.config.fuse
        if fuse is not None and start - 1 > self.stage_index(fuse):
            raise ConfigError(
                f"the head reads {fuse} as well, so a map cannot be read at {stage}; take {fuse} or features"
            )
        parts = OrderedDict(list(self.trunk.named_children())[start:])
        return Above(parts, self.head, fuse, reads_input=fuse == stage)

    def between(self, low: str, high: str) -> nn.Module:
        """The part from a stage to a later one: activations (N,C,h,w) -> activations, or features for "features"."""
        return self.above(low) if high == FEATURES else between(self.trunk, low, high)

    def stage_index(self, stage: str) -> int:
        """The place of a stage from the image up; raises ConfigError for an unknown one."""
        if stage not in self.stages:
            raise ConfigError(f"unknown stage {stage!r}; this model has {', '.join(self.stages)}")
        return self.stages.index(stage)


class Above(nn.Module):
    """The stages over a cut and the head's features; it shares the model's weights.

    Args:
        stages: what is left of the trunk.
        head: the text head.
        fuse: name of the finer stage that the head reads as well.
        reads_input: the cut is right after that stage, so the input itself is read.
    """

    def __init__(
        self, stages: OrderedDict[str, nn.Module], head: TextHead, fuse: str | None, reads_input: bool = False
    ):
        super().__init__()
        self.stages, self.head = nn.Sequential(stages), head
        self.fuse, self.reads_input = fuse, reads_input

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,D,h',w') >= 0."""
        fine = x if self.reads_input else None
        for name, stage in self.stages.named_children():
            x = stage(x)
            if name == self.fuse:
                fine = x
        return self.head.features(x, fine)


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
