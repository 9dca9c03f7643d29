"""When the model says 70 %, is the thing there in 70 of 100 images? Bins of `present` for the report's plot.

Positive pairs are the phrases of an image, negative pairs as many phrases of other images that share no
content word with anything said of this one. Both are asked of the same look, so the plot costs one pass over a few
images. Half of the pairs are positive, as in the calibration itself: the probability is that of an even bet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phrase_loc.errors import DataError
from phrase_loc.evaluation.photographs import framed
from phrase_loc.evaluation.words import content_words
from phrase_loc.structures import GroundingSample

IMAGES = 80  # looked at for the plot
SEED = 7


@dataclass(frozen=True)
class Bin:
    """Pairs whose probability fell into one tenth: its mean, the share that was positive, how many."""

    said: float
    seen: float
    count: int


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    Attributes:
        bins: those with at least one pair, from 0 to 1.
        error: expected calibration error, mean gap between said and seen weighted by counts.
        brier: mean squared error of the probabilities.
        pairs: how many, half of them positive where enough negatives were found.
        images: how many were looked at.
    """

    bins: tuple[Bin, ...]
    error: float
    brier: float
    pairs: int
    images: int


def reliability(localizer: Any, samples: Sequence[GroundingSample]) -> Reliability | None:
    """The diagram on up to IMAGES images, evenly spaced; None when the model gives no probability."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).astype(int))
    generator = np.random.default_rng(SEED)
    pool = [(int(i), p.text) for i in chosen for p in samples[int(i)].phrases]
    said: list[float] = []
    positive: list[bool] = []
    looked = 0
    for i in chosen.tolist():
        sample = samples[i]
        own = list(dict.fromkeys(phrase.text for phrase in sample.phrases))
        others = absent_phrases(sample, pool, len(own), generator)
        try:
            scene = localizer.look(framed(sample).picture, size=sample.size)
        except DataError:
            continue
        looked += 1
        answers = localizer.present(scene, [*own, *others])
        if looked == 1 and all(p is None for p in answers) and any(e.known for e in localizer.encode(own)):
            return None  # the model was never calibrated
        truth = [True] * len(own) + [False] * len(others)
        said += [p for p in answers if p is not None]
        positive += [t for p, t in zip(answers, truth, strict=True) if p is not None]
    if not said:
        return None
    return binned(np.array(said), np.array(positive), looked)


def absent_phrases(
    sample: GroundingSample, pool: list[tuple[int, str]], count: int, generator: np.random.Generator
) -> list[str]:
    """Up to `count` phrases of the pool that share no content word with what is said of the image."""
    texts = [*(phrase.text for phrase in sample.phrases), *sample.facts.get("captions", ())]
    own = {word for text in texts for word in content_words(text)}
    found: list[str] = []
    for place in generator.permutation(len(pool)).tolist():
        text = pool[place][1]
        words = set(content_words(text))
        if words and not words & own and text not in found:
            found.append(text)
        if len(found) == count:
            break
    return found


def binned(said: NDArray[np.float64], positive: NDArray[np.bool_], images: int) -> Reliability:
    """Probabilities (n,) and truths (n,) -> tenths."""
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(float(said[place == b].mean()), float(positive[place == b].mean()), int((place == b).sum()))
        for b in range(BINS)
        if (place == b).any()
    )
    error = sum(abs(b.said - b.seen) * b.count for b in bins) / len(said)
    return Reliability(bins, float(error), float(((said - positive) ** 2).mean()), len(said), images)
