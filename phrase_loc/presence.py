"""Is a phrase in the photograph at all: the model's raw score, and the probability that answers give."""

from collections.abc import Mapping, Sequence
from math import exp

import torch
from torch import Tensor

from phrase_loc.models.model import TextToRegion
from phrase_loc.profiling import lap
from phrase_loc.text.phrases import EncodedPhrase, distinct_words


@lap("presence")
@torch.inference_mode()
def raw_presence(
    model: TextToRegion, features: Sequence[Tensor], encoded: Sequence[EncodedPhrase]
) -> list[float]:
    """The weighted mean of the pooled scores of a phrase's words, over input sizes.

    Args:
        model: whose head scores.
        features: for each input size (1, D, h, w).
        encoded: the phrases.

    Returns:
        A score a phrase, -inf for one without a known word.
    """
    ids, weights = distinct_words(encoded)
    if len(ids) == 0:
        return [-torch.inf] * len(encoded)
    device = model.words.vectors.device
    scores = [model.scores(h, ids.to(device))[0] for h in features]
    found = weights @ torch.stack(scores).mean(0).cpu()  # (P,)
    return [float(s) if e.known else -torch.inf for s, e in zip(found, encoded, strict=True)]


def probabilities(fit: Mapping[str, float], scores: Sequence[float]) -> list[float | None]:
    """Platt-scaled scores, 1 / (1 + exp(-(slope * score + offset))); None for a score of -inf, no known word."""
    exponents = [max(-700.0, min(fit["slope"] * score + fit["offset"], 700.0)) for score in scores]
    return [
        None if score == -torch.inf else 1 / (1 + exp(-exponent))
        for score, exponent in zip(scores, exponents, strict=True)
    ]
