"""COCO-style YOLO labels: one text file an image, `class cx cy width height` in shares of the image.

    ROOT/images/[<split>/]*.jpg, ROOT/labels/[<split>/]*.txt, [ROOT/classes.txt, ROOT/data.yaml or ROOT/../data.yaml]

Class numbers are COCO's 80 in contiguous order, or the order of a list of names given; a list that lies in the
tree is read by its names and must be of COCO's. A line of three or more points, `class x1 y1 x2 y2 x3 y3 ...`, is
an outline and counts as the box around it. Boxes refer to the upright photograph. They stand for masks: a hit on
a box is easier than a hit on a mask, so figures never stand beside those of `coco`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from phrase_loc.config import parsed_yaml
from phrase_loc.datasets.annotations import Annotated, ClassName, brief, by_name, class_names, frame, number
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import read_text
from phrase_loc.images import IMAGE_ENDINGS, picture_size
from phrase_loc.structures import GroundingSample

log = logging.getLogger(__name__)

ROUNDING = 1e-3  # shares of 1.0000001 are rounding; beyond this they are no shares
ROBOFLOW = "data.yaml"
LISTS = ("classes.txt", "obj.names", ROBOFLOW, "dataset.yaml")
OWN = "give the names of your classes in the order of their numbers, data.options.names=[...]"


class YOLO(Annotated):
    """Images with YOLO labels; a phrase for each class in an image; `names` in the order of the labels' numbers."""

    name = "yolo"

    def __init__(
        self, root: Path, split: str = "", names: Sequence[str] | None = None, only_units: bool = False
    ) -> None:
        super().__init__(only_units)
        images, self.labels = Path(root) / "images" / split, Path(root) / "labels" / split
        for folder in (images, self.labels):
            if not folder.is_dir():
                raise DataError(f"no folder {folder}; expected images and labels side by side")
        self.classes = own_names(names) if names is not None else listed_names(Path(root))
        self.fill(self._entries(sorted(images.iterdir())), f"the pair {images} and {self.labels}")

    def _entries(self, found: list[Path]) -> Iterator[tuple[str, partial[GroundingSample]]]:
        """The photographs, and notes of files and labels that belong to none."""
        for path in found:
            if path.suffix.lower() in IMAGE_ENDINGS:
                yield path.name, partial(self._read, path)
            else:
                why = "a folder; data.split names it" if path.is_dir() else "its ending is none that is read"
                self.skipped.note("files", f"{path.name}: {why}")
        stems = {path.stem for path in found} | {Path(name).stem for name in LISTS}
        for path in sorted(self.labels.glob("*.txt")):
            if path.stem not in stems:
                self.skipped.note("images", f"{path.name}: labels without a photograph")

    def _read(self, path: Path) -> GroundingSample:
        labels = self.labels / f"{path.stem}.txt"
        lines = read_text(labels, "label file").splitlines() if labels.is_file() else []
        found = [self._label(t, f"{labels.name} line {n}") for n, t in enumerate(lines, 1) if t.strip()]
        if not found:
            raise DataError("no label")
        rows, columns = size = frame(*picture_size(path)[0])
        boxes: dict[ClassName, list[list[float]]] = {}
        for kind, (x1, y1, x2, y2) in found:
            box = self.fit(path.name, [x1 * columns, y1 * rows, x2 * columns, y2 * rows], size)
            boxes.setdefault(kind, []).append(box)
        return self.class_sample(path.stem, path, size, boxes)

    def _label(self, line: str, where: str) -> tuple[ClassName, list[float]]:
        """`class cx cy w h`, or an outline -> the class and its box x1, y1, x2, y2 in shares of the image."""
        got = f"got {brief(line)}; mend the label"
        try:
            key, *shares = (number(field, "a field") for field in line.split())
        except DataError as error:
            raise DataError(f"{where}: {error} in {brief(line)}; mend the label") from None
        outline = len(shares) >= 6 and len(shares) % 2 == 0
        if len(shares) != 4 and not outline:
            expected = "`class cx cy width height` or an outline of three or more points"
            raise DataError(f"{where}: expected {expected}, {got}")
        if key not in self.classes:
            listed = f"none of the {len(self.classes)} classes; give the list of names"
            raise DataError(f"{where}: class {key:g} is {listed}")
        if not all(-ROUNDING <= share <= 1 + ROUNDING for share in shares):
            raise DataError(f"{where}: expected shares of the image between 0 and 1, {got}")
        if outline:
            x1, x2, y1, y2 = min(shares[::2]), max(shares[::2]), min(shares[1::2]), max(shares[1::2])
            shares = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        cx, cy, width, height = shares
        if width <= 0 or height <= 0:
            raise DataError(f"{where}: a box without width or height, {got}")
        return self.classes[int(key)], [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]


def own_names(names: Sequence[str]) -> dict[int, ClassName]:
    """Names in the order of the labels' numbers -> number -> class; those of VOC and COCO have their phrases."""
    if isinstance(names, str) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        expected = "a list of class names in the order of the labels"
        raise ConfigError(f"data.options.names is {expected}, got {names!r:.80}")
    phrases = {c.name: c.phrase for source in ("voc", "coco") for c in class_names(source)}
    return {i: ClassName(n, i, phrases.get(n, n)) for i, n in enumerate(names)}


def listed_names(root: Path) -> dict[int, ClassName]:
    """Number -> class by the lists of names in the tree, or the data.yaml above it where it is a split of Roboflow's.

    COCO's 80 in their order where there is none, which the log says.
    """
    lists: dict[Path, dict[int, str]] = {}
    places = [folder / name for folder in (root, root / "labels") for name in LISTS]
    above = [root.absolute().parent / ROBOFLOW]  # other lists there need not be of this set
    for path in [*filter(Path.is_file, places)] or filter(Path.is_file, above):
        with suppress(DataError) if lists else nullcontext():  # a dataset.yaml beside a list may name none
            lists[path] = _names(path)
    found = [by_name(names, path.name, OWN) for path, names in lists.items()]
    for path, names in zip(lists, found, strict=True):
        if names != found[0]:
            raise DataError(f"{next(iter(lists))} and {path} name other classes; remove one, or {OWN}")
    if not found:
        log.warning("%s has no list of names: class numbers are COCO's 80 in order; if not, %s", root, OWN)
    return found[0] if found else dict(enumerate(class_names("coco")))


def _names(path: Path) -> dict[int, str]:
    text = read_text(path, "the list of classes")
    names: Any = text.strip().splitlines()
    if path.suffix == ".yaml":
        tree = parsed_yaml(text, str(path), dict[str, dict[str, str] | list[str]])
        if isinstance(tree, dict) and "kpt_shape" in tree:
            told = "whose points would be read as outlines; keep five numbers of each line, and no kpt_shape"
            raise ConfigError(f"{path} is of labels of poses (kpt_shape), {told}")
        names = tree.get("names") if isinstance(tree, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    listed = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    if not names or not listed or not all(str(n).isdecimal() for n in names):
        raise DataError(f"{path} has no list of class names (in YAML under `names`); mend it, or {OWN}")
    if len({int(n) for n in names}) < len(names):
        raise DataError(f"{path} gives one number to two names (0 and 00 are one); mend it, or {OWN}")
    return {int(n): name.strip() for n, name in names.items()}
