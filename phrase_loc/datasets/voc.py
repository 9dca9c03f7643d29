"""PASCAL VOC detection sets in their official tree, as torchvision's VOCDetection lays it out.

    ROOT/VOCdevkit/VOC2007/{Annotations/*.xml, ImageSets/Main/<split>.txt, JPEGImages/*.jpg}

ROOT may also be `VOCdevkit` or the year's folder itself. Corners are 1-based and inclusive: all four lose 1,
so a box [x1, x2] names the first and the last pixel. A class whose boxes are all marked 'difficult' in an
image is left out, as everywhere in the literature; its difficult boxes count as truth when an easy one stands
beside them.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from phrase_loc.datasets.class_names import ClassName, class_names
from phrase_loc.datasets.class_samples import class_sample, stack, union_share
from phrase_loc.datasets.skipped import Skipped
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample


class VOC:
    """Images of a VOC split; a phrase for each class that an image shows.

    Args:
        root: folder that holds VOCdevkit, VOCdevkit itself, or the year's folder.
        split: name of the list in ImageSets/Main: test, trainval, val, train.
        year: 2007 to 2012.
        only_units: keep only classes that an ImageNet classifier has units for (class_samples.py).

    Attributes:
        skipped: (image, class) pairs and images that are not counted, with the reason.

    Raises:
        DataError: a folder or the list is missing, or no annotation can be read; a single broken annotation
            leaves the count and is named in `skipped`.
    """

    name = "voc"

    def __init__(self, root: Path, split: str = "test", year: int = 2007, only_units: bool = False) -> None:
        self.only_units = only_units
        self.folder = find_year(Path(root), year)
        self.skipped = Skipped()
        listing = self.folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            raise DataError(f"no list {listing}; unpack the official {split} part of VOC{year} there")
        names = listing.read_text(encoding="utf-8").split()
        if not names:
            raise DataError(f"the list {listing} is empty; unpack VOC{year} {split} again")
        read = (self._read(name) for name in names)
        self.samples = [sample for sample in read if sample is not None]
        self.skipped.refuse_if_empty(len(self.samples), f"the {split} list of {self.folder}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> GroundingSample:
        return self.samples[index]

    def _read(self, name: str) -> GroundingSample | None:
        try:
            size, objects = read_annotation(self.folder / "Annotations" / f"{name}.xml")
        except DataError as error:
            self.skipped.note("images", str(error))
            return None
        boxes = {c: stack([box for box, _ in found]) for c, found in objects.items()}
        played = {c: b for c, b in boxes.items() if not all(difficult for _, difficult in objects[c])}
        for c in objects.keys() - played.keys():
            self.skipped.note("classes", f"{name}: every {c.name} is marked difficult")
        if not played:
            self.skipped.note("images", f"{name}: no class to play")
            return None
        to_edges = torch.tensor([0.0, 0.0, 1.0, 1.0])  # last pixel -> the edge behind it
        return class_sample(
            name,
            self.folder / "JPEGImages" / f"{name}.jpg",
            size,
            played,
            [union_share(b + to_edges, size) for b in played.values()],
            others=len(objects) - len(played),
            only_units=self.only_units,
        )


def find_year(root: Path, year: int) -> Path:
    """The folder VOC<year> at or below `root`."""
    options = (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root)
    for folder in options:
        if (folder / "Annotations").is_dir():
            return folder
    raise DataError(f"no VOC{year} tree in {root}; expected {options[0]} with Annotations and ImageSets")


def read_annotation(
    path: Path,
) -> tuple[tuple[int, int], dict[ClassName, list[tuple[list[float], bool]]]]:
    """One XML file -> ((H, W), class -> [(box with 0-based inclusive corners, difficult)])."""
    known = {c.name: c for c in class_names("voc")}
    try:
        tree = SafeTree.parse(path).getroot()
        size = (_number(tree, "size/height"), _number(tree, "size/width"))
        objects: dict[ClassName, list[tuple[list[float], bool]]] = defaultdict(list)
        for thing in tree.findall("object"):
            name = (thing.findtext("name") or "").strip()
            if name not in known:
                raise DataError(f"{path} names the class {name!r}, which is none of VOC's 20; mend the file")
            box = [_number(thing, f"bndbox/{side}") - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
            if box[2] < box[0] or box[3] < box[1]:
                raise DataError(f"{path} holds a {name} box with xmax < xmin or ymax < ymin; mend the file")
            objects[known[name]].append((box, thing.findtext("difficult", "0").strip() == "1"))
    except FileNotFoundError:
        raise DataError(f"annotation {path} does not exist; unpack the official annotations") from None
    except (SafeTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"annotation {path} is not well-formed XML: {error}") from None
    except DefusedXmlException:
        raise DataError(f"annotation {path} declares entities, which are refused") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"annotation {path} lacks a number: {error}") from None
    if min(size) < 1:
        raise DataError(f"annotation {path} gives the size {size[1]:g} x {size[0]:g}; mend the file")
    return (int(size[0]), int(size[1])), dict(objects)


def _number(node: Any, path: str) -> float:
    text = node.findtext(path)
    if text is None:
        raise ValueError(f"no <{path}>")
    return float(text)
