"""Results of all images as tables of columns, and the rows of a report: value, interval, counts, baselines."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phrase_loc.evaluation.evaluator import Outcome, Plan
from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.scoring import average_precision, gather
from phrase_loc.evaluation.statistics import Floats, Sums, draws, in_parts, interval, mean_of_columns, percent
from phrase_loc.structures import GroundingSample, Phrase
from phrase_loc.text.english import canonical
from phrase_loc.text.parsing import parse

ENOUGH = 5  # a word gets a line when so many of the things counted name it
AP_REPLICATES = 200  # draws behind the interval of a mean average precision, a sort for each label
BESIDE = ("centre", "random", "whole_image", "fixed_boxes")  # beside every score; the last beside boxes alone


class Thing(NamedTuple):
    """What a protocol counts, the same for every method."""

    image: int  # place of the sample in the dataset
    sample: GroundingSample
    phrase: Phrase  # the mention, or the first of a chain
    text: str  # the phrase, or those of a chain
    labels: tuple[str, ...]  # types of all its mentions, each once
    truth: Floats  # (M, 4) true boxes as the protocol takes them


@dataclass(frozen=True)
class Table:
    """What one method answered to the N things of one protocol, as columns (N, ...); NaN where there is no answer.

    Columns: `known`, whether the method knew a word of it; each metric in 0..1; `iou` of the first box with the best
    truth; `score` and `box` (N, 4) of the first box; `peak` (N, 2) x, y; `scores` (N, k) of all ranked boxes and the
    rank `first` of the first correct one, for mean average precision; of a sweep the overlap `ious` (N, T) and the
    box `boxes` (N, T, 4) of each rule; `rank`, how many classes score above the thing's own.
    """

    things: list[Thing]
    columns: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.things)

    @cached_property
    def image(self) -> NDArray[np.intp]:
        """(N,) places of the samples in the dataset."""
        return np.array([thing.image for thing in self.things], dtype=np.intp)

    def column(self, name: str, *shape: int) -> Floats:
        """(N, *shape) of one column, NaN where the method has none."""
        found = self.columns.get(name)
        return np.full((len(self), *shape), np.nan) if found is None else found

    def take(self, keep: NDArray[np.bool_]) -> "Table":
        """The things that are kept (N,)."""
        columns = {name: column[keep] for name, column in self.columns.items()}
        return Table(list(compress(self.things, keep)), columns)


def tables(plan: Plan, outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Table]:
    """The table of every (protocol, method), images that were left out missing from all of them."""
    found: dict[tuple[str, str], Table] = {}
    for protocol in plan.protocols:
        things: list[Thing] = []
        kept = []
        for image, (sample, outcome) in enumerate(zip(plan.samples, outcomes, strict=True)):
            batch = gather(protocol, sample)
            if len(batch) and "skipped" not in outcome:
                kept.append(outcome["results"])
                columns = zip(batch.members, batch.texts, batch.truth.double().numpy(), strict=True)
                for members, text, truth in columns:
                    mentions = [sample.phrases[i] for i in members]
                    labels = tuple(dict.fromkeys(label for p in mentions for label in p.labels))
                    own = truth[~np.isnan(truth[:, 0])]
                    things.append(Thing(image, sample, mentions[0], text, labels, own))
        for method in plan.methods:
            # no columns where the method has no such answers
            parts = [results[method.name].get(protocol.name, {}) for results in kept]
            names = {name for part in parts for name in part}
            found[protocol.name, method.name] = Table(things, {name: _joined(parts, name) for name in names})
    return found


def _joined(parts: list[dict[str, Any]], name: str) -> Floats:
    """One column of all images, with NaN where an image's is missing or narrower."""
    arrays = [np.asarray(part.get(name, ()), dtype=np.float64) for part in parts]
    sizes = [len(part["known"]) for part in parts]
    joined = np.full((sum(sizes), *max(array.shape[1:] for array in arrays)), np.nan)
    for rows, array in zip(np.split(joined, np.cumsum(sizes[:-1])), arrays, strict=True):
        if array.size:
            rows[(slice(None), *map(slice, array.shape[1:]))] = array
    return joined


@dataclass(frozen=True)
class Rows:
    """Makes rows from the tables of one evaluation."""

    tables: dict[tuple[str, str], Table]  # by (protocol, method); the baselines are among the methods
    images: int  # I, of the dataset
    bootstrap: int  # draws behind each interval

    def row(self, protocol: Protocol, method: str, metric: str) -> dict[str, Any]:
        """One row of the report: a method under one metric of the protocol."""
        once = np.ones((1, self.images))
        draw = draws(self.images, min(self.bootstrap, AP_REPLICATES) if is_map(metric) else self.bootstrap)
        beside = BESIDE if protocol.top_k or protocol.rules else BESIDE[:-1]
        shown = [b for b in beside if (protocol.name, b) in self.tables and self.has(protocol, b, metric)]
        values = {name: self._rates(protocol, name, metric)[1] for name in (method, *shown)}
        percents = {name: percent(mean_of_columns(rates(once))[0]) for name, rates in values.items()}
        by_type: dict[str, float | None] = {}
        if metric != "mAP(Phrase)":  # whose labels are the phrases
            names, rates = self._rates(protocol, method, metric, by_label=True)
            by_type = dict(zip(names, map(percent, rates(once)[0])))  # one column where nothing has a label
        return self.blank(protocol, method, metric) | {
            "value": percents[method],
            "ci95": interval(mean_of_columns(values[method](draw))),
            "baselines": {name: percents[name] for name in shown},
            "by_type": by_type,
        }

    def blank(self, protocol: Protocol, method: str, metric: str) -> dict[str, Any]:
        """A row without a value: of a method that has no answers of the kind that a protocol asks for."""
        image = self.tables[protocol.name, method].image
        names = {"protocol": protocol.name, "method": method, "metric": metric}
        counts = {"count": len(image), "images": len(np.unique(image))}
        return names | {"value": None} | counts | {"ci95": [], "baselines": {}, "by_type": {}}

    def has(self, protocol: Protocol, method: str, metric: str) -> bool:
        """Whether a method was scored by a metric: a blind box has no rank among classes."""
        table = self.tables[protocol.name, method]
        return ("scores" if is_map(metric) else metric) in table.columns or not len(table)

    def sums(self, protocol: Protocol, method: str, metric: str, by_label: bool = False) -> Sums:
        """Sums by image behind a value that is no mAP, by label too where asked or where labels are averaged."""
        table = self.tables[protocol.name, method]
        labelled = by_label or protocol.average == "label"
        labels = [thing.labels for thing in table.things] if labelled else None
        return Sums.of(table.column(metric), table.image, self.images, labels)

    def _rates(
        self, protocol: Protocol, method: str, metric: str, by_label: bool = False
    ) -> tuple[Sequence[str], Callable[[NDArray[Any]], Floats]]:
        """Names of labels (L,), and what gives their rates (B, L) for weights of images (B, I)."""
        if not is_map(metric):
            sums = self.sums(protocol, method, metric, by_label)
            return sums.labels, sums.rates
        table = self.tables[protocol.name, method]
        by_type = metric == "mAP(Group)"
        groups = places(t.labels if by_type else filtered(t.text) for t in table.things)
        return sorted(groups), lambda weights: precisions(table, [groups[g] for g in sorted(groups)], weights)


def places(names: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """Name -> places of the things that have it."""
    found: dict[str, list[int]] = {}
    for place, of_thing in enumerate(names):
        for name in of_thing:
            found.setdefault(name, []).append(place)
    return found


def is_map(metric: str) -> bool:
    """Whether a metric is a mean average precision, which is no ratio of sums over images."""
    return metric.startswith("mAP")


def by_word(
    rows: Rows, protocols: Sequence[Protocol], methods: Sequence[str], vocabulary: Container[str] | None
) -> list[dict[str, Any]]:
    """The first metric of each protocol for each frequent content word, most frequent first."""
    lines = []
    for protocol, method in product(protocols, methods):
        table, metric = rows.tables[protocol.name, method], protocol.metrics[0]
        owners = places(content_words(t.text) for t in table.things) if metric in table.columns else {}
        for word, things in sorted(owners.items(), key=lambda item: (-len(item[1]), item[0])):
            if len(things) >= ENOUGH:
                seen = None if vocabulary is None else word in vocabulary
                value = percent(table.columns[metric][things].mean())
                names = {"protocol": protocol.name, "method": method, "metric": metric, "word": word}
                lines.append(names | {"seen": seen, "count": len(things), "value": value})
    return lines


def by_seen(table: Table, metric: str, vocabulary: Container[str]) -> dict[str, Any]:
    """Group -> {"value", "count"}: every content word is in the training vocabulary, some are, none is."""
    inside = [[word in vocabulary for word in content_words(thing.text)] for thing in table.things]
    groups = np.array(["seen" if i and all(i) else "partly seen" if any(i) else "unseen" for i in inside])
    values = {name: table.columns[metric][groups == name] for name in ("seen", "partly seen", "unseen")}
    return {name: {"value": percent(v.mean()), "count": len(v)} for name, v in values.items() if len(v)}


@lru_cache(maxsize=1 << 16)
def content_words(phrase: str) -> tuple[str, ...]:
    """Dictionary forms of the content words of a phrase, each once."""
    return tuple(dict.fromkeys(canonical(token.text) for token in parse(phrase)))


@lru_cache(maxsize=1 << 16)
def filtered(phrase: str) -> tuple[str, ...]:
    """A phrase without articles, numbers and other function words, in lower case, as its one label."""
    words = " ".join(token.text for token in parse(phrase))
    return (words,) if words else ()


def precisions(table: Table, groups: Sequence[list[int]], weights: NDArray[Any]) -> Floats:
    """Average precision of each group of places, once for each row of weights (B, I): (B, L) in 0..1.

    Detections of all things of a group are pooled over images; a thing's only true positive is its first correct box.
    """
    scores = table.column("scores", 0)
    owner, rank = np.nonzero(~np.isnan(scores))  # of all ranked boxes, in dataset order
    scores, correct, image = scores[owner, rank], rank == table.column("first")[owner], table.image
    starts = np.searchsorted(owner, np.arange(len(table) + 1))
    rates = np.full((len(groups), len(weights)), np.nan)
    for of_group, own in zip(rates, groups, strict=True):
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in own])
        found = scores[rows], correct[rows], image[owner[rows]]
        parts = (part.astype(np.float64) for part in in_parts(weights))
        of_group[:] = np.concatenate([average_precision(*found, p, p[:, image[own]].sum(1)) for p in parts])
    return rates.T


def records(found: dict[tuple[str, str], Table], protocol: Protocol, method: str) -> list[dict[str, Any]]:
    """One plain record for each thing counted under a protocol: what the CSV and the page show."""
    table = found[protocol.name, method]
    metrics = [metric for metric in protocol.metrics if metric in table.columns]
    columns = {name: table.column(name) for name in ("known", "iou", "score")}
    columns |= {name: table.column(name, width).tolist() for name, width in (("peak", 2), ("box", 4))}
    hit = table.column("accuracy" if "accuracy" in table.columns else protocol.metrics[0])
    return [
        {name: column[i] for name, column in columns.items()}
        | {
            "image_id": thing.sample.image_id,
            "size": thing.sample.size,
            "protocol": protocol.name,
            "method": method,
            "phrase": thing.text,
            "labels": thing.labels,
            "entity": thing.phrase.entity,
            "sentence": thing.phrase.sentence,
            "hit": hit[i],
            "values": {metric: table.columns[metric][i] for metric in metrics},
            "truth": thing.truth.tolist(),
        }
        for i, thing in enumerate(table.things)
    ]
