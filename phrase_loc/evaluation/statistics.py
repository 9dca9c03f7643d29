"""Intervals by bootstrap over images, and paired differences. Phrases cluster in images, so images are drawn.

Every number here is a ratio of sums over images, or a mean of such ratios over labels (classes). Draws come
from a fixed seed and the number of images alone: they are the same in every process, and two methods or two
reports on the same images are compared on the same draws.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SEED = 20160800  # of every bootstrap


@dataclass(frozen=True)
class Sums:
    """Sums and counts of one metric by image and label; L = 1 where things are averaged without labels.

    Attributes:
        labels: names of the L columns.
        sums: (I, L) sum of the metric.
        counts: (I, L) things counted.
    """

    labels: tuple[str, ...]
    sums: Floats
    counts: Floats

    def value(self, weights: Floats | None = None) -> Floats:
        """Mean over labels of sum / count, once for each row of weights (B, I): (B,), in 0..1."""
        weights = np.ones((1, len(self.sums))) if weights is None else weights
        counts = weights @ self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = np.where(counts > 0, (weights @ self.sums) / counts, np.nan)
        return mean_of_columns(rates)

    def to_dict(self) -> dict[str, list[Any]]:
        """The cells that hold something, ready for JSON."""
        image, label = np.nonzero(self.counts)
        return {
            "labels": list(self.labels),
            "image": image.tolist(),
            "label": label.tolist(),
            "sum": [round(x, 6) for x in self.sums[image, label].tolist()],
            "count": self.counts[image, label].astype(int).tolist(),
        }

    @classmethod
    def from_dict(cls, cells: dict[str, list[Any]], images: int) -> "Sums":
        """The inverse of to_dict."""
        shape = (images, max(1, len(cells["labels"])))
        sums, counts = np.zeros(shape), np.zeros(shape)
        sums[cells["image"], cells["label"]] = cells["sum"]
        counts[cells["image"], cells["label"]] = cells["count"]
        return cls(tuple(cells["labels"]), sums, counts)


def sums_by_image(values: Floats, image: NDArray[np.intp], images: int) -> Sums:
    """Sums of (N,) values over their images, without labels."""
    sums = np.bincount(image, weights=values, minlength=images)[:, None].astype(np.float64)
    return Sums(("",), sums, np.bincount(image, minlength=images)[:, None].astype(np.float64))


def sums_by_label(
    values: Floats, image: NDArray[np.intp], labels: list[tuple[str, ...]], images: int
) -> Sums:
    """Sums of (N,) values over images and labels; a thing with two labels counts in both."""
    names = tuple(sorted({name for group in labels for name in group}))
    column = {name: i for i, name in enumerate(names)}
    thing = np.array([i for i, group in enumerate(labels) for _ in group], dtype=np.intp)
    place = np.array([column[name] for group in labels for name in group], dtype=np.intp)
    sums, counts = np.zeros((images, max(1, len(names)))), np.zeros((images, max(1, len(names))))
    np.add.at(sums, (image[thing], place), values[thing])
    np.add.at(counts, (image[thing], place), 1)
    return Sums(names, sums, counts)


def mean_of_columns(rates: Floats) -> Floats:
    """Mean over columns that are not NaN: (B, L) -> (B,), NaN where all are."""
    present = ~np.isnan(rates)
    number = present.sum(1)
    total = np.where(present, rates, 0.0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


@lru_cache(maxsize=4)
def draws(images: int, replicates: int, seed: int = SEED) -> Floats:
    """How often each image is drawn in each replicate: (B, I), rows sum to I."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=replicates).astype(np.float64)


def interval(replicates: Floats) -> list[float]:
    """The middle 95 % of bootstrap replicates, in percent, two decimals: [low, high]."""
    kept = replicates[~np.isnan(replicates)]
    if len(kept) == 0:
        return []
    return [round(100 * float(x), 2) for x in np.percentile(kept, [2.5, 97.5])]


@dataclass(frozen=True)
class Difference:
    """The paired difference a - b in percentage points, its 95 % interval, and how sure its sign is.

    Attributes:
        value: a - b, None where nothing was counted.
        ci95: [low, high].
        p_value: two-sided share of replicates on the other side of zero.
    """

    value: float | None
    ci95: list[float]
    p_value: float


def paired(a: Sums, b: Sums, replicates: int) -> Difference:
    """Compare two methods on the same images: both are evaluated on the same draws."""
    weights = draws(len(a.sums), replicates)
    change = a.value(weights) - b.value(weights)
    change = change[~np.isnan(change)]
    if len(change) == 0:
        return Difference(None, [], 1.0)
    value = 100 * float((a.value() - b.value())[0])
    tail = min((change <= 0).mean(), (change >= 0).mean())
    return Difference(round(value, 2), interval(change), round(min(1.0, 2 * float(tail)), 4))
