"""COCO detection sets from the official JSON; truth is the union of the masks, made by pycocotools.

    ROOT/annotations/instances_<split>.json, ROOT/<split>/*.jpg        split: val2014, val2017, ...

Every annotation of a category counts, crowds too, as in the public re-runs of the pointing game. Categories go by
their names, whatever their ids. An annotation that fails takes its category in its image out of the count, since the
truth would be incomplete; one whose category cannot be told takes the whole image out. Masks are checked before
pycocotools sees them: its C code reads past the end of a malformed one.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from phrase_loc.datasets.annotations import Annotated, Box, ClassName, Size, brief, by_name, frame, number
from phrase_loc.errors import DataError
from phrase_loc.files import read_json
from phrase_loc.masks import checked
from phrase_loc.structures import GroundingSample

OWN = "use the official file, or ask for each by its own name with data.options.own_categories=true"
LONGEST = 200  # outline of a polygon, in widths and heights of its image
Object = dict[str, Any]


class COCO(Annotated):
    """Images of a COCO split with at least one annotation; a phrase for each category in an image.

    `facts["masks"]` holds per phrase the union of its instances as pycocotools' compressed RLE. With `own_categories`
    each name in the file is the phrase, COCO's or not. Raises a DataError where the JSON is missing, broken or of
    another kind, or a category is none of COCO's.
    """

    name = "coco"

    def __init__(
        self, root: Path, split: str = "val2014", only_units: bool = False, own_categories: bool = False
    ) -> None:
        super().__init__(only_units)
        self.images = Path(root) / split
        path = Path(root) / "annotations" / f"instances_{split}.json"
        if not path.is_file():
            raise DataError(f"no {path}; download COCO's annotations and unpack them there")
        content = read_json(path, "the annotations")
        content = content if isinstance(content, dict) else {}
        parts: list[Any] = [content.get(key) for key in ("images", "annotations", "categories")]
        if not all(isinstance(part, list) and part for part in parts):
            lists = "it lists no images, annotations or categories"
            raise DataError(f"{path} is no COCO instances file: {lists}; use the official one")
        listed, annotations, kinds = parts
        self.classes = categories(kinds, path.name, own_categories)
        images = self._by_id(listed)
        groups = self._by_image(annotations, images)
        annotations.clear()  # from here on each is freed with its image
        order = sorted(images, key=lambda key: (isinstance(key, str), key))
        self.fill(((brief(key), partial(self._read, images[key], groups)) for key in order), str(path))

    def _by_id(self, listed: list[Any]) -> dict[Any, Object]:
        """Id -> image; what has none, or shares it with another image, is named."""
        images: dict[Any, Object] = {}
        doubtful = set()
        for place, image in enumerate(listed, start=1):
            key = image.get("id") if isinstance(image, dict) else None
            if not _is_id(key):
                self.skipped.note("images", f"number {place} of the list: it has no id, got {brief(key)}")
            elif images.setdefault(key, image) != image:
                self.skipped.note("images", f"{brief(key)}: two images bear this id, so neither can be told")
                doubtful.add(key)
        return {key: image for key, image in images.items() if key not in doubtful}

    def _by_image(self, annotations: list[Any], images: dict[Any, Object]) -> dict[Any, list[Object]]:
        """Image id -> its annotations; one of no image is named, as is an id that comes again."""
        groups: dict[Any, list[Object]] = {key: [] for key in images}
        seen = set()
        for place, annotation in enumerate(annotations, start=1):
            known = annotation if isinstance(annotation, dict) else {}
            own, key = known.get("id"), known.get("image_id")
            called = f"annotation number {place}" if own is None else f"annotation {brief(own)}"
            if _is_id(own) and own in seen:
                self.skipped.note("annotations of one id (kept)", f"{called} is there again")
            seen |= {own} if _is_id(own) else set()
            if _is_id(key) and key in groups:
                groups[key].append(annotation)
            else:
                self.skipped.note("annotations", f"{called}: of no image that is listed")
        return groups

    def _read(self, image: Object, groups: dict[Any, list[Object]]) -> GroundingSample:
        annotations = groups.pop(image["id"])
        if not annotations:
            raise DataError("no annotation")
        file, name = image.get("file_name"), str(image["id"])
        if not isinstance(file, str) or not file.strip() or "\0" in file:
            raise DataError(f"file_name is {brief(file)}; the name of a photograph was expected")
        size = frame(number(image.get("height"), "height"), number(image.get("width"), "width"))
        found: dict[ClassName, list[tuple[Box, Any]]] = {}
        broken: set[ClassName] = set()
        for annotation in annotations:
            key, called = annotation.get("category_id"), f"annotation {brief(annotation.get('id'))}"
            if not _is_id(key) or key not in self.classes:
                raise DataError(f"{called} is of category {brief(key)}, which is not listed")
            kind = self.classes[key]
            try:
                box = self.fit(name, _corners(annotation.get("bbox")), size)
                found.setdefault(kind, []).append((box, mask(annotation.get("segmentation"), size)))
            except DataError as error:
                broken.add(kind)
                self.skipped.note("classes", f"{name}: every {kind.name} left out, since {called}: {error}")
        boxes, masks = dict[ClassName, list[Box]](), dict[ClassName, tuple[Any, float]]()
        for kind in [kind for kind in found if kind not in broken]:
            union = rle.merge([runs for _, runs in found[kind]])
            if area := float(rle.area(union)):
                boxes[kind] = [box for box, _ in found[kind]]
                masks[kind] = union, area / (size[0] * size[1])
            else:
                broken.add(kind)
                self.skipped.note(
                    "classes", f"{name}: every {kind.name} left out: no mask of it holds a pixel"
                )
        if not boxes:
            raise DataError("no category that can be counted")
        return self.class_sample(name, self.images / file, size, boxes, len(broken), masks=masks)


def categories(listed: list[Any], where: str, own: bool = False) -> dict[Any, ClassName]:
    """Id in the file -> class, by name; `own` takes every name as it is."""
    names: dict[Any, str] = {}
    for place, entry in enumerate(listed, start=1):
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not _is_id(key) or not isinstance(name, str) or not name.strip():
            why = "has no id or no name, so what it counts cannot be told; use the official instances file"
            raise DataError(f"category number {place} in {where} {why}")
        if names.setdefault(key, name.strip()) != name.strip():
            both = f"{names[key][:40]!r} and {name[:40]!r}"
            raise DataError(f"category {brief(key)} has two names in {where}: {both}")
    if not own:
        return by_name(names, where, OWN)
    return {key: ClassName(name, 0, name) for key, name in names.items()}


def mask(segmentation: Any, size: Size) -> Any:
    """Polygons or runs of one instance -> pycocotools' compressed RLE of an image of `size` (H, W).

    Raises a DataError for what is neither, or such that pycocotools would misread it.
    """
    height, width = size
    if isinstance(segmentation, list) and segmentation:
        polygons = [_polygon(points, size) for points in segmentation]
        return rle.merge(rle.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict):
        raise DataError(f"its segmentation is {brief(segmentation)}; polygons or runs were expected")
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise DataError(f"its runs are of another size than the {width} x {height} image")
    if isinstance(counts, str) and counts.isascii():
        return checked(size, counts)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise DataError("its runs are no whole numbers from 0")
    if sum(counts) != height * width:
        raise DataError(f"its runs do not add up to the {height * width} pixels of the image")
    return rle.frPyObjects({"counts": counts, "size": [height, width]}, height, width)


def _polygon(points: Any, size: Size) -> list[float]:
    """A polygon, checked: pycocotools walks along it pixel by pixel, so it must not lie far out or be endless."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        count = len(points) if isinstance(points, list) else brief(points)
        raise DataError(f"its polygon has {count} numbers; x and y of at least three points were expected")
    if not set(map(type, points)) <= {int, float}:
        points = [number(value, "its polygon") for value in points]
    try:
        corners = np.array(points, dtype=np.float64).reshape(-1, 2)  # x, y
    except OverflowError:
        raise DataError("its polygon holds a number that is too large") from None
    sides = np.array([size[1], size[0]])
    walked = np.abs(np.diff(corners, axis=0, append=corners[:1])).sum()
    inside = (corners >= -sides).all() and (corners <= 2 * sides).all()  # false where one is NaN
    if not inside or walked > LONGEST * sides.sum():
        raise DataError(f"its polygon reaches far out of the {size[1]} x {size[0]} image, or is no outline")
    return points


def _corners(box: Any) -> list[float]:
    """From xywh to xyxy."""
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"its bbox is {brief(box)}; x, y, width and height were expected")
    x, y, width, height = (number(value, "its bbox") for value in box)
    return [x, y, x + width, y + height]


def _is_id(key: Any) -> bool:
    return isinstance(key, (int, str)) and not isinstance(key, bool)
