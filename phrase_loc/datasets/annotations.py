"""What every reader of annotations does: files that may fail in any way, numbers, frames, boxes, ids.

An annotation that fails raises a DataError, whatever is wrong with it; its reader names it in `skipped` and goes on.

The one rule for a box: its corners are finite, it has an area, and a part of it lies in the image. What
reaches out is cut to the image; Flickr30k Entities alone keeps it as annotated, as every published script
does. A cut of more than a pixel is named.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from phrase_loc.errors import DataError
from phrase_loc.files import read_bytes
from phrase_loc.images import MAX_PIXELS
from phrase_loc.skipped import Skipped
from phrase_loc.structures import GroundingSample

SIDES = ("xmin", "ymin", "xmax", "ymax")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_BOM = b"\xef\xbb\xbf"
Entry = tuple[str, Callable[[], GroundingSample | None]]


class Annotated(Sequence[GroundingSample]):
    """The samples of a dataset in its order, and what was left out; a reader fills it through `fill`."""

    name: str

    def __init__(self) -> None:
        self.samples: list[GroundingSample] = []
        self.skipped = Skipped()
        self._ids: set[str] = set()

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> GroundingSample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[GroundingSample]: ...
    def __getitem__(self, index: int | slice) -> GroundingSample | Sequence[GroundingSample]:
        return self.samples[index]

    def fill(self, entries: Iterable[Entry], what: str, limit: int = 0) -> None:
        """Read the samples of a set; an annotation that fails is named under 'images'.

        Args:
            entries: what each is called in sentences, and how it is read; None is no sample and already named.
            what: the set, for the sentence when nothing of it is left.
            limit: stop after so many samples, 0 for none.
        """
        for called, read in entries:
            try:
                sample = read()
            except DataError as error:
                self.skipped.note("images", f"{called}: {error}")
                continue
            if sample is not None:
                self._keep(sample)
            if len(self.samples) == limit > 0:
                break
        self.skipped.refuse_if_empty(len(self.samples), what)

    def _keep(self, sample: GroundingSample) -> None:
        """Add a sample; a second one of the same name is named instead, since results go by name."""
        if sample.image_id in self._ids:
            again = f"{sample.path.name} bears the name of another image"
            self.skipped.note("images", f"{sample.image_id}: {again}")
        else:
            self._ids.add(sample.image_id)
            self.samples.append(sample)

    def fit(
        self, where: str, box: Sequence[float], size: tuple[int, int], one_based: bool = False
    ) -> list[float]:
        """`fit_box` cut to the image; a cut of more than a pixel is named."""
        own, cut = fit_box(box, size, one_based)
        if max(abs(a - b) for a, b in zip(own, cut, strict=True)) > 1:
            self.skipped.note("boxes cut to the image (kept)", f"{where}: {beyond(box, size)}")
        return cut


def fit_box(
    box: Sequence[float], size: tuple[int, int], one_based: bool = False, thin: bool = False
) -> tuple[list[float], list[float]]:
    """A box of an annotation in the frame of its image.

    Args:
        box: x1, y1, x2, y2 as the file gives them.
        size: (H, W) of the frame.
        one_based: corners are 1-based numbers of the first and last pixel (all four lose 1), else edges from 0.
        thin: accept a box of a single row or column of pixels.

    Returns:
        The box as annotated and cut to the image, both with origin 0.

    Raises:
        DataError: it is not finite, inverted, without area or wholly outside the image.
    """
    if not all(abs(value) <= MAX_PIXELS for value in box):
        raise DataError(f"its box {_shown(box)} is not finite, or no numbers of pixels")
    x1, y1, x2, y2 = own = [value - one_based for value in box]
    if x2 < x1 or y2 < y1 or (not thin and (x1 == x2 or y1 == y2)):
        raise DataError(f"its box {_shown(box)} is inverted or empty (xmax < xmin, ymax < ymin)")
    height, width = size[0] - one_based, size[1] - one_based
    cut = [
        min(max(value, 0.0), side) for value, side in zip(own, (width, height, width, height), strict=True)
    ]
    touches = x2 >= 0 and y2 >= 0 and x1 <= width and y1 <= height
    if not (touches if thin else cut[0] < cut[2] and cut[1] < cut[3]):
        raise DataError(f"its box {_shown(box)} lies outside the {size[1]} x {size[0]} image")
    return own, cut


def beyond(box: Sequence[float], size: tuple[int, int]) -> str:
    """The sentence on a box that reaches out of an image of `size` (H, W)."""
    return f"has a box {_shown(box)} beyond the {size[1]} x {size[0]} image"


def frame(height: float, width: float) -> tuple[int, int]:
    """(H, W) of an annotation's frame; DataError unless both are whole numbers of at least 1 and not too large."""
    given = f"the size {width:g} x {height:g}"
    if height % 1 or width % 1:
        raise DataError(f"it gives {given}; whole pixels were expected")
    if min(height, width) < 1:
        raise DataError(f"it gives {given}; it must be at least 1 x 1")
    if height * width > MAX_PIXELS:
        most = f"the {MAX_PIXELS:,} pixels of the largest photograph accepted"
        raise DataError(f"it gives {given}, more than {most}")
    return int(height), int(width)


def number(value: Any, what: str) -> float:
    """A finite number: of JSON as it is, or written in ASCII digits ('12', '.5', '1e2'); DataError for any other.

    Args:
        value: an int, a float or a text; true and false are none.
        what: names it in the sentence.
    """
    if isinstance(value, str):
        text = value.strip()
        found = float(text) if _NUMBER.fullmatch(text) else math.nan
        kind = "finite number" if _NOT_FINITE.fullmatch(text) else "number"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found, kind = (float(value) if abs(value) < 1e300 else math.inf), "finite number"
    else:
        found, kind = math.nan, "number"
    if not math.isfinite(found):
        raise DataError(f"there is no {kind} in {what}, got {brief(value)}")
    return found


def brief(value: Any) -> str:
    """A value as it may stand in a sentence: its repr, cut; of a list or an object its kind."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    shown = ascii(value[:80] if isinstance(value, (str, bytes)) else value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def read_xml(path: Path) -> Element:
    """The root of an XML annotation; DataError for a file that is missing, broken or declares entities."""
    content = read_bytes(existing(path), "annotation")
    try:
        return fromstring(content)
    except ParseError as error:
        raise DataError(f"it is not well-formed: broken XML ({error})") from None
    except DefusedXmlException:
        raise DataError("it declares XML entities, which are refused") from None
    except Exception as error:  # an unknown encoding is a LookupError, a false one a ValueError, ...
        raise DataError(f"it cannot be read as XML ({' '.join(str(error).split())[:160]})") from None


def existing(path: Path) -> Path:
    """The path, or a short DataError where no file is there."""
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise DataError(f"file {brief(path.name)[1:-1]} is missing in {path.parent.name}")


def xml_frame(root: Element) -> tuple[int, int]:
    """(H, W) from the <size> of an annotation."""
    return frame(xml_number(root, "size/height"), xml_number(root, "size/width"))


def xml_box(node: Element) -> list[float]:
    """The four corners in a <bndbox> as they are written."""
    return [xml_number(node, side) for side in SIDES]


def xml_number(node: Element, key: str) -> float:
    """The number in a child of a node."""
    return number(node.findtext(key) or "", f"<{key}>")


def read_lines(path: Path, what: str, skipped: Skipped) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list that are not empty; a line that is not UTF-8 is named, not lost.

    Raises:
        DataError: the list cannot be read, or is in UTF-16.
    """
    content = read_bytes(path, what)
    if b"\0" in content:
        raise DataError(f"{what} {path} is not UTF-8 text; save it as UTF-8")
    lines = []
    for place, line in enumerate(content.removeprefix(_BOM).splitlines(), start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            skipped.note("images", f"{path.name} line {place}: {brief(line)[1:]} is not UTF-8 text")
            continue
        if text:
            lines.append((place, text))
    return lines


def read_ids(path: Path, what: str, skipped: Skipped) -> list[str]:
    """The image ids of a list, one a line; what is no file name, or listed again, is named.

    Raises:
        DataError: the list cannot be read or is empty.
    """
    lines, ids = read_lines(path, what, skipped), dict[str, int]()
    for place, name in lines:
        if name in ids:
            again = f"{brief(name)[1:-1]} was listed in line {ids[name]}"
            skipped.note("lines", f"{path.name} line {place}: {again}")
        elif Path(name).name != name or len(name) > 200:
            skipped.note("images", f"{path.name} line {place}: image id {brief(name)} is no file name")
        else:
            ids[name] = place
    if not lines and not skipped.notes:
        raise DataError(f"{what} {path} is empty; it must hold one image id a line")
    return list(ids)


def _shown(box: Sequence[float]) -> str:
    return "({:g}, {:g})-({:g}, {:g})".format(*box)
