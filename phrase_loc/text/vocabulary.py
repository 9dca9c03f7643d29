"""The words a model knows: V units with their counts, a text file of them, and what texts say of an image in them.

A unit is a word in its dictionary form, or a pair of words that means more than its parts ('hot dog').
`UnitCounter` finds them in captions. The texts of an image make weak labels (`WordLabeller`): they say only part of
what is there.
"""

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from phrase_loc.errors import DataError
from phrase_loc.files import read_text, write_text
from phrase_loc.text import english
from phrase_loc.text.english import canonical, is_function_word, may_be_shown, runs, spellings

_DIGITS = 18  # of a count: what 64 bits hold


@dataclass(frozen=True)
class Vocabulary:
    """V units, most frequent first; the id of a unit is its place."""

    words: tuple[str, ...]  # distinct dictionary forms, the two words of a pair joined by a space
    counts: tuple[int, ...]  # how often each was seen in the captions it was built from

    def __post_init__(self) -> None:
        words, counts = len(self.words), len(self.counts)
        if words != counts:
            raise DataError(f"a vocabulary needs a count a word: {words} words, {counts} counts")
        if len(self._ids) != words:
            twice = repr(Counter(self.words).most_common(1)[0][0][:60])
            raise DataError(f"a vocabulary lists each word once, {twice} stands there twice; remove one line")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def count(self, word: str) -> int:
        """How often a unit was seen; 0 when the vocabulary lacks it."""
        return self.counts[self._ids[word]] if word in self._ids else 0

    def units(self, text: str) -> list[str]:
        """The known units of a whole text, in reading order with repeats; pairs win over single words."""
        found: list[str] = []
        for run in runs(text):
            place = 0
            while place < len(run):
                pair = " ".join(map(canonical, run[place : place + 2]))
                together = pair in self._ids
                found += (pair,) if together else self.read(run[place])
                place += 2 if together else 1
        return found

    def rows(self, units: Iterable[str]) -> list[int]:
        """The places of those units that there are."""
        return [self._ids[unit] for unit in units if unit in self._ids]

    def read(self, token: str) -> tuple[str, ...]:
        """The unit of a token (several when only the parts of a hyphenated word are known); () if unknown."""
        for way in spellings(token):
            if known := tuple([word for word in way if word in self._ids]):
                return known
        return ()

    def save(self, path: Path | str) -> None:
        """Write one unit a line, `word<tab>count`, most frequent first; whole or not at all, else a DataError."""
        lines = (f"{w}\t{n}\n" for w, n in zip(self.words, self.counts))
        write_text(path, "".join(lines), "choose another place for the vocabulary")

    @classmethod
    def load(cls, path: Path | str) -> "Vocabulary":
        """Read a file of `save`, or a plain list of words, which count 0; raises DataError for anything else."""
        lines = io.StringIO(read_text(path, "the vocabulary"), newline=None)
        pairs = []
        for number, line in enumerate(lines, 1):
            word, _, count = line.partition("\t")
            word, count = word.strip(), count.strip() or "0"
            if not (word and count.isdecimal() and len(count) <= _DIGITS) and line.strip():
                shown = line.rstrip()[:60]
                raise DataError(f"{path}, line {number}: expected `word<tab>count`, got {shown!r}")
            if word:
                pairs.append((word, int(count)))
        if not pairs:
            raise DataError(f"the vocabulary {path} is empty; build one with `phrase-loc vocab`")
        words, counts = zip(*pairs)
        return cls(words, counts)


@dataclass(frozen=True)
class WordLabels:
    """What the texts of one image say."""

    ids: tuple[int, ...]  # distinct rows of the vocabulary, ascending
    strengths: tuple[float, ...]  # per id in (0, 1]: how surely the word belongs to the image
    ignored: tuple[int, ...] = ()  # other rows that are neither true nor false of it, ascending


@dataclass(frozen=True)
class WordLabeller:
    """A picklable function from the texts of an image to its labels; no texts, no labels.

    `last_word` is the strength that the last word of a pair takes from it ('player' from 'football player'), 0 for
    none. The other words of a pair are ignored: a hot dog is neither hot nor not.
    """

    vocabulary: Vocabulary
    last_word: float = 0.5

    def __call__(self, texts: Sequence[str]) -> WordLabels:
        """Labels of one image from its texts."""
        said = {row for text in texts for row in self.vocabulary.rows(self.vocabulary.units(text))}
        strengths = dict.fromkeys(said, 1.0)
        ignored: set[int] = set()
        for row in said:
            parts = self.vocabulary.words[row].split()
            ignored.update(self.vocabulary.rows(parts))
            if self.last_word:
                for last in self.vocabulary.rows(parts[-1:]):
                    strengths.setdefault(last, self.last_word)
        ids = tuple(sorted(strengths))
        return WordLabels(ids, tuple(strengths[i] for i in ids), tuple(sorted(ignored - strengths.keys())))


@dataclass
class UnitCounter:
    """Counts of words and of neighbouring pairs, fed text by text; several can be merged into one.

    Each of the two tables may hold `table_limit` entries before its rarest are dropped: at most about 300 MB.
    """

    table_limit: int = 2_000_000
    texts: int = 0
    words: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def update(self, texts: Iterable[str]) -> None:
        """Count content words (dictionary forms) and the pairs of them that stand side by side."""
        for text in texts:
            self.texts += 1
            for run in runs(text):
                self.words.update(canonical(token) for token in run if may_be_shown(token))
                content = [None if is_function_word(token) else canonical(token) for token in run]
                self.pairs.update((a, b) for a, b in pairwise(content) if a and b and a != b)
            self._drop_rarest()

    def merge(self, other: "UnitCounter") -> None:
        """Add what another process counted."""
        self.texts += other.texts
        self.words.update(other.words)
        self.pairs.update(other.pairs)
        self._drop_rarest()

    def _drop_rarest(self) -> None:
        tables: tuple[Counter, ...] = (self.words, self.pairs)
        for table in tables:
            if (over := len(table) - self.table_limit) > 0:
                floor = sorted(table.values())[over - 1]
                for key in [key for key, count in table.items() if count <= floor]:
                    del table[key]

    def vocabulary(
        self, size: int = 18_000, min_count: int = 5, min_association: float = 0.35, pair_share: float = 0.25
    ) -> Vocabulary:
        """The `size` most frequent units that were seen `min_count` times; DataError: no word was.

        Two adjacent nouns are a unit from a normalised PMI of `min_association`. At most the share `pair_share` of
        `size` are pairs. The default size is the paper's dictionary.
        """
        frequent = {w: n for w, n in self.words.items() if n >= min_count}
        if not frequent:
            raise DataError(
                f"no word was seen {min_count} times in {self.texts} texts "
                f"({len(self.words)} different words); give more text or lower the minimum count"
            )
        total, words = self.words.total(), self.words
        pairs = {
            f"{a} {b}": n
            for (a, b), n in self.pairs.items()
            if n >= min_count and association(n, words[a], words[b], total) >= _needed(a, b, min_association)
        }
        ranked = _ranked(frequent | dict(_ranked(pairs)[: int(size * pair_share)]))[:size]
        return Vocabulary(tuple(w for w, _ in ranked), tuple(n for _, n in ranked))


def _ranked(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _needed(first: str, second: str, min_association: float) -> float:
    """For nouns as asked; 'brown dog' and 'dog runs' are frequent too, so others must be nearly inseparable."""
    verbal = second in english.VERB_FORMS or first in english.VERB_FORMS
    return max(min_association, 0.6) if verbal or english.is_modifier(first) else min_association


def association(together: int, first: int, second: int, total: int) -> float:
    """Normalised pointwise mutual information of two adjacent words: 1 never apart, 0 independent."""
    if not (together and first and second):
        return -1.0
    p = together / total
    if p >= 1:
        return 1.0
    return math.log(p * total * total / (first * second)) / -math.log(p)
