"""From a map to one tight box, and ImageNet localization: a threshold chosen on images that are not reported.

The evaluator has scored every threshold of a rule (`protocols.GRIDS`) in one pass. Here the images are parted by a
hash of their name; for each method the threshold with the highest accuracy on the held-out part is taken (the first
of equal ones), and the tables of the other part alone go into the report.

Values are errors in percent, as the literature has them:

    error          the class is given; IoU < 0.5 with every box of it
    top1_error     the classifier's first class is wrong, or its box is
    top5_error     none of its first five classes is right with a right box. The box of the right class is
                   that of the class given, so both follow from the class's rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from phrase_loc.boxes import enclosing
from phrase_loc.errors import DataError
from phrase_loc.evaluation.protocols import MapBox, Protocol
from phrase_loc.evaluation.rows import Table
from phrase_loc.evaluation.scoring import hashed

if TYPE_CHECKING:
    from phrase_loc.evaluation.run import Evaluation

NOTE_TINY = "64-pixel photographs, upsampled: never beside a figure of ImageNet"
Part = NDArray[np.bool_]


def map_boxes(heat: Tensor, rules: Sequence[MapBox]) -> Tensor:
    """The tight boxes around what survives each rule's threshold: (H, W) map >= 0 -> (R, 4) in its pixels.

    Cells at or above the threshold survive. The whole map is the answer where nothing stands out: a map of
    zeros, or one that the threshold does not divide. Many rules cost little more than one: a row survives
    where its maximum does, so the box around all survivors needs no mask.
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


def thresholds(heat: Tensor, rules: Sequence[MapBox]) -> Tensor:
    """The value at or above which a cell of the map survives, for each rule: (H, W) -> (R,)."""
    low, high, mean = heat.amin(), heat.amax(), heat.mean()
    levels: dict[str, Callable[[float], Tensor]] = {
        "max": lambda value: value * high,
        "mean": lambda value: value * mean,
        "range": lambda value: low + value * (high - low),
        "wwbl_script": lambda value: high,  # thresholds for itself
    }
    if any(rule.rule == "energy" for rule in rules):
        values = heat.flatten().sort(descending=True).values
        reached, total = values.double().cumsum(0), values.double().sum()

        def lowest(share: float) -> Tensor:
            """The lowest value of the smallest set of cells that holds a share of the sum."""
            place = int(torch.searchsorted(reached, share * total))  # the first sum that is not below
            return values[min(place, len(values) - 1)]

        levels["energy"] = lowest
    return torch.stack([levels[rule.rule](rule.value) for rule in rules])


def _tight(rows: Tensor, columns: Tensor) -> Tensor:
    """Which rows (R, H) and columns (R, W) survive -> the boxes around them (R, 4), of nothing the whole."""
    first, last = [], []
    for alive in (columns.to(torch.uint8), rows.to(torch.uint8)):
        first.append(alive.argmax(1))  # the first of equal ones
        last.append(alive.shape[1] - alive.flip(1).argmax(1))
    return torch.stack([*first, *last], 1).float()


def _largest(heat: Tensor, level: Tensor, around: Tensor) -> Tensor:
    """Box of the component with most cells, neighbours also by corners; of equal ones the first in row order.

    `around` (4,) is the box of all cells at or above the level.
    """
    x1, y1, x2, y2 = around.int().tolist()
    labels, count = ndimage.label(heat[y1:y2, x1:x2] >= level, np.ones((3, 3)))  # numbered in row order
    if count == 0:
        return around
    rows, columns = ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    return torch.tensor([columns.start, rows.start, columns.stop, rows.stop]) + around[[0, 1, 0, 1]]


def _wwbl_script(heat: Tensor, share: float) -> Tensor:
    """The box of what-is-where-by-looking@709c25c utils_grounding.generate_bbox, its mistakes included.

    Colour map and back, contours, non-maximum suppression of (x, y, w, h) read as corners, boxes of less than
    half the best mean dropped, and the box around the rest.
    """
    import cv2
    from matplotlib import colormaps
    from torchvision.ops import nms

    low, high, nothing = heat.amin(), heat.amax(), torch.tensor([0.0, 0.0, 1.0, 1.0])
    if not high > low:
        return nothing
    colours = colormaps["cubehelix"](((heat - low) / (high - low)).double().numpy())[..., :3] * 255
    grey = cv2.cvtColor(colours.astype(np.float32).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    _, grey = cv2.threshold(grey, int(share * grey.max()), 255, cv2.THRESH_TOZERO)
    contours, _ = cv2.findContours(grey, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return nothing
    found = torch.tensor([cv2.boundingRect(contour) for contour in contours]).float()
    sides = found.int().tolist()
    means = torch.tensor([grey[y : y + h, x : x + w].mean() / 255 for x, y, w, h in sides]).float()
    kept = nms(found, means, 0.05)
    kept = kept[means[kept] > 0.5 * means.max()]
    corners = torch.cat([found[kept, :2], found[kept, :2] + found[kept, 2:]], 1)
    return enclosing(corners)


def select_thresholds(evaluation: "Evaluation", held_out: float) -> "Evaluation":
    """The evaluation of the images that were not held out, each method with the threshold it chose.

    Raises DataError: one of the two parts is empty.
    """
    plan = evaluation.plan
    held = np.array([is_held_out(sample.image_id, held_out) for sample in plan.samples])
    if not held.any() or held.all():
        raise DataError(f"{len(held)} images are too few to hold out {held_out:g} of them; change held_out")
    tables, notes = dict(evaluation.rows.tables), {}
    for protocol, method in product(plan.protocols, plan.methods):
        key = (protocol.name, method.name)
        number = best_threshold(protocol, tables[key], held)
        tables[key] = reported(protocol, tables[key], number, ~held)
        rule = protocol.sweep[number]
        chosen = {"rule": rule.rule, "value": rule.value, "component": rule.component}
        notes[key] = {
            "threshold": chosen | {"held_out_images": int(held.sum())},
            "by_type": {},  # a thousand classes with a few images each say nothing
            **({"note": NOTE_TINY} if plan.dataset == "tiny_imagenet" else {}),
        }
    return replace(evaluation, rows=replace(evaluation.rows, tables=tables), notes=notes)


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image belongs to the part on which thresholds are chosen; the same on every machine."""
    return hashed(image_id) % 10_000 < share * 10_000


def best_threshold(protocol: Protocol, table: Table, held: Part) -> int:
    """Place in the sweep of the highest accuracy on the held-out images (I,), the first of equal ones."""
    hits = protocol.correct(table.column("ious", len(protocol.sweep)))[held[table.image]]
    return int(hits.mean(0).argmax()) if len(hits) else 0


def reported(protocol: Protocol, table: Table, number: int, part: Part) -> Table:
    """A method's table with one threshold of the sweep, on the images (I,) of one part."""
    tried = len(protocol.sweep)
    overlap, rank = table.column("ious", tried)[:, number], table.column("rank")
    hit = protocol.correct(overlap).astype(np.float64)
    columns = {"accuracy": hit, "error": 1 - hit}
    if not np.isnan(rank).any():
        columns |= {f"top{k}_error": 1 - hit * (rank < k) for k in (1, 5)}
    columns |= {"iou": overlap, "box": table.column("boxes", tried, 4)[:, number]}
    return Table(table.things, columns | {"known": table.column("known")}).take(part[table.image])
