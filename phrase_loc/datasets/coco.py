"""COCO detection sets from the official JSON, through pycocotools; truth is the union of the masks.

    ROOT/annotations/instances_<split>.json, ROOT/<split>/*.jpg        split: val2014, val2017, ...

Every annotation of a category counts, crowds too, as in the public re-runs of the pointing game. Boxes are
continuous xywh from 0 and become xyxy unchanged.
"""

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as rle
from pycocotools.coco import COCO as Index

from phrase_loc.datasets.class_names import ClassName, class_names
from phrase_loc.datasets.class_samples import class_sample, stack
from phrase_loc.datasets.skipped import Skipped
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample


class COCO:
    """Images of a COCO split with at least one annotation; a phrase for each category in an image.

    `facts["masks"]` holds per phrase the union of its instances as pycocotools' compressed RLE.

    Args:
        root: folder with `annotations` and the split's images.
        split: val2014, val2017, ...
        only_units: keep only classes that an ImageNet classifier has units for (class_samples.py).

    Raises:
        DataError: the JSON is missing, broken or of another kind.
    """

    name = "coco"

    def __init__(self, root: Path, split: str = "val2014", only_units: bool = False) -> None:
        self.only_units = only_units
        self.images = Path(root) / split
        self.skipped = Skipped()
        self.index = read_instances(Path(root) / "annotations" / f"instances_{split}.json")
        self.classes = known_categories(self.index)
        self.ids: list[int] = []
        self._last: tuple[int, GroundingSample] | None = None
        for key in sorted(self.index.imgs):
            if self.index.imgToAnns.get(key):
                self.ids.append(key)
            else:
                self.skipped.note("images", f"{key}: no annotation")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> GroundingSample:
        if self._last is None or self._last[0] != index:  # a pass asks for the same image again and again
            self._last = (index, self._sample(self.ids[index]))
        return self._last[1]

    def _sample(self, key: int) -> GroundingSample:
        image = self.index.imgs[key]
        size = (int(image["height"]), int(image["width"]))
        found: dict[ClassName, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self.index.imgToAnns[image["id"]]:
            found[self.classes[annotation["category_id"]]].append(annotation)
        masks = tuple(union_mask(self.index, group) for group in found.values())
        return class_sample(
            str(image["id"]),
            self.images / image["file_name"],
            size,
            {c: stack([_corners(a["bbox"]) for a in group]) for c, group in found.items()},
            [float(rle.area(mask)) / (size[0] * size[1]) for mask in masks],
            facts={"masks": masks},
            only_units=self.only_units,
        )


def read_instances(path: Path) -> Index:
    """The index that pycocotools builds of an `instances_*.json`, without its printing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            index = Index(str(path))
    except FileNotFoundError:
        raise DataError(f"no {path}; download COCO's annotations and unpack them there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    except (AssertionError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no COCO instances file: {type(error).__name__} {error}") from None
    if not index.imgs or not index.anns or not index.cats:
        raise DataError(f"{path} lists no images, annotations or categories; use the official instances file")
    return index


def known_categories(index: Index) -> dict[int, ClassName]:
    """Official category id -> our class, by number; a category that is not among COCO's 80 is an error."""
    known = {c.number: c for c in class_names("coco")}
    strange = sorted(set(index.cats) - set(known))
    if strange:
        raise DataError(f"category ids {strange} are not among COCO's 80; use the official instances file")
    return {number: known[number] for number in index.cats}


def union_mask(index: Index, annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Polygons and crowds of one class in one image -> one compressed RLE."""
    try:
        return rle.merge([index.annToRLE(a) for a in annotations])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"annotation {annotations[0].get('id')} has no usable segmentation: {error}"
        ) from None


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]
