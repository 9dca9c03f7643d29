"""The texts of an image to weak labels: which words it shows, how surely, and which words not to punish.

Texts say only part of what is there. So a word that one text of five has is weaker than one they agree on;
a word that means the same as a said one ('guy' for 'man'), or more or less of it ('animal', 'puppy'), is
neither true nor false; and frequent words must not drown rare ones.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phrase_loc.errors import ConfigError
from phrase_loc.text.vocabulary import Vocabulary

_Counts = tuple[Any, Any, np.ndarray, int]
Unpunished = dict[int, tuple[int, ...]]


def paraphrases(
    images: Iterable[Sequence[str]],
    vocabulary: Vocabulary,
    least_excess: float = 0.15,
    least_ratio: float = 3.0,
    least_count: int = 20,
    most: int = 50,
) -> Unpunished:
    """For each word those that other texts of the same images use instead of it, both ways.

    Let q be the chance that another text of an image holds i when one holds j, p the share of texts that
    hold i. Then j is a kind of i ('terrier' of 'dog') or another word for it where the excess (q - p) / (1
    - p) is large, and where the *same* text rarely holds both (else it is a part or a companion: 'guitar'
    and 'playing').

    Args:
        images: per image its texts; images with one text say nothing.
        vocabulary: V words.
        least_excess: smallest excess kept, 0..1.
        least_ratio: i must be so many times as likely in another text as in the same.
        least_count: pairs of texts that must show it.
        most: keep at most so many per word, of the highest excess.
    """
    within, across, asked, texts = _pair_counts(images, vocabulary)
    if not across.nnz:
        return {}
    own = within.diagonal()
    i, j, seen = across.row, across.col, across.data
    given = seen / np.maximum(asked[j], 1)
    share = own[i] / texts
    excess = (given - share) / np.maximum(1 - share, 1e-9)
    same = np.asarray(within[i, j]).ravel() / np.maximum(own[j], 1)
    kept = (excess >= least_excess) & (given >= least_ratio * same) & (seen >= least_count) & (i != j)
    rows, columns = np.concatenate([i[kept], j[kept]]), np.concatenate([j[kept], i[kept]])
    return _strongest(rows, columns, np.tile(excess[kept], 2), most)


def _pair_counts(images: Iterable[Sequence[str]], vocabulary: Vocabulary) -> _Counts:
    """How often two words stand in one text, in two texts of an image, and how many other texts a word's
    have.

    Returns:
        (V, V) scipy CSR, (V, V) scipy COO, (V,) counts; and the number of texts.
    """
    from scipy import sparse

    rows: list[list[int]] = []
    owners: list[int] = []
    others: list[int] = []
    image = -1
    for image, texts in enumerate(images):
        rows.extend(sorted(set(vocabulary.ids(text))) for text in texts)
        owners.extend([image] * len(texts))
        others.extend([len(texts) - 1] * len(texts))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    columns = np.fromiter((i for row in rows for i in row), np.int64, count=int(starts[-1]))
    said = sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), len(vocabulary)))
    shape = (image + 1, len(rows))
    group = sparse.csr_matrix((np.ones(len(rows)), (owners, range(len(rows)))), shape=shape)
    within = (said.T @ said).tocsr()
    by_image = group @ said
    across = (by_image.T @ by_image - within).tocsr()
    across.eliminate_zeros()
    return within, across.tocoo(), said.T @ np.array(others, dtype=np.float64), len(rows)


def _strongest(rows: np.ndarray, columns: np.ndarray, strength: np.ndarray, most: int) -> Unpunished:
    found: dict[int, list[int]] = {}
    for place in np.lexsort((columns, -strength)):
        kept = found.setdefault(int(rows[place]), [])
        if len(kept) < most and columns[place] not in kept:
            kept.append(int(columns[place]))
    return {row: tuple(kept) for row, kept in sorted(found.items())}


def near_vectors(vectors: Tensor, least: float = 0.75, most: int = 10, chunk: int = 1024) -> Unpunished:
    """For each word those whose vectors have a cosine of at least `least`, nearest first.

    Args:
        vectors: (V, E); a row of zeros has no neighbours.
        least: cosine from which a word counts as near. In GloVe cats and dogs are near too.
        most: keep at most so many per word.
        chunk: rows at once, so that V x V never stands in memory.
    """
    units = torch.nn.functional.normalize(vectors.float(), dim=1)
    found: Unpunished = {}
    for start in range(0, len(units), chunk):
        cosine = units[start : start + chunk] @ units.T
        own = torch.arange(len(cosine))
        cosine[own, own + start] = -1
        values, places = cosine.topk(min(most, len(units)), dim=1)
        for row, (value, place) in enumerate(zip(values, places), start=start):
            near = tuple(place[value >= least].tolist())
            if near:
                found[row] = near
    return found


def hypernyms(vocabulary: Vocabulary, levels: int = 3) -> Unpunished:
    """For each word the vocabulary's words above and below it in WordNet.

    Only the first noun sense of a word is read, since rarer senses relate everything to everything.

    Args:
        vocabulary: V words.
        levels: steps up, at most.

    Raises:
        ConfigError: NLTK's data lacks WordNet.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise ConfigError(
            "hypernyms need WordNet in NLTK's data, and it is not there; fetch it with `python -m nltk.downloader "
            "wordnet`, or set labels.unpunished=paraphrases"
        ) from None
    found: dict[int, set[int]] = {}
    for row, word in enumerate(vocabulary.words):
        senses = wordnet.synsets(word.replace(" ", "_"), pos="n")[:1]
        layer = list(senses)
        for _ in range(levels + 1):
            for name in (lemma.replace("_", " ").lower() for sense in layer for lemma in sense.lemma_names()):
                other = vocabulary.id(name)
                if other is not None and other != row:
                    found.setdefault(row, set()).add(other)
                    found.setdefault(other, set()).add(row)
            layer = [above for sense in layer for above in sense.hypernyms()]
    return {row: tuple(sorted(others)) for row, others in sorted(found.items())}


def union(*sources: Unpunished) -> Unpunished:
    """Everything that any source keeps from being punished."""
    rows = sorted({row for source in sources for row in source})
    return {row: tuple(sorted({o for source in sources for o in source.get(row, ())})) for row in rows}


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
