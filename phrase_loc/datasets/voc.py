"""PASCAL VOC detection sets in their official tree, as torchvision's VOCDetection lays it out.

    ROOT/VOCdevkit/VOC2007/{Annotations/*.xml, ImageSets/Main/<split>.txt, JPEGImages/*.jpg}

ROOT may also be `VOCdevkit` or the year's folder itself. Corners are 1-based and inclusive: all four lose 1,
so a box [x1, x2] names the first and the last pixel. A class whose boxes are all marked 'difficult' in an
image is left out, as everywhere in the literature; its difficult boxes count as truth when an easy one stands
beside them. Classes go by their names; an image that names another class than VOC's 20, or holds a box that is no
truth (annotations.py), leaves the count and is named. For classes of your own write YOLO labels (yolo.py).
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

import torch

from phrase_loc.datasets.annotations import Annotated, brief, read_ids, read_xml, xml_box, xml_frame
from phrase_loc.datasets.classes import ClassName, class_names, class_sample, stack, union_share
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample


class VOC(Annotated):
    """Images of a VOC split; a phrase for each class that an image shows.

    Args:
        root: folder that holds VOCdevkit, VOCdevkit itself, or the year's folder.
        split: name of the list in ImageSets/Main: test, trainval, val, train.
        year: 2007 to 2012.
        only_units: keep only classes that an ImageNet classifier has units for (classes.py).

    Raises:
        DataError: a folder or the list is missing, or no annotation can be read.
    """

    name = "voc"

    def __init__(self, root: Path, split: str = "test", year: int = 2007, only_units: bool = False) -> None:
        super().__init__()
        self.only_units = only_units
        self.folder = find_year(Path(root), year)
        listing = self.folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            raise DataError(f"no list {listing}; unpack the official {split} part of VOC{year} there")
        names = read_ids(listing, "the list", self.skipped)
        entries = ((f"{name}.xml", partial(self._read, name)) for name in names)
        self.fill(entries, f"the {split} list of {self.folder}")

    def _read(self, name: str) -> GroundingSample | None:
        size, objects = self._annotation(name)
        boxes = {c: stack([box for box, _ in found]) for c, found in objects.items()}
        played = {c: b for c, b in boxes.items() if not all(difficult for _, difficult in objects[c])}
        for c in (c for c in objects if c not in played):
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

    def _annotation(
        self, name: str
    ) -> tuple[tuple[int, int], dict[ClassName, list[tuple[list[float], bool]]]]:
        """One XML file -> ((H, W), class -> [(box with 0-based inclusive corners, difficult)])."""
        known = {c.name: c for c in class_names("voc")}
        root = read_xml(self.folder / "Annotations" / f"{name}.xml")
        size = xml_frame(root)
        objects: dict[ClassName, list[tuple[list[float], bool]]] = defaultdict(list)
        for thing in root.findall("object"):
            called, nodes = (thing.findtext("name") or "").strip(), thing.findall("bndbox")
            if called not in known:
                raise DataError(
                    f"it names the class {brief(called)}, which is none of VOC's 20; mend the file"
                )
            if len(nodes) != 1:
                raise DataError(
                    f"its {called} has {len(nodes)} boxes (<bndbox>) where one was expected; mend the file"
                )
            box = self.fit(name, xml_box(nodes[0]), size, one_based=True)
            difficult = thing.findtext("difficult", "0").strip() == "1"
            objects[known[called]].append((box, difficult))
        return size, dict(objects)


def find_year(root: Path, year: int) -> Path:
    """The folder VOC<year> at or below `root`."""
    options = (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root)
    for folder in options:
        if (folder / "Annotations").is_dir():
            return folder
    raise DataError(f"no VOC{year} tree in {root}; expected {options[0]} with Annotations and ImageSets")
