"""Flickr30k Entities: the official tree -> one GroundingSample an image.

    root/
      test.txt val.txt train.txt        one image id a line
      Sentences/<id>.txt                one caption a line: `[/EN#<chain>/<type>[/<type>] words] and words`
      Annotations/<id>.xml              <size>; <object>s with <name>s (chains) and <bndbox> or <nobndbox>
      flickr30k-images/<id>.jpg         opened only by methods that look

The rules of the official reader (flickr30k_entities_utils.py): corners are 1-based and lose 1 on all four; the box
of an object belongs to each of its names; chain `0` is not visual; empty lines are no captions. A chain with a box
that is inverted or wholly outside is left out with all its mentions, since its truth would be incomplete. A box that
reaches partly outside, or is one pixel wide, is kept as annotated, as every published script does. Both are named.
"""

import re
from functools import partial
from itertools import product
from pathlib import Path

from phrase_loc.datasets.annotations import Annotated, Size, beyond, brief, existing, fit_box, read_xml, stack
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import read_text
from phrase_loc.structures import GroundingSample, Phrase

OFFICIAL_IDS = 1000  # ids in the official val and test split files
OFFICIAL_TEST = (14_481, 999)  # phrases with a box, and images that have one, in the complete test split
MARK = re.compile(r"\[/EN#\S*|\]")  # what annotation adds to a caption
HEAD = re.compile(r"(?P<chain>\d+)(?P<types>(?:/[^\s/\]]+)+)\s+(?P<words>\S.*)", re.DOTALL)


class Flickr30kEntities(Annotated):
    """The images of one split, in the order of its `<split>.txt`.

    A DataError tells where it lists the complete official test split and the annotations do not have its phrases.
    """

    name = "flickr30k"

    def __init__(self, root: Path, split: str = "test"):
        super().__init__()
        self.root = Path(root)
        for folder in ("Annotations", "Sentences"):
            if not (self.root / folder).is_dir():
                why = f"it has no folder {folder}; set data.root"
                raise ConfigError(f"{root} is no tree of Flickr30k Entities: {why}")
        path = self.root / f"{split}.txt"
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in self.root.glob("*.txt"))) or "none"
            raise ConfigError(f"split file {path} does not exist; splits in this tree: {there}")
        ids = self.read_ids(path, "split file")
        self.fill(((image, partial(self._read, image)) for image in ids), f"split {split!r} of {self.root}")
        boxed = [n for sample in self if (n := sum(len(b) > 0 for b in sample.boxes))]
        if split == "test" and len(ids) == OFFICIAL_IDS and (sum(boxed), len(boxed)) != OFFICIAL_TEST:
            why = f" ({self.skipped.summary()} left out)" if self.skipped.seen else ""
            found = f"{sum(boxed):,} in {len(boxed):,}{why}"
            raise DataError(
                f"{self.root}/test.txt lists the complete official split, which has 14,481 phrases with a box in 999 "
                f"images, but the annotations give {found}; unpack the official ones anew"
            )

    def _read(self, image_id: str) -> GroundingSample:
        text = read_text(existing(self.root / "Sentences" / f"{image_id}.txt"), "captions")
        captions = [(line, caption) for line, caption in enumerate(text.split("\n"), 1) if caption.strip()]
        if not captions:
            raise DataError("its captions are empty")
        size, things = read_xml(self.root / "Annotations" / f"{image_id}.xml")
        chains: dict[str, list[list[float]]] = {}
        left_out = set()
        for thing in things:
            found = [_judged(box, size) for box in thing.boxes]
            chains |= {chain: [] for chain in thing.names if chain not in chains}
            for (box, kind, why), chain in product(found, dict.fromkeys(thing.names)):
                chains[chain].append(box)
                if kind:
                    self.skipped.note(kind, f"{image_id}: chain {brief(chain)[1:-1]} {why}")
                    left_out |= {chain} if kind == "chains" else set()
        marked: list[tuple[tuple[int, int], Phrase]] = []  # with the numbers of caption and phrase in it
        for sentence, (line, caption) in enumerate(captions):
            try:
                found_in = enumerate(parse_caption(caption, sentence))
                marked += [((sentence, n), p) for n, p in found_in if p.entity not in left_out]
            except DataError as error:
                self.skipped.note("captions", f"{image_id}: caption in line {line} left out, {error}")
        if not marked:
            self.skipped.note("images without a marked phrase (kept)", image_id)
        phrases = [phrase for _, phrase in marked]
        for chain in dict.fromkeys(p.entity for p in phrases if p.entity != "0" and p.entity not in chains):
            self.skipped.note("chains without annotation", f"{image_id}: the XML does not name chain {chain}")
        boxes = tuple(stack(chains.get(phrase.entity, [])) for phrase in phrases)
        path = self.root / "flickr30k-images" / f"{image_id}.jpg"
        texts = tuple(MARK.sub(" ", caption).strip() for _, caption in captions)
        facts = {"captions": texts, "places": tuple(place for place, _ in marked)}
        return GroundingSample(image_id, path, size, tuple(phrases), boxes, facts)


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


def _judged(corners: list[float], size: Size) -> tuple[list[float], str, str]:
    """Box of origin 0 as annotated, kind and sentence of what is wrong with it; two empty strings for a good one."""
    try:
        own, cut = fit_box(corners, size, one_based=True, thin=True)
    except DataError as error:
        return corners, "chains", f"is left out: {error}"
    if own != cut:
        return own, "boxes partly outside (kept)", beyond(corners, size)
    if own[0] == own[2] or own[1] == own[3]:
        return own, "boxes one pixel wide (kept)", f"has a box of one row or column at {own[0]:g}, {own[1]:g}"
    return own, "", ""
