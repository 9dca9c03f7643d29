"""What a protocol counts in an image, and its truth, as one batch.

A phrase without a true box is not counted. A mention counts once for each time it is written; an entity once
for its chain, however often it is mentioned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phrase_loc import boxes
from phrase_loc.evaluation.protocols import MapBox, Protocol
from phrase_loc.structures import GroundingSample

Query = tuple[str, ...]  # phrases whose maps are averaged; a mention is a query of one


@dataclass(frozen=True)
class Batch:
    """The P things that a protocol counts in one image."""

    sample: GroundingSample
    members: tuple[tuple[int, ...], ...]  # indices into sample.phrases: one mention, or those of a chain
    queries: tuple[Query, ...]  # the phrases whose maps are averaged, one for each member
    truth: Tensor  # (P, M, 4) true boxes, NaN rows as padding; M = 1 where the protocol takes the union box

    def __len__(self) -> int:
        return len(self.members)

    @property
    def texts(self) -> list[str]:
        """Per thing its phrase, or the phrases of its chain joined by ' / '."""
        return [" / ".join(dict.fromkeys(query)) for query in self.queries]

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """Per thing the types of all its mentions, each once."""
        phrases = self.sample.phrases
        return [tuple(dict.fromkeys(x for i in m for x in phrases[i].labels)) for m in self.members]


def gather(protocol: Protocol, sample: GroundingSample) -> Batch:
    """The batch of an image under a protocol; it may be empty."""
    chains: dict[Any, list[int]] = {}
    for i, truth in enumerate(sample.boxes):
        if len(truth):
            key = i if protocol.unit == "mention" else sample.phrases[i].entity
            chains.setdefault(key, []).append(i)
    kept = {}
    for chain in map(tuple, chains.values()):
        truth = sample.boxes[chain[0]] + protocol.shift
        if _counts(protocol, sample, chain, truth):
            kept[chain] = boxes.enclosing(truth)[None] if protocol.truth == "union" else truth
    queries = tuple(tuple(sample.phrases[i].text for i in chain) for chain in kept)
    truths = pad_sequence([*kept.values()], True, torch.nan) if kept else torch.zeros(0, 0, 4)
    return Batch(sample, tuple(kept), queries, truths)


def _counts(protocol: Protocol, sample: GroundingSample, members: tuple[int, ...], truth: Tensor) -> bool:
    if protocol.subset and not all(sample.facts[protocol.subset][i] for i in members):
        return False
    low, high = protocol.min_area, protocol.max_area
    if low is None and high is None:
        return True
    box = truth[0] if protocol.area_of == "first" else boxes.enclosing(truth)
    share = float(boxes.area(box.double())) / (sample.size[0] * sample.size[1])
    large = low is None or (share > low if protocol.area_strict else share >= low)
    return large and (high is None or share < high)


@dataclass(frozen=True)
class Request:
    """What the protocols of one unit need, so that nothing else is computed."""

    borders: frozenset[int] = frozenset()  # of the zeroed frames at which a peak is wanted
    top_k: int = 0  # ranked boxes wanted
    map_boxes: frozenset[MapBox] = frozenset()  # rules by which a map becomes one box
    ranks: bool = False  # of the classes, where a method classifies

    @classmethod
    def of(cls, tests: Sequence[Protocol]) -> "Request":
        """The union of what some protocols need."""
        return cls(
            frozenset(t.border for t in tests if "pointing" in t.kind),
            max((t.top_k for t in tests), default=0),
            frozenset(rule for t in tests for rule in t.rules),
            any(t.sweep for t in tests),
        )


@dataclass(frozen=True)
class Answers:
    """Answers to P queries, in pixels of sample.size. NaN stands for no answer, which scores as a miss."""

    known: Tensor  # (P,) whether any word of the query has a vector
    peaks: dict[int, Tensor] = field(default_factory=dict)  # border -> (P, 2) x, y of the first maximum
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 4))  # (P, k, 4) best first
    scores: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (P, k), comparable between images
    map_boxes: dict[MapBox, Tensor] = field(default_factory=dict)  # rule -> (P, 4)
    ranks: Tensor | None = None  # (P,) how many classes score above the query's own

    def take(self, rows: Sequence[int]) -> "Answers":
        """The answers to some of the queries, in a new order; a row may come more than once."""

        def of(values: Tensor) -> Tensor:  # boxes and scores have no rows where nothing is ranked
            return values[list(rows)] if len(values) else values.new_zeros(len(rows), *values.shape[1:])

        peaks = {border: of(peaks) for border, peaks in self.peaks.items()}
        map_boxes = {rule: of(boxes) for rule, boxes in self.map_boxes.items()}
        ranks = None if self.ranks is None else of(self.ranks)
        return Answers(of(self.known), peaks, of(self.boxes), of(self.scores), map_boxes, ranks)


class Method:
    """Anything that can be evaluated: it says `answer`, or `answer_batch` where it is not `by_phrase`."""

    name: str
    needs_image: bool  # whether `answer` opens the image file; what does not runs on annotations alone
    supervision: str = ""  # what it was trained on beside pairs of image and text; stands at each of its rows
    note: str = ""  # a sentence about its rows
    fingerprint: str = ""  # changes with the file or the network behind it
    by_phrase: bool = True  # whether it says the same of a phrase in every caption and under every protocol

    def answer(self, sample: GroundingSample, queries: Sequence[Query], request: Request) -> Answers:
        """Answer distinct queries about one image; DataError where the image cannot be read."""
        raise NotImplementedError

    def answer_batch(self, protocol: Protocol, batch: Batch) -> Answers:
        """The same for the things of one protocol in turn, asked of a method that is not `by_phrase`."""
        raise NotImplementedError

    def lacks(self, protocol: Protocol) -> str:
        """Why it has no row under a protocol, in a sentence; '' where it has one."""
        return ""
