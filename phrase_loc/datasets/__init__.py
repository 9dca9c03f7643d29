"""Evaluation sets: name -> class, called as `DATASETS[name](root=Path, split=str, **options)`.

Each is a Sequence of GroundingSample with `name` and `skipped`; annotations are read at once, images never.
"""

from collections.abc import Callable
from typing import Any

from phrase_loc.datasets.flickr30k import Flickr30kEntities

DATASETS: dict[str, Callable[..., Any]] = {
    "flickr30k": Flickr30kEntities,
}
