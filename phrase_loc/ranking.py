"""Rank boxes by an attention map: sums in boxes, scores, box voting, non-maximum suppression, top k.

Beside the map, a `BoxRanker` may say from the picture which boxes hold the whole of what a phrase names.

The sum of a map over any box takes four look-ups in its integral image (the table of sums above and to the
left of each corner); between corners the integral of a map that is constant within cells is bilinear, so
boxes with fractional cells are exact as well, whatever the map's grid.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.boxes import area, clip, iou
from phrase_loc.maps import min_max

TINY = 1e-6  # least share of a map's mass, share of the image and temperature; keeps numbers finite
LEAD = 1e-3  # of a voted box above the best score
CELLS, FRAME = 3, 0.35  # parts of a region's side; width of the frame around it as a share of its sides
WIDTH, HIDDEN, EMBEDDING = 40, 192, 48  # numbers of a BoxRanker's layers
SPREAD_POWER, SPREAD_OFFSET = 3.0, 3.54  # from the mean of a map to the log of a thing's share of the image


class BoxRanker(nn.Module):
    """How likely a box is to overlap what a phrase names by half: from the picture, without a map.

    Of each box it reads the mean activations (C channels at a stage of the trunk) in CELLS x CELLS parts, on a frame
    around it and over the photograph, with its area and shape, and compares them with the mean unit (D numbers) of
    the phrase's words. training/box_ranker.py teaches it by captions alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, units: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))  # of the activations, over photographs
        self.register_buffer("std", torch.ones(channels))
        self.lift = nn.Linear(channels, WIDTH, bias=False)
        inner = nn.Linear(WIDTH * (CELLS**2 + 2) + 3, HIDDEN)
        self.regions = nn.Sequential(inner, nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, EMBEDDING + 1))
        self.phrases = nn.Linear(units, EMBEDDING + 1)

    def forward(self, plane: Tensor, boxes: Tensor, size: tuple[int, int], units: Tensor) -> Tensor:
        """(C, h, w), (R, 4) in a frame of `size` (H, W), (P, D) -> logits (P, R)."""
        regions = self.regions(self.describe(plane, boxes, size))
        phrases = self.phrases(F.normalize(units, dim=-1) * units.shape[-1] ** 0.5)
        match = phrases[:, :-1] @ regions[:, :-1].T / EMBEDDING**0.5
        return match + regions[:, -1] + phrases[:, -1:]

    def describe(self, plane: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """What is read of each box: (C, h, w), (R, 4) -> (R, WIDTH * (CELLS**2 + 2) + 3)."""
        values = (plane - self.mean[:, None, None]) / self.std[:, None, None]
        values = torch.einsum("chw,kc->khw", values, self.lift.weight)
        (height, width), table, boxes = size, integral(values), clip(boxes, size)
        corners, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        frames = clip(torch.cat([corners - FRAME * sides, boxes[:, 2:] + FRAME * sides], 1), size)
        # sides of a cell of the plane, in pixels
        cell = boxes.new_tensor([[width / plane.shape[2]], [height / plane.shape[1]]])

        def sums(edges: Tensor) -> tuple[Tensor, Tensor]:
            """Of parts between edges along x and y, (R, 2, n + 1): sums (k, R, n, n) and areas in cells (R, n, n)."""
            x, y = (edges / cell).unbind(1)
            found = _at(table, y[:, None], x[:, :, None]).diff(dim=-1).diff(dim=-2)
            return found, x.diff()[:, :, None] * y.diff()[:, None]

        steps = torch.arange(CELLS + 1, device=boxes.device) / CELLS
        inside, areas = sums(corners[..., None] + sides[..., None] * steps)
        framed, framed_areas = sums(frames.unflatten(1, (2, 2)).mT)
        means = (inside / areas.clamp(min=1e-3)).permute(1, 2, 3, 0).flatten(1)
        around = framed[..., 0, 0] - inside.sum((-2, -1))
        around = around / (framed_areas[..., 0, 0] - areas.sum((-2, -1))).clamp(min=0.3)
        share, shape = area(boxes) / (height * width), sides[:, 0] / sides[:, 1].clamp(min=1e-6)
        form = [share.clamp(min=1e-3).log(), shape.clamp(0.05, 20).log(), share.sqrt()]
        whole = values.mean((1, 2)).expand(len(boxes), -1)
        return torch.cat([means, around.T, whole, torch.stack(form, 1)], 1)


def integral(maps: Tensor) -> Tensor:
    """Sums of all cells above and left of each corner: (..., h, w) -> (..., h + 1, w + 1)."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    table = maps.new_zeros(*maps.shape[:-2], maps.shape[-2] + 1, maps.shape[-1] + 1)
    table[..., 1:, 1:] = maps.cumsum(-1).cumsum(-2)
    return table


def mass_in(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The map's sum within each box, exact for boxes that cut cells: (..., h, w), (R, 4) -> (..., R).

    The grid covers an image of `size` (H, W); what of a box lies outside of it holds nothing.
    """
    height, width = maps.shape[-2:]
    table = integral(maps)
    scale = boxes.new_tensor([width / size[1], height / size[0]] * 2)
    x1, y1, x2, y2 = (clip(boxes, size) * scale).to(table).unbind(-1)
    return _at(table, y2, x2) - _at(table, y1, x2) - _at(table, y2, x1) + _at(table, y1, x1)


def _at(table: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear look-up at fractional corners: (..., h + 1, w + 1), y and x that broadcast to (S) -> (..., S)."""
    height, width = table.shape[-2:]
    top = y.floor().long().clamp(0, height - 2)
    left = x.floor().long().clamp(0, width - 2)
    v, u = (y - top)[..., None], (x - left)[..., None]
    # the numbers of a corner side by side: of many maps ten times as fast
    rows = table.reshape(-1, height * width).T.contiguous()

    def look(down: int, right: int) -> Tensor:
        return F.embedding((top + down) * width + left + right, rows)

    upper = look(0, 0) * (1 - u) + look(0, 1) * u
    lower = look(1, 0) * (1 - u) + look(1, 1) * u
    found = (upper * (1 - v) + lower * v).movedim(-1, 0)
    return found.reshape(*table.shape[:-2], *found.shape[1:])


def score_boxes(
    attention: Tensor, boxes: Tensor, size: tuple[int, int], gamma: float = 0.45, spread: float = 0.0
) -> Tensor:
    """log(mass / area**gamma) of each box in each map, less spread / 2 * (log(area) - expected)**2.

    gamma 0 chooses the whole image, gamma 1 the brightest speck. Masses are shares of the sum of the map less
    its minimum, and areas are shares of the image, so that neither the map's scale and ground level nor the
    image's size changes a score. A flat map weighs all places alike. `spread` holds areas to what the map's
    own extent lets expect (`expected_log_area`), so that small things get small boxes; 0 for none.

    Shapes: (P, h, w), (R, 4) -> (P, R).
    """
    raised = min_max(attention)
    raised = torch.where(raised.amax((-2, -1), keepdim=True) > 0, raised, 1.0)
    mass = mass_in(raised, boxes, size) / raised.sum((-2, -1))[..., None]
    share = (area(clip(boxes, size)) / (size[0] * size[1])).clamp(min=TINY)
    log_area = share.to(mass).log()
    off = log_area - expected_log_area(raised)[..., None]
    return mass.clamp(min=TINY).log() - gamma * log_area - spread / 2 * off.square()


def expected_log_area(maps: Tensor) -> Tensor:
    """Log of the share of the image that a thing is expected to cover, from its map in 0..1: (..., h, w) -> (...).

    A power of the map's mean, at most the whole image; both constants were chosen on val (docs/experiments.md).
    """
    return (SPREAD_OFFSET + SPREAD_POWER * maps.mean((-2, -1)).log()).clamp(max=0)


def vote(
    boxes: Tensor, scores: Tensor, temperature: float, weight: float = 0.5, overlap: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Box voting: (R, 4), (P, R) -> boxes (R + P, 4), scores (P, R + P).

    exp(score / temperature), normalised, is read as the probability that a box is the true one, and the
    consensus on a box is the probability of all that overlap it by half: a lucky outlier loses to a crowd of
    nearly as good neighbours. The winner has the greatest score + weight * log(consensus). What is appended
    for a phrase is the mean of the boxes that overlap its winner, weighted with their probabilities, a hair
    above its best score (and -inf for the other phrases). The rest keep their scores: consensus makes for a
    good first box but crowds the places after it.
    """
    near = (iou(boxes, boxes) >= overlap).to(scores)  # (R, R)
    truth = torch.softmax(scores / max(temperature, TINY), -1)  # single precision cannot divide by less
    consensus = (truth @ near).clamp(min=torch.finfo(scores.dtype).tiny).log()
    winner = (scores + weight * consensus).argmax(-1)  # (P,)
    # a box without area overlaps none, not even itself: the one-hot part keeps it
    share = truth * near[winner] + torch.finfo(scores.dtype).tiny * F.one_hot(winner, len(boxes)).to(scores)
    merged = (share / share.sum(-1, keepdim=True)) @ boxes.to(share)  # (P, 4)
    merged = merged.clamp(*boxes.to(share).aminmax(dim=0))  # rounding must not carry a mean out of the image
    lifted = torch.full_like(scores[:, :1], -torch.inf).repeat(1, len(scores))
    lifted.fill_diagonal_(0).add_(scores.amax(-1, keepdim=True) + LEAD)
    return torch.cat([boxes, merged.to(boxes)]), torch.cat([scores, lifted], -1)


def suppress(boxes: Tensor, scores: Tensor, overlap: float = 0.5, limit: int | None = None) -> list[Tensor]:
    """Greedy non-maximum suppression of P score vectors over shared boxes: indices of the kept ones, best first.

    Of `scores` (P, R) the first of equal ones goes first, and -inf is no candidate. A box (R, 4) is dropped when
    its IoU with a kept one is greater than `overlap`.
    """
    boxes = boxes.detach()

    def apart(place: slice) -> np.ndarray:
        """Which boxes may stand together: (S, R)."""
        return (~(iou(boxes[place], boxes) > overlap)).cpu().numpy()

    # of several phrases the overlaps of all pairs are cheaper than those that each asks for
    every = apart(slice(None)) if len(scores) > 1 else None
    values = scores.detach().cpu()
    places = values.argsort(dim=-1, descending=True, stable=True)
    kept: list[list[int]] = []
    for order, alive in zip(places.tolist(), (values > -torch.inf).numpy(), strict=True):
        kept.append([])
        for i in order:
            if len(kept[-1]) == limit:
                break
            if alive[i]:
                kept[-1].append(i)
                alive &= apart(slice(i, i + 1))[0] if every is None else every[i]
    return [torch.tensor(chosen, dtype=torch.long, device=boxes.device) for chosen in kept]


def rank_phrases(
    attention: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    gamma: float = 0.45,
    spread: float = 0.0,
    temperature: float = 0.0,
    overlap: float = 0.5,
    top_k: int = 10,
    added: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """The best boxes of each phrase: maps (P, h, w) >= 0, shared proposals (R, 4), an image of `size` (H, W).

    `gamma` is the exponent of the area in `score_boxes`, `temperature` that of `vote` (0 for none), `overlap` the
    greatest IoU between two boxes of an answer; `added` (P, R) is added to the scores, such as what a BoxRanker says.
    For each phrase boxes (k, 4), best first, and their scores (k,).
    """
    boxes = boxes.to(attention.device)
    if boxes.shape[0] == 0:
        return [(boxes.reshape(0, 4), attention.new_zeros(0)) for _ in attention]
    scores = score_boxes(attention, boxes, size, gamma, spread)
    scores = scores if added is None else scores + added.to(scores)
    if temperature > 0:
        boxes, scores = vote(boxes, scores, temperature)
    kept = suppress(boxes, scores, overlap, limit=top_k)
    return [(boxes[row], values[row]) for row, values in zip(kept, scores, strict=True)]
