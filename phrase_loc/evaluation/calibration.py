"""Is it there? The probability that an image shows a phrase, calibrated on val.

Positive pairs are the phrases of an image. Three negative pairs stand against each: a phrase of another image, one of
the same kind (another animal, another garment), and any word of the vocabulary; none shares a content word with a
caption of the image. Platt scaling (a logistic regression) on the model's score of the phrase, and on what is usual
of its words, gives probabilities; positives weigh as much as all negatives, so the probability is that of an even bet
before looking. The figures are cross-validated with whole images left out.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from phrase_loc.errors import DataError
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.methods import known_words
from phrase_loc.structures import GroundingSample
from phrase_loc.text.phrases import distinct_words

if TYPE_CHECKING:
    from phrase_loc.localizer import PhraseLocalizer

IMAGES = 80  # looked at for the plot
SEED = 7
FOLDS = 5
BINS = 10
MISSED = 0.02  # of what is there may be called not there: captions name what is easy to see, so elsewhere it is more
PRECISION = 0.9  # of what is called found, where half of the pairs are there
ELSEWHERE, SAME_KIND, ANY_WORD, OWN = range(4)  # where the phrase of a pair is from
UNTYPED = {"other", "notvisual"}  # labels that are no kind of thing
Samples = Sequence[GroundingSample]


class Reliability(NamedTuple):
    """A reliability diagram: bins that hold a pair from 0 to 1, expected calibration error, Brier score, counts."""

    #: of the pairs whose probability fell into one tenth: its mean, the share that was positive, how many
    bins: list[tuple[float, float, int]]
    error: float
    brier: float
    pairs: int
    images: int


class Pairs(NamedTuple):
    """Phrases asked of images: n pairs over I images and the W words whose scores are kept."""

    text: np.ndarray  # (n,) place in `mixtures`
    image: np.ndarray  # (n,) row of `scores`
    kind: np.ndarray  # (n,) OWN, or where the negative is from
    scores: np.ndarray  # (I, W) pooled score of each word in each image
    mixtures: list[tuple[np.ndarray, np.ndarray]]  # the columns of a phrase's words, and their weights

    @property
    def raw(self) -> np.ndarray:
        """(n,) the score of each pair's phrase in its image, the weighted mean of its words'."""
        mixed = ((*self.mixtures[t], i) for t, i in zip(self.text, self.image, strict=True))
        return np.array([weights @ self.scores[i, words] for words, weights, i in mixed])

    @property
    def positive(self) -> np.ndarray:
        """(n,) whether the image is said to show the phrase."""
        return self.kind == OWN

    @property
    def weights(self) -> np.ndarray:
        """(n,) each kind of negative has the same weight, all together that of the positives."""
        counts = np.bincount(self.kind, minlength=OWN + 1)
        each = np.where(counts > 0, 1 / np.maximum(counts, 1), 0)
        each[OWN] *= max(1, np.count_nonzero(counts[:OWN]))
        return each[self.kind]

    def asked(self, of_words: np.ndarray) -> np.ndarray:
        """What holds of words (W, ...), mixed into the phrases of the pairs: (n, ...)."""
        return np.stack([weights @ of_words[words] for words, weights in self.mixtures])[self.text]


def reliability(localizer: "PhraseLocalizer", samples: Samples) -> Reliability | None:
    """The diagram on up to IMAGES images, evenly spaced; None when the model gives no probability."""
    if not localizer.model.config.calibration:
        return None
    places = np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).astype(int)
    chosen = [samples[i] for i in np.unique(places).tolist()]
    asked = defaultdict[int, dict[str, bool]](dict)  # image -> phrase -> whether it is there
    for i, text, kind in draw_pairs(localizer, chosen, SEED):
        if kind in (OWN, ELSEWHERE):
            asked[i][text] = kind == OWN
    said: list[tuple[Any, bool]] = []
    looked = 0
    for i, pairs in asked.items():
        with suppress(DataError):  # a photograph that cannot be read
            scene = localizer.look(framed(chosen[i]).picture, size=chosen[i].size)
            said += zip(localizer.present(scene, [*pairs]), pairs.values(), strict=True)
            looked += 1
    if not said:
        return None
    probability, positive = np.array(said).T
    return binned(probability, positive, looked)


def binned(said: np.ndarray, positive: np.ndarray, images: int = 0) -> Reliability:
    """Probabilities (n,) and truths (n,) -> tenths; the error is the bins' mean gap, weighted by their counts."""
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    inside = [place == b for b in np.unique(place)]
    bins = [(float(said[i].mean()), float(positive[i].mean()), int(i.sum())) for i in inside]
    error = float(sum(abs(seen - mean) * (count / len(said)) for mean, seen, count in bins))
    return Reliability(bins, error, float(((said - positive) ** 2).mean()), len(said), images)


def calibrate(localizer: "PhraseLocalizer", samples: Samples, seed: int = 0) -> dict[str, Any]:
    """Platt's slope and offset, the thresholds of the states, and how good all is on held-out images.

    Sets the model's `words.presence_bias` as well. Figures named hard_ are against phrases of the same kind; mcc is
    Matthews' coefficient of the decision at 0.5 (IL_MCC in SAM 3's cgF1).
    """
    pairs = ask(localizer, samples, seed)
    images = np.unique(pairs.image)
    if len(images) < FOLDS or len(np.unique(pairs.positive)) < 2:
        needed = "phrases with a known word, and phrases to set against them, in at least"
        raise DataError(f"calibration needs {needed} {FOLDS} images, got {len(images)}; take a larger split")
    by_word = not localizer.model.reads_phrases
    slope, offset, bias = fit(pairs, np.arange(len(pairs.kind)), by_word)
    if by_word:
        localizer.model.words.presence_bias.copy_(torch.from_numpy(bias))
    held_out = cross_validated(pairs, by_word)
    return {
        "slope": slope,
        "offset": offset,
        **thresholds(held_out, pairs.positive, pairs.weights),
        **_figures(pairs, held_out, ELSEWHERE, ""),
        **_figures(pairs, held_out, SAME_KIND, "hard_"),
        "pairs": int(np.isin(pairs.kind, (OWN, ELSEWHERE)).sum()),
        "images": len(images),
    }


def _figures(pairs: Pairs, said: np.ndarray, against: int, prefix: str) -> dict[str, float]:
    """How good probabilities (n,) are against the negatives of one kind; {} without such pairs."""
    from sklearn.metrics import matthews_corrcoef, roc_auc_score

    chosen = pairs.positive | (pairs.kind == against)
    said, positive = said[chosen], pairs.positive[chosen]
    if positive.all():
        return {}
    figures = binned(said, positive)
    return {
        f"{prefix}auc": float(roc_auc_score(positive, said)),
        f"{prefix}mcc": float(matthews_corrcoef(positive, said >= 0.5)),
        f"{prefix}brier": figures.brier,
        f"{prefix}calibration_error": figures.error,
    }


def thresholds(said: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Where 'not there' ends and 'found' begins: (n,), (n,), weights (n,) -> `absent_below` and `found_at` in 0..1.

    Below the one lies at most MISSED of what is there, from the other on at least PRECISION of the pairs is there.
    """
    from sklearn.metrics import precision_recall_curve

    precision, _, places = precision_recall_curve(positive, said, sample_weight=weights)
    found_at = float(min(places[precision[:-1] >= PRECISION - 1e-9], default=1.0))
    return {"absent_below": min(float(np.quantile(said[positive], MISSED)), found_at), "found_at": found_at}


def ask(localizer: "PhraseLocalizer", samples: Samples, seed: int = 0) -> Pairs:
    """Every phrase of an image with a known naming noun, a negative of each kind for it, and the words' scores."""
    asked = draw_pairs(localizer, samples, seed)
    texts = sorted({text for _, text, _ in asked})
    encoded = localizer.encode(texts)
    if localizer.model.reads_phrases:
        rows, shares = map(torch.from_numpy, distinct_words(encoded))
        mixtures = [(share.nonzero()[:, 0].numpy(), share[share != 0].numpy()) for share in shares]
    else:
        rows = torch.arange(len(localizer.model.words))
        mixtures = [(np.array(e.ids), np.array(e.weights)) for e in encoded]
    scores: list[np.ndarray] = []
    place: dict[int, int] = {}
    for number, sample in enumerate(tqdm(samples, desc="calibrate", unit="image", disable=None)):
        try:
            scene = localizer.look(framed(sample).picture, sample.size)
        except DataError as error:
            warnings.warn(f"{sample.image_id} is left out: {error}", RuntimeWarning, stacklevel=2)
            continue
        place[number] = len(scores)
        scores.append(localizer.word_scores(scene, rows).numpy().astype(np.float16))
    if not scores:
        where = f"of the {len(samples)} images can be looked at"
        raise DataError(f"no photograph {where}; check the folder of the photographs")
    number_of = {text: number for number, text in enumerate(texts)}
    found = [(number_of[text], place[image], kind) for image, text, kind in asked if image in place]
    text, image, kind = np.array(found, np.int64).reshape(-1, 3).T
    return Pairs(text, image, kind, np.stack(scores), mixtures)


def draw_pairs(localizer: "PhraseLocalizer", samples: Samples, seed: int) -> list[tuple[int, str, int]]:
    """Image, phrase and kind of each pair; no negative shares a known content word with a caption of its image."""
    rng, model = np.random.default_rng(seed), localizer.model
    phrases = [(i, p.text) for i, sample in enumerate(samples) for p in sample.phrases]
    of_type = defaultdict[str, list[tuple[int, str]]](list)
    for i, sample in enumerate(samples):
        for phrase in sample.phrases:
            for label in set(phrase.labels) - UNTYPED:
                of_type[label].append((i, phrase.text))
    singles = [(-1, word) for word in model.vocabulary.words]  # of no image

    @cache
    def content(text: str) -> frozenset[str]:
        """Its known words; empty where it cannot be asked."""
        encoded = localizer.encode([text])[0]
        return known_words(localizer, [text])[0] if encoded.known and encoded.head_known else frozenset()

    def other(pool: Sequence[tuple[int, str]], image: int, said: frozenset[str]) -> Iterator[str]:
        drawn = (pool[n] for n in rng.integers(len(pool), size=200)) if pool else ()
        return (t for i, t in drawn if i != image and content(t) and not content(t) & said)

    pairs: list[tuple[int, str, int]] = []
    for i, sample in enumerate(samples):
        texts = sample.facts.get("captions") or [phrase.text for phrase in sample.phrases]
        said = frozenset().union(*map(content, texts))
        for phrase in (p for p in sample.phrases if content(p.text)):
            label = next(iter(sorted(set(phrase.labels) - UNTYPED)), "")
            pools = {ELSEWHERE: phrases, SAME_KIND: of_type[label], ANY_WORD: singles}
            pairs.append((i, phrase.text, OWN))
            pairs += [(i, t, kind) for kind, pool in pools.items() for t in islice(other(pool, i, said), 1)]
    return pairs


def fit(pairs: Pairs, chosen: np.ndarray, by_word: bool) -> tuple[float, float, np.ndarray]:
    """Slope and offset of the chosen pairs' logistic regression, and what to add to each word's score (W,).

    A word that scores high everywhere says little: with `by_word` its mean and standard deviation over the images of
    the chosen pairs are regressors too, and as all is linear their part is one number for each word, else 0.
    """
    from sklearn.linear_model import LogisticRegression

    regressors, words = pairs.raw[:, None], np.zeros((pairs.scores.shape[1], 0))
    if by_word:
        seen = pairs.scores[np.unique(pairs.image[chosen])].astype(np.float32)
        words = np.stack([seen.mean(0), seen.std(0)], 1)  # (W, 2)
        regressors = np.hstack([regressors, pairs.asked(words)])
    found = LogisticRegression(C=1e3, max_iter=1000).fit(
        regressors[chosen], pairs.positive[chosen], sample_weight=pairs.weights[chosen]
    )
    slope, *of_words = found.coef_[0].tolist()
    # where scores tell nothing there is no bias
    share = np.array(of_words) / slope if slope > 0 else np.zeros(words.shape[1])
    return slope, float(found.intercept_[0]), words @ share


def cross_validated(pairs: Pairs, by_word: bool) -> np.ndarray:
    """Each pair's probability by a fit that has not seen its image: (n,)."""
    from sklearn.model_selection import GroupKFold

    out = np.empty(len(pairs.kind))
    for train, test in GroupKFold(FOLDS).split(out, groups=pairs.image):
        slope, offset, bias = fit(pairs, train, by_word)
        scores = (pairs.raw + pairs.asked(bias))[test]
        out[test] = 1 / (1 + np.exp(-(slope * scores + offset)))
    return out
