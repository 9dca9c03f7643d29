"""The words a model knows: V units with their counts, and a text file of them.

A unit is a word in its dictionary form, or a pair of words that means more than its parts ('hot dog').
`counting` finds them in captions.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phrase_loc.errors import DataError
from phrase_loc.files import read_text, write_text
from phrase_loc.text.words import canonical, runs, spellings

_DIGITS = 18  # of a count: what 64 bits hold


@dataclass(frozen=True)
class Vocabulary:
    """V units, most frequent first; the id of a unit is its place.

    Attributes:
        words: V distinct units, dictionary forms, the two words of a pair joined by a space.
        counts: how often each was seen in the captions it was built from.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.counts):
            raise DataError(
                f"a vocabulary needs a count a word: {len(self.words)} words, {len(self.counts)} counts"
            )
        ids = {word: i for i, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            twice = next(w for w, n in Counter(self.words).items() if n > 1)
            raise DataError(
                f"a vocabulary lists each word once, {twice!r} stands there twice; remove one line"
            )
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def id(self, word: str) -> int | None:
        """Row of a unit (dictionary form), None when the vocabulary lacks it."""
        return self._ids.get(word)

    def count(self, word: str) -> int:
        """How often a unit was seen; 0 when the vocabulary lacks it."""
        place = self._ids.get(word)
        return 0 if place is None else self.counts[place]

    def units(self, text: str) -> list[str]:
        """The known units of a whole text, in reading order with repeats; pairs win over single words."""
        return [unit for run in runs(text) for unit in self._cover(run)]

    def ids(self, text: str) -> list[int]:
        """As `units`, as rows."""
        return [self._ids[unit] for unit in self.units(text)]

    def _cover(self, run: Sequence[str]) -> Iterator[str]:
        place = 0
        while place < len(run):
            pair = " ".join(map(canonical, run[place : place + 2]))
            if place + 1 < len(run) and pair in self._ids:
                yield pair
                place += 2
                continue
            yield from self.read(run[place])
            place += 1

    def read(self, token: str) -> tuple[str, ...]:
        """The unit of a token (several when only the parts of a hyphenated word are known); () if
        unknown.
        """
        for way in spellings(token):
            known = tuple(word for word in way if word in self._ids)
            if known:
                return known
        return ()

    def save(self, path: Path | str) -> None:
        """Write one unit a line, `word<tab>count`, most frequent first; whole or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        lines = (f"{w}\t{n}\n" for w, n in zip(self.words, self.counts))
        write_text(path, "".join(lines), "choose another place for the vocabulary")

    @classmethod
    def load(cls, path: Path | str) -> "Vocabulary":
        """Read a file of `save`. A line without a count counts 0, so a plain word list works as well.

        Raises:
            DataError: the file is missing, no text, or a line is neither `word` nor `word<tab>count`.
        """
        lines = io.StringIO(read_text(path, "the vocabulary"), newline=None)
        pairs = [_entry(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not pairs:
            raise DataError(f"the vocabulary {path} is empty; build one with `phrase-loc vocab`")
        words, counts = zip(*pairs)
        return cls(words, counts)


def _entry(line: str, path: Path | str, number: int) -> tuple[str, int]:
    word, _, count = line.partition("\t")
    told = count.strip() or "0"
    if word.strip() and told.isdecimal() and len(told) <= _DIGITS:
        return word.strip(), int(told)
    raise DataError(f"{path}, line {number}: expected `word<tab>count`, got {line.rstrip()[:60]!r}")
