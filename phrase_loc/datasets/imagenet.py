"""ImageNet localization: the class of a photograph and the boxes of its instances.

Two trees are read, told apart by what lies in them:

    ILSVRC   the validation photographs, flat or in folders by class, and one XML each. Looked for are
             ROOT/{Data/CLS-LOC/val, val, images, .} and
             ROOT/{Annotations/CLS-LOC/val, annotations/val, bbox/val, val, .}
    tiny     ROOT/[val/]images/*.JPEG, ROOT/[val/]val_annotations.txt: file, WordNet id, four corners in the
             64-pixel frame. Photographs at 64 pixels: a figure from them never stands beside ImageNet's.

Corners of both are 0-based numbers of the first and the last pixel; the far ones gain 1 to become edges, so
plain widths are what the official script counts with its + 1.
The class is taken from the annotation, so it needs no folder names and no list of labels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from phrase_loc.datasets.annotations import Annotated, brief, number, read_lines, read_xml, xml_box, xml_frame
from phrase_loc.datasets.classes import imagenet_phrases, stack
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample, Phrase

IMAGE_FOLDERS = ("Data/CLS-LOC/val", "val", "images", ".")
XML_FOLDERS = ("Annotations/CLS-LOC/val", "annotations/val", "bbox/val", "val", ".")
TINY_FOLDERS = (".", "val")
TINY_SIDE = 64
Annotation = tuple[tuple[int, int], str, list[list[float]]]  # (H, W), WordNet id, corners
#: What the annotation is called, the photograph, how it is read.
Found = tuple[str, Path, Callable[[], Annotation]]


class ImageNet(Annotated):
    """Photographs with one class each.

    The only phrase is the class's first name (`imagenet_phrases`), its label the WordNet id; `name` is 'imagenet', or
    'tiny_imagenet' for the 64-pixel set.

    Args:
        root: root of either tree.
        split: 'val', the only part with public boxes.
        limit: use only the first so many photographs, 0 for all.

    Raises:
        DataError: neither tree is there, or nothing in it can be used.
    """

    def __init__(self, root: Path, split: str = "val", limit: int = 0) -> None:
        super().__init__()
        if split != "val":
            raise DataError(f"ImageNet boxes are public for the split val only, got {split!r}")
        root = Path(root)
        tiny = next((root / f for f in TINY_FOLDERS if (root / f / "val_annotations.txt").is_file()), None)
        self.name = "tiny_imagenet" if tiny else "imagenet"
        found = self._tiny(tiny) if tiny else self._ilsvrc(root)
        entries = ((where, partial(self._sample, where, path, read)) for where, path, read in found)
        self.fill(entries, f"the ImageNet tree {root}", limit)

    def _sample(self, where: str, path: Path, annotation: Callable[[], Annotation]) -> GroundingSample:
        """One photograph, one class, its boxes; corners are pixel numbers, both ends inside."""
        size, wnid, corners = annotation()
        if wnid not in imagenet_phrases():
            raise DataError(f"its class {brief(wnid)} is none of ImageNet's 1,000 WordNet ids")
        edges = [self.fit(where, [x1, y1, x2 + 1, y2 + 1], size) for x1, y1, x2, y2 in corners]
        phrase = Phrase(text=imagenet_phrases()[wnid], labels=(wnid,), entity=wnid)
        return GroundingSample(path.stem, path, size, (phrase,), (stack(edges),))

    def _tiny(self, folder: Path) -> Iterator[Found]:
        """The photographs of a tiny-imagenet validation folder, in the order of its list."""
        listing = folder / "val_annotations.txt"
        for place, line in read_lines(listing, "the list", self.skipped):
            name = line.split()[0]
            yield f"{listing.name} line {place}", folder / "images" / name, partial(tiny_line, line)

    def _ilsvrc(self, root: Path) -> Iterator[Found]:
        """The photographs of the ILSVRC validation set that have an annotation, in the order of the file names."""
        options = [root / folder for folder in XML_FOLDERS]
        annotations = next((folder for folder in options if any(folder.glob("*.xml"))), None)
        if annotations is None:
            places = ", ".join(map(str, options))
            raise DataError(f"no annotation XML in any of {places}; see data/README.md for the tree")
        photographs, paths = _photographs(root), sorted(annotations.glob("*.xml"))
        for stem in sorted(photographs.keys() - {path.stem for path in paths}):
            self.skipped.note("images", f"{stem}: a photograph without an annotation")
        for path in paths:
            if path.stem in photographs:
                yield path.name, photographs[path.stem], partial(ilsvrc_xml, path)
            else:
                self.skipped.note("images", f"{path.stem}: an annotation without a photograph")


def tiny_line(line: str) -> Annotation:
    """A line of tiny-imagenet's list -> (H, W), WordNet id, corners of the one box."""
    fields = line.split()
    if len(fields) != 6 or Path(fields[0]).name != fields[0]:
        raise DataError(f"expected `file wnid x1 y1 x2 y2`, got {brief(line)}")
    corners = [number(field, "a corner") for field in fields[2:]]
    return (TINY_SIDE, TINY_SIDE), fields[1], [corners]


def ilsvrc_xml(path: Path) -> Annotation:
    """ILSVRC annotation -> (H, W), WordNet id, corners of its boxes."""
    root = read_xml(path)
    things = root.findall("object")
    names = {(thing.findtext("name") or "").strip() for thing in things}
    if len(names) != 1:
        raise DataError(f"it names {len(names)} classes where one was expected; use the official file")
    nodes = [node for thing in things for node in thing.findall("bndbox")]
    if len(nodes) != len(things):
        raise DataError(f"it has {len(nodes)} boxes for {len(things)} objects; use the official file")
    return xml_frame(root), names.pop(), [xml_box(node) for node in nodes]


def _photographs(root: Path) -> dict[str, Path]:
    """Stem -> file, in the first folder that has JPEGs, flat or by class."""
    for folder in (root / name for name in IMAGE_FOLDERS):
        for pattern in ("*.JPEG", "n[0-9]*/*.JPEG"):
            if next(folder.glob(pattern), None):
                return {path.stem: path for path in folder.glob(pattern)}
    raise DataError(f"no *.JPEG in {root}; expected the ILSVRC validation photographs, see data/README.md")
