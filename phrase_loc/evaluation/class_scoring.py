"""Scorers of the pointing game: does a disc around the peak touch the class?

A scorer takes a protocol, the items of one image and a method's answers, and gives a value in [0, 1] for each
item. A point that is NaN (no word of the phrase is known) compares as a miss by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from phrase_loc.evaluation.protocol import Protocol

if TYPE_CHECKING:
    from phrase_loc.evaluation.answers import Answers
    from phrase_loc.evaluation.counted import Batch


def disc_pointing(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Accuracy against boxes: distance from peak to the nearest box strictly below the margin."""
    distance = distance_to_boxes(answers.peaks[protocol.border], batch.truth)
    return {"accuracy": (distance < protocol.margin).float()}


def mask_pointing(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Accuracy against masks: a mask pixel lies strictly within the margin of the peak."""
    masks = batch.sample.facts["masks"]
    peaks = answers.peaks[protocol.border]
    hits = [
        any(touches(masks[i], peak.tolist(), protocol.margin) for i in members)
        for members, peak in zip(batch.members, peaks, strict=True)
    ]
    return {"accuracy": torch.tensor(hits, dtype=torch.float32)}


def distance_to_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Pixels from each point to its nearest box, 0 inside: (P, 2), (P, M, 4) NaN-padded -> (P,).

    NaN when the point is NaN or there is no box.
    """
    x, y = points[:, None, 0], points[:, None, 1]
    sideways = torch.maximum(boxes[..., 0] - x, x - boxes[..., 2]).clamp(min=0)
    upright = torch.maximum(boxes[..., 1] - y, y - boxes[..., 3]).clamp(min=0)
    distance = torch.hypot(sideways, upright).nan_to_num(nan=torch.inf)
    nearest = distance.amin(1) if boxes.shape[1] else points.new_full((len(points),), torch.inf)
    return nearest.masked_fill(nearest.isinf(), torch.nan)


def touches(mask: dict[str, Any], point: list[float], radius: float) -> bool:
    """Whether a pixel of a compressed RLE lies at a distance strictly below `radius` of a point (x, y)."""
    x, y = point
    if math.isnan(x) or math.isnan(y):
        return False
    pixels = decode(mask)
    top, left = max(math.floor(y - radius), 0), max(math.floor(x - radius), 0)
    window = pixels[top : math.ceil(y + radius) + 1, left : math.ceil(x + radius) + 1]
    rows, columns = np.nonzero(window)
    return bool((((rows + top - y) ** 2 + (columns + left - x) ** 2) < radius**2).any())


def decode(mask: dict[str, Any]) -> np.ndarray:
    """Compressed RLE -> (H, W) bool."""
    with (
        warnings.catch_warnings()
    ):  # pycocotools 2.0.11 still hands numpy 2 an array without its copy keyword
        warnings.simplefilter("ignore", DeprecationWarning)
        return rle.decode(mask).astype(bool)


CLASS_SCORERS: dict[str, Callable[[Protocol, Batch, Answers], dict[str, Tensor]]] = {
    "disc_pointing": disc_pointing,
    "mask_pointing": mask_pointing,
}
