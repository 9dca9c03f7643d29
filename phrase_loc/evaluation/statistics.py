"""Intervals by bootstrap over images, and paired differences. Phrases cluster in images, so images are drawn.

Every number here is a ratio of sums over images, or a mean of such ratios over labels (classes). Draws come
from a fixed seed and the number of images alone: they are the same in every process, and two methods or two
reports on the same images are compared on the same draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
SEED = 20160800  # of every bootstrap
AT_ONCE = 1 << 21  # weights of images that are floating-point numbers at one time


@dataclass(frozen=True)
class Sums:
    """Sums and counts of one metric by image and label; L = 1 where things are averaged without labels.

    Attributes:
        labels: names of the L columns.
        sums: (I, L) sum of the metric; with labels sparse, as an image has few of 1,000 classes.
        counts: (I, L) things counted, in the same cells.
    """

    labels: tuple[str, ...]
    sums: Floats | csr_array
    counts: Floats | csr_array

    def value(self, weights: NDArray[Any] | None = None) -> Floats:
        """Mean over labels of sum / count, once for each row of weights (B, I): (B,), in 0..1."""
        images = self.counts.shape[0]
        weights = np.ones((1, images)) if weights is None else weights
        return np.concatenate([np.zeros(0), *(self._means(part) for part in in_parts(weights))])

    def _means(self, weights: Floats) -> Floats:
        sums, counts = weights @ self.sums, weights @ self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = np.where(counts > 0, sums / counts, np.nan)
        return mean_of_columns(rates)

    def same_things(self, other: "Sums") -> bool:
        """Whether the same number of things was counted in each image under each label."""
        own, others = self.cells(), other.cells()
        return self.labels == other.labels and all(np.array_equal(own[i], others[i]) for i in (0, 1, 3))

    def by_label(self) -> Floats:
        """The mean of each label over all images: (L,), NaN where nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.sums.sum(0)).ravel() / np.asarray(self.counts.sum(0)).ravel()

    def cells(self) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]:
        """Image, label, sum and count of each cell that holds something, by image."""
        counts, sums = csr_array(self.counts).tocoo(), csr_array(self.sums)
        image, label = counts.coords
        found = sums.toarray() if sums.shape[1] == 1 else None
        values = sums.tocoo().data if found is None else found[image, label]
        return image, label, values, counts.data

    def to_dict(self) -> dict[str, list[Any]]:
        """The cells that hold something, ready for JSON."""
        image, label, sums, counts = self.cells()
        return {
            "labels": list(self.labels),
            "image": image.tolist(),
            "label": label.tolist(),
            "sum": [round(x, 6) for x in sums.tolist()],
            "count": counts.astype(int).tolist(),
        }

    @classmethod
    def from_dict(cls, cells: dict[str, list[Any]], images: int) -> "Sums":
        """The inverse of to_dict."""
        place = (np.array(cells["image"], dtype=np.intp), np.array(cells["label"], dtype=np.intp))
        return _sums(
            tuple(cells["labels"]),
            place,
            np.array(cells["sum"], float),
            np.array(cells["count"], float),
            images,
        )


def _sums(
    labels: tuple[str, ...],
    place: tuple[NDArray[np.intp], NDArray[np.intp]],
    values: Floats,
    counts: Floats,
    images: int,
) -> Sums:
    """Values and counts added up in their cells (image, label)."""
    shape = (images, max(1, len(labels)))
    added = [csr_array((data, place), shape=shape) for data in (values, counts)]
    for matrix in added:
        matrix.sum_duplicates()
    if shape[1] == 1:
        return Sums(labels, added[0].toarray(), added[1].toarray())
    return Sums(labels, added[0], added[1])


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
    return _sums(names, (image[thing], place), values[thing], np.ones(len(thing)), images)


def mean_of_columns(rates: Floats) -> Floats:
    """Mean over columns that are not NaN: (B, L) -> (B,), NaN where all are."""
    present = ~np.isnan(rates)
    number = present.sum(1)
    total = np.where(present, rates, 0.0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


@lru_cache(maxsize=4)
def draws(images: int, replicates: int, seed: int = SEED) -> NDArray[np.uint8]:
    """How often each image is drawn in each replicate: (B, I), rows sum to I; one byte a number."""
    generator, even = np.random.default_rng(seed), np.full(images, 1 / images)
    drawn = np.empty((replicates, images), dtype=np.uint8)
    for start in range(0, replicates, _rows_of(images)):
        part = drawn[start : start + _rows_of(images)]
        part[:] = np.minimum(generator.multinomial(images, even, size=len(part)), 255)
    return drawn


def in_parts(weights: NDArray[Any]) -> Iterator[Floats]:
    """Rows of weights (B, I) as float64, a few megabytes at a time."""
    step = _rows_of(weights.shape[1])
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


def _rows_of(images: int) -> int:
    return max(1, AT_ONCE // max(1, images))


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
    weights = draws(a.counts.shape[0], replicates)
    change = a.value(weights) - b.value(weights)
    change = change[~np.isnan(change)]
    if len(change) == 0:
        return Difference(None, [], 1.0)
    value = 100 * float((a.value() - b.value())[0])
    tail = min((change <= 0).mean(), (change >= 0).mean())
    return Difference(round(value, 2), interval(change), round(min(1.0, 2 * float(tail)), 4))
