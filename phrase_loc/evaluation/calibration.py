"""Is it there? The probability that an image shows a phrase, calibrated on val.

Positive pairs are the phrases of an image; for each of them one negative pair takes a phrase of another image that
shares no content word with any caption of this one. Platt scaling (a logistic regression on one number, the model's
score of the phrase) turns scores into probabilities; half of the pairs are positive, so the probability is that of an
even bet before looking. The figures are cross-validated with whole images left out.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from phrase_loc.errors import DataError
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.rows import content_words
from phrase_loc.structures import GroundingSample

if TYPE_CHECKING:
    from phrase_loc.localizer import PhraseLocalizer

IMAGES = 80  # looked at for the plot
SEED = 7
FOLDS = 5
BINS = 10
MISSED = 0.01  # of what is there may be called not there: captions name what is easy to see, so elsewhere it is more
PRECISION = 0.8  # of what is called found, where half of the pairs are there


@dataclass(frozen=True)
class Bin:
    """Pairs whose probability fell into one tenth: its mean, the share that was positive, how many."""

    said: float
    seen: float
    count: int


class Reliability(NamedTuple):
    """A reliability diagram: bins that hold a pair from 0 to 1, expected calibration error, Brier score, counts."""

    bins: list[Bin]
    error: float
    brier: float
    pairs: int
    images: int


class Pairs(NamedTuple):
    """Scores (n,), whether the pair is positive (n,), and the number of its image (n,)."""

    scores: np.ndarray
    positive: np.ndarray
    image: np.ndarray


def reliability(localizer: "PhraseLocalizer", samples: Sequence[GroundingSample]) -> Reliability | None:
    """The diagram on up to IMAGES images, evenly spaced; None when the model gives no probability."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).astype(int)).tolist()
    generator = np.random.default_rng(SEED)
    pool = [phrase.text for i in chosen for phrase in samples[i].phrases]
    said: list[tuple[float, bool]] = []
    looked = 0
    for sample in (samples[i] for i in chosen):
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
        said += [(p, place < len(own)) for place, p in enumerate(answers) if p is not None]
    if not said:
        return None
    probability, positive = np.array(said).T
    return binned(probability, positive, looked)


def absent_phrases(
    sample: GroundingSample, pool: list[str], count: int, generator: np.random.Generator
) -> list[str]:
    """Up to `count` phrases of the pool that share no content word with what is said of the image."""
    texts = [*(phrase.text for phrase in sample.phrases), *sample.facts.get("captions", ())]
    own = {word for text in texts for word in content_words(text)}
    drawn = dict.fromkeys(pool[place] for place in generator.permutation(len(pool)).tolist())
    fitting = (text for text in drawn if (words := content_words(text)) and own.isdisjoint(words))
    return list(islice(fitting, count))


def binned(said: np.ndarray, positive: np.ndarray, images: int = 0) -> Reliability:
    """Probabilities (n,) and truths (n,) -> tenths; the error is the bins' mean gap, weighted by their counts."""
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    inside = [place == b for b in np.unique(place)]
    bins = [Bin(float(said[i].mean()), float(positive[i].mean()), int(i.sum())) for i in inside]
    error = float(sum(abs(b.seen - b.said) * (b.count / len(said)) for b in bins))
    return Reliability(bins, error, float(((said - positive) ** 2).mean()), len(said), images)


def calibrate(
    localizer: "PhraseLocalizer", samples: Sequence[GroundingSample], seed: int = 0
) -> dict[str, Any]:
    """Platt's slope and offset, the thresholds of the states, and how good all is on held-out images."""
    from sklearn.metrics import roc_auc_score

    pairs = score_pairs(localizer, samples, seed)
    images = len(np.unique(pairs.image))
    if images < FOLDS or len(np.unique(pairs.positive)) < 2:
        needed = "phrases with a known word, and phrases to set against them, in at least"
        raise DataError(f"calibration needs {needed} {FOLDS} images, got {images}; take a larger split")
    slope, offset = platt(pairs.scores, pairs.positive)
    held_out = cross_validated(pairs)
    figures = binned(held_out, pairs.positive)
    return {
        "slope": slope,
        "offset": offset,
        **thresholds(held_out, pairs.positive),
        "auc": float(roc_auc_score(pairs.positive, held_out)),
        "brier": figures.brier,
        "calibration_error": figures.error,
        "pairs": len(held_out),
        "images": images,
    }


def thresholds(said: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Where 'not there' ends and 'found' begins: (n,), (n,) -> `absent_below` and `found_at` in 0..1.

    Below the one lies at most MISSED of what is there, from the other on at least PRECISION of the pairs is there.
    """
    order = np.argsort(-said, kind="stable")
    precise = np.flatnonzero(np.cumsum(positive[order]) >= PRECISION * np.arange(1, len(said) + 1))
    found_at = float(said[order][precise[-1]]) if len(precise) else 1.0
    return {"absent_below": min(float(np.quantile(said[positive], MISSED)), found_at), "found_at": found_at}


def score_pairs(localizer: "PhraseLocalizer", samples: Sequence[GroundingSample], seed: int = 0) -> Pairs:
    """One negative for each positive phrase with a known word; the same pairs for the same seed."""

    def content(text: str) -> frozenset[str]:
        if localizer.model.reads_phrases:
            return frozenset(content_words(text))
        return frozenset(word.text for word in localizer.model.encoder.encode(text).words if word.known)

    rng = np.random.default_rng(seed)
    everywhere = [(i, phrase.text) for i, sample in enumerate(samples) for phrase in sample.phrases]
    known = {text: content(text) for _, text in everywhere}
    pairs: list[tuple[float, bool, int]] = []
    for i, sample in enumerate(tqdm(samples, desc="calibrate", unit="image", disable=None)):
        said = frozenset().union(*map(content, sample.facts["captions"]))
        own = [p.text for p in sample.phrases if known[p.text]]
        drawn = (everywhere[rng.integers(len(everywhere))] for _ in range(200 * len(own)))
        fitting = (text for other, text in drawn if other != i and known[text] and not known[text] & said)
        others = list(islice(fitting, len(own)))
        try:
            scene = localizer.look(framed(sample).picture, sample.size)
        except DataError as error:
            warnings.warn(f"{sample.image_id} is left out: {error}", RuntimeWarning, stacklevel=2)
            continue
        scores = localizer.presence(scene, [*own, *others])
        pairs += [(score, place < len(own), i) for place, score in enumerate(scores)]
    if not pairs:
        why = "can be looked at; check the folder of the photographs"
        raise DataError(f"no photograph of the {len(samples)} images {why}")
    return Pairs(*map(np.array, zip(*pairs, strict=True)))


def cross_validated(pairs: Pairs) -> np.ndarray:
    """Each pair's probability by a fit that has not seen its image: (n,)."""
    from sklearn.model_selection import GroupKFold

    scores, positive, image = pairs
    out = np.empty(len(scores))
    for train, test in GroupKFold(FOLDS).split(scores, groups=image):
        slope, offset = platt(scores[train], positive[train])
        out[test] = 1 / (1 + np.exp(-(slope * scores[test] + offset)))
    return out


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic regression of `positive` (n,) on `scores` (n,)."""
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=1e6).fit(scores[:, None], positive)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])
