"""Results of all images as columns: a table for each (protocol, method), things in dataset order."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phrase_loc.evaluation.evaluator import Outcome, Plan
from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.targets import Batch, gather
from phrase_loc.structures import GroundingSample

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Things:
    """The N things a protocol counted over I images, the same for every method.

    Attributes:
        samples: all I images of the dataset, those that were left out too.
        image: (N,) index into samples.
        texts: phrase, or phrases of a chain.
        labels: types of each thing.
        members: indices into the sample's phrases.
        truth: per thing its true boxes (M, 4) as the protocol takes them.
    """

    samples: Sequence[GroundingSample]
    image: NDArray[np.intp]
    texts: list[str]
    labels: list[tuple[str, ...]]
    members: list[tuple[int, ...]]
    truth: list[Floats]

    def take(self, rows: NDArray[np.intp]) -> "Things":
        """Some of the things, in the order of `rows`."""
        columns = (self.texts, self.labels, self.members, self.truth)
        return Things(self.samples, self.image[rows], *([c[i] for i in rows.tolist()] for c in columns))


@dataclass(frozen=True)
class Table:
    """What one method answered to the things of one protocol.

    Attributes:
        things: what was counted.
        known: (N,) whether the method knew a word of it.
        values: metric -> (N,) in 0..1.
        iou: (N,) of the first box with the best truth, NaN where no box is scored.
        score: (N,) of the first box.
        peak: (N, 2) x, y.
        box: (N, 4) first box.
        first: (N,) rank of the first correct box, -1 where there is none or no ranking.
        scores: per image (n, k) scores of all ranked boxes, for mean average precision.
        rank: (N,) how many classes score above the thing's own, NaN of a method that classifies nothing.
        tried: (N, T) overlap, and (N, T, 4) box, of each rule of a sweep; T = 0 where there is none.
    """

    things: Things
    known: NDArray[np.bool_]
    values: dict[str, Floats]
    iou: Floats
    score: Floats
    peak: Floats
    box: Floats
    first: Floats
    scores: list[Floats] = field(default_factory=list)
    rank: Floats = field(default_factory=lambda: np.zeros(0))
    tried: tuple[Floats, Floats] = field(default_factory=lambda: (np.zeros((0, 0)), np.zeros((0, 0, 4))))

    def take(self, keep: NDArray[np.bool_]) -> "Table":
        """The things that are kept (N,); without rankings and sweeps, which nothing reads any more."""
        rows = np.flatnonzero(keep)
        columns = {
            name: getattr(self, name)[rows] for name in ("known", "iou", "score", "peak", "box", "first")
        }
        values = {name: column[rows] for name, column in self.values.items()}
        return Table(self.things.take(rows), values=values, **columns)

    @cached_property
    def detections(self) -> tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]:
        """All ranked boxes, in dataset order: score, thing, whether it is the thing's first correct one."""
        scores, owners, ranks, start = [], [], [], 0
        for part in self.scores:
            rows, columns = np.nonzero(~np.isnan(part))
            scores.append(part[rows, columns])
            owners.append(rows + start)
            ranks.append(columns)
            start += len(part)
        owner = np.concatenate([np.zeros(0, dtype=np.intp), *owners]).astype(np.intp)
        rank = np.concatenate([np.zeros(0), *ranks])
        return np.concatenate([np.zeros(0), *scores]), owner, rank == self.first[owner]


def tables(plan: Plan, outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Table]:
    """Columns of every (protocol, method), images that were left out missing from all of them."""
    found: dict[tuple[str, str], Table] = {}
    for protocol in plan.protocols:
        kept = _kept(plan, outcomes, protocol)
        things = _things(plan, [(index, batch) for index, batch, _ in kept])
        for method in plan.methods:
            parts = [outcome["results"][method.name][protocol.name] for _, _, outcome in kept]
            found[protocol.name, method.name] = _table(things, parts)
    return found


def _kept(plan: Plan, outcomes: Sequence[Outcome], protocol: Protocol) -> list[tuple[int, Batch, Outcome]]:
    """Index, batch and outcome of each image that counts under a protocol."""
    kept = []
    for index, (sample, outcome) in enumerate(zip(plan.samples, outcomes, strict=True)):
        if "skipped" not in outcome:
            batch = gather(protocol, sample)
            if len(batch):
                kept.append((index, batch, outcome))
    return kept


def _things(plan: Plan, batches: list[tuple[int, Batch]]) -> Things:
    image = [index for index, batch in batches for _ in range(len(batch))]
    truth = [rows[~np.isnan(rows[:, 0])] for _, b in batches for rows in b.truth.double().numpy()]
    return Things(
        plan.samples,
        np.array(image, dtype=np.intp),
        [text for _, batch in batches for text in batch.texts],
        [labels for _, batch in batches for labels in batch.labels],
        [members for _, batch in batches for members in batch.members],
        truth,
    )


def _table(things: Things, parts: list[dict[str, Any]]) -> Table:
    sizes = [len(part["known"]) for part in parts]
    special = {"known", "iou", "score", "peak", "box", "first", "scores", "rank", "ious", "boxes"}
    metrics = [name for name in (parts[0] if parts else {}) if name not in special]
    first = _column(parts, sizes, "first", 1)[:, 0]
    return Table(
        things,
        _column(parts, sizes, "known", 1)[:, 0] > 0,
        {name: _column(parts, sizes, name, 1)[:, 0] for name in metrics},
        _column(parts, sizes, "iou", 1)[:, 0],
        _column(parts, sizes, "score", 1)[:, 0],
        _column(parts, sizes, "peak", 2),
        _column(parts, sizes, "box", 4),
        np.where(np.isnan(first), -1, first),
        [_unpacked(part["scores"]) for part in parts if "scores" in part],
        _column(parts, sizes, "rank", 1)[:, 0],
        (_together(parts, "ious", (0, 0)), _together(parts, "boxes", (0, 0, 4))),
    )


def _column(parts: list[dict[str, Any]], sizes: list[int], name: str, width: int) -> Floats:
    """(N, width) of one column, NaN where an image's results do not have it."""
    rows = [np.zeros((0, width))]
    for part, size in zip(parts, sizes, strict=True):
        values = part.get(name)
        empty = np.full((size, width), np.nan)
        rows.append(empty if values is None else np.array(values, dtype=np.float64).reshape(size, width))
    return np.concatenate(rows)


def _unpacked(packed: dict[str, Any]) -> Floats:
    raw = np.frombuffer(base64.b64decode(packed["base64"]), dtype=packed["dtype"])
    return raw.reshape(packed["shape"]).astype(np.float64)


def _together(parts: list[dict[str, Any]], name: str, empty: tuple[int, ...]) -> Floats:
    """A packed column of all images one after the other, (N, ...)."""
    packed = [_unpacked(part[name]) for part in parts if name in part]
    return np.concatenate(packed) if packed else np.zeros(empty)


def records(found: dict[tuple[str, str], Table], protocol: Protocol, method: str) -> list[dict[str, Any]]:
    """One plain record for each thing counted under a protocol: what the CSV and the page show."""
    table = found[protocol.name, method]
    things = table.things
    hit = "accuracy" if "accuracy" in table.values else protocol.metrics[0]
    rows = []
    for i, index in enumerate(things.image.tolist()):
        sample, phrase = things.samples[index], things.samples[index].phrases[things.members[i][0]]
        rows.append(
            {
                "image_id": sample.image_id,
                "path": str(sample.path),
                "size": sample.size,
                "protocol": protocol.name,
                "method": method,
                "phrase": things.texts[i],
                "labels": things.labels[i],
                "entity": phrase.entity,
                "sentence": phrase.sentence,
                "known": bool(table.known[i]),
                "hit": table.values[hit][i],
                "values": {name: column[i] for name, column in table.values.items()},
                "iou": table.iou[i],
                "score": table.score[i],
                "peak": table.peak[i].tolist(),
                "box": table.box[i].tolist(),
                "truth": things.truth[i].tolist(),
                "present": None,
            }
        )
    return rows
