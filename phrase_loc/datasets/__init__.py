"""Evaluation sets: name -> class, called as `DATASETS[name](root=Path, split=str, **options)`.

Each is a Sequence of GroundingSample with `name` and `skipped`; annotations are read at once, images never.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from phrase_loc.datasets.flickr30k import Flickr30kEntities


def _voc(root: Path, split: str = "test", **options: Any) -> Any:
    from phrase_loc.datasets.voc import VOC

    return VOC(root, split or "test", **options)


def _coco(root: Path, split: str = "val2014", **options: Any) -> Any:
    from phrase_loc.datasets.coco import COCO

    return COCO(root, split or "val2014", **options)


def _yolo(root: Path, split: str = "", **options: Any) -> Any:
    from phrase_loc.datasets.yolo import YOLO

    return YOLO(root, split, **options)


def _imagenet(root: Path, split: str = "val", **options: Any) -> Any:
    from phrase_loc.datasets.imagenet import ImageNet

    return ImageNet(root, split or "val", **options)


DATASETS: dict[str, Callable[..., Any]] = {
    "flickr30k": Flickr30kEntities,
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "imagenet": _imagenet,
}
