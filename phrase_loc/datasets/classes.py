"""Classes of a dataset: what it calls them, what a person would type, a classifier's units, and samples of them.

The lists are data beside this file (`lists/`). A class name becomes a phrase so that the text-to-region model
plays zero-shot; where the name is no word for the thing ('tvmonitor', 'sports ball'), the list gives one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from phrase_loc.datasets.annotations import brief
from phrase_loc.errors import DataError
from phrase_loc.structures import GroundingSample, Phrase

#: What to type for classes whose first WordNet name is another class's too.
AMBIGUOUS = {"n02012849": "crane bird", "n03126707": "construction crane", "n03710721": "tank suit"}
#: A class counts as hard when it covers less than this share of the image and another class is present.
HARD_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class ClassName:
    """A class of a dataset: its name there, its official number there, the words to type for it."""

    name: str
    number: int
    phrase: str


@cache
def class_names(dataset: str) -> tuple[ClassName, ...]:
    """The classes of 'voc' (20) or 'coco' (80), in the dataset's own order."""
    rows = (line.split("\t") for line in _lines(f"{dataset}_classes.tsv"))
    return tuple(ClassName(name, int(number), phrase) for name, number, phrase in rows)


def by_name(given: Mapping[Any, str], where: str, advice: str) -> dict[Any, ClassName]:
    """Numbers of a file's classes -> COCO's classes, by the names that the file gives them, whatever the numbers.

    VOC's and darknet's names of the same things ('aeroplane', 'tvmonitor') are understood.

    Args:
        given: number -> name.
        where: the file, for the sentence.
        advice: what to do about classes of one's own, in the imperative.

    Raises:
        DataError: a name that is none of COCO's 80; only a name says what a number stands for.
    """
    official = {c.number: c.name for c in class_names("coco")}
    known = _coco_by_any_name()
    strange = [number for number, name in given.items() if _plain(name) not in known]
    if strange:
        number, name = strange[0], given[strange[0]][:40]
        called = official.get(number)
        here = f"{name!r} here and {called!r} in COCO" if called else f"{name!r}, which is none of COCO's 80"
        ids = ", ".join(map(brief, strange[:5]))
        others = f" (so are those of {len(strange) - 1} others)" if len(strange) > 1 else ""
        raise DataError(
            f"category {brief(number)} is called {here}{others}: ids [{ids}] in {where}; {advice}"
        )
    return {number: known[_plain(name)] for number, name in given.items()}


@cache
def _coco_by_any_name() -> dict[str, ClassName]:
    by_phrase = {c.phrase: c for c in class_names("coco")}
    voc = {c.name: by_phrase[c.phrase] for c in class_names("voc")}
    return voc | {c.name: c for c in class_names("coco")}


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """The 1,000 (WordNet id, lemmas) of ILSVRC 2012 in the order of a classifier's units."""
    rows = (line.split("\t") for line in _lines("imagenet_classes.tsv"))
    return tuple((wnid, lemmas) for wnid, lemmas in rows)


@cache
def imagenet_phrases() -> dict[str, str]:
    """WordNet id -> what to type: its first WordNet name, all different, in the order of the units."""
    return {wnid: AMBIGUOUS.get(wnid, lemmas.split(",")[0]) for wnid, lemmas in imagenet_classes()}


@cache
def imagenet_units() -> dict[str, tuple[int, ...]]:
    """Phrase of a VOC or COCO class -> the ImageNet classes that are kinds of it; absent where none is."""
    table = yaml.safe_load(_read("imagenet_units.yaml"))
    ends = {phrase: [str(entry).split("-") for entry in entries] for phrase, entries in table.items()}
    return {p: tuple(n for e in pairs for n in range(int(e[0]), int(e[-1]) + 1)) for p, pairs in ends.items()}


def _read(name: str) -> str:
    return (files("phrase_loc.datasets") / "lists" / name).read_text(encoding="utf-8")


def _lines(name: str) -> list[str]:
    return [line for line in _read(name).splitlines() if line and not line.startswith("#")]


def class_sample(
    image_id: str,
    path: Path,
    size: tuple[int, int],
    objects: Mapping[ClassName, Tensor],
    shares: Sequence[float],
    others: int = 0,
    facts: dict[str, tuple[Any, ...]] | None = None,
    only_units: bool = False,
) -> GroundingSample:
    """A sample with one phrase per class.

    Args:
        image_id: unique name of the image.
        path: its file.
        size: (H, W) in pixels.
        objects: class -> its instances' boxes (M, 4) xyxy in that frame, in the order of the phrases.
        shares: per class the share of the image that the union of its instances covers.
        others: classes of the image that are present and not in `objects` (they still make the rest hard).
        facts: further per-phrase tuples of the dataset.
        only_units: keep only the classes that an ImageNet classifier has units for, so that it and a text model can
            be compared on what both can play; what is hard stays as it was.

    Returns:
        The sample; `facts["hard"]` holds per phrase whether the pair belongs to the Difficult subset of the
        pointing game: share < 1/4 and another class in the image. That is the paper's rule; its authors' own
        list of pairs is not shipped, so counts can differ by a few.
    """
    crowded = len(objects) + others > 1
    kept = [not only_units or c.phrase in imagenet_units() for c in objects]
    columns = {"hard": tuple(crowded and share < HARD_SHARE for share in shares), **(facts or {})}
    return GroundingSample(
        image_id=image_id,
        path=path,
        size=size,
        phrases=tuple(Phrase(c.phrase, (c.name,), c.name) for c in compress(objects, kept)),
        boxes=tuple(compress(objects.values(), kept)),
        facts={name: tuple(compress(column, kept)) for name, column in columns.items()},
    )


def union_share(boxes: Tensor, size: tuple[int, int]) -> float:
    """Share of an image of `size` (H, W) that at least one of the boxes (M, 4) covers, by whole pixels."""
    height, width = size
    corners = np.round(boxes.double().numpy()).clip(0, [width, height, width, height])
    corners = corners[np.argsort(corners[:, 1])]  # by upper edge
    columns = np.unique(corners[:, [0, 2]])
    covered = 0.0
    for left, right in pairwise(columns.tolist()):  # in a strip between two edges rows are intervals
        top, bottom = corners[(corners[:, 0] <= left) & (corners[:, 2] >= right)][:, [1, 3]].T
        if len(top):
            reached = np.maximum.accumulate(np.concatenate([[0.0], bottom]))
            covered += (right - left) * float((bottom - np.maximum(top, reached[:-1])).clip(min=0).sum())
    return covered / (height * width)


def stack(boxes: Sequence[Sequence[float]]) -> Tensor:
    """Corner lists -> (M, 4) float32, also for none at all."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
