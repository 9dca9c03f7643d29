"""Intervals by bootstrap over images, and paired differences. Phrases cluster in images, so images are drawn.

Every number here is a ratio of sums over images, or a mean of such ratios over labels (classes). Draws come
from a fixed seed and the number of images alone: they are the same in every process, and two methods or two
reports on the same images are compared on the same draws.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from scipy.sparse import csr_array

from phrase_loc.config import STRICT, adapter, problems, to_dict
from phrase_loc.errors import ConfigError, DataError, nearest
from phrase_loc.evaluation.config import MOST_DRAWS
from phrase_loc.files import digest, read_json

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


@dataclass(frozen=True)
class Cells:
    """What Sums.to_dict gives."""

    __pydantic_config__ = STRICT

    labels: tuple[str, ...]
    image: tuple[Annotated[int, Field(ge=0)], ...]
    label: tuple[Annotated[int, Field(ge=0)], ...]
    sum: tuple[Annotated[float, Field(ge=-1e12, le=1e12)], ...]
    count: tuple[Annotated[int, Field(ge=1, le=10**9)], ...]

    def whole(self, images: int) -> bool:
        """Whether each cell stands once, with a sum and a count, in an image and under a label that there are."""
        places = set(zip(self.image, self.label, strict=False))
        sizes = {len(self.image), len(self.label), len(self.sum), len(self.count), len(places)}
        last = (max(self.image, default=-1), max(self.label, default=-1))
        return len(sizes) == 1 and last[0] < images and last[1] < max(1, len(self.labels))


@dataclass(frozen=True)
class ByImage:
    """Image ids, and protocol -> method -> metric -> cells."""

    images: tuple[str, ...]
    sums: dict[str, dict[str, dict[str, Cells]]]


@dataclass(frozen=True)
class Row:
    """Of the method names alone."""

    method: str


@dataclass(frozen=True)
class Settings:
    """Of the draws alone."""

    bootstrap: Annotated[int, Field(strict=True, ge=1, le=MOST_DRAWS)]


@dataclass(frozen=True)
class Report:
    """What is read of a report."""

    config: Settings
    rows: tuple[Row, ...]
    by_image: ByImage
    sha256: str = ""


def compare(
    a: Path, b: Path, method_a: str | None = None, method_b: str | None = None
) -> list[dict[str, Any]]:
    """Differences a - b for every protocol and metric that both reports have.

    A method of both reports is compared with itself; reports of one method each whatever its name.
    Mean average precision is no sum over images and is left out.

    Args:
        a: report.json of evaluate.py.
        b: another, on the same images.
        method_a: the method of a, None for all that b has too.
        method_b: the method of b.

    Returns:
        Per protocol, metric and pair of methods: names, `a` and `b` in percent, `value` = a - b in points,
        `ci95`, `p_value`.
    """
    first, second = read(a), read(b)
    if first.by_image.images != second.by_image.images:
        raise DataError(
            f"{a} and {b} are not on the same images in the same order; evaluate both on one split"
        )
    draws = min(first.config.bootstrap, second.config.bootstrap)
    pairs = _pairs(_methods(first), _methods(second), method_a, method_b)
    found = [
        row
        for one, other in pairs
        for row in _differences(first.by_image, second.by_image, one, other, draws)
    ]
    if not found:
        raise DataError(f"{a} and {b} share no protocol whose images were counted alike")
    return found


def read(path: Path) -> Report:
    """The part of a report that is compared, or a DataError that says what the file is instead."""
    content = read_json(path, "report")
    try:
        found: Report = adapter(Report).validate_json(json.dumps(content))
    except (ValidationError, RecursionError) as error:
        why = problems(error, Report, "key") if isinstance(error, ValidationError) else "nested too deeply"
        raise DataError(
            f"{path} is no report of evaluate.py (JSON with by_image and config): {why}"
        ) from None
    for cells in (
        c for methods in found.by_image.sums.values() for own in methods.values() for c in own.values()
    ):
        if not cells.whole(len(found.by_image.images)):
            raise DataError(f"{path} has cells in by_image that do not fit together; evaluate again")
    if found.sha256 and found.sha256 != seal(content["by_image"], content["config"]["bootstrap"]):
        raise DataError(f"{path} was changed after it was written (by_image or bootstrap); evaluate again")
    return found


def seal(by_image: Any, bootstrap: Any) -> str:
    """SHA-256 of what two reports are compared by, of a report as of its file."""
    return digest(json.dumps([by_image, bootstrap]).encode())


FORMS = {"a": ".2f", "b": ".2f", "value": "+.2f"}


def table(found: list[dict[str, Any]]) -> str:
    """Differences as a Markdown table."""
    lines = ["| protocol | metric | a | b | a | b | a - b | 95 % | p |", "|" + " --- |" * 9]
    for row in found:
        low_high = " - ".join(f"{x:+.2f}" for x in row["ci95"])
        names = [row["protocol"], row["metric"], row["method_a"], row["method_b"]]
        values = ["" if row[key] is None else f"{row[key]:{form}}" for key, form in FORMS.items()]
        numbers = [*values, low_high, f"{row['p_value']:.4f}"]
        lines.append("| " + " | ".join([*names, *numbers]) + " |")
    return "\n".join(lines)


def _methods(report: Report) -> list[str]:
    return list(dict.fromkeys(row.method for row in report.rows))


def _pairs(
    first: list[str], second: list[str], method_a: str | None, method_b: str | None
) -> list[tuple[str, str]]:
    for asked, there in ((method_a, first), (method_b, second)):
        if asked is not None and asked not in there:
            raise ConfigError(
                f"no method {asked!r} in the report{nearest(asked, there)}; it has {', '.join(there)[:300]}"
            )
    if method_a and method_b:
        return [(method_a, method_b)]
    shared = [(name, name) for name in first if name in second]
    if shared:
        return shared
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    raise ConfigError(
        f"the reports share no method ({', '.join(first)[:300]} and {', '.join(second)[:300]}); "
        "name a pair: --method A,B"
    )


def _differences(first: ByImage, second: ByImage, one: str, other: str, draws: int) -> list[dict[str, Any]]:
    images, found = len(first.images), []
    for protocol, methods in first.sums.items():
        mine, theirs = methods.get(one, {}), second.sums.get(protocol, {}).get(other, {})
        for metric in [m for m in mine if m in theirs]:
            a, b = (Sums.from_dict(vars(cells[metric]), images) for cells in (mine, theirs))
            if not a.same_things(b):
                raise DataError(
                    f"the reports count {protocol[:80]} differently (other images or phrases were left out); "
                    "evaluate both on one tree"
                )
            names = {"protocol": protocol, "metric": metric, "method_a": one, "method_b": other}
            values = {"a": percent(a.value()[0]), "b": percent(b.value()[0])}
            found.append(names | values | to_dict(paired(a, b, draws)))
    return found


def percent(rate: float) -> float | None:
    """A rate in 0..1 as percent with two decimals, None where nothing was counted."""
    return None if np.isnan(rate) else round(100 * float(rate), 2)
