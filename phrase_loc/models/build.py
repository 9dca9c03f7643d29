"""A new model from names and numbers: trunk, head and word vectors put together."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.backbones import registry, transformers_nets
from phrase_loc.models.model import TextHead, TextToRegion, WordTable
from phrase_loc.models.model_config import (
    ModelConfig,
)
from phrase_loc.text.vectors import WordVectors, align
from phrase_loc.text.vocabulary import Vocabulary

"""Version of the model folder; a reader refuses a newer one."""
#: Keys of older models and the value at which they did nothing; any other value is refused.
RETIRED: dict[str, Any] = {
    "fuse": None,
    "fine_channels": None,
    "output_stride": 32,
    "learn_sharpness": False,
    "cosine": False,
}


def create(
    vocabulary: Vocabulary,
    vectors: Tensor | None = None,
    *,
    backbone: str = "efficientnet_lite0",
    weights: str | Path | None = registry.IMAGENET,
    fold: bool = True,
    image_size: int | None = None,
    hidden: int | None = 512,
    pool: str = "log_sum_exp",
    sharpness: float = 4.0,
    free: bool = False,
    tuned: bool = False,
) -> TextToRegion:
    """A model whose trunk has `weights` and whose head is untrained.

    Args:
        vocabulary: V words.
        vectors: (V,E) their vectors; None is a free head with random units, the usual linear classifier.
        backbone: see registry.build.
        weights: see registry.build.
        fold: fold batch norms now; the trunk can then be fine-tuned as plain convolutions. Without, it trains
            with batch norms, and `folded` makes the model to be queried.
        image_size: short side of an image, the backbone's own when None.
        hidden: see ModelConfig.
        pool: see ModelConfig.
        sharpness: see ModelConfig.
        free: see ModelConfig.
        tuned: train the word vectors too.
    """
    trunk = registry.build(backbone, weights)
    channels = list(registry.feature_channels(trunk).values())[-1]
    facts = registry.preprocessing(backbone)
    dimensions = channels if hidden is None else hidden
    if vectors is None:
        vectors, free, tuned = free_vectors(len(vocabulary), dimensions), True, True
    if len(vectors) != len(vocabulary):
        raise ConfigError(
            f"a model needs a vector a word, got {len(vectors)} vectors for {len(vocabulary)} words"
        )
    config = ModelConfig(
        backbone=backbone,
        architecture=_architecture(backbone),
        folded=fold,
        mean=_to_bytes(facts.mean),
        std=_to_bytes(facts.std),
        image_size=facts.size if image_size is None else image_size,
        channels=channels,
        hidden=hidden,
        embedding=vectors.shape[1],
        pool=pool,
        sharpness=sharpness,
        free=free,
        tuned=tuned,
    )
    trunk = registry.fold_batch_norm(trunk) if fold else trunk
    return TextToRegion(config, trunk, TextHead(config), WordTable(vectors, tuned), vocabulary)


def free_vectors(words: int, dimensions: int, bias: float = 0.0) -> Tensor:
    """Random vectors (V, D + 1) of words that learn their own units: D small numbers and the bias."""
    units = torch.randn(words, dimensions) * dimensions**-0.5
    return torch.cat([units, torch.full((words, 1), bias)], 1)


def folded(model: TextToRegion) -> TextToRegion:
    """The model to be queried: in eval mode, batch norms folded, nothing to train; `model` is untouched."""
    trunk = model.trunk if model.config.folded else registry.fold_batch_norm(model.trunk)
    config = replace(model.config, folded=True)
    trunk, head, words = copy.deepcopy(trunk), copy.deepcopy(model.head), copy.deepcopy(model.words)
    return (
        TextToRegion(config, trunk, head, words, model.vocabulary, model.extra).eval().requires_grad_(False)
    )


def with_extra(model: TextToRegion, source: WordVectors, limit: int = 100_000) -> TextToRegion:
    """The model with the most frequent words of `source` that it was not trained on; `model` is untouched.

    The map from their space to the model's is fitted on the words that both have, weighted by the square root
    of their counts.

    Raises:
        DataError: the two share no word.
    """
    vocabulary, rows = model.vocabulary, model.words.vectors.detach().cpu()
    shared = [
        (i, vector) for i, word in enumerate(vocabulary.words) if (vector := source.get(word)) is not None
    ]
    if not shared:
        raise DataError(
            "the source of further words shares no word with the vocabulary, so it cannot be aligned"
        )
    ids = torch.tensor([i for i, _ in shared])
    counts = torch.tensor([max(1, vocabulary.counts[i]) for i, _ in shared]).sqrt()
    alignment = align(torch.stack([vector for _, vector in shared]), rows[ids], weights=counts)
    picked = [i for i, word in enumerate(source.words) if word not in vocabulary][:limit]
    words = copy.deepcopy(model.words)
    words.set_extra(source.vectors[picked], alignment)
    names = tuple(source.words[i] for i in picked)
    return TextToRegion(model.config, model.trunk, model.head, words, vocabulary, names)


def skeleton(
    config: ModelConfig, vocabulary: Vocabulary, extra: tuple[str, ...], extra_size: int
) -> TextToRegion:
    """A model of the right shapes, its numbers any, to be filled from a file.

    Args:
        config: read from config.json.
        vocabulary: V words.
        extra: M further words.
        extra_size: F, numbers in the compact row of a further word.
    """
    words = WordTable(torch.zeros(len(vocabulary), config.embedding), config.tuned)
    if extra:
        words.reserve(len(extra), extra_size)
    return TextToRegion(config, _trunk_of(config), TextHead(config), words, vocabulary, extra)


def _trunk_of(config: ModelConfig) -> nn.Sequential:
    if config.architecture is not None:
        trunk = transformers_nets.stages(transformers_nets.from_architecture(config.architecture)).eval()
    else:
        trunk = registry.build(config.backbone)
    return registry.fold_batch_norm(trunk) if config.folded else trunk


def _architecture(backbone: str) -> dict[str, Any] | None:
    if not backbone.startswith(registry.TRANSFORMERS):
        return None
    return transformers_nets.architecture(backbone.removeprefix(registry.TRANSFORMERS))


def _to_bytes(values: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = (round(255 * value, 6) for value in values)
    return red, green, blue
