"""Objects of named classes in an image -> a GroundingSample whose phrases are the class names.

Shared by VOC, COCO and YOLO labels. One phrase stands for one class in one image, and its truth is every
instance of the class: the unit that the pointing game counts.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phrase_loc.datasets.class_names import ClassName, imagenet_units
from phrase_loc.structures import GroundingSample, Phrase

#: A class counts as hard when it covers less than this share of the image and another class is present.
HARD_SHARE = 0.25


def class_sample(
    image_id: str,
    path: Path,
    size: tuple[int, int],
    objects: Mapping[ClassName, Tensor],
    shares: Sequence[float],
    others: int = 0,
    facts: dict[str, tuple[Any, ...]] | None = None,
    only_units: bool = False,
) -> GroundingSample:
    """A sample with one phrase per class.

    Args:
        image_id: unique name of the image.
        path: its file.
        size: (H, W) in pixels.
        objects: class -> its instances' boxes (M, 4) xyxy in that frame, in the order of the phrases.
        shares: per class the share of the image that the union of its instances covers.
        others: classes of the image that are present and not in `objects` (they still make the rest hard).
        facts: further per-phrase tuples of the dataset.
        only_units: keep only the classes that an ImageNet classifier has units for (imagenet_units), so that
            it and a text model can be compared on what both can play; what is hard stays as it was.

    Returns:
        The sample; `facts["hard"]` holds per phrase whether the pair belongs to the Difficult subset of the
        pointing game: share < 1/4 and another class in the image. That is the paper's rule; its authors' own
        list of pairs is not shipped, so counts can differ by a few.
    """
    crowded = len(objects) + others > 1
    hard = tuple(crowded and share < HARD_SHARE for share in shares)
    kept = [i for i, c in enumerate(objects) if not only_units or c.phrase in imagenet_units()]
    classes, boxes = list(objects), list(objects.values())
    columns = {"hard": hard, **(facts or {})}
    return GroundingSample(
        image_id=image_id,
        path=path,
        size=size,
        phrases=tuple(
            Phrase(text=classes[i].phrase, labels=(classes[i].name,), entity=classes[i].name) for i in kept
        ),
        boxes=tuple(boxes[i] for i in kept),
        facts={name: tuple(column[i] for i in kept) for name, column in columns.items()},
    )


def union_share(boxes: Tensor, size: tuple[int, int]) -> float:
    """Share of an image of `size` (H, W) that at least one of the boxes (M, 4) covers, by whole pixels."""
    height, width = size
    corners = np.round(boxes.double().numpy()).clip(0, [width, height, width, height])
    corners = corners[np.argsort(corners[:, 1])]  # by upper edge
    columns = np.unique(corners[:, [0, 2]])
    covered = 0.0
    for left, right in pairwise(columns.tolist()):  # in a strip between two edges rows are intervals
        top, bottom = corners[(corners[:, 0] <= left) & (corners[:, 2] >= right)][:, [1, 3]].T
        if len(top):
            reached = np.maximum.accumulate(np.concatenate([[0.0], bottom]))
            covered += (right - left) * float((bottom - np.maximum(top, reached[:-1])).clip(min=0).sum())
    return covered / (height * width)


def stack(boxes: Sequence[Sequence[float]]) -> Tensor:
    """Corner lists -> (M, 4) float32, also for none at all."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
