"""The one rule from a phrase to weighted words: what is known, what stands for it, how much it counts.

1. `parsing.parse` gives the content words with their roles (head, modifier, context).
2. Two neighbours that are a unit together become one word: 'hot dog' by the pair, 'fire fighter' by
'firefighter'.
3. Every other word is looked up, first hit wins:
   dictionary form ('dogs' -> dog, 'grey' -> gray), as written, without its hyphen, its hyphenated parts,
   two frequent words written as one ('videocamera' -> video, camera), and last, for words of five letters
   or more that no table holds, a frequent vocabulary word one edit away ('dooorway' -> doorway).
   A number is a modifier where it is known ('two' has learnt to point at pairs), else passed over.
4. A word that is still unknown is reported with weight 0. The known ones share the weight 1 in proportion
to
   their roles. A phrase without a known word has K = 0: the caller says so and invents nothing.

Why no NLTK here: its tokenizers and stemmers need no corpus, but importing the package takes 3 to 5 s, a
query 0.5 s. NLTK serves where seconds do not matter (caption chunks in `captions`, and as the oracle of our
edit distance and collocation score in the tests).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from phrase_loc.structures import Word
from phrase_loc.text.grammar import COUNTS
from phrase_loc.text.parsing import Role, Token, parse
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.text.words import canonical, normalise, spellings

ROLE_WEIGHTS = {Role.HEAD: 1.0, Role.MODIFIER: 0.7, Role.CONTEXT: 0.3}
"""Shares before normalising, chosen on the Flickr30k Entities val phrases.

With one trained model (1,606 words, two input sizes), head / modifier / context gave pointing A and R@1 U of
1/.35/.1 71.9 35.3, 1/.5/.3 72.4 35.4, 1/.7/.3 72.4 35.9, 1/.8/.5 72.4 36.1, 1/1/1 72.3 36.1: a plateau above .5.
Passing over the numbers cost 0.9 points of A at 1/.7/.3.
"""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_SHORTEST_CORRECTED = 5  # 'dgo' has too many neighbours to guess which is meant
_SHORTEST_PART = 3


@dataclass(frozen=True)
class EncodedPhrase:
    """A phrase as the model sees it.

    Attributes:
        words: every content word in reading order, unknown ones with weight 0.
        ids: (K,) int64 rows of the known words: below V the vocabulary's, from V on the extra table's.
        weights: (K,) float32 > 0 with sum 1, in the order of `ids`.
    """

    words: tuple[Word, ...]
    ids: Tensor
    weights: Tensor

    @property
    def known(self) -> bool:
        """Whether there is anything to look for."""
        return len(self.ids) > 0


class PhraseEncoder:
    """Phrases to weighted rows of a word table.

    Args:
        vocabulary: the V words the model was trained on.
        extra: words outside it that have vectors too, most frequent first; row V + i.
        role_weights: shares of head, modifiers and context before normalising.
        min_count: a misspelt word is only corrected to a vocabulary word seen so often.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        extra: Sequence[str] = (),
        role_weights: dict[Role, float] | None = None,
        min_count: int = 20,
    ) -> None:
        self.vocabulary = vocabulary
        self.role_weights = dict(role_weights or ROLE_WEIGHTS)
        self.min_count = min_count
        self._extra: dict[str, int] = {}
        for row, word in enumerate(extra, start=len(vocabulary)):
            if word not in vocabulary:
                self._extra.setdefault(word, row)
        self._read = lru_cache(maxsize=1 << 14)(self._read_uncached)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_read"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._read = lru_cache(maxsize=1 << 14)(self._read_uncached)

    def row(self, word: str) -> int | None:
        """Row of a dictionary form in the joint table, None when neither table holds it."""
        own = self.vocabulary.id(word)
        return self._extra.get(word) if own is None else own

    def knows(self, token: str) -> bool:
        """Whether a single token leads to at least one known word."""
        return any(self.row(word) is not None for word in self._read(token))

    def encode(self, phrase: str) -> EncodedPhrase:
        """The words of a phrase, which of them are known, and their weights.

        >>> from phrase_loc.text.vocabulary import Vocabulary
        >>> encoder = PhraseEncoder(Vocabulary(("man", "red", "hat"), (9, 5, 3)))
        >>> [(w.text, w.known, round(w.weight, 2)) for w in encoder.encode("the zorgs' red hats").words]
        [('zorgs', False, 0.0), ('red', True, 0.41), ('hat', True, 0.59)]
        """
        shares: dict[str, float] = {}
        for text, role in self._units(parse(phrase)):
            share = self.role_weights[role] if self.row(text) is not None else 0.0
            shares[text] = max(shares.get(text, 0.0), share)
        total = sum(shares.values())
        if not shares:
            return _unknown(phrase)
        known = {text: share / total for text, share in shares.items() if share > 0}
        words = tuple(Word(text, text in known, known.get(text, 0.0)) for text in shares)
        rows = [self._row_of_known(text) for text in known]
        return EncodedPhrase(words, torch.tensor(rows, dtype=torch.long), torch.tensor(list(known.values())))

    def _row_of_known(self, text: str) -> int:
        row = self.row(text)
        if row is None:
            raise KeyError(text)
        return row

    def _units(self, found: Sequence[Token]) -> Iterator[tuple[str, Role]]:
        place = 0
        while place < len(found):
            here, after = found[place], found[place + 1] if place + 1 < len(found) else None
            if (
                after is not None
                and here.clause == after.clause
                and (pair := self._pair(here.text, after.text))
            ):
                yield pair, max(here.role, after.role)
                place += 2
                continue
            for unit in self._read(here.text):
                if unit not in COUNTS or self.row(unit) is not None:  # an unknown number is passed over
                    yield unit, here.role
            place += 1

    def _pair(self, first: str, second: str) -> str | None:
        """The unit that two neighbours form, spaced or written as one word; trained words only."""
        one, two = canonical(first), canonical(second)
        ways = (f"{one} {two}", f"{one}-{two}", one + two)
        return next((way for way in ways if way in self.vocabulary), None)

    def _read_uncached(self, token: str) -> tuple[str, ...]:
        """The known words a token stands for, or the token itself (to be reported unknown)."""
        for way in spellings(token):
            known = tuple(word for word in way if self.row(word) is not None)
            if known:
                return known
        word = canonical(token)
        return self._split(word) or self._corrected(word) or (token,)

    def _split(self, word: str) -> tuple[str, ...]:
        """Two frequent words written as one; of several cuts the one whose rarer part is most frequent."""
        cuts = [
            (word[:i], canonical(word[i:])) for i in range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1)
        ]
        scored = [(min(map(self.vocabulary.count, cut)), cut) for cut in cuts]
        best, cut = max(scored, default=(0, ()))
        return cut if best >= max(1, self.min_count) else ()

    def _corrected(self, word: str) -> tuple[str, ...]:
        """The most frequent vocabulary word one edit away."""
        if len(word) < _SHORTEST_CORRECTED or not word.isascii():
            return ()
        close = [
            near for near in one_edit_away(word) if self.vocabulary.count(near) >= max(1, self.min_count)
        ]
        return (max(close, key=lambda near: (self.vocabulary.count(near), near)),) if close else ()


def one_edit_away(word: str) -> set[str]:
    """All strings one deletion, swap of neighbours, replacement or insertion from `word`, itself excluded.

    Looking these up costs a few hundred microseconds whatever the size of the vocabulary.
    """
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    near = {left + right[1:] for left, right in halves if right}
    near |= {left + right[1] + right[0] + right[2:] for left, right in halves if len(right) > 1}
    near |= {left + letter + right[1:] for left, right in halves if right for letter in _ALPHABET}
    near |= {left + letter + right for left, right in halves for letter in _ALPHABET}
    return near - {word}


def _unknown(phrase: str) -> EncodedPhrase:
    """A phrase without a content word ('it', an emoji): its text as one unknown word; () when blank."""
    text = normalise(phrase).strip()[:40]
    words = (Word(text, False, 0.0),) if text else ()
    return EncodedPhrase(words, torch.zeros(0, dtype=torch.long), torch.zeros(0))


def distinct_words(encoded: Sequence[EncodedPhrase]) -> tuple[Tensor, Tensor]:
    """The distinct word rows of all phrases (K,), and the weight of each in each phrase (P, K)."""
    every = torch.cat([e.ids for e in encoded]) if encoded else torch.zeros(0, dtype=torch.long)
    ids, place = every.unique(return_inverse=True)
    weights = torch.zeros(len(encoded), len(ids))
    start = 0
    for row, e in enumerate(encoded):
        weights[row].index_add_(0, place[start : start + len(e.ids)], e.weights)
        start += len(e.ids)
    return ids, weights
