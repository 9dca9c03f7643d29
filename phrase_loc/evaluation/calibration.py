"""Is it there? The probability that an image shows a phrase, calibrated on val.

Positive pairs are the phrases of an image; for each of them one negative pair takes a phrase of another image that
shares no content word with any caption of this one. Platt scaling (a logistic regression on one number, the
model's score of the phrase) turns scores into probabilities; half of the pairs are positive, so the probability
is that of an even bet before looking. The figures are cross-validated with whole images left out.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from phrase_loc.errors import DataError
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.rows import content_words
from phrase_loc.structures import GroundingSample

if TYPE_CHECKING:
    from phrase_loc.localizer import Localizer

IMAGES = 80  # looked at for the plot
SEED = 7
FOLDS = 5
BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pairs whose probability fell into one tenth: its mean, the share that was positive, how many."""

    said: float
    seen: float
    count: int


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: bins that hold a pair from 0 to 1, expected calibration error, Brier score, counts."""

    bins: tuple[Bin, ...]
    error: float
    brier: float
    pairs: int
    images: int


def reliability(localizer: "Localizer", samples: Sequence[GroundingSample]) -> Reliability | None:
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
    bins = _bins(said, positive)
    error, brier = calibration_error(positive, said), float(((said - positive) ** 2).mean())
    return Reliability(bins, error, brier, len(said), images)


def calibration_error(positive: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error: mean gap between said and seen over equal bins, weighted by their counts."""
    bins = _bins(probability, positive)
    return float(sum(abs(b.seen - b.said) * (b.count / len(probability)) for b in bins))


def _bins(said: np.ndarray, positive: np.ndarray) -> tuple[Bin, ...]:
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    inside = [place == b for b in np.unique(place)]
    return tuple(Bin(float(said[i].mean()), float(positive[i].mean()), int(i.sum())) for i in inside)


@dataclass(frozen=True)
class Pairs:
    """Scores (n,), whether the pair is positive (n,), and the number of its image (n,)."""

    scores: np.ndarray
    positive: np.ndarray
    image: np.ndarray


def calibrate(localizer: "Localizer", samples: Sequence[GroundingSample], seed: int = 0) -> dict[str, Any]:
    """Platt's two numbers and how good they are.

    Returns:
        {"slope", "offset", "auc", "brier", "calibration_error", "pairs", "images"}; the figures are of held-out
        images, slope and offset of all.

    Raises:
        DataError: too few images, or no phrase to set against another.
    """
    pairs = score_pairs(localizer, samples, seed)
    if len(np.unique(pairs.image)) < FOLDS or len(np.unique(pairs.positive)) < 2:
        raise DataError(
            f"calibration needs phrases with a known word, and phrases to set against them, in at least {FOLDS} "
            f"images, got {len(np.unique(pairs.image))}; take a larger split"
        )
    from sklearn.metrics import roc_auc_score

    held_out = cross_validated(pairs)
    slope, offset = platt(pairs.scores, pairs.positive)
    return {
        "slope": slope,
        "offset": offset,
        "auc": float(roc_auc_score(pairs.positive, held_out)),
        "brier": float(np.mean((held_out - pairs.positive) ** 2)),
        "calibration_error": calibration_error(pairs.positive, held_out),
        "pairs": len(pairs.scores),
        "images": len(np.unique(pairs.image)),
    }


def score_pairs(localizer: "Localizer", samples: Sequence[GroundingSample], seed: int = 0) -> Pairs:
    """One negative for each positive phrase with a known word; the same pairs for the same seed."""
    rng = np.random.default_rng(seed)
    everywhere = [(i, phrase.text) for i, sample in enumerate(samples) for phrase in sample.phrases]
    known = {text: _content(localizer, text) for _, text in everywhere}
    scores: list[float] = []
    positive: list[bool] = []
    image: list[int] = []
    for i, sample in enumerate(tqdm(samples, desc="calibrate", unit="image", disable=None)):
        said = frozenset().union(*(_content(localizer, c) for c in sample.facts["captions"]))
        own = [p.text for p in sample.phrases if known[p.text]]
        others = _negatives(rng, everywhere, known, said, i, len(own))
        try:
            scene = localizer.look(framed(sample).picture, sample.size)
        except DataError as error:
            warnings.warn(f"{sample.image_id} is left out: {error}", RuntimeWarning, stacklevel=2)
            continue
        scores += localizer.presence(scene, [*own, *others])
        positive += [True] * len(own) + [False] * len(others)
        image += [i] * (len(own) + len(others))
    if not scores:
        raise DataError(
            f"no photograph of the {len(samples)} images can be looked at; check the folder of the photographs"
        )
    return Pairs(np.array(scores), np.array(positive), np.array(image))


def cross_validated(pairs: Pairs) -> np.ndarray:
    """Each pair's probability by a fit that has not seen its image: (n,)."""
    from sklearn.model_selection import GroupKFold

    out = np.empty(len(pairs.scores))
    for train, test in GroupKFold(FOLDS).split(pairs.scores, groups=pairs.image):
        slope, offset = platt(pairs.scores[train], pairs.positive[train])
        out[test] = 1 / (1 + np.exp(-(slope * pairs.scores[test] + offset)))
    return out


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic regression of `positive` (n,) on `scores` (n,)."""
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=1e6).fit(scores[:, None], positive)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def _content(localizer: "Localizer", text: str) -> frozenset[str]:
    return frozenset(word.text for word in localizer.model.encoder.encode(text).words if word.known)


def _negatives(
    rng: np.random.Generator,
    everywhere: list[tuple[int, str]],
    known: dict[str, frozenset[str]],
    said: frozenset[str],
    image: int,
    count: int,
) -> list[str]:
    """`count` phrases of other images without a word that is said of this one."""
    found: list[str] = []
    for _ in range(200 * count):
        other, text = everywhere[rng.integers(len(everywhere))]
        if other != image and known[text] and not known[text] & said:
            found.append(text)
            if len(found) == count:
                break
    return found
