"""From a full-size map to one tight box: thresholds by maximum, mean, range or energy."""

import cv2
import torch
from torch import Tensor

from phrase_loc.evaluation.protocol import MapBox


def map_box(heat: Tensor, rule: MapBox) -> Tensor:
    """The tight box around what survives a threshold: (H, W) map -> (4,) xyxy in its pixels.

    Cells at or above the threshold survive. The whole map is the answer where nothing stands out: a map of
    zeros, or one that the threshold does not divide.
    """
    if rule.component == "largest":
        return _largest(heat >= threshold(heat, rule))
    return _tight(heat >= threshold(heat, rule))


def threshold(heat: Tensor, rule: MapBox) -> Tensor:
    """The value at or above which a cell of the map survives: (H, W) -> ()."""
    if rule.rule == "max":
        return rule.value * heat.amax()
    if rule.rule == "mean":
        return rule.value * heat.mean()
    if rule.rule == "range":
        low, high = heat.amin(), heat.amax()
        return low + rule.value * (high - low)
    values = heat.flatten().sort(descending=True).values
    reached = values.double().cumsum(0) >= rule.value * values.double().sum()
    return values[int(reached.nonzero()[0])] if bool(reached.any()) else values[-1]


def _tight(mask: Tensor) -> Tensor:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if len(rows) == 0:
        return torch.tensor([0.0, 0.0, mask.shape[1], mask.shape[0]])
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def _largest(mask: Tensor) -> Tensor:
    """Box of the component with most cells, neighbours also by corners; the first of equal ones."""
    image = mask.to(torch.uint8).cpu().numpy()
    number, _, stats, _ = cv2.connectedComponentsWithStats(image, connectivity=8)
    if number < 2:
        return _tight(mask)
    x, y, width, height, _ = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    return torch.tensor([x, y, x + width, y + height], dtype=torch.float32)
