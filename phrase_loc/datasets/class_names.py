"""Names of classes: what a dataset calls them, what a person would type, and a classifier's own units.

The lists are data beside this file (`lists/`). A class name becomes a phrase so that the text-to-region model
plays zero-shot; where the name is no word for the thing ('tvmonitor', 'sports ball'), the list gives one.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

#: What to type for classes whose first WordNet name is another class's too.
AMBIGUOUS = {"n02012849": "crane bird", "n03126707": "construction crane", "n03710721": "tank suit"}


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
    return {phrase: tuple(n for entry in entries for n in _range(entry)) for phrase, entries in table.items()}


def _range(entry: int | str) -> range:
    first, _, last = str(entry).partition("-")
    return range(int(first), int(last or first) + 1)


def _read(name: str) -> str:
    return (files("phrase_loc.datasets") / "lists" / name).read_text(encoding="utf-8")


def _lines(name: str) -> list[str]:
    return [line for line in _read(name).splitlines() if line and not line.startswith("#")]
