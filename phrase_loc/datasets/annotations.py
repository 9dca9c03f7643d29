"""What every reader of annotations shares: lists, XML, numbers, frames, boxes, names of classes (`lists/`).

An annotation that fails raises a DataError; its reader names it in `skipped` and goes on. The one rule for a box: its
corners are finite, it has an area, and a part of it lies in the image. What reaches out is cut, and a cut of more
than a pixel is named; Flickr30k Entities alone keeps it as annotated, as every published script does.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
import torch
import yaml
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from torch import Tensor

from phrase_loc.errors import DataError
from phrase_loc.files import read_bytes
from phrase_loc.images import MAX_PIXELS
from phrase_loc.skipped import Skipped
from phrase_loc.structures import GroundingSample, Phrase
from phrase_loc.tables import text_lines

LISTS = files("phrase_loc.datasets") / "lists"
SIDES = ("xmin", "ymin", "xmax", "ymax")
#: What to type for classes whose first WordNet name is another class's too.
AMBIGUOUS = {"n02012849": "crane bird", "n03126707": "construction crane", "n03710721": "tank suit"}
#: A class counts as hard when it covers less than this share of the image and another class is present.
HARD_SHARE = 0.25
#: Shares of the sides are 1 at most, a little more where a box reaches out of the photograph.
MAX_SHARE = 1.5
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_YES = {"1", "true", "yes"}

Size = tuple[int, int]  # (H, W)
Box = list[float]  # x1, y1, x2, y2
#: What an annotation is called in sentences, and how it is read.
Entry = tuple[str, Callable[[], GroundingSample]]


class Annotated(list[GroundingSample]):
    """The samples of a dataset in its order, and what was left out; a reader fills it through `fill`.

    `only_units` keeps only the classes that an ImageNet classifier has units for, so that it and a text model can be
    compared on what both can play; what is hard stays as it was.
    """

    name: str

    def __init__(self, only_units: bool = False) -> None:
        super().__init__()
        self.skipped = Skipped()
        self.only_units = only_units

    @property
    def samples(self) -> list[GroundingSample]:
        """The set itself, by the name that torchvision's datasets give it."""
        return self

    def fill(self, entries: Iterable[Entry], what: str) -> None:
        """Read the samples of a set; a DataError that names it by `what` when none is left, or none is in pixels.

        An annotation that fails is named, and so is a second one of the same name, since results go by name.
        """
        ids = set()
        for called, read in entries:
            try:
                sample = read()
                if sample.image_id in ids:
                    raise DataError(f"{sample.path.name} bears the name of another image")
            except DataError as error:
                self.skipped.note("images", f"{called}: {error}")
            else:
                ids.add(sample.image_id)
                self.append(sample)
        self.skipped.refuse_if_empty(len(self), what)
        boxes = (boxes for sample in self for boxes in sample.boxes if len(boxes))
        refuse_shares(max(map(float, map(torch.max, boxes)), default=math.inf), what)

    def fit(self, where: str, box: Sequence[float], size: Size, one_based: bool = False) -> Box:
        """`fit_box` cut to the image; a cut of more than a pixel is named."""
        own, cut = fit_box(box, size, one_based)
        if max(abs(a - b) for a, b in zip(own, cut, strict=True)) > 1:
            self.skipped.note("boxes cut to the image (kept)", f"{where}: {beyond(box, size)}")
        return cut

    def class_sample(
        self,
        image_id: str,
        path: Path,
        size: Size,
        objects: Mapping["ClassName", Sequence[Box]],
        others: int = 0,
        inclusive: int = 0,
        masks: Mapping["ClassName", tuple[Any, float]] | None = None,
    ) -> GroundingSample:
        """A sample with one phrase per class, of class -> boxes in the frame `size` (H, W).

        `others` counts the classes that are present and not played: they still make the rest hard. `inclusive` is 1
        where x2 and y2 are the last pixels, not the edges behind them. `masks` holds per class the union of its
        instances and the share of the image that it covers.

        `facts["hard"]` holds per phrase whether the pair is of the Difficult subset of the pointing game: share < 1/4
        and another class in the image. The authors' own list is not shipped, so counts can differ by a few.
        """
        crowded = len(objects) + others > 1
        kept = [not self.only_units or c.phrase in imagenet_units() for c in objects]
        shares = [masks[c][1] if masks else union_share(b, size, inclusive) for c, b in objects.items()]
        columns: dict[str, list[Any]] = {"hard": [crowded and share < HARD_SHARE for share in shares]}
        columns |= {"masks": [masks[c][0] for c in objects]} if masks else {}
        phrases = tuple(Phrase(c.phrase, (c.name,), c.name) for c in compress(objects, kept))
        boxes = tuple(stack(instances) for instances in compress(objects.values(), kept))
        facts = {name: tuple(compress(column, kept)) for name, column in columns.items()}
        return GroundingSample(image_id, path, size, phrases, boxes, facts)

    def read_ids(self, path: Path, what: str) -> list[str]:
        """The image ids of a list, one a line; what is no file name, or listed again, is named."""
        ids = dict[str, int]()
        for place, line in enumerate(text_lines(path, what), start=1):
            where, name = f"{path.name} line {place}", line.strip()
            if name in ids:
                self.skipped.note("lines", f"{where}: {brief(name)[1:-1]} was listed in line {ids[name]}")
            elif Path(name).name != name or len(name) > 200:
                self.skipped.note("images", f"{where}: image id {brief(name)} is no file name")
            elif name:
                ids[name] = place
        if not ids and not self.skipped.seen:
            raise DataError(f"{what} {path} is empty; it must hold one image id a line")
        return list(ids)


def fit_box(box: Sequence[float], size: Size, one_based: bool = False, thin: bool = False) -> tuple[Box, Box]:
    """A box x1, y1, x2, y2 in the frame (H, W) of its image, as annotated and cut to the image, both with origin 0.

    `one_based` corners are numbers of the first and last pixel (all four lose 1), others edges from 0; `thin` accepts
    a single row or column of pixels. Raises a DataError for a box that is not finite, inverted, without area or
    wholly outside the image.
    """
    if not all(abs(value) <= MAX_PIXELS for value in box):
        raise DataError(f"its box {_shown(box)} is not finite, or no numbers of pixels")
    x1, y1, x2, y2 = own = [value - one_based for value in box]
    if x2 < x1 or y2 < y1 or (not thin and (x1 == x2 or y1 == y2)):
        raise DataError(f"its box {_shown(box)} is inverted or empty (xmax < xmin, ymax < ymin)")
    height, width = size[0] - one_based, size[1] - one_based
    cut = [min(max(v, 0.0), side) for v, side in zip(own, (width, height) * 2, strict=True)]
    touches = x2 >= 0 and y2 >= 0 and x1 <= width and y1 <= height
    if not (touches if thin else cut[0] < cut[2] and cut[1] < cut[3]):
        raise DataError(f"its box {_shown(box)} lies outside the {size[1]} x {size[0]} image")
    return own, cut


def refuse_shares(greatest: float, what: str) -> None:
    """A DataError where the greatest number of all boxes and points of `what` shows that they are not in pixels.

    In the first pixel of every photograph nothing is looked for, so boxes of that pixel alone are refused with them.
    """
    if greatest <= MAX_SHARE:
        raise DataError(
            f"{what} has no number above {greatest:g} in its boxes and points, like shares of the sides; expected "
            "pixels: multiply x by the width of the photograph and y by its height, and leave out boxes of one pixel"
        )


def beyond(box: Sequence[float], size: Size) -> str:
    """Says that a box reaches out of an image of `size` (H, W)."""
    return f"has a box {_shown(box)} beyond the {size[1]} x {size[0]} image"


def _shown(box: Sequence[float]) -> str:
    return "({:g}, {:g})-({:g}, {:g})".format(*box)


def frame(height: float, width: float) -> Size:
    """(H, W) of an annotation's frame; DataError unless both are whole numbers of at least 1 and not too large."""
    if height % 1 or width % 1 or min(height, width) < 1 or height * width > MAX_PIXELS:
        expected = f"whole pixels, at least 1 x 1 and at most {MAX_PIXELS:,} in all, were expected"
        raise DataError(f"it gives the size {width:g} x {height:g}; {expected}")
    return int(height), int(width)


def number(value: Any, what: str) -> float:
    """A finite number of JSON, or one written in ASCII digits ('12', '.5', '1e2'); a DataError that names `what`."""
    text = value.strip() if isinstance(value, str) else ""
    found = float(text) if _NUMBER.fullmatch(text) else math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        found = float(value)
    if not math.isfinite(found):
        endless = isinstance(value, float) or text.lower().lstrip("+-") in ("nan", "inf", "infinity")
        raise DataError(f"there is no {'finite ' * endless}number in {what}, got {brief(value)}")
    return found


def brief(value: Any) -> str:
    """A value as it may stand in a sentence: its repr, cut; of a list or an object its kind."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    shown = ascii(value[:80] if isinstance(value, (str, bytes)) else value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


class Thing(NamedTuple):
    """An <object> of an XML annotation: its names, its boxes as they are written, whether it is marked difficult."""

    names: list[str]
    boxes: list[Box]
    difficult: bool


def read_xml(path: Path) -> tuple[Size, list[Thing]]:
    """The frame and the objects of an annotation of VOC's form; DataError for a file that is missing or broken."""
    content = read_bytes(existing(path), "annotation")
    try:
        root = fromstring(content)
    except ParseError as error:
        raise DataError(f"it is not well-formed: broken XML ({error})") from None
    except DefusedXmlException:
        raise DataError("it declares XML entities, which are refused") from None
    except Exception as error:  # an unknown encoding is a LookupError, a false one a ValueError, ...
        raise DataError(f"it cannot be read as XML ({' '.join(str(error).split())[:160]})") from None
    size = frame(*(number(root.findtext(k) or "", f"<{k}>") for k in ("size/height", "size/width")))
    things = [
        Thing(
            [(name.text or "").strip() for name in thing.findall("name")],
            [[number(b.findtext(k) or "", f"<{k}>") for k in SIDES] for b in thing.findall("bndbox")],
            _is_difficult(thing.findtext("difficult", "0")),
        )
        for thing in root.iter("object")
    ]
    return size, things


def _is_difficult(text: str) -> bool:
    word = text.strip().lower()
    if word not in _YES | {"", "0", "false", "no"}:
        raise DataError(f"<difficult> is {brief(text)}; 0 or 1 was expected")
    return word in _YES


def existing(path: Path) -> Path:
    """The path, or a short DataError where no file is there."""
    if not os.path.exists(path):
        raise DataError(f"file {brief(path.name)[1:-1]} is missing in {path.parent.name or path.parent}")
    return path


class ClassName(NamedTuple):
    """A class of a dataset: its name there, its official number there, the words to type for it."""

    name: str
    number: int
    phrase: str


@cache
def class_names(dataset: str) -> tuple[ClassName, ...]:
    """The classes of 'voc' (20) or 'coco' (80), in the dataset's own order."""
    return tuple(ClassName(name, int(n), phrase) for name, n, phrase in _table(f"{dataset}_classes.tsv"))


def by_name(given: Mapping[Any, str], where: str, advice: str) -> dict[Any, ClassName]:
    """Numbers of a file's classes -> COCO's classes, by the names that the file gives them, whatever the numbers.

    VOC's and darknet's names of the same things ('aeroplane', 'tvmonitor') are understood. A name that is none of
    COCO's 80 raises a DataError of the file `where`; `advice` says what to do about classes of one's own.
    """
    own = {c.phrase: c for c in class_names("coco")}
    known = {c.name: own[c.phrase] for c in (*class_names("voc"), *class_names("coco"))}
    found = {n: known.get(" ".join(name.lower().replace("_", " ").split())) for n, name in given.items()}
    if strange := [n for n, kind in found.items() if kind is None]:
        first, name = strange[0], given[strange[0]][:40]
        called = {c.number: c.name for c in own.values()}.get(first)
        here = f"{name!r} here and {called!r} in COCO" if called else f"{name!r}, which is none of COCO's 80"
        ids = ", ".join(map(brief, strange[:5])) + ", ..." * (len(strange) > 5)
        raise DataError(f"category {brief(first)} is called {here}: ids [{ids}] in {where}; {advice}")
    return {n: kind for n, kind in found.items() if kind is not None}


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """The 1,000 (WordNet id, lemmas) of ILSVRC 2012 in the order of a classifier's units."""
    return tuple((wnid, lemmas) for wnid, lemmas in _table("imagenet_classes.tsv"))


@cache
def imagenet_phrases() -> dict[str, str]:
    """WordNet id -> what to type: its first WordNet name, all different, in the order of the units."""
    return {wnid: AMBIGUOUS.get(wnid, lemmas.split(",")[0]) for wnid, lemmas in imagenet_classes()}


@cache
def imagenet_units() -> dict[str, tuple[int, ...]]:
    """Phrase of a VOC or COCO class -> the ImageNet classes that are kinds of it; absent where none is."""
    table = yaml.safe_load(LISTS.joinpath("imagenet_units.yaml").read_text(encoding="utf-8"))
    ends = {phrase: [str(entry).split("-") for entry in entries] for phrase, entries in table.items()}
    return {p: tuple(n for e in pairs for n in range(int(e[0]), int(e[-1]) + 1)) for p, pairs in ends.items()}


def _table(name: str) -> list[list[str]]:
    lines = LISTS.joinpath(name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def union_share(boxes: Sequence[Box], size: Size, inclusive: int = 0) -> float:
    """Share of an image of `size` (H, W) that at least one of the boxes covers, by whole pixels."""
    height, width = size
    edges = np.array(boxes, np.float32) + np.array([0, 0, inclusive, inclusive], np.float32)
    x1, y1, x2, y2 = np.round(edges).astype(float).clip(0, [width, height, width, height]).T[..., None]
    columns, rows = np.unique([x1, x2]), np.unique([y1, y2])  # a grid of cells, each covered or not
    across = ((x1 <= columns[:-1]) & (columns[1:] <= x2)).astype(np.float32)  # (M, cells)
    down = ((y1 <= rows[:-1]) & (rows[1:] <= y2)).astype(np.float32)
    return float(np.diff(rows) @ (down.T @ across > 0) @ np.diff(columns)) / (height * width)


def stack(boxes: Sequence[Sequence[float]]) -> Tensor:
    """Corner lists -> (M, 4) float32, also for none at all."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
