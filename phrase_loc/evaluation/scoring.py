"""Scorers: protocol + batch + answers -> metric -> (P,) values in 0..1. One for each kind of protocol.

Beside its metrics a scorer may give 'iou' (P,), the overlap of the first box with the best truth, and, for
mean average precision, 'first' (P,), the rank of the first correct box.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phrase_loc.boxes import iou
from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.targets import Answers, Batch
from phrase_loc.masks import decoded

Array = NDArray[np.float64]


def inside_any(points: Tensor, boxes: Tensor, margin: float = 0.0, strict: bool = False) -> Tensor:
    """Whether a point lies in any of its boxes, NaN in none: (P, 2) x, y and (P, M, 4) -> (P,) bool.

    Boxes are widened by the margin; a point on the border is inside unless `strict`.
    """
    point, low, high = points[:, None], boxes[..., :2] - margin, boxes[..., 2:] + margin
    inside = (point > low) & (point < high) if strict else (point >= low) & (point <= high)
    return inside.all(2).any(1)


def first_correct(correct: Tensor) -> Tensor:
    """Rank of the first correct box of each ranking: (P, k) bool -> (P,), k if none."""
    return F.pad(correct.int(), (0, 1), value=1).argmax(1)  # the first of equal maxima


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
    first = first_correct(protocol.correct(_best(protocol, batch, boxes)))
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
