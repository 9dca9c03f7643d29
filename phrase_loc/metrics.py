"""Metrics as pure functions of tensors, for all things counted in an image at once.

P things counted, k ranked boxes (best first), M true boxes, I images, B bootstrap replicates. Rows that a
thing does not have are NaN: NaN compares False, so no answer is a miss without a special case. `offset` is
what a protocol adds to a box's width and height (boxes.py).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def inside_any(points: Tensor, boxes: Tensor, margin: float = 0.0, strict: bool = False) -> Tensor:
    """Whether a point lies in any of its boxes: (P, 2) x, y and (P, M, 4) -> (P,) bool.

    Args:
        points: one point for each thing, NaN where there is none.
        boxes: the thing's own true boxes, NaN rows as padding.
        margin: pixels by which each side is pushed outwards first.
        strict: whether a point on the border is outside.
    """
    x, y = points[:, None, 0], points[:, None, 1]
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, y1, x2, y2 = x1 - margin, y1 - margin, x2 + margin, y2 + margin
    if strict:
        return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(1)
    return ((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)).any(1)


def overlaps(boxes: Tensor, truth: Tensor, offset: float = 0.0) -> Tensor:
    """IoU of each thing's boxes with its own truth: (P, k, 4), (P, M, 4) -> (P, k, M), NaN rows give 0."""
    a, b = boxes[:, :, None, :], truth[:, None, :, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset
    shared = sides.clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2] + offset).clamp(min=0).prod(-1) for x in (a, b)]
    union = areas[0] + areas[1] - shared
    return torch.where(union > 0, shared / union, 0.0)


def first_correct(ious: Tensor, threshold: float = 0.5, closed: bool = True) -> Tensor:
    """Rank of the first box that reaches the threshold with any true box: (P, k, M) -> (P,), k if none.

    An overlap of exactly the threshold is enough where it is `closed`.
    """
    correct = ((ious >= threshold) if closed else (ious > threshold)).any(2)
    ranks = torch.arange(ious.shape[1], device=ious.device)
    return torch.where(correct, ranks, ious.shape[1]).amin(1) if ious.shape[1] else correct.sum(1)


def recall_at(first: Tensor, k: int, boxes: int) -> Tensor:
    """R@k of each thing from `first_correct` over `boxes` ranked boxes: (P,) -> (P,) bool."""
    return first < min(k, boxes)


def average_precision(
    scores: Array, correct: NDArray[np.bool_], image: NDArray[np.intp], weights: Array, positives: Array
) -> Array:
    """11-point average precision over detections pooled from all images, once for each row of weights.

    AP = mean over t in 0, .1, ..., 1 of the highest precision at a recall of t or more (0 where recall ends
    before t). Equal scores keep the order given. Recall is compared in tenths of the positives, so that no
    rounding of t decides. Only true positives are visited: precision can peak nowhere else.

    Args:
        scores: (n,) confidence of each detection.
        correct: (n,) whether it is a true positive; a phrase has at most one.
        image: (n,) image it comes from.
        weights: (B, I) how often each image counts: ones for the value, bootstrap draws for its interval.
        positives: (B,) weighted number of phrases to find.

    Returns:
        (B,) AP in 0..1, NaN where there is nothing to find.
    """
    order = np.argsort(-scores, kind="stable")
    correct, image = correct[order], image[order]
    hits = np.flatnonzero(correct)
    tenths = np.arange(11) * positives[:, None]
    if len(hits) == 0:
        return np.where(positives > 0, 0.0, np.nan)
    starts = np.concatenate([[0], hits[:-1] + 1])
    drawn = np.cumsum(np.add.reduceat(weights[:, image[: hits[-1] + 1]], starts, axis=1), axis=1)
    found = np.cumsum(weights[:, image[hits]], axis=1)
    precision = found / np.maximum(drawn, 1e-12)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    place = np.stack([np.searchsorted(row * 10, t, "left") for row, t in zip(found, tenths)])
    with np.errstate(invalid="ignore"):
        return np.where(positives > 0, np.take_along_axis(envelope, place, axis=1).mean(1), np.nan)
