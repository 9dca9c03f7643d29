"""Rank boxes by an attention map: sums in boxes, scores, agreement, non-maximum suppression, top k.

The sum of a map over any box takes four look-ups in its integral image (the table of sums above and to the
left of each corner); between corners the integral of a map that is constant within cells is bilinear, so
boxes with fractional cells are exact as well, whatever the map's grid.

A sum alone chooses the whole image and a mean chooses specks: the scores below stand between. They are
monotone transforms of what the literature uses, given as logarithms so that `elect` can read them as
log-odds of a box being the truth.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from phrase_loc.boxes import area, clip, iou
from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.maps import min_max

TINY = 1e-6  # share of the map's mass below which boxes are alike; keeps logarithms finite
SHARED = 1024  # boxes up to which the overlaps of all pairs are cheaper than those each phrase asks for
LIFT = 1e-3  # of an elected box above the best score


def integral(maps: Tensor) -> Tensor:
    """Sums of all cells above and left of each corner: (..., h, w) -> (..., h + 1, w + 1)."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    table = maps.new_zeros(*maps.shape[:-2], maps.shape[-2] + 1, maps.shape[-1] + 1)
    table[..., 1:, 1:] = maps.cumsum(-1).cumsum(-2)
    return table


def mass_in(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The map's sum within each box, exact for boxes that cut cells: (..., h, w), (R, 4) -> (..., R).

    Args:
        maps: the grid covers the whole image.
        boxes: xyxy in pixels of the image; what lies outside of it holds nothing.
        size: (H, W) of the image.
    """
    height, width = maps.shape[-2:]
    table = integral(maps)
    scale = boxes.new_tensor([width / size[1], height / size[0]] * 2)
    x1, y1, x2, y2 = (clip(boxes, size) * scale).to(table).unbind(-1)
    return _at(table, y2, x2) - _at(table, y1, x2) - _at(table, y2, x1) + _at(table, y1, x1)


def _at(table: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear look-up at fractional corners: (..., h + 1, w + 1), (R,), (R,) -> (..., R)."""
    top = y.floor().long().clamp(0, table.shape[-2] - 2)
    left = x.floor().long().clamp(0, table.shape[-1] - 2)
    v, u = y - top, x - left
    upper = table[..., top, left] * (1 - u) + table[..., top, left + 1] * u
    lower = table[..., top + 1, left] * (1 - u) + table[..., top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


# scores: (mass share of each box (P, R), area share of each box (R,), gamma) -> (P, R), larger is better


def mass_score(mass: Tensor, share: Tensor, gamma: float) -> Tensor:
    """log(mass / area**gamma): gamma 0 chooses the whole image, gamma 1 the brightest speck."""
    return mass.clamp(min=TINY).log() - gamma * share.log()


def expected_iou_score(mass: Tensor, share: Tensor, gamma: float) -> Tensor:
    """Log of the IoU of a box with the soft region whose inside probability is the map times gamma.

    With the map's mass normalised to 1, `gamma` is the area share of the region that the map stands for:
    intersection = gamma mass, union = area + gamma - gamma mass.
    """
    inside = gamma * mass.clamp(min=TINY)
    return (inside / (share + gamma - inside).clamp(min=TINY)).log()


def surplus_score(mass: Tensor, share: Tensor, gamma: float) -> Tensor:
    """Surplus of a box, mass - gamma * area: how much more of the map than of the image it holds."""
    return mass - gamma * share


SCORES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "mass": mass_score,
    "expected_iou": expected_iou_score,
    "surplus": surplus_score,
}


def score_boxes(
    attention: Tensor, boxes: Tensor, size: tuple[int, int], score: str = "mass", gamma: float = 0.45
) -> Tensor:
    """How well each box fits each map: (P, h, w), (R, 4) -> (P, R).

    Masses are shares of the sum of the map less its minimum, and areas are shares of the image, so that
    neither the map's scale and ground level nor the image's size changes a score. A flat map weighs all
    places alike.
    """
    raised = min_max(attention)
    raised = torch.where(raised.amax((-2, -1), keepdim=True) > 0, raised, 1.0)
    mass = mass_in(raised, boxes, size) / raised.sum((-2, -1))[..., None]
    share = (area(clip(boxes, size)) / (size[0] * size[1])).clamp(min=TINY)
    return choose(SCORES, score, "box score")(mass, share.to(mass), gamma)


def elect(
    boxes: Tensor, scores: Tensor, temperature: float, weight: float = 0.5, overlap: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Let the boxes vote for a first one: (R, 4), (P, R) -> boxes (R + P, 4), scores (P, R + P).

    exp(score / temperature), normalised, is read as the probability that a box is the true one, and what
    agrees with a box is the probability of all that overlap it by half: a lucky outlier loses to a crowd of
    nearly as good neighbours. The vote goes to the box of greatest score + weight * log(agreement). What is
    appended for a phrase is the mean of the boxes that agree with it, weighted with their probabilities, a
    hair above its best score (and -inf for the other phrases). The rest keep their scores: agreement makes
    for a good first box but crowds the places after it.
    """
    near = (iou(boxes, boxes) >= overlap).to(scores)  # (R, R)
    truth = _truth(scores, temperature)
    votes = (truth @ near).clamp(min=torch.finfo(scores.dtype).tiny).log()
    winner = (scores + weight * votes).argmax(-1)  # (P,)
    # a box without area agrees with none, not even itself: the one-hot part keeps it
    share = truth * near[winner] + torch.finfo(scores.dtype).tiny * one_hot(winner, len(boxes)).to(scores)
    merged = (share / share.sum(-1, keepdim=True)) @ boxes.to(share)  # (P, 4)
    merged = merged.clamp(*boxes.to(share).aminmax(dim=0))  # rounding must not carry a mean out of the image
    lifted = torch.full_like(scores[:, :1], -torch.inf).repeat(1, len(scores))
    lifted.fill_diagonal_(0).add_(scores.amax(-1, keepdim=True) + LIFT)
    return torch.cat([boxes, merged.to(boxes)]), torch.cat([scores, lifted], -1)


def _truth(scores: Tensor, temperature: float) -> Tensor:
    """The probability that each box is the true one: (P, R) -> (P, R), rows sum to 1."""
    if temperature <= 0:
        raise ConfigError(f"the temperature of a vote among boxes must be positive, got {temperature:g}")
    return torch.softmax(scores / temperature, -1)


def nms(
    boxes: Tensor, scores: Tensor, overlap: float = 0.5, offset: float = 0.0, limit: int | None = None
) -> Tensor:
    """Greedy non-maximum suppression: (R, 4), (R,) -> indices of the kept boxes, best first.

    Args:
        boxes: xyxy.
        scores: the first of equal scores goes first; -inf is no candidate.
        overlap: a box is dropped when its IoU with a kept one is greater.
        offset: added to widths and heights (1 where a protocol counts pixels inclusively).
        limit: stop after so many.
    """
    picked = suppress(boxes, scores[None], overlap, offset, limit)[0]
    return picked[picked >= 0]


def suppress(
    boxes: Tensor, scores: Tensor, overlap: float = 0.5, offset: float = 0.0, limit: int | None = None
) -> Tensor:
    """`nms` of P score vectors over shared boxes at once: (R, 4), (P, R) -> (P, k), -1 where none is left."""
    if boxes.ndim != 2 or boxes.shape[-1] != 4 or scores.shape[-1] != boxes.shape[0]:
        raise DataError(
            f"suppression expects boxes (R, 4) and a score for each, got {tuple(boxes.shape)} and "
            f"{tuple(scores.shape)}"
        )
    corners = boxes.detach().cpu().numpy()
    values = scores.detach().cpu()
    places = values.argsort(dim=-1, descending=True, stable=True).numpy()
    order = [row[line[row] > -np.inf] for row, line in zip(places, values.numpy(), strict=True)]
    if len(order) > 1 and len(corners) <= SHARED:
        apart = ~(iou(boxes.detach(), boxes.detach(), offset) > overlap).cpu().numpy()
        kept = [_greedy_of(apart, row, limit) for row in order]
    else:
        kept = [_greedy(corners[row], overlap, offset, limit) for row in order]
    picked = np.full((len(kept), max(map(len, kept), default=0)), -1, dtype=np.int64)
    for line, row, chosen in zip(picked, order, kept, strict=True):
        line[: len(chosen)] = row[chosen]
    return torch.from_numpy(picked).to(boxes.device)


def _greedy(boxes: np.ndarray, overlap: float, offset: float, limit: int | None) -> list[int]:
    """Places of the kept boxes among boxes (R, 4) that stand best first.

    NumPy and not torch: the loop runs once for each kept box over ever fewer others, and what it costs is the
    overhead of its dozen small calls. The arithmetic is that of `boxes.iou`, bit for bit.
    """
    sides = (boxes[:, 2:] - boxes[:, :2] + offset).clip(min=0)
    areas, alive = sides[:, 0] * sides[:, 1], np.arange(len(boxes))
    kept: list[int] = []
    while len(alive) and (limit is None or len(kept) < limit):
        best, alive = alive[0], alive[1:]
        kept.append(int(best))
        others = boxes[alive]
        width = np.minimum(others[:, 2], boxes[best, 2]) - np.maximum(others[:, 0], boxes[best, 0]) + offset
        height = np.minimum(others[:, 3], boxes[best, 3]) - np.maximum(others[:, 1], boxes[best, 1]) + offset
        shared = width.clip(min=0) * height.clip(min=0)
        union = areas[best] + areas[alive] - shared
        ratio = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        alive = alive[ratio <= overlap]
    return kept


def _greedy_of(apart: np.ndarray, row: np.ndarray, limit: int | None) -> list[int]:
    """As `_greedy`, for many phrases over the same few boxes: (R, R) which of them may stand together."""
    among, alive, kept = apart[np.ix_(row, row)], np.ones(len(row), dtype=bool), list[int]()
    while alive.any() and (limit is None or len(kept) < limit):
        best = int(alive.argmax())  # the first that is left
        kept.append(best)
        alive &= among[best]
        alive[best] = False
    return kept


def rank_phrases(
    attention: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    score: str = "mass",
    gamma: float = 0.45,
    temperature: float = 0.0,
    overlap: float = 0.5,
    top_k: int = 10,
    offset: float = 0.0,
) -> list[tuple[Tensor, Tensor]]:
    """The best boxes of each phrase, from maps over shared proposals.

    Args:
        attention: (P, h, w), >= 0.
        boxes: (R, 4) xyxy in pixels of the image.
        size: (H, W) of the image.
        score: a key of SCORES.
        gamma: its constant.
        temperature: of the vote that may `elect` another first box, a mean of proposals; 0 for none.
        overlap: greatest IoU between two boxes of an answer.
        top_k: how many boxes at most.
        offset: added to widths in the suppression.

    Returns:
        For each phrase boxes (k, 4), best first, and their scores (k,), descending.
    """
    if attention.ndim != 3:
        raise DataError(f"maps of phrases have the shape (P, h, w), got {tuple(attention.shape)}")
    if top_k < 1:
        raise ConfigError(f"top_k is how many boxes are wanted, at least 1, got {top_k}")
    boxes = boxes.to(attention.device)
    if boxes.shape[0] == 0:
        return [(boxes.reshape(0, 4), attention.new_zeros(0)) for _ in attention]
    scores = score_boxes(attention, boxes, size, score, gamma)
    if temperature > 0:
        boxes, scores = elect(boxes, scores, temperature)
    picked = suppress(boxes, scores, overlap, offset, top_k)
    kept = [row[row >= 0] for row in picked]
    return [(boxes[row], values[row]) for row, values in zip(kept, scores, strict=True)]


def rank_boxes(
    attention: Tensor, boxes: Tensor, size: tuple[int, int], **options: float | str
) -> tuple[Tensor, Tensor]:
    """`rank_phrases` for one map: (h, w), (R, 4) -> boxes (k, 4), scores (k,)."""
    return rank_phrases(attention[None], boxes, size, **options)[0]  # type: ignore[arg-type]
