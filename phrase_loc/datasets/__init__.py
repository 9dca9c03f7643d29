"""Evaluation sets: name -> class, called as `DATASETS[name](root=Path, split=str, **options)`.

Each is an `Annotated` (annotations.py): a Sequence of GroundingSample with `name` and `skipped`; annotations
are read at once, images never.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from phrase_loc.datasets.annotations import Annotated
from phrase_loc.errors import ConfigError, nearest


def _made_by(module: str, kind: str) -> Callable[..., Annotated]:
    """A class of this folder, imported when asked for: pycocotools is not needed for Flickr30k."""

    def make(root: Path, split: str = "", **options: Any) -> Annotated:
        made = getattr(import_module(f"phrase_loc.datasets.{module}"), kind)
        _check(made, options)
        return made(Path(root), **({"split": split} if split else {}), **options)

    return make


def _check(kind: type, options: dict[str, Any]) -> None:
    """Refuse an option that the class does not take, or a value of another type than its default."""
    taken = dict(list(inspect.signature(kind).parameters.items())[2:])
    for name, value in options.items():
        if name not in taken:
            there = ", ".join(taken) or "none"
            raise ConfigError(
                f"{kind.__name__} has no option {name!r}{nearest(str(name), taken)}; data.options: {there}"
            )
        default = taken[name].default
        if default is not None and (type(value) is not type(default) or (type(value) is int and value < 0)):
            what = {bool: "true or false", int: "a whole number from 0"}[type(default)]
            raise ConfigError(f"data.options.{name} is {what}, got {value!r:.80}")


DATASETS: dict[str, Callable[..., Annotated]] = {
    "flickr30k": _made_by("flickr30k", "Flickr30kEntities"),
    "voc": _made_by("voc", "VOC"),
    "coco": _made_by("coco", "COCO"),
    "yolo": _made_by("yolo", "YOLO"),
    "imagenet": _made_by("imagenet", "ImageNet"),
}
