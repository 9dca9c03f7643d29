"""The photographs in a folder and below it, and what of it is left out."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phrase_loc.image_inputs import IMAGE_ENDINGS

_NAMED = 8  # endings and folders that a sentence names


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds.

    Attributes:
        photographs: every path with an ending of IMAGE_ENDINGS in any case, sorted; also of what cannot be read.
        notes: a sentence for each kind of thing that was left out.
    """

    photographs: list[Path]
    notes: tuple[str, ...]


def photographs_in(folder: str | os.PathLike) -> Listing:
    """The photographs in a folder and its subfolders, hidden ones included; folders behind links are not entered.

    Files are told apart by their endings alone. Hidden files of another ending are passed over without a note.
    """
    found: list[Path] = []
    other: Counter[str] = Counter()
    linked: list[str] = []
    closed: list[str] = []
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                inside = list(entries)
        except OSError:
            closed.append(place)
            continue
        for entry in inside:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif os.path.isdir(entry.path):
                linked.append(entry.path)
            elif ending in IMAGE_ENDINGS:
                found.append(Path(entry.path))
            elif not entry.name.startswith("."):
                other[ending] += 1
    return Listing(sorted(found), tuple(_notes(other, sorted(linked), sorted(closed))))


def _notes(other: Counter[str], linked: Sequence[str], closed: Sequence[str]) -> list[str]:
    notes = []
    if other:
        endings = _few(sorted(ending or "no ending" for ending in other))
        notes.append(f"left out {_count(other.total(), 'file')} of endings that are not read ({endings})")
    if linked:
        notes.append(f"did not enter {_count(len(linked), 'linked folder')} ({_few(linked)})")
    if closed:
        notes.append(f"could not read {_count(len(closed), 'folder')} ({_few(closed)})")
    return notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
