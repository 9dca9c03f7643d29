"""Scorers: protocol + batch + answers -> metric -> (P,) values in 0..1. One for each kind of protocol.

Beside its metrics a scorer may give 'iou' (P,), the overlap of the first box with the best truth, and, for
mean average precision, 'first' (P,), the rank of the first correct box.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from phrase_loc.evaluation.answers import Answers
from phrase_loc.evaluation.class_scoring import CLASS_SCORERS
from phrase_loc.evaluation.counted import Batch
from phrase_loc.evaluation.protocol import Protocol
from phrase_loc.metrics import first_correct, inside_any, overlaps, recall_at

Scorer = Callable[[Protocol, Batch, Answers], dict[str, Tensor]]


def pointing(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Whether the first maximum of the map lies in the truth."""
    peaks = answers.peaks[protocol.border]
    return {"accuracy": inside_any(peaks, batch.truth, protocol.margin, protocol.strict).float()}


def box_centre(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Whether the centre of the best box lies in the truth."""
    top = _first(answers.boxes)
    centres = (top[:, :2] + top[:, 2:]) / 2
    hit = inside_any(centres, batch.truth, protocol.margin, protocol.strict)
    return {"accuracy": hit.float(), "iou": _best(top, batch, protocol)}


def map_box(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """Whether the one box of the map overlaps the truth enough."""
    if protocol.map_box is None:
        raise ValueError(f"protocol {protocol.name} of kind map_box names no rule")
    best = _best(answers.map_boxes[protocol.map_box], batch, protocol)
    hit = best >= protocol.iou if protocol.iou_closed else best > protocol.iou
    return {"accuracy": hit.float(), "iou": best}


def map_box_sweep(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """What a threshold is chosen from: every rule's box (P, T, 4) and its overlap with the best truth (P, T)."""
    tried = torch.stack([answers.map_boxes[rule] for rule in protocol.sweep], 1)
    found = {"ious": _best_of_each(tried, batch, protocol), "boxes": tried.float()}
    return found if answers.ranks is None else found | {"rank": answers.ranks.double()}


def recall(protocol: Protocol, batch: Batch, answers: Answers) -> dict[str, Tensor]:
    """R@k, and the rank of the first correct box."""
    boxes = answers.boxes[:, : protocol.top_k]
    ious = overlaps(boxes.double(), batch.truth.double(), protocol.offset)
    first = first_correct(ious, protocol.iou, protocol.iou_closed)
    values = {f"R@{k}": recall_at(first, k, boxes.shape[1]).float() for k in protocol.ks}
    return values | {"iou": _best(_first(boxes), batch, protocol), "first": first}


def _first(boxes: Tensor) -> Tensor:
    """The best box of each ranking, NaN where there is none: (P, k, 4) -> (P, 4)."""
    return boxes[:, 0] if boxes.shape[1] else torch.full((len(boxes), 4), float("nan"))


def _best(box: Tensor, batch: Batch, protocol: Protocol) -> Tensor:
    """Overlap of one box a thing with the best of its truth: (P, 4) -> (P,)."""
    return _best_of_each(box[:, None], batch, protocol)[:, 0]


def _best_of_each(boxes: Tensor, batch: Batch, protocol: Protocol) -> Tensor:
    """(P, k, 4) -> (P, k)."""
    ious = overlaps(boxes.double(), batch.truth.double(), protocol.offset)
    return ious.amax(2) if ious.numel() else ious.new_zeros(boxes.shape[:2])


SCORERS: dict[str, Scorer] = {
    "pointing": pointing,
    "box_centre": box_centre,
    "map_box": map_box,
    "map_box_sweep": map_box_sweep,
    "recall": recall,
    **CLASS_SCORERS,
}
