"""ImageNet localization: the class of a photograph and the boxes of its instances.

Two trees are read, told apart by what lies in them:

    ILSVRC   the validation photographs, flat or in folders by class, and one XML each. Looked for are
             ROOT/{Data/CLS-LOC/val, val, images, .} and
             ROOT/{Annotations/CLS-LOC/val, annotations/val, bbox/val, val, .}
    tiny     ROOT/[val/]images/*.JPEG, ROOT/[val/]val_annotations.txt: file, WordNet id, four corners in the
             64-pixel frame. Photographs at 64 pixels: a figure from them never stands beside ImageNet's.

Corners of both are 0-based numbers of the first and the last pixel; the far ones gain 1 to become edges, so plain
widths are what the official script counts with its + 1.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from phrase_loc.datasets.annotations import (
    Annotated,
    Box,
    Size,
    brief,
    imagenet_phrases,
    number,
    read_xml,
    stack,
)
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample, Phrase
from phrase_loc.tables import text_lines

IMAGE_FOLDERS = ("Data/CLS-LOC/val", "val", "images", ".")
XML_FOLDERS = ("Annotations/CLS-LOC/val", "annotations/val", "bbox/val", "val", ".")
TINY_LIST = "val_annotations.txt"
TINY_SIZE = (64, 64)


class ImageNet(Annotated):
    """Photographs with one class each.

    The only phrase is the class's first name (`imagenet_phrases`), its label the WordNet id; `name` is 'imagenet', or
    'tiny_imagenet' for the 64-pixel set.
    """

    def __init__(self, root: Path, split: str = "val") -> None:
        super().__init__()
        if split != "val":
            raise DataError(f"ImageNet boxes are public for the split val only, got {split!r}")
        root = Path(root)
        tiny = next((folder for folder in (root, root / "val") if (folder / TINY_LIST).is_file()), None)
        self.name = "tiny_imagenet" if tiny else "imagenet"
        self.fill(self._tiny(tiny) if tiny else self._ilsvrc(root), f"the ImageNet tree {root}")

    def _tiny(self, folder: Path) -> Iterator[tuple[str, partial[GroundingSample]]]:
        for place, line in enumerate(map(str.strip, text_lines(folder / TINY_LIST, "the list")), start=1):
            where = f"{TINY_LIST} line {place}"
            if line:
                yield where, partial(self._of_line, where, line, folder / "images")

    def _ilsvrc(self, root: Path) -> Iterator[tuple[str, partial[GroundingSample]]]:
        options = [root / folder for folder in XML_FOLDERS]
        paths = next((found for folder in options if (found := sorted(folder.glob("*.xml")))), None)
        if paths is None:
            places = ", ".join(map(str, options))
            raise DataError(f"no annotation XML in any of {places}; see data/README.md for the tree")
        photographs = _photographs(root)
        for stem in sorted(photographs.keys() - {path.stem for path in paths}):
            self.skipped.note("images", f"{stem}: a photograph without an annotation")
        for path in paths:
            if path.stem in photographs:
                yield path.name, partial(self._of_xml, path, photographs[path.stem])
            else:
                self.skipped.note("images", f"{path.stem}: an annotation without a photograph")

    def _of_line(self, where: str, line: str, folder: Path) -> GroundingSample:
        fields = line.split()
        if len(fields) != 6 or Path(fields[0]).name != fields[0]:
            raise DataError(f"expected `file wnid x1 y1 x2 y2`, got {brief(line)}")
        corners = [number(field, "a corner") for field in fields[2:]]
        return self._sample(where, folder / fields[0], TINY_SIZE, fields[1], [corners])

    def _of_xml(self, path: Path, photographs: list[Path]) -> GroundingSample:
        if len(photographs) > 1:
            raise DataError(f"{photographs[0]} and {photographs[1]} bear its name; remove one")
        size, things = read_xml(path)
        names = {thing.names[0] if thing.names else "" for thing in things}
        if len(names) != 1:
            raise DataError(f"it names {len(names)} classes where one was expected; use the official file")
        boxes = [box for thing in things for box in thing.boxes]
        if len(boxes) != len(things):
            raise DataError(f"it has {len(boxes)} boxes for {len(things)} objects; use the official file")
        return self._sample(path.name, photographs[0], size, names.pop(), boxes)

    def _sample(self, where: str, path: Path, size: Size, wnid: str, corners: list[Box]) -> GroundingSample:
        if wnid not in imagenet_phrases():
            raise DataError(f"its class {brief(wnid)} is none of ImageNet's 1,000 WordNet ids")
        edges = [self.fit(where, [x1, y1, x2 + 1, y2 + 1], size) for x1, y1, x2, y2 in corners]
        phrase = Phrase(text=imagenet_phrases()[wnid], labels=(wnid,), entity=wnid)
        return GroundingSample(path.stem, path, size, (phrase,), (stack(edges),))


def _photographs(root: Path) -> dict[str, list[Path]]:
    """Stem -> its files, in the first folder that has JPEGs, flat or by class."""
    for folder in (root / name for name in IMAGE_FOLDERS):
        for pattern in ("*.JPEG", "n[0-9]*/*.JPEG"):
            found = defaultdict[str, list[Path]](list)
            for path in sorted(folder.glob(pattern)):
                found[path.stem].append(path)
            if found:
                return found
    raise DataError(f"no *.JPEG in {root}; expected the ILSVRC validation photographs, see data/README.md")
