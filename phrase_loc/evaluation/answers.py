"""What the evaluator asks of a method, and what a method answers: all queries of an image at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol as Interface

import torch
from torch import Tensor

from phrase_loc.evaluation.counted import Query
from phrase_loc.evaluation.protocol import MapBox
from phrase_loc.evaluation.protocol import Protocol as Test
from phrase_loc.structures import GroundingSample


@dataclass(frozen=True)
class Request:
    """What the protocols of one unit need, so that nothing else is computed.

    Attributes:
        borders: widths of the zeroed frame at which a peak is wanted; empty where nobody points.
        top_k: ranked boxes wanted; 0 for none.
        map_boxes: rules by which a map becomes one box.
        ranks: whether the ranks of the classes are wanted, where a method classifies.
    """

    borders: frozenset[int] = frozenset()
    top_k: int = 0
    map_boxes: frozenset[MapBox] = frozenset()
    ranks: bool = False

    @classmethod
    def of(cls, tests: Sequence[Test]) -> "Request":
        """The union of what some protocols need."""
        return cls(
            frozenset(t.border for t in tests if "pointing" in t.kind),
            max((t.top_k for t in tests), default=0),
            frozenset(rule for t in tests for rule in (*t.sweep, t.map_box) if rule is not None),
            any(t.sweep for t in tests),
        )


@dataclass(frozen=True)
class Answers:
    """Answers to P queries, in pixels of sample.size. NaN stands for no answer, which scores as a miss.

    Attributes:
        known: (P,) whether any word of the query has a vector.
        peaks: border -> (P, 2) x, y of the first maximum.
        boxes: (P, k, 4) best first.
        scores: (P, k) of the boxes, descending, comparable between images as far as the method makes them so.
        map_boxes: rule -> (P, 4).
        ranks: (P,) how many classes score above the query's own; none of a method that classifies nothing.
    """

    known: Tensor
    peaks: dict[int, Tensor] = field(default_factory=dict)
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 4))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    map_boxes: dict[MapBox, Tensor] = field(default_factory=dict)
    ranks: Tensor | None = None

    def take(self, rows: Sequence[int]) -> "Answers":
        """The answers to some of the queries, in a new order; a row may come more than once."""
        index = torch.tensor(rows, dtype=torch.long)
        return Answers(
            self.known[index],
            {border: peaks[index] for border, peaks in self.peaks.items()},
            self.boxes[index] if self.boxes.shape[1] else self.boxes.new_zeros(len(index), 0, 4),
            self.scores[index] if self.scores.shape[1] else self.scores.new_zeros(len(index), 0),
            {rule: boxes[index] for rule, boxes in self.map_boxes.items()},
            None if self.ranks is None else self.ranks[index],
        )


class Method(Interface):
    """Anything that can be evaluated.

    Attributes:
        name: its name in reports.
        needs_image: whether `answer` opens the image file; what does not runs on annotations alone.
    """

    name: str
    needs_image: bool

    def answer(self, sample: GroundingSample, queries: Sequence[Query], request: Request) -> Answers:
        """Answer distinct queries about one image; DataError where the image cannot be read."""
        ...
