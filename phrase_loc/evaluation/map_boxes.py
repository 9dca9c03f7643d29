"""From a full-size map to one tight box: thresholds by maximum, mean, range or energy."""

import cv2
import numpy as np
import torch
from torch import Tensor

from phrase_loc.evaluation.protocol import MapBox


def map_box(heat: Tensor, rule: MapBox) -> Tensor:
    """The tight box around what survives a threshold: (H, W) map -> (4,) xyxy in its pixels.

    Cells at or above the threshold survive. The whole map is the answer where nothing stands out: a map of
    zeros, or one that the threshold does not divide.
    """
    heat = heat.detach().cpu()
    if rule.rule == "wwbl_script":
        return _wwbl_script(heat, rule.value)
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
