"""Intervals by bootstrap over images, and paired differences. Phrases cluster in images, so images are drawn.

Every number here is a ratio of sums over images, or a mean of such ratios over labels (classes). Draws come
from a fixed seed and the number of images alone: they are the same in every process, and two methods or two
reports on the same images are compared on the same draws.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.files import digest, read_json

Floats = NDArray[np.float64]
SEED = 20160800  # of every bootstrap
AT_ONCE = 1 << 21  # weights of images that are wide numbers at one time


@dataclass(frozen=True)
class Sums:
    """Sums and counts of one metric by image and label; L = 1 where things are averaged without labels."""

    labels: tuple[str, ...]  # names of the L columns
    sums: csr_array  # (I, L) of the metric; an image has few of 1,000 classes
    counts: csr_array  # (I, L) things counted, in the same cells

    def rates(self, weights: NDArray[Any]) -> Floats:
        """Sum / count of each label, once for each row of weights (B, I): (B, L), NaN where nothing is counted."""
        both, found = (self.sums, self.counts), []
        if self.counts.shape[1] == 1:  # a product with one dense column is ten times as fast
            both = (self.sums.toarray(), self.counts.toarray())
        for part in in_parts(weights):
            total, many = (part.astype(np.float64) @ matrix for matrix in both)
            found.append(np.divide(total, many, out=np.full(many.shape, np.nan), where=many > 0))
        return np.concatenate(found)

    def value(self, weights: NDArray[Any] | None = None) -> Floats:
        """Mean over labels of sum / count, in 0..1: (B,)."""
        return mean_of_columns(self.rates(np.ones((1, self.counts.shape[0])) if weights is None else weights))

    def to_dict(self) -> dict[str, list[Any]]:
        """The cells that hold something, by image, ready for JSON."""
        image, label = self.counts.tocoo().coords
        return {
            "labels": list(self.labels),
            "image": image.tolist(),
            "label": label.tolist(),
            "sum": [round(x, 6) for x in self.sums.data.tolist()],
            "count": self.counts.data.astype(int).tolist(),
        }

    @classmethod
    def from_dict(cls, cells: dict[str, Any], images: int) -> "Sums":
        """The inverse of `to_dict`."""
        place = cells["image"], cells["label"]
        return cls.in_cells(tuple(cells["labels"]), place, cells["sum"], cells["count"], images)

    @classmethod
    def of(
        cls, values: Floats, image: NDArray[np.intp], images: int, labels: list[tuple[str, ...]] | None = None
    ) -> "Sums":
        """Sums of (N,) values over their images, and labels where there are; a thing with two counts in both."""
        if labels is None:
            return cls.in_cells(("",), (image, np.zeros_like(image)), values, np.ones(len(image)), images)
        thing = np.repeat(np.arange(len(labels)), [len(group) for group in labels])
        names, label = np.unique(np.array([*chain.from_iterable(labels)], dtype=object), return_inverse=True)
        return cls.in_cells(tuple(names), (image[thing], label), values[thing], np.ones(len(thing)), images)

    @classmethod
    def in_cells(
        cls, labels: tuple[str, ...], place: tuple[Any, Any], values: Any, counts: Any, images: int
    ) -> "Sums":
        """Values and counts added up in their cells (image, label)."""
        shape = (images, max(1, len(labels)))
        made = [coo_array((np.asarray(d, float), place), shape).tocsr() for d in (values, counts)]
        return cls(labels, *made)


def mean_of_columns(rates: Floats) -> Floats:
    """Mean over columns that are not NaN: (B, L) -> (B,), NaN where all are."""
    number = (~np.isnan(rates)).sum(1)
    return np.divide(np.nansum(rates, 1), number, out=np.full(len(rates), np.nan), where=number > 0)


@lru_cache(maxsize=4)
def draws(images: int, replicates: int) -> NDArray[np.uint8]:
    """How often each image is drawn in each replicate: (B, I), rows sum to I; one byte a number."""
    generator, even = np.random.default_rng(SEED), np.full(images, 1 / images)
    drawn = np.empty((replicates, images), dtype=np.uint8)
    for part in in_parts(drawn):
        part[:] = np.minimum(generator.multinomial(images, even, size=len(part)), 255)
    return drawn


def in_parts(weights: NDArray[Any]) -> list[NDArray[Any]]:
    """Views of rows of weights (B, I), which take a few megabytes each as wide numbers."""
    return np.array_split(weights, max(1, -(-weights.size // AT_ONCE)))


def percent(rate: float) -> float | None:
    """A rate in 0..1 as percent with two decimals, None where nothing was counted."""
    return None if np.isnan(rate) else round(100 * float(rate), 2)


def interval(replicates: Floats) -> list[float]:
    """The middle 95 % of bootstrap replicates, in percent, two decimals: [low, high]."""
    kept = replicates[~np.isnan(replicates)]
    return [round(100 * float(x), 2) for x in np.percentile(kept, [2.5, 97.5])] if len(kept) else []


def paired(a: Sums, b: Sums, replicates: int) -> dict[str, Any]:
    """Two methods on the same images and the same draws: `value`, `ci95` and `p_value` of a - b in percentage points.

    The value is None where nothing was counted; p is the two-sided share of replicates on the other side of zero.
    """
    weights = draws(a.counts.shape[0], replicates)
    change = a.value(weights) - b.value(weights)
    change = change[~np.isnan(change)]
    if len(change) == 0:
        return {"value": None, "ci95": [], "p_value": 1.0}
    tail = float(min((change <= 0).mean(), (change >= 0).mean()))
    value = percent((a.value() - b.value())[0])
    return {"value": value, "ci95": interval(change), "p_value": round(min(1.0, 2 * tail), 4)}


def compare(a: Path, b: Path, one: str | None = None, other: str | None = None) -> list[dict[str, Any]]:
    """Differences a - b for every protocol and metric that both reports have: `a` and `b` in percent, and `paired`.

    The method `one` is compared with the `other`; without names a method of both reports with itself, and reports of
    one method each whatever its name. Mean average precision is no sum over images and is left out.
    """
    first, second = read(a), read(b)
    images, found = len(first["by_image"]["images"]), []
    if first["by_image"]["images"] != second["by_image"]["images"]:
        raise DataError(
            f"{a} and {b} are not on the same images in the same order; evaluate both on one split"
        )
    if bool(first["config"].get("faithful")) != bool(second["config"].get("faithful")):
        raise ConfigError(f"of {a} and {b} one reproduces published bugs (faithful); evaluate both alike")
    sums, others = (report["by_image"]["sums"] for report in (first, second))
    replicates = min(report["config"]["bootstrap"] for report in (first, second))
    for (of_a, of_b), protocol in product(_pairs(sums, others, one, other), sums):
        mine, theirs = sums[protocol].get(of_a, {}), others.get(protocol, {}).get(of_b, {})
        for metric in [m for m in mine if m in theirs]:
            own, base = (Sums.from_dict(cells[metric], images) for cells in (mine, theirs))
            if own.labels != base.labels or (own.counts != base.counts).nnz:
                raise DataError(
                    f"the reports count {protocol[:80]} differently (other images or phrases were left out); "
                    "evaluate both on one tree"
                )
            names = {"protocol": protocol, "metric": metric, "method_a": of_a, "method_b": of_b}
            values = {"a": percent(own.value()[0]), "b": percent(base.value()[0])}
            found.append(names | values | paired(own, base, replicates))
    if not found:
        raise DataError(f"{a} and {b} share no protocol whose images were counted alike")
    return found


def read(path: Path) -> dict[str, Any]:
    """A report as it was written; a DataError where the file is something else, or its digest is another."""
    content = read_json(path, "report")
    try:
        whole = content["sha256"] == seal(content["by_image"], content["config"]["bootstrap"])
    except (KeyError, TypeError, RecursionError):
        expected = "JSON with by_image, config and sha256"
        raise DataError(f"{path} is no report of evaluate.py ({expected}); evaluate again") from None
    if not whole:
        raise DataError(f"{path} was changed after it was written (by_image or bootstrap); evaluate again")
    return content


def seal(by_image: Any, bootstrap: Any) -> str:
    """SHA-256 of what two reports are compared by, of a report as of its file."""
    return digest(json.dumps([by_image, bootstrap]).encode())


def table(found: list[dict[str, Any]]) -> str:
    """Differences as a Markdown table."""
    lines = ["| protocol | metric | a | b | a | b | a - b | 95 % | p |", "|" + " --- |" * 9]
    for row in found:
        names = [row["protocol"], row["metric"], row["method_a"], row["method_b"]]
        forms = {"a": ".2f", "b": ".2f", "value": "+.2f"}
        values = ["" if row[key] is None else f"{row[key]:{form}}" for key, form in forms.items()]
        low_high, p = " - ".join(f"{x:+.2f}" for x in row["ci95"]), row["p_value"]
        shown = f"{p:.3f}" if p >= 0.0005 else "< 0.0005"  # no bootstrap shows a probability of 0
        lines.append("| " + " | ".join([*names, *values, low_high, shown]) + " |")
    return "\n".join(lines)


def _pairs(sums: dict, others: dict, one: str | None, other: str | None) -> list[tuple[str, str]]:
    """The methods that are compared, of reports whose sums are by protocol and method."""
    a, b = (dict.fromkeys(chain.from_iterable(of.values())) for of in (sums, others))
    for asked, there in ((one, a), (other, b)):
        if asked is not None:
            choose(there, asked, "method of the report")
    if one and other:
        return [(one, other)]
    if shared := [(name, name) for name in a if name in b]:
        return shared
    if len(a) == len(b) == 1:
        return [(*a, *b)]
    raise ConfigError(
        f"the reports share no method ({', '.join(a)[:300]} and {', '.join(b)[:300]}); name a pair: --method A,B"
    )
