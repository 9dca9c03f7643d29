"""COCO-style YOLO labels: one text file an image, `class cx cy width height` in shares of the image.

    ROOT/images/[<split>/]*.jpg, ROOT/labels/[<split>/]*.txt

Class numbers are COCO's 80 in contiguous order, or the order of a list of names given. Boxes stand for masks:
a hit on a box is easier than a hit on a mask, so figures never stand beside those of `coco`.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from phrase_loc.datasets.class_names import ClassName, class_names
from phrase_loc.datasets.class_samples import class_sample, stack, union_share
from phrase_loc.datasets.skipped import Skipped
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample

#: Class number and (cx, cy, width, height) in shares of the image.
Label = tuple[int, tuple[float, float, float, float]]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class YOLO:
    """Images with YOLO labels; a phrase for each class in an image.

    Args:
        root: folder with `images` and `labels`.
        split: sub-folder of both, or '' when the files lie in them directly.
        names: class names in the order of the labels' numbers; COCO's 80 when not given.
        only_units: keep only classes that an ImageNet classifier has units for (class_samples.py).

    Raises:
        DataError: a folder is missing, or nothing in them can be used; an image whose label file is broken
            leaves the count and is named in `skipped`.
    """

    name = "yolo"

    def __init__(
        self, root: Path, split: str = "", names: Sequence[str] | None = None, only_units: bool = False
    ) -> None:
        self.only_units = only_units
        images, self.labels = Path(root) / "images" / split, Path(root) / "labels" / split
        for folder in (images, self.labels):
            if not folder.is_dir():
                raise DataError(f"no folder {folder}; expected images and labels side by side")
        self.skipped = Skipped()
        self.classes = _classes(names)
        self.samples: list[GroundingSample] = []
        for path in sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES):
            try:
                labels = read_labels(self.labels / f"{path.stem}.txt", len(self.classes))
                size = image_size(path) if labels else (0, 0)
            except DataError as error:
                self.skipped.note("images", str(error))
                continue
            if labels:
                self.samples.append(self._sample(path, size, labels))
            else:
                self.skipped.note("images", f"{path.name}: no label")
        self.skipped.refuse_if_empty(len(self.samples), f"the pair {images} and {self.labels}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> GroundingSample:
        return self.samples[index]

    def _sample(self, path: Path, size: tuple[int, int], labels: list[Label]) -> GroundingSample:
        found: dict[ClassName, list[list[float]]] = defaultdict(list)
        for key, shares in labels:
            found[self.classes[key]].append(corners(shares, size))
        boxes = {c: stack(corners) for c, corners in found.items()}
        covered = [union_share(b, size) for b in boxes.values()]
        return class_sample(path.stem, path, size, boxes, covered, only_units=self.only_units)


def read_labels(path: Path, classes: int) -> list[Label]:
    """A label file -> its (class number, (cx, cy, w, h)); none when there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError:
        raise DataError(f"label file {path} is not UTF-8 text; expected YOLO labels") from None
    return [read_line(line, classes, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def read_line(line: str, classes: int, where: str) -> Label:
    """`class cx cy w h`, checked."""
    try:
        key, cx, cy, width, height = (float(field) for field in line.split())
    except ValueError:
        raise DataError(
            f"{where}: expected `class cx cy width height`, got {line!r}; mend the label"
        ) from None
    if key != int(key) or not 0 <= key < classes:
        raise DataError(f"{where}: class {key:g} is none of the {classes} classes; give the list of names")
    if not all(0 <= v <= 1 for v in (cx, cy, width, height)) or width == 0 or height == 0:
        raise DataError(
            f"{where}: expected shares of the image between 0 and 1, got {line!r}; mend the label"
        )
    return int(key), (cx, cy, width, height)


def corners(shares: tuple[float, float, float, float], size: tuple[int, int]) -> list[float]:
    """(cx, cy, w, h) in shares -> [x1, y1, x2, y2] in pixels of an image of `size` (H, W), cut to it."""
    cx, cy, width, height = shares
    rows, columns = size
    x1, x2 = (cx - width / 2) * columns, (cx + width / 2) * columns
    y1, y2 = (cy - height / 2) * rows, (cy + height / 2) * rows
    return [max(x1, 0.0), max(y1, 0.0), min(x2, columns), min(y2, rows)]


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture from its header, upright."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from None
    return (width, height) if turned else (height, width)


def _classes(names: Sequence[str] | None) -> tuple[ClassName, ...]:
    if names is None:
        return class_names("coco")
    phrases = {c.name: c.phrase for source in ("voc", "coco") for c in class_names(source)}
    return tuple(ClassName(n, i, phrases.get(n, n)) for i, n in enumerate(names))
