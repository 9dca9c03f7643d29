"""PASCAL VOC detection sets in their official tree, as torchvision's VOCDetection lays it out.

    ROOT/VOCdevkit/VOC2007/{Annotations/*.xml, ImageSets/Main/<split>.txt, JPEGImages/*.jpg}

ROOT may also be `VOCdevkit` or the year's folder itself. Corners are 1-based and inclusive: all four lose 1, so a
box [x1, x2] names the first and the last pixel. A class whose boxes are all marked 'difficult' in an image is left
out, as everywhere in the literature; its difficult boxes count as truth when an easy one stands beside them. An image
that names another class than VOC's 20, or holds a box that is no truth (annotations.py), leaves the count and is
named. For classes of your own write YOLO labels (yolo.py).
"""

from functools import partial
from pathlib import Path

from phrase_loc.datasets.annotations import Annotated, Box, ClassName, brief, class_names, read_xml
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample


class VOC(Annotated):
    """Images of a VOC split (a list in ImageSets/Main: test, trainval, ...); a phrase for each class of an image."""

    name = "voc"

    def __init__(self, root: Path, split: str = "test", year: int = 2007, only_units: bool = False) -> None:
        super().__init__(only_units)
        options = [Path(root) / part for part in (f"VOCdevkit/VOC{year}", f"VOC{year}", ".")]
        folder = next((option for option in options if (option / "Annotations").is_dir()), None)
        if folder is None:
            expected = f"{options[0]} with Annotations and ImageSets"
            raise DataError(f"no VOC{year} tree in {root}; expected {expected}")
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            raise DataError(f"no list {listing}; unpack the official {split} part of VOC{year} there")
        self.folder = folder
        entries = [(f"{n}.xml", partial(self._read, n)) for n in self.read_ids(listing, "the list")]
        self.fill(entries, f"the {split} list of {folder}")

    def _read(self, name: str) -> GroundingSample:
        known = {c.name: c for c in class_names("voc")}
        size, things = read_xml(self.folder / "Annotations" / f"{name}.xml")
        boxes: dict[ClassName, list[Box]] = {}
        easy = set()
        for thing in things:
            kind = thing.names[0] if thing.names else ""
            if kind not in known:
                raise DataError(f"its class {brief(kind)} is none of VOC's 20; mend the file")
            if (n := len(thing.boxes)) != 1:
                raise DataError(f"its {kind} has {n} boxes where one <bndbox> was expected; mend the file")
            boxes.setdefault(known[kind], []).append(self.fit(name, thing.boxes[0], size, one_based=True))
            easy |= set() if thing.difficult else {known[kind]}
        played = {c: found for c, found in boxes.items() if c in easy}
        for c in [c for c in boxes if c not in easy]:
            self.skipped.note("classes", f"{name}: every {c.name} is marked difficult")
        if not played:
            raise DataError("no class to play")
        path, others = self.folder / "JPEGImages" / f"{name}.jpg", len(boxes) - len(played)
        return self.class_sample(name, path, size, played, others, inclusive=1)
