"""Evaluation sets: name -> class, called as `DATASETS[name](root=Path, split=str, **options)`.

Each is an `Annotated` (annotations.py): a Sequence of GroundingSample with `name` and `skipped`; annotations
are read at once, images never.
"""

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from phrase_loc.datasets.annotations import Annotated
from phrase_loc.errors import ConfigError, nearest

KINDS = {bool: "true or false", int: "a whole number from 0"}


def _made(module: str, kind: str, /, root: Path, split: str = "", **options: Any) -> Annotated:
    """A set of a class that is imported when asked for, since pycocotools is not needed for Flickr30k."""
    if not isinstance(root, (str, Path)) or not isinstance(split or "", str):
        raise ConfigError(
            f"the root of a set is a path and its split a name, got {root!r:.80} and {split!r:.80}"
        )
    made = getattr(import_module(f"phrase_loc.datasets.{module}"), kind)
    taken = dict(list(inspect.signature(made).parameters.items())[2:])
    for name, value in options.items():
        if name not in taken:
            there = f"{nearest(str(name), taken)}; data.options: {', '.join(taken) or 'none'}"
            raise ConfigError(f"{kind} has no option {name!r}{there}")
        default = taken[name].default
        if default is not None and (type(value) is not type(default) or (type(value) is int and value < 0)):
            raise ConfigError(f"data.options.{name} is {KINDS[type(default)]}, got {value!r:.80}")
    return made(Path(root), **({"split": split} if split else {}), **options)


DATASETS: dict[str, Callable[..., Annotated]] = {
    "flickr30k": partial(_made, "flickr30k", "Flickr30kEntities")
}
DATASETS |= {n.lower(): partial(_made, n.lower(), n) for n in ("VOC", "COCO", "YOLO", "ImageNet", "Table")}
