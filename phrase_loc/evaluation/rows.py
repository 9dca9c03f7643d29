"""Tables of columns -> the rows of a report: value, interval, counts, baselines, by type."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.scoring import average_precision
from phrase_loc.evaluation.statistics import (
    Floats,
    Sums,
    draws,
    in_parts,
    interval,
    mean_of_columns,
    percent,
    sums_by_image,
    sums_by_label,
)
from phrase_loc.evaluation.tables import Table
from phrase_loc.text.english import canonical
from phrase_loc.text.parsing import parse

Mask = NDArray[np.bool_] | None


@dataclass(frozen=True)
class Rows:
    """Makes rows from the tables of one evaluation.

    Attributes:
        tables: (protocol, method) -> columns; the baselines are among the methods.
        images: I, images of the dataset.
        bootstrap: draws behind each interval.
    """

    tables: dict[tuple[str, str], Table]
    images: int
    bootstrap: int

    def row(self, protocol: Protocol, method: str, metric: str, keep: Mask = None) -> dict[str, Any]:
        """One row of the report.

        Args:
            protocol: the test.
            method: whose answers.
            metric: one of the protocol's.
            keep: (N,) which of the things count; None for all.
        """
        table = self.tables[protocol.name, method]
        image = table.things.image if keep is None else table.things.image[keep]
        value, ci95 = self._value(protocol, method, metric, keep, with_interval=True)
        boxes = protocol.top_k or protocol.map_box or protocol.sweep
        beside = [*BESIDE, BLIND_BOXES] if boxes else list(BESIDE)
        return {
            "protocol": protocol.name,
            "method": method,
            "metric": metric,
            "value": value,
            "count": len(image),
            "images": len(np.unique(image)),
            "ci95": ci95,
            "baselines": {
                name: self._value(protocol, name, metric, keep)[0]
                for name in beside
                if (protocol.name, name) in self.tables and self.has(protocol, name, metric)
            },
            "by_type": self.by_label(protocol, method, metric, keep),
        }

    def has(self, protocol: Protocol, method: str, metric: str) -> bool:
        """Whether a method was scored by a metric: a blind box has no rank among classes."""
        table = self.tables[protocol.name, method]
        return metric.startswith("mAP") or metric in table.values or len(table.known) == 0

    def by_label(
        self, protocol: Protocol, method: str, metric: str, keep: Mask = None
    ) -> dict[str, float | None]:
        """Value in percent for each type or class; empty for mAP(Phrase), whose labels are the phrases."""
        table = self.tables[protocol.name, method]
        if metric.startswith("mAP"):
            if metric != "mAP(Group)":
                return {}
            names, rates = precision_by_label(table, type_labels, np.ones((1, self.images)), keep)
            return {name: percent(rate) for name, rate in zip(names, rates[0])}
        sums = self._sums(table, metric, keep, by_label=True)
        return {name: percent(rate) for name, rate in zip(sums.labels, sums.by_label())}

    def sums(self, protocol: Protocol, method: str, metric: str) -> Sums | None:
        """Sums by image behind a value, None for mAP, which is no ratio of sums."""
        if metric.startswith("mAP") or not self.has(protocol, method, metric):
            return None
        return self._sums(self.tables[protocol.name, method], metric, None, protocol.average == "label")

    def _value(
        self, protocol: Protocol, method: str, metric: str, keep: Mask, with_interval: bool = False
    ) -> tuple[float | None, list[float]]:
        table = self.tables[protocol.name, method]
        if metric.startswith("mAP"):
            return self._mean_precision(table, metric, keep, with_interval)
        sums = self._sums(table, metric, keep, protocol.average == "label")
        replicates = sums.value(draws(self.images, self.bootstrap)) if with_interval else np.zeros(0)
        return percent(sums.value()[0]), interval(replicates)

    def _mean_precision(
        self, table: Table, metric: str, keep: Mask, with_interval: bool
    ) -> tuple[float | None, list[float]]:
        naming = type_labels if metric == "mAP(Group)" else phrase_labels
        _, rates = precision_by_label(table, naming, np.ones((1, self.images)), keep)
        value = percent(mean_of_columns(rates)[0])
        if not with_interval:
            return value, []
        weights = draws(self.images, min(self.bootstrap, AP_REPLICATES))
        drawn = [precision_by_label(table, naming, part, keep)[1] for part in in_parts(weights)]
        return value, interval(mean_of_columns(np.concatenate(drawn)))

    def _sums(self, table: Table, metric: str, keep: Mask, by_label: bool) -> Sums:
        chosen = np.arange(len(table.known)) if keep is None else np.flatnonzero(keep)
        values, image = (
            table.values.get(metric, np.zeros(len(table.known)))[chosen],
            table.things.image[chosen],
        )
        if not by_label:
            return sums_by_image(values, image, self.images)
        return sums_by_label(values, image, [table.things.labels[i] for i in chosen], self.images)


ENOUGH = 5  # a word gets a line when so many of the things counted name it


def by_word(
    rows: Rows, protocols: tuple[Protocol, ...], methods: tuple[str, ...], localizer: Any
) -> list[dict[str, Any]]:
    """The first metric of each protocol for each frequent content word, most frequent first."""
    vocabulary = getattr(localizer, "vocabulary", None)
    lines = []
    for protocol in protocols:
        for method in methods:
            table, metric = rows.tables[protocol.name, method], protocol.metrics[0]
            if metric not in table.values:
                continue
            owners: dict[str, list[int]] = {}
            for thing, text in enumerate(table.things.texts):
                for word in content_words(text):
                    owners.setdefault(word, []).append(thing)
            for word, things in sorted(owners.items(), key=lambda item: (-len(item[1]), item[0])):
                if len(things) >= ENOUGH:
                    seen = None if vocabulary is None else word in vocabulary
                    value = percent(table.values[metric][things].mean())
                    names = {"protocol": protocol.name, "method": method, "metric": metric, "word": word}
                    lines.append(names | {"seen": seen, "count": len(things), "value": value})
    return lines


def by_seen(rows: Rows, protocol: Protocol, row: dict[str, Any], localizer: Any) -> dict[str, Any]:
    """{"by_seen": {group: {"value", "count"}}} of a row; empty where there is no training vocabulary.

    Groups: every content word is in the training vocabulary, some are, none is.
    """
    vocabulary = getattr(localizer, "vocabulary", None)
    table = rows.tables[protocol.name, row["method"]]
    if vocabulary is None or row["metric"] not in table.values:
        return {}
    groups = np.array([_group(text, vocabulary) for text in table.things.texts])
    found = {}
    for name in ("seen", "partly seen", "unseen"):
        values = table.values[row["metric"]][groups == name]
        if len(values):
            found[name] = {"value": percent(values.mean()), "count": len(values)}
    return {"by_seen": found}


def _group(phrase: str, vocabulary: Any) -> str:
    inside = [word in vocabulary for word in content_words(phrase)]
    if inside and all(inside):
        return "seen"
    return "partly seen" if any(inside) else "unseen"


@lru_cache(maxsize=1 << 16)
def content_words(phrase: str) -> tuple[str, ...]:
    """Dictionary forms of the content words of a phrase, each once."""
    return tuple(dict.fromkeys(canonical(token.text) for token in parse(phrase)))


AP_REPLICATES = (
    200  # draws behind the interval of a mean average precision, which costs a sort for each label
)
BESIDE = ("centre", "random", "whole_image")  # baselines beside every score
BLIND_BOXES = "fixed_boxes"  # and beside every score of boxes


def type_labels(table: Table) -> list[tuple[str, ...]]:
    """The labels of mAP(Group): the types of each phrase."""
    return table.things.labels


def phrase_labels(table: Table) -> list[tuple[str, ...]]:
    """The labels of mAP(Phrase): the phrase itself, filtered to its content words; () when none is left."""
    return [filtered(text) for text in table.things.texts]


@lru_cache(maxsize=1 << 16)
def filtered(phrase: str) -> tuple[str, ...]:
    """A phrase without articles, numbers and other function words, in lower case, as its one label."""
    words = " ".join(token.text for token in parse(phrase))
    return (words,) if words else ()


def precision_by_label(
    table: Table, naming: Callable[[Table], list[tuple[str, ...]]], weights: Floats, keep: Mask = None
) -> tuple[list[str], Floats]:
    """Average precision of each label: names (L,), and (B, L) in 0..1.

    Detections of all phrases with a label are pooled over images; a phrase's only true positive is its first
    correct box.
    """
    scores, owner, correct = table.detections
    groups: dict[str, list[int]] = {}
    for thing, names in enumerate(naming(table)):
        if keep is None or keep[thing]:
            for name in names:
                groups.setdefault(name, []).append(thing)
    starts = np.searchsorted(owner, np.arange(len(table.known) + 1))
    rates = np.full((len(weights), len(groups)), np.nan)
    for column, name in enumerate(sorted(groups)):
        things = np.array(groups[name])
        rows = np.concatenate([np.arange(starts[t], starts[t + 1]) for t in things])
        image = table.things.image
        positives = weights[:, image[things]].sum(1)
        rates[:, column] = average_precision(
            scores[rows], correct[rows], image[owner[rows]], weights, positives
        )
    return sorted(groups), rates
