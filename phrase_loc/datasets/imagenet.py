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

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from phrase_loc.datasets.class_names import imagenet_phrases
from phrase_loc.datasets.class_samples import stack
from phrase_loc.datasets.skipped import Skipped
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample, Phrase

IMAGE_FOLDERS = ("Data/CLS-LOC/val", "val", "images", ".")
XML_FOLDERS = ("Annotations/CLS-LOC/val", "annotations/val", "bbox/val", "val", ".")
TINY_FOLDERS = (".", "val")
TINY_SIDE = 64


class ImageNet:
    """Photographs with one class each.

    The only phrase is the class's first name (`imagenet_phrases`), its label the WordNet id.

    Args:
        root: root of either tree.
        split: 'val', the only part with public boxes.
        limit: use only the first so many photographs, 0 for all.

    Attributes:
        name: 'imagenet', or 'tiny_imagenet' for the 64-pixel set.

    Raises:
        DataError: neither tree is there, or an annotation is broken.
    """

    name: str

    def __init__(self, root: Path, split: str = "val", limit: int = 0) -> None:
        if split != "val":
            raise DataError(f"ImageNet boxes are public for the split val only, got {split!r}")
        root = Path(root)
        self.skipped = Skipped()
        tiny = next((root / f for f in TINY_FOLDERS if (root / f / "val_annotations.txt").is_file()), None)
        self.name = "tiny_imagenet" if tiny else "imagenet"
        found = read_tiny(tiny) if tiny else read_ilsvrc(root, self.skipped)
        self.samples = [sample for sample, _ in zip(found, range(limit or 10**9), strict=False)]
        self.skipped.refuse_if_empty(len(self.samples), f"the ImageNet tree {root}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> GroundingSample:
        return self.samples[index]


def class_sample(
    image_id: str, path: Path, size: tuple[int, int], wnid: str, corners: list[list[float]]
) -> GroundingSample:
    """One photograph, one class, its boxes; corners are pixel numbers, both ends inside."""
    phrase = Phrase(text=imagenet_phrases().get(wnid, wnid), labels=(wnid,), entity=wnid)
    edges = [[x1, y1, x2 + 1, y2 + 1] for x1, y1, x2, y2 in corners]
    return GroundingSample(image_id, path, size, (phrase,), (stack(edges),))


def read_tiny(folder: Path) -> Iterator[GroundingSample]:
    """Samples of a tiny-imagenet validation folder, in the order of its list."""
    listing = folder / "val_annotations.txt"
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            name, wnid, *corners = line.split()
            x1, y1, x2, y2 = (float(c) for c in corners)
        except ValueError:
            raise DataError(
                f"{listing} line {number}: expected `file wnid x1 y1 x2 y2`, got {line!r}"
            ) from None
        size = (TINY_SIDE, TINY_SIDE)
        yield class_sample(Path(name).stem, folder / "images" / name, size, wnid, [[x1, y1, x2, y2]])


def read_ilsvrc(root: Path, skipped: Skipped) -> Iterator[GroundingSample]:
    """Samples of the ILSVRC validation set in the order of the file names."""
    annotations = _first(root, XML_FOLDERS, "*.xml", "annotation XML")
    photographs = _photographs(root)
    for path in sorted(annotations.glob("*.xml")):
        if path.stem not in photographs:
            skipped.note("images", f"{path.stem}: an annotation without a photograph")
            continue
        try:
            size, wnid, corners = read_xml(path)
        except DataError as error:
            skipped.note("images", str(error))
            continue
        yield class_sample(path.stem, photographs[path.stem], size, wnid, corners)


def read_xml(path: Path) -> tuple[tuple[int, int], str, list[list[float]]]:
    """ILSVRC annotation -> (H, W), WordNet id, corners of its boxes."""
    try:
        tree = SafeTree.parse(path).getroot()
        size = (int(tree.findtext("size/height") or 0), int(tree.findtext("size/width") or 0))
        boxes: dict[str, list[list[float]]] = defaultdict(list)
        for thing in tree.findall("object"):
            sides = (thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
            boxes[(thing.findtext("name") or "").strip()].append([float(side or "?") for side in sides])
    except (SafeTree.ParseError, DefusedXmlException, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"annotation {path} is no ILSVRC XML ({error}); use the official file") from None
    if min(size) < 1:
        raise DataError(f"annotation {path} gives no image size; use the official file")
    if len(boxes) != 1:
        raise DataError(f"{path} names {len(boxes)} classes where one was expected; use the official file")
    wnid, corners = next(iter(boxes.items()))
    return size, wnid, corners


def _first(root: Path, folders: Iterable[str], pattern: str, what: str) -> Path:
    options = [root / folder for folder in folders]
    for folder in options:
        if next(folder.glob(pattern), None):
            return folder
    raise DataError(f"no {what} in any of {', '.join(map(str, options))}; see data/README.md for the tree")


def _photographs(root: Path) -> dict[str, Path]:
    """Stem -> file, in the first folder that has JPEGs, flat or by class."""
    for folder in (root / name for name in IMAGE_FOLDERS):
        for pattern in ("*.JPEG", "n[0-9]*/*.JPEG"):
            if next(folder.glob(pattern), None):
                return {path.stem: path for path in folder.glob(pattern)}
    raise DataError(f"no *.JPEG in {root}; expected the ILSVRC validation photographs, see data/README.md")
