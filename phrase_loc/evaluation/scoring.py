"""What a protocol counts in an image with its truth, what a method answers, the scores of answers, blind baselines.

A phrase without a true box is not counted. A mention counts once for each time it is written; an entity once
for its chain, however often it is mentioned.

A scorer, one for a kind of protocol, makes of protocol, batch and answers metric -> (P,) values in 0..1. Beside its
metrics it may give 'iou' (P,), the overlap of the first box with the best truth, and, for mean average precision,
'first' (P,), the rank of the first correct box.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phrase_loc.boxes import area, enclosing, iou
from phrase_loc.evaluation.protocols import MapBox, Protocol
from phrase_loc.files import digest, read_json
from phrase_loc.masks import decoded
from phrase_loc.structures import GroundingSample

Array = NDArray[np.float64]
Query = tuple[str, ...]  # phrases whose maps are averaged; a mention is a query of one
Guess = Callable[[GroundingSample, Query], tuple[Tensor, Tensor]]  # -> (2,) point, (k, 4) boxes best first


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


def gather(protocol: Protocol, sample: GroundingSample) -> Batch:
    """The batch of an image under a protocol; it may be empty."""
    chains: dict[Any, list[int]] = {}
    for i, truth in enumerate(sample.boxes):
        if len(truth):
            key = i if protocol.unit == "mention" else sample.phrases[i].entity
            chains.setdefault(key, []).append(i)
    low, high, kept = protocol.min_area, protocol.max_area, {}
    for chain in map(tuple, chains.values()):
        truth = sample.boxes[chain[0]] + protocol.shift
        counts = not protocol.subset or all(sample.facts[protocol.subset][i] for i in chain)
        if low is not None or high is not None:
            box = truth[0] if protocol.area_of == "first" else enclosing(truth)
            share = float(area(box.double())) / (sample.size[0] * sample.size[1])
            large = low is None or (share > low if protocol.area_strict else share >= low)
            counts = counts and large and (high is None or share < high)
        if counts:
            kept[chain] = enclosing(truth)[None] if protocol.truth == "union" else truth
    queries = tuple(tuple(sample.phrases[i].text for i in chain) for chain in kept)
    truths = pad_sequence([*kept.values()], True, torch.nan) if kept else torch.zeros(0, 0, 4)
    return Batch(sample, tuple(kept), queries, truths)


@dataclass(frozen=True)
class Answers:
    """Answers to P queries, in pixels of sample.size. NaN stands for no answer, which scores as a miss."""

    known: Tensor  # (P,) whether any word of the query has a vector
    peaks: dict[int, Tensor]  # border -> (P, 2) x, y of the first maximum
    #: (P, k, 5) boxes, best first, and their scores, comparable between images
    ranked: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 5))
    map_boxes: dict[MapBox, Tensor] = field(default_factory=dict)  # rule -> (P, 4)
    ranks: Tensor | None = None  # (P,) how many classes score above the query's own

    @property
    def boxes(self) -> Tensor:
        """(P, k, 4) the ranked boxes."""
        return self.ranked[..., :4]

    def take(self, rows: list[int]) -> "Answers":
        """The answers to some of the queries, in a new order; a row may come more than once."""
        peaks = {border: peaks[rows] for border, peaks in self.peaks.items()}
        map_boxes = {rule: boxes[rows] for rule, boxes in self.map_boxes.items()}
        ranks = None if self.ranks is None else self.ranks[rows]
        return Answers(self.known[rows], peaks, self.ranked[rows], map_boxes, ranks)


class Method:
    """Anything that can be evaluated."""

    name: str
    needs_image: bool  # whether `answer` opens the image file; what does not runs on annotations alone
    #: what stands at each of its rows: `supervision` beside pairs of image and text, and a `note`, a sentence
    marks: ClassVar[dict[str, str]] = {}
    fingerprint: str = ""  # changes with the file or the network behind it

    def answer(self, sample: GroundingSample, queries: Sequence[Query], asked: Sequence[Protocol]) -> Answers:
        """Answer distinct queries about one image, as far as `asked` needs it; DataError where it cannot be read."""
        raise NotImplementedError

    def answer_all(self, asked: Sequence[tuple[Protocol, Batch]]) -> list[Answers]:
        """The answers for the things of each protocol of one unit, in one image; each phrase is asked once."""
        queries = list(dict.fromkeys(query for _, batch in asked for query in batch.queries))
        place = {query: row for row, query in enumerate(queries)}
        found = self.answer(asked[0][1].sample, queries, [protocol for protocol, _ in asked])
        return [found.take([place[query] for query in batch.queries]) for _, batch in asked]

    def lacks(self, protocol: Protocol) -> str:
        """Why it has no row under a protocol, in a sentence; '' where it has one."""
        return ""


def answers_of(points: Tensor, ranked: Sequence[Tensor], asked: Sequence[Protocol]) -> Answers:
    """Answers of points (P, 2), NaN for none, and P rankings (n, 5), cut to top_k; the first is a map's box too."""
    table = pad_sequence(list(ranked), batch_first=True, padding_value=torch.nan)
    first = _first(table)[:, 0, :4]
    known = ~(points[:, 0].isnan() & first[:, 0].isnan())
    of_maps = dict.fromkeys((rule for protocol in asked for rule in protocol.rules), first)
    most = max(protocol.top_k for protocol in asked)
    return Answers(known, {protocol.border: points for protocol in asked}, table[:, :most], of_maps)


def inside_any(points: Tensor, boxes: Tensor, margin: float = 0.0, strict: bool = False) -> Tensor:
    """Whether a point lies in any of its boxes, NaN in none: (P, 2) x, y and (P, M, 4) -> (P,) bool.

    Boxes are widened by the margin; a point on the border is inside unless `strict`.
    """
    point, low, high = points[:, None], boxes[..., :2] - margin, boxes[..., 2:] + margin
    inside = (point > low) & (point < high) if strict else (point >= low) & (point <= high)
    return inside.all(2).any(1)


def average_precision(
    scores: Array, correct: NDArray[np.bool_], image: NDArray[np.intp], weights: Array, positives: Array
) -> Array:
    """11-point average precision over detections pooled from all images, once for each row of weights.

    AP = mean over t in 0, .1, ..., 1 of the highest precision at a recall of t or more (0 where recall ends
    before t). Equal scores keep the order given. Recall is compared in tenths of the positives, so that no
    rounding of t decides. Only true positives are visited: precision can peak nowhere else.

    Args:
        scores: (n,) of each detection.
        correct: (n,) whether it is a true positive; a phrase has at most one.
        image: (n,) image it comes from.
        weights: (B, I) how often each image counts: ones for the value, bootstrap draws for its interval.
        positives: (B,) weighted number of phrases to find.

    Returns:
        (B,) AP in 0..1, NaN where there is nothing to find.
    """
    order = np.argsort(-scores, kind="stable")
    image, hits = image[order], np.flatnonzero(correct[order])
    if len(hits) == 0:
        return np.where(positives > 0, 0.0, np.nan)
    starts = np.concatenate([[0], hits[:-1] + 1])
    drawn = np.cumsum(np.add.reduceat(weights[:, image[: hits[-1] + 1]], starts, axis=1), axis=1)
    found = np.cumsum(weights[:, image[hits]], axis=1)
    precision = found / np.maximum(drawn, 1e-12)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))
    tenths = np.arange(11) * positives[:, None]
    place = np.stack([np.searchsorted(row * 10, t) for row, t in zip(found, tenths)])
    return np.where(positives > 0, np.take_along_axis(envelope, place, axis=1).mean(1), np.nan)


def pointing(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Whether the first maximum of the map lies in the truth."""
    peaks = answers.peaks[protocol.border]
    return {"accuracy": inside_any(peaks, batch.truth, protocol.margin, protocol.strict).float()}


def box_centre(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Whether the centre of the best box lies in the truth."""
    top = _first(answers.boxes)
    centres = (top[:, 0, :2] + top[:, 0, 2:]) / 2
    hit = inside_any(centres, batch.truth, protocol.margin, protocol.strict)
    return {"accuracy": hit.float(), "iou": _best(protocol, batch, top)[:, 0]}


def map_box(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Whether the one box of the map overlaps the truth enough."""
    (rule,) = protocol.rules
    best = _best(protocol, batch, answers.map_boxes[rule][:, None])[:, 0]
    return {"accuracy": protocol.correct(best).float(), "iou": best}


def map_box_sweep(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """What a threshold is chosen from: every rule's box (P, T, 4) and its overlap with the best truth (P, T)."""
    tried = torch.stack([answers.map_boxes[rule] for rule in protocol.rules], 1)
    ranks = {} if answers.ranks is None else {"rank": answers.ranks.double()}
    return {"ious": _best(protocol, batch, tried), "boxes": tried.float()} | ranks


def recall(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """R@k, and the rank of the first correct box."""
    boxes = answers.boxes[:, : protocol.top_k]
    correct = protocol.correct(_best(protocol, batch, boxes))
    first = F.pad(correct.int(), (0, 1), value=1).argmax(1)  # the first of equal maxima; k if none
    values = {f"R@{k}": (first < min(k, boxes.shape[1])).float() for k in protocol.ks}
    return values | {"iou": _best(protocol, batch, _first(boxes))[:, 0], "first": first}


def _first(boxes: Tensor) -> Tensor:
    """The best box of each ranking, NaN where there is none: (P, k, 4) -> (P, 1, 4)."""
    return F.pad(boxes[:, :1], (0, 0, 0, int(boxes.shape[1] == 0)), value=torch.nan)


def _best(protocol: Protocol, batch: Batch, boxes: Tensor) -> Tensor:
    """Overlap of each box with the best of its thing's truth: (P, k, 4) -> (P, k)."""
    found = iou(boxes.double(), batch.truth.double(), protocol.offset)
    return found.amax(2) if found.numel() else found.new_zeros(boxes.shape[:2])


def disc_pointing(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Accuracy against boxes: distance from peak to the nearest box strictly below the margin."""
    distance = distance_to_boxes(answers.peaks[protocol.border], batch.truth)
    return {"accuracy": (distance < protocol.margin).float()}


def mask_pointing(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Accuracy against masks: a mask pixel lies strictly within the margin of the peak."""
    masks = batch.sample.facts["masks"]
    peaks = answers.peaks[protocol.border].tolist()
    pairs = zip(batch.members, peaks, strict=True)
    hits = [any(touches(masks[i], peak, protocol.margin) for i in members) for members, peak in pairs]
    return {"accuracy": torch.tensor(hits, dtype=torch.float32)}


def distance_to_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Pixels from each point to its nearest box, 0 inside: (P, 2), (P, M, 4) NaN-padded -> (P,), inf without any."""
    apart = points[:, None] - torch.clamp(points[:, None], boxes[..., :2], boxes[..., 2:])
    distance = torch.hypot(apart[..., 0], apart[..., 1]).nan_to_num(nan=torch.inf)
    return F.pad(distance, (0, 1), value=torch.inf).amin(1)


def touches(mask: dict[str, Any], point: list[float], radius: float) -> bool:
    """Whether a pixel of a compressed RLE lies at a distance strictly below `radius` of a point (x, y)."""
    if math.isnan(sum(point)):
        return False
    corner = np.array([max(math.floor(side - radius), 0) for side in point[::-1]])  # y, x
    row, column = corner
    window = decoded(mask)[row : math.ceil(point[1] + radius) + 1, column : math.ceil(point[0] + radius) + 1]
    apart = np.argwhere(window) + corner - point[::-1]
    return bool(((apart**2).sum(1) < radius**2).any())


SCORERS: dict[str, Callable[[Protocol, Batch, Answers], dict[str, Tensor]]] = {
    scorer.__name__: scorer
    for scorer in (pointing, box_centre, map_box, map_box_sweep, recall, disc_pointing, mask_pointing)
}


@dataclass
class Baseline(Method):
    """A blind guess as a method: point and boxes from nothing but the size of the image and the words."""

    needs_image = False
    name: str
    guess: Guess

    def answer(self, sample: GroundingSample, queries: Sequence[Query], asked: Sequence[Protocol]) -> Answers:
        """Answer distinct queries about one image; every phrase counts as known."""
        points, boxes = zip(*(self.guess(sample, query) for query in queries), strict=True)
        scores = torch.linspace(1, 0.5, len(boxes[0]))[:, None]
        return answers_of(torch.stack(points), [torch.cat([own, scores], 1) for own in boxes], asked)


def _middle(shares: list[float], sample: GroundingSample, query: Query) -> tuple[Tensor, Tensor]:
    """A box in shares of the sides, with the point in the middle of the image."""
    sides = _sides(sample.size)
    return sides[:2] / 2, (sides * torch.tensor(shares))[None]


def _random(sample: GroundingSample, query: Query) -> tuple[Tensor, Tensor]:
    draws = np.random.default_rng(hashed("\n".join([sample.image_id, *query]))).random((21, 2))
    corners = np.sort(draws[1:].reshape(10, 2, 2), axis=1).reshape(10, 4)
    sides = _sides(sample.size)
    return torch.from_numpy(draws[0]).float() * sides[:2], torch.from_numpy(corners).float() * sides


def _fixed_boxes(sample: GroundingSample, query: Query) -> tuple[Tensor, Tensor]:
    boxes = blind_boxes(CHOSEN, sample.size)
    return (boxes[0, :2] + boxes[0, 2:]) / 2, boxes


def hashed(text: str) -> int:
    """A number of 64 bits that depends on the text alone: what is drawn by it is the same on every machine."""
    return int(digest(text.encode())[:16], 16)


def _sides(size: tuple[int, int]) -> Tensor:
    return torch.tensor([size[1], size[0]] * 2)


def blind_boxes(relative: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in shares of the sides -> pixels of an image (H, W): (R, 4) -> (R, 4).

    The last pixel belongs to the box, as where widths count + 1: the right half of 8 pixels is 4 to 7.
    """
    return relative * _sides(size) - torch.tensor([0.0, 0.0, 1.0, 1.0])


#: Ten boxes in shares of the sides, chosen on val by benchmarks/blind_boxes.py.
CHOSEN = torch.tensor(read_json(Path(__file__).with_name("blind_boxes.json"))["boxes"])
#: Answers that never look at the image: printed beside every score, since a blind guess scores them.
BASELINES: dict[str, Guess] = {
    "centre": partial(_middle, [0.25, 0.25, 0.75, 0.75]),
    "random": _random,  # a point anywhere; ten boxes between random corners, drawn by image and phrase, not by run
    "whole_image": partial(_middle, [0.0, 0.0, 1.0, 1.0]),
    "fixed_boxes": _fixed_boxes,
}
