"""From a full-size map to one tight box: thresholds by maximum, mean, range or energy."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from phrase_loc.evaluation.protocols import MapBox


def map_boxes(heat: Tensor, rules: Sequence[MapBox]) -> Tensor:
    """The tight boxes around what survives each rule's threshold: (H, W) map -> (R, 4) xyxy in its pixels.

    Cells at or above the threshold survive. The whole map is the answer where nothing stands out: a map of
    zeros, or one that the threshold does not divide. Many rules cost little more than one: a row survives
    where its maximum does, so the box around all survivors needs no mask.

    Args:
        heat: >= 0.
        rules: how each box is made.
    """
    heat = heat.detach().cpu()
    levels = thresholds(heat, rules)
    found = _tight(heat.amax(1) >= levels[:, None], heat.amax(0) >= levels[:, None])
    for place, rule in enumerate(rules):
        if rule.rule == "wwbl_script":
            found[place] = _wwbl_script(heat, rule.value)
        elif rule.component == "largest":
            found[place] = _largest(heat, levels[place], found[place])
    return found


def map_box(heat: Tensor, rule: MapBox) -> Tensor:
    """The box of one rule: (H, W) -> (4,)."""
    return map_boxes(heat, [rule])[0]


def thresholds(heat: Tensor, rules: Sequence[MapBox]) -> Tensor:
    """The value at or above which a cell of the map survives, for each rule: (H, W) -> (R,)."""
    low, high, mean = heat.amin(), heat.amax(), heat.mean()
    of_rule: dict[str, Callable[[float], Tensor]] = {
        "max": lambda value: value * high,
        "mean": lambda value: value * mean,
        "range": lambda value: low + value * (high - low),
        "wwbl_script": lambda value: high,  # thresholds for itself
    }
    if any(rule.rule == "energy" for rule in rules):
        of_rule["energy"] = _holding(heat)
    return torch.stack([of_rule[rule.rule](rule.value) for rule in rules])


def _holding(heat: Tensor) -> Callable[[float], Tensor]:
    """Share of the sum -> the lowest value of the smallest set of cells that holds it."""
    values = heat.flatten().sort(descending=True).values
    reached = values.double().cumsum(0)
    total = values.double().sum()

    def lowest(share: float) -> Tensor:
        place = int(torch.searchsorted(reached, share * total))  # the first sum that is not below
        return values[min(place, len(values) - 1)]

    return lowest


def _tight(rows: Tensor, columns: Tensor) -> Tensor:
    """Which rows (R, H) and columns (R, W) survive -> the boxes around them (R, 4), of nothing the whole."""
    sides = []
    for alive in (columns, rows):
        length = alive.shape[1]
        first = alive.to(torch.uint8).argmax(1)  # the first of equal ones
        last = length - alive.flip(1).to(torch.uint8).argmax(1)
        sides.append((first, last))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], 1).float()


def _largest(heat: Tensor, level: Tensor, around: Tensor) -> Tensor:
    """Box of the component with most cells, neighbours also by corners; of equal ones the first in row order.

    Args:
        heat: (H, W).
        level: at or above which a cell survives.
        around: (4,) box around all survivors, in which the components lie.
    """
    x1, y1, x2, y2 = around.int().tolist()
    mask = (heat[y1:y2, x1:x2] >= level).to(torch.uint8).numpy()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    stats[0, cv2.CC_STAT_AREA] = 0  # what did not survive
    largest = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] == max(stats[:, cv2.CC_STAT_AREA].max(), 1))
    if len(largest) == 0:
        return around
    if len(largest) > 1:  # OpenCV numbers them by blocks of cells
        cells = labels.ravel()
        chosen = cells[np.isin(cells, largest).argmax()]
    else:
        chosen = largest[0]
    x, y, width, height, _ = stats[chosen].tolist()
    return torch.tensor([x1 + x, y1 + y, x1 + x + width, y1 + y + height], dtype=torch.float32)


def _wwbl_script(heat: Tensor, share: float) -> Tensor:
    """The box of what-is-where-by-looking@709c25c utils_grounding.generate_bbox, its mistakes included.

    Colour map and back, contours, non-maximum suppression of (x, y, w, h) read as corners, boxes of less than
    half the best mean dropped, and the box around the rest.
    """
    from matplotlib import colormaps
    from torchvision.ops import nms

    low, high = heat.amin(), heat.amax()
    if not high > low:
        return torch.tensor([0.0, 0.0, 1.0, 1.0])
    colours = colormaps["cubehelix"](((heat - low) / (high - low)).double().numpy())[..., :3] * 255
    grey = cv2.cvtColor(colours.astype(np.float32).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    _, grey = cv2.threshold(grey, int(share * grey.max()), 255, cv2.THRESH_TOZERO)
    contours, _ = cv2.findContours(grey, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return torch.tensor([0.0, 0.0, 1.0, 1.0])
    found = torch.tensor([cv2.boundingRect(contour) for contour in contours]).float()
    sides = found.int().tolist()
    means = torch.tensor([grey[y : y + h, x : x + w].mean() / 255 for x, y, w, h in sides]).float()
    kept = nms(found, means, 0.05)
    kept = kept[means[kept] > 0.5 * means.max()]
    corners = torch.cat([found[kept, :2], found[kept, :2] + found[kept, 2:]], 1)
    return torch.cat([corners[:, :2].amin(0), corners[:, 2:].amax(0)])
