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
    """Images of a VOC split; a phrase for each class that an image shows.

    Args:
        root: folder that holds VOCdevkit, VOCdevkit itself, or the year's folder.
        split: name of the list in ImageSets/Main: test, trainval, val, train.
        year: 2007 to 2012.
        only_units: keep only classes that an ImageNet classifier has units for.

    Raises:
        DataError: a folder or the list is missing, or no annotation can be read.
    """

    name = "voc"

    def __init__(self, root: Path, split: str = "test", year: int = 2007, only_units: bool = False) -> None:
        super().__init__(only_units)
        options = [Path(root) / part for part in (f"VOCdevkit/VOC{year}", f"VOC{year}", ".")]
        folder = next((option for option in options if (option / "Annotations").is_dir()), None)
        if folder is None:
            raise DataError(
                f"no VOC{year} tree in {root}; expected {options[0]} with Annotations and ImageSets"
            )
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            raise DataError(f"no list {listing}; unpack the official {split} part of VOC{year} there")
        names = self.read_ids(listing, "the list")
        self.folder = folder
        self.fill(
            ((f"{name}.xml", partial(self._read, name)) for name in names), f"the {split} list of {folder}"
        )

    def _read(self, name: str) -> GroundingSample | None:
        known = {c.name: c for c in class_names("voc")}
        size, things = read_xml(self.folder / "Annotations" / f"{name}.xml")
        boxes: dict[ClassName, list[Box]] = {}
        easy = set()
        for thing in things:
            called = thing.names[0] if thing.names else ""
            if called not in known:
                named = f"it names the class {brief(called)}"
                raise DataError(f"{named}, which is none of VOC's 20; mend the file")
            if len(thing.boxes) != 1:
                many = f"its {called} has {len(thing.boxes)} boxes (<bndbox>)"
                raise DataError(f"{many} where one was expected; mend the file")
            kind = known[called]
            boxes.setdefault(kind, []).append(self.fit(name, thing.boxes[0], size, one_based=True))
            easy |= set() if thing.difficult else {kind}
        played = {kind: found for kind, found in boxes.items() if kind in easy}
        for kind in (kind for kind in boxes if kind not in easy):
            self.skipped.note("classes", f"{name}: every {kind.name} is marked difficult")
        if not played:
            self.skipped.note("images", f"{name}: no class to play")
            return None
        path, others = self.folder / "JPEGImages" / f"{name}.jpg", len(boxes) - len(played)
        return self.class_sample(name, path, size, played, others, inclusive=1)
