"""The texts of an image to weak labels: which words it shows, how surely, and which are neither true nor false of it.

Texts say only part of what is there: a word that one text of five has is weaker than one they agree on, and a word
that means the same as a said one ('guy' for 'man') is no negative.
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
    """What the texts of one image say."""

    ids: tuple[int, ...]  # distinct rows of the vocabulary, ascending
    strengths: tuple[float, ...]  # per id in (0, 1]: how surely the word belongs to the image
    ignored: tuple[int, ...] = ()  # other rows that are neither true nor false of it, ascending
    captions: tuple[tuple[int, ...], ...] = ()  # per text the rows of its words, in reading order


class WordLabeller:
    """A picklable function from the texts of an image to its labels; no texts, no labels.

    Args:
        vocabulary: the known words.
        agree: texts that must hold a word for strength 1; fewer give their share. An image with fewer texts than
            that asks for all of them.
        last_word: strength that the last word of a pair takes from it ('player' from 'football player'), 0 for
            none. The other words of a pair are ignored: a hot dog is neither hot nor not.
        ignored_negatives: row -> rows that are not negatives where it is positive (see `near_vectors`).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        agree: int = 2,
        last_word: float = 0.5,
        ignored_negatives: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        if agree < 1 or not 0 <= last_word <= 1:
            raise ConfigError(f"expected agree >= 1 and last_word in 0..1, got {agree} and {last_word}")
        self.vocabulary, self.agree, self.last_word = vocabulary, agree, last_word
        self.ignored_negatives = dict(ignored_negatives or {})

    def __call__(self, texts: Sequence[str]) -> WordLabels:
        """Labels of one image from its texts."""
        captions = tuple(tuple(self.vocabulary.ids(text)) for text in texts)
        said = Counter(row for caption in captions for row in set(caption))
        needed = max(1, min(self.agree, len(captions)))
        strengths = {row: min(1.0, count / needed) for row, count in said.items()}
        ignored = {other for row in said for other in self.ignored_negatives.get(row, ())}
        for row in said:
            parts = [self.vocabulary.id(part) for part in self.vocabulary.words[row].split()]
            ignored.update(part for part in parts if part is not None)
            if self.last_word and (last := parts[-1]) is not None:
                strengths[last] = max(strengths.get(last, 0.0), self.last_word * strengths[row])
        ids = tuple(sorted(strengths))
        shares = tuple(strengths[i] for i in ids)
        return WordLabels(ids, shares, tuple(sorted(ignored - strengths.keys())), captions)


def near_vectors(
    vectors: Tensor, least: float = 0.75, most: int = 10, chunk: int = 1024
) -> dict[int, tuple[int, ...]]:
    """For each word those whose vectors have a cosine of at least `least`, nearest first; in GloVe cats and dogs too.

    At most `most` per word are kept; a row of zeros has none. Of the (V, E) vectors `chunk` are compared at once,
    so that V x V never stands in memory.
    """
    units = torch.nn.functional.normalize(vectors.float(), dim=1)
    found = {}
    for start in range(0, len(units), chunk):
        cosine = units[start : start + chunk] @ units.T
        cosine.diagonal(start).fill_(-1)  # a word is not its own neighbour
        values, places = cosine.topk(min(most, len(units)), dim=1)
        for row, (value, place) in enumerate(zip(values, places), start=start):
            if near := tuple(place[value >= least].tolist()):
                found[row] = near
    return found


def balance(counts: Sequence[int], power: float = 0.5, most: float = 10.0) -> Tensor:
    """(V,) class weights that let rare words count: (median count / count) ** power, within 1/most..most.

    The mean over the occurrences (not over the words) is 1, so the size of the loss does not change. A count of 0 is
    read as 1. Power 0 leaves all words alike, 1 gives each word the same total.
    """
    if not 0 <= power <= 1 or most < 1 or not len(counts):
        given = f"{power}, {most}, {len(counts)}"
        raise ConfigError(f"expected power in 0..1, most >= 1 and some counts, got {given}")
    seen = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    weights = (seen.median() / seen).pow(power).clamp(1 / most, most)
    return (weights * seen.sum() / (weights * seen).sum()).float()
