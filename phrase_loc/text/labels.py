"""The texts of an image to weak labels: which words it shows, how surely, and which words not to punish.

Texts say only part of what is there. So a word that one text of five has is weaker than one they agree on;
a word that means the same as a said one ('guy' for 'man'), or more or less of it ('animal', 'puppy'), is
neither true nor false; and frequent words must not drown rare ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phrase_loc.errors import ConfigError
from phrase_loc.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class WordLabels:
    """What the texts of one image say (the fields of a loader's labels).

    Attributes:
        ids: distinct rows of the vocabulary, ascending.
        strengths: per id in (0, 1]: how surely the word belongs to the image.
        ignored: further rows that are neither true nor false of it, ascending.
        captions: per text the rows of its words, in reading order.
    """

    ids: tuple[int, ...]
    strengths: tuple[float, ...]
    ignored: tuple[int, ...] = ()
    captions: tuple[tuple[int, ...], ...] = ()


class WordLabeller:
    """A picklable function from the texts of an image to its labels.

    Args:
        vocabulary: the known words.
        agree: texts that must hold a word for strength 1; fewer give their share. An image with fewer texts than
            that asks for all of them.
        last_word: strength that the last word of a pair takes from it ('player' from 'football player'), 0 for
            none. The first word of a pair is ignored: a hot dog is neither hot nor not.
        unpunished: row -> rows that are not negatives where it is positive (see `synonyms`).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        agree: int = 2,
        last_word: float = 0.5,
        unpunished: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        if agree < 1 or not 0 <= last_word <= 1:
            raise ConfigError(f"expected agree >= 1 and last_word in 0..1, got {agree} and {last_word}")
        self.vocabulary, self.agree, self.last_word = vocabulary, agree, last_word
        self.unpunished = {row: tuple(rows) for row, rows in (unpunished or {}).items() if rows}
        self._parts = {
            row: _parts(vocabulary, word) for row, word in enumerate(vocabulary.words) if " " in word
        }

    def __call__(self, texts: Sequence[str]) -> WordLabels:
        """Labels of one image from its texts; no texts, no labels."""
        captions = tuple(tuple(self.caption_words(text)) for text in texts)
        said: Counter[int] = Counter(row for caption in captions for row in set(caption))
        needed = max(1, min(self.agree, len(captions)))
        strengths = {row: min(1.0, count / needed) for row, count in said.items()}
        ignored = {other for row in said for other in self.unpunished.get(row, ())}
        for row in said:
            for part, last in self._parts.get(row, ()):
                ignored.add(part)
                if last and self.last_word:
                    strengths[part] = max(strengths.get(part, 0.0), self.last_word * strengths[row])
        ids = tuple(sorted(strengths))
        return WordLabels(
            ids, tuple(strengths[i] for i in ids), tuple(sorted(ignored - strengths.keys())), captions
        )

    def caption_words(self, text: str) -> list[int]:
        """Rows of the words of one text, in reading order."""
        return self.vocabulary.ids(text)


def _parts(vocabulary: Vocabulary, pair: str) -> tuple[tuple[int, bool], ...]:
    """Rows of the known words of a pair, each with whether it is the last."""
    words = pair.split()
    rows = [(vocabulary.id(word), place == len(words) - 1) for place, word in enumerate(words)]
    return tuple((row, last) for row, last in rows if row is not None)


def balance(counts: Sequence[int], power: float = 0.5, most: float = 10.0) -> Tensor:
    """(V,) weights that let rare words count: (median count / count) ** power, within 1/most..most.

    The mean over the occurrences (not over the words) is 1, so the size of the loss does not change.

    Args:
        counts: V counts; 0 is read as 1.
        power: 0 leaves all words alike, 1 gives each word the same total.
        most: largest ratio to the median's weight.

    Raises:
        ConfigError: power outside 0..1, most below 1, or no counts.
    """
    if not 0 <= power <= 1 or most < 1 or not len(counts):
        raise ConfigError(
            f"expected power in 0..1, most >= 1 and some counts, got {power}, {most}, {len(counts)}"
        )
    seen = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    weights = (seen.median() / seen).pow(power).clamp(1 / most, most)
    return (weights * seen.sum() / (weights * seen).sum()).float()
