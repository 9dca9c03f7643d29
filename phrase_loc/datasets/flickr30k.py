"""Flickr30k Entities: the official tree -> one GroundingSample an image.

    root/
      test.txt val.txt train.txt        one image id a line
      Sentences/<id>.txt                one caption a line: `[/EN#<chain>/<type>[/<type>] words] and words`
      Annotations/<id>.xml              <size>; <object>s with <name>s (chains) and <bndbox> or <nobndbox>
      flickr30k-images/<id>.jpg         opened only by methods that look

The rules of the official reader (flickr30k_entities_utils.py): corners are 1-based and lose 1 on all four;
the box of an object belongs to each of its names; chain `0` is not visual; empty lines are no captions.
Boxes stay in the frame of the XML's <size>, whatever the size of the image file.

What cannot be read leaves the count and is named in `skipped`: an image whose XML or sentences are missing,
broken, not UTF-8 or hold entity declarations; a caption with an unclosed bracket; a chain with a box that is
inverted or wholly outside the image (all its mentions, since its truth would be incomplete). A box that
reaches partly outside is kept as annotated, as every published script does, and named.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload
from xml.etree.ElementTree import Element, ParseError

import torch
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from torch import Tensor

from phrase_loc.datasets.skipped import Skipped
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.structures import GroundingSample, Phrase

TYPES = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
OFFICIAL_IDS = 1000  # ids in the official val and test split files
OFFICIAL_TEST = (14_481, 999)  # phrases with a box, and images that have one, in the complete test split
MARK = re.compile(r"\[/EN#\S*|\]")  # what annotation adds to a caption
HEAD = re.compile(r"(?P<chain>\d+)(?P<types>(?:/[^\s/\]]+)+)\s+(?P<words>\S.*)", re.DOTALL)


class Flickr30kEntities(Sequence[GroundingSample]):
    """The images of one split, in the order of its file.

    Args:
        root: folder of the official tree.
        split: name of a `<split>.txt` in it.

    Raises:
        ConfigError: the tree or the split file is not there.
        DataError: the split file is empty or no text, nothing in it can be read, or it lists the complete
            official test split while the annotations do not have its 14,481 phrases.
    """

    name = "flickr30k"

    def __init__(self, root: Path, split: str):
        self.root, self.split, self.skipped = Path(root), split, Skipped()
        ids = self._ids()
        read = [self._read(image_id) for image_id in ids]
        self._samples = [sample for sample in read if sample is not None]
        self.skipped.refuse_if_empty(len(self._samples), f"split {split!r} of {self.root}")
        if split == "test" and len(ids) == OFFICIAL_IDS:
            self._check_official()

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> GroundingSample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[GroundingSample]: ...
    def __getitem__(self, index: int | slice) -> GroundingSample | Sequence[GroundingSample]:
        return self._samples[index]

    def _ids(self) -> list[str]:
        for folder in ("Annotations", "Sentences"):
            if not (self.root / folder).is_dir():
                raise ConfigError(
                    f"{self.root} is no tree of Flickr30k Entities: it has no folder {folder}; set data.root"
                )
        path = self.root / f"{self.split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in self.root.glob("*.txt"))) or "none"
            raise ConfigError(f"split file {path} does not exist; splits in this tree: {there}")
        ids = list(dict.fromkeys(line.strip() for line in _text(path).splitlines() if line.strip()))
        if not ids:
            raise DataError(f"split file {path} is empty; it must hold one image id a line")
        return ids

    def _read(self, image_id: str) -> GroundingSample | None:
        try:
            if Path(image_id).name != image_id:
                raise DataError(f"image id {image_id!r} is no file name; give one id a line")
            captions = _text(self.root / "Sentences" / f"{image_id}.txt").split("\n")
            size, chains, bad = read_annotation(self.root / "Annotations" / f"{image_id}.xml")
        except DataError as error:
            self.skipped.note("images", f"{image_id}: {error}")
            return None
        for kind, chain, why in bad:
            self.skipped.note(kind, f"{image_id}: chain {chain} {why}")
        left_out = {chain for kind, chain, _ in bad if kind == "chains"}
        phrases = [p for p in self._phrases(image_id, captions) if p.entity not in left_out]
        for chain in dict.fromkeys(p.entity for p in phrases if p.entity != "0" and p.entity not in chains):
            self.skipped.note("chains without annotation", f"{image_id}: the XML does not name chain {chain}")
        boxes = tuple(chains.get(phrase.entity, torch.zeros(0, 4)) for phrase in phrases)
        path = self.root / "flickr30k-images" / f"{image_id}.jpg"
        texts = tuple(MARK.sub(" ", caption).strip() for caption in captions if caption.strip())
        return GroundingSample(image_id, path, size, tuple(phrases), boxes, {"captions": texts})

    def _phrases(self, image_id: str, captions: list[str]) -> list[Phrase]:
        phrases: list[Phrase] = []
        number = 0
        for line, caption in enumerate(captions, 1):
            if not caption.strip():
                continue
            try:
                phrases += parse_caption(caption, number)
            except DataError as error:
                self.skipped.note("captions", f"{image_id}: caption in line {line} left out, {error}")
            number += 1
        return phrases

    def _check_official(self) -> None:
        boxed = [sum(len(b) > 0 for b in sample.boxes) for sample in self._samples]
        found = (sum(boxed), sum(n > 0 for n in boxed))
        if found != OFFICIAL_TEST:
            why = self.skipped.summary()
            raise DataError(
                f"{self.root}/test.txt lists the complete official split, which has 14,481 phrases with a "
                f"box in 999 images, but the annotations give {found[0]:,} in {found[1]:,}"
                f"{f' ({why} left out)' if why else ''}; unpack the official annotations anew"
            )


def parse_caption(caption: str, number: int) -> list[Phrase]:
    """The marked phrases of one caption, or a DataError when a bracket does not close or its head is odd."""
    phrases = []
    for part in caption.split("[/EN#")[1:]:
        inside, bracket, _ = part.partition("]")
        if not bracket:
            raise DataError(f"the bracket of '[/EN#{part.strip()[:40]}' does not close")
        head = HEAD.fullmatch(inside.strip())
        if head is None:
            raise DataError(f"'[/EN#{inside[:40]}]' is not of the form [/EN#chain/type words]")
        types = tuple(head["types"][1:].split("/"))
        phrases.append(Phrase(" ".join(head["words"].split()), types, head["chain"], number))
    return phrases


def read_annotation(
    path: Path,
) -> tuple[tuple[int, int], dict[str, Tensor], list[tuple[str, str, str]]]:
    """Size, boxes and problems of one XML file.

    Returns:
        (H, W); chain -> (M, 4) boxes, origin 0, M = 0 for chains without a box; and (kind, chain, sentence)
        of each box that is unusable (kind 'chains') or reaches out of the image ('boxes partly outside').

    Raises:
        DataError: no file, no XML, entity declarations, or no size.
    """
    root = _xml(path)
    size = (_number(root, "size/height", path), _number(root, "size/width", path))
    if min(size) < 1:
        raise DataError(f"{path.name} gives the size {size[1]:g} x {size[0]:g}; it must be at least 1 x 1")
    chains: dict[str, list[list[float]]] = {}
    bad = []
    for thing in root.iter("object"):
        names = [(name.text or "").strip() for name in thing.findall("name")]
        box = thing.find("bndbox")
        for chain in names:
            chains.setdefault(chain, [])
        if box is None:
            continue
        corners = [_number(box, key, path) - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
        kind, why = _judge(corners, size)
        bad += [(kind, chain, why) for chain in names if kind]
        for chain in names:
            chains[chain].append(corners)
    boxes = {chain: torch.tensor(c, dtype=torch.float32).reshape(-1, 4) for chain, c in chains.items()}
    return (int(size[0]), int(size[1])), boxes, bad


def _judge(box: list[float], size: tuple[float, float]) -> tuple[str, str]:
    """Kind and sentence of what is wrong with a box of origin 0; two empty strings for a good one."""
    x1, y1, x2, y2 = box
    shown = "({:g}, {:g})-({:g}, {:g})".format(*(c + 1 for c in box))
    if x2 < x1 or y2 < y1:
        return "chains", f"is left out: its box {shown} is inverted"
    if x2 < 0 or y2 < 0 or x1 >= size[1] or y1 >= size[0]:
        return "chains", f"is left out: its box {shown} lies outside the {size[1]:g} x {size[0]:g} image"
    if x1 < 0 or y1 < 0 or x2 >= size[1] or y2 >= size[0]:
        return "boxes partly outside (kept)", f"has a box {shown} beyond the {size[1]:g} x {size[0]:g} image"
    return "", ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"file {path.name} is missing in {path.parent.name}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}); convert it") from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}") from None


def _xml(path: Path) -> Element:
    try:
        return fromstring(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"file {path.name} is missing in {path.parent.name}") from None
    except ParseError as error:
        raise DataError(f"{path.name} is broken XML ({error})") from None
    except DefusedXmlException:
        raise DataError(f"{path.name} declares XML entities, which are refused") from None
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from None


def _number(node: Element, key: str, path: Path) -> float:
    try:
        value = float(node.findtext(key) or "")
    except ValueError:
        raise DataError(f"{path.name} has no number in <{key}>, got {node.findtext(key)!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise DataError(f"{path.name} has no finite number in <{key}>, got {node.findtext(key)!r}")
    return value
