"""The one rule from a phrase to weighted words: what is known, what stands for it, how much it counts.

1. `parsing.parsed` gives the content words with their roles (head, modifier, context).
2. Two neighbours that are a unit together become one word: 'hot dog' by the pair, 'fire fighter' by
'firefighter'.
3. Every other word is looked up, first hit wins:
   dictionary form ('dogs' -> dog, 'grey' -> gray), as written, without its hyphen, its hyphenated parts,
   and, for what is no word of English (`word_list`), two frequent words written as one ('videocamera' ->
   video, camera), or a frequent word one edit away ('dooorway' -> doorway): `Word.misspelt` and the note
   say so. A number is a modifier where it is known ('two' has learnt to point at pairs), else passed over.
4. A word that is still unknown is reported with weight 0, and the note names it. The known ones share the
   weight 1 in proportion to their roles. A phrase without a known word has K = 0: the caller says so and invents
   nothing.

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
from phrase_loc.text.english import (
    CONJUNCTIONS,
    COUNTS,
    DETERMINERS,
    MAX_LETTERS,
    MAX_TOKENS,
    PREPOSITIONS,
    canonical,
    is_compound,
    is_word,
    normalise,
    spellings,
    tokens,
)
from phrase_loc.text.parsing import Role, Token, negation, parsed
from phrase_loc.text.vocabulary import Vocabulary

ROLE_WEIGHTS = {Role.HEAD: 1.0, Role.MODIFIER: 0.7, Role.CONTEXT: 0.3}
"""Shares before normalising, chosen on the Flickr30k Entities val phrases.

With one trained model (1,606 words, two input sizes), head / modifier / context gave pointing A and R@1 U of
1/.35/.1 71.9 35.3, 1/.5/.3 72.4 35.4, 1/.7/.3 72.4 35.9, 1/.8/.5 72.4 36.1, 1/1/1 72.3 36.1: a plateau above .5.
Passing over the numbers cost 0.9 points of A at 1/.7/.3.
"""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_SHORTEST_CORRECTED = 5  # 'dgo' has too many neighbours to guess which is meant
_SHORTEST_FURTHER = 7  # 'perro' is no misspelt 'perry': further words hold names and rare ones
_SHORTEST_PART = 3
_JOINING = PREPOSITIONS | CONJUNCTIONS | DETERMINERS


@dataclass(frozen=True)
class EncodedPhrase:
    """A phrase as the model sees it.

    Attributes:
        words: every content word in reading order, unknown ones with weight 0.
        ids: (K,) int64 rows of the known words: below V the vocabulary's, from V on the extra table's.
        weights: (K,) float32 > 0 with sum 1, in the order of `ids`.
        note: what of the phrase is not asked as it is written, None when all is.
        head_known: whether a noun that names the thing is among the known words.
    """

    words: tuple[Word, ...]
    ids: Tensor
    weights: Tensor
    note: str | None = None
    head_known: bool = True

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
        return any(word.known for word in self._read(token))

    def encode(self, phrase: str) -> EncodedPhrase:
        """The words of a phrase, which of them are known, and their weights.

        >>> from phrase_loc.text.vocabulary import Vocabulary
        >>> encoder = PhraseEncoder(Vocabulary(("man", "red", "hat"), (9, 5, 3)))
        >>> [(w.text, w.known, round(w.weight, 2)) for w in encoder.encode("the zorgs' red hats").words]
        [('zorgs', False, 0.0), ('red', True, 0.41), ('hat', True, 0.59)]
        """
        found = tokens(phrase)
        shares: dict[str, float] = {}
        misspelt: dict[str, str | None] = {}
        head_known = False
        for word, role in self._units(parsed(found)):
            share = self.role_weights[role] if word.known else 0.0
            shares[word.text] = max(shares.get(word.text, 0.0), share)
            misspelt.setdefault(word.text, word.misspelt)
            head_known |= word.known and role is Role.HEAD
        if not shares:
            return _unknown(phrase)
        total = sum(shares.values()) or 1.0
        words = tuple(Word(t, share > 0, share / total, misspelt[t]) for t, share in shares.items())
        known = [word for word in words if word.known]
        rows = torch.tensor([self._row_of_known(word.text) for word in known], dtype=torch.long)
        weights = torch.tensor([word.weight for word in known])
        return EncodedPhrase(words, rows, weights, note(found, words), head_known)

    def _row_of_known(self, text: str) -> int:
        row = self.row(text)
        if row is None:
            raise KeyError(text)
        return row

    def _units(self, found: Sequence[Token]) -> Iterator[tuple[Word, Role]]:
        """Words of weight 0 with their roles."""
        place = 0
        while place < len(found):
            here, after = found[place], found[place + 1] if place + 1 < len(found) else None
            if (
                after is not None
                and here.clause == after.clause
                and (pair := self._pair(here.text, after.text))
            ):
                yield Word(pair, True, 0.0), max(here.role, after.role)
                place += 2
                continue
            for word in self._read(here.text):
                if word.known or word.text not in COUNTS:  # an unknown number is passed over
                    yield word, here.role
            place += 1

    def _pair(self, first: str, second: str) -> str | None:
        """The unit that two neighbours form, spaced or written as one word; trained words only."""
        one, two = canonical(first), canonical(second)
        ways = (f"{one} {two}", f"{one}-{two}", one + two)
        return next((way for way in ways if way in self.vocabulary), None)

    def _read_uncached(self, token: str) -> tuple[Word, ...]:
        """The known words a token stands for, or the token itself, unknown; all with weight 0."""
        if len(token) > MAX_LETTERS:
            return (Word(token, False, 0.0),)
        for way in self._ways(token):
            known = tuple(Word(word, True, 0.0) for word in way if self.row(word) is not None)
            if known:
                return known
        word = canonical(token)
        instead = self._split(word) or self._corrected(word)
        if instead and (not is_word(token) or (len(instead) > 1 and is_compound(token))):
            return tuple(Word(near, True, 0.0, token) for near in instead)
        return (Word(token, False, 0.0),)

    def _ways(self, token: str) -> Iterator[tuple[str, ...]]:
        """The spellings of a token; one with a function word inside ('man-of-war') has no parts."""
        if token.count("-") == 1 and canonical(token) not in self.vocabulary:
            pair = self._pair(*token.split("-"))
            if pair:
                yield (pair,)
        for way in spellings(token):
            if not _JOINING.intersection(way[1:-1]):
                yield way

    def _split(self, word: str) -> tuple[str, ...]:
        """Two frequent words written as one; of several cuts the one whose rarer part is most frequent."""
        cuts = [
            (word[:i], canonical(word[i:])) for i in range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1)
        ]
        scored = [(min(map(self.vocabulary.count, cut)), cut) for cut in cuts]
        best, cut = max(scored, default=(0, ()))
        return cut if best >= max(1, self.min_count) else ()

    def _corrected(self, word: str) -> tuple[str, ...]:
        """The most frequent vocabulary word one edit away, else the most frequent further word."""
        if len(word) < _SHORTEST_CORRECTED or not word.isascii():
            return ()
        near = one_edit_away(word)
        counts = {other: self.vocabulary.count(other) for other in near if other in self.vocabulary}
        if counts and max(counts.values()) >= max(1, self.min_count):
            return (max(counts, key=lambda other: (counts[other], other)),)
        if len(word) < _SHORTEST_FURTHER:
            return ()
        further = [other for other in near if other in self._extra and is_word(other)]
        return (min(further, key=self._extra.__getitem__),) if further else ()


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
    text = normalise(phrase).strip()[:MAX_LETTERS]
    words = (Word(text, False, 0.0),) if text else ()
    nothing = torch.zeros(0)
    return EncodedPhrase(words, nothing.long(), nothing, note(tokens(phrase), words), head_known=False)


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


_MOST = 5  # words that one sentence lists


def note(found: Sequence[str], words: Sequence[Word]) -> str | None:
    """The note of an answer, None when the phrase was asked as it is written.

    Args:
        found: the tokens of the phrase.
        words: its content words as they were read.

    >>> note(["a", "red", "lorry"], (Word("red", True, 1.0), Word("lorry", False, 0.0)))
    "'lorry' is not known; only 'red' was looked for"
    """
    if all(word.known and not word.misspelt for word in words) and len(found) < MAX_TOKENS:
        return ". ".join(_denied(found)) or None
    said = [*_misspelt(words), *_not_known(words), *_denied(found)]
    if len(found) >= MAX_TOKENS:
        said.append(f"no more than the first {MAX_TOKENS} words were read")
    return ". ".join(said) or None


def _misspelt(words: Sequence[Word]) -> list[str]:
    read: dict[str, list[str]] = {}
    for word in words:
        if word.misspelt:
            read.setdefault(word.misspelt, []).append(word.text)
    return [f"{text!r} is read as {' '.join(parts)!r}" for text, parts in read.items()]


def _not_known(words: Sequence[Word]) -> list[str]:
    known, unknown = ([w.text for w in words if w.known is state] for state in (True, False))
    if not unknown:
        return []
    if not known:
        return [f"no word of it is known to the model ({', '.join(unknown[:_MOST])}); try another word"]
    were = "were" if len(known) > 1 else "was"
    are = "are" if len(unknown) > 1 else "is"
    return [f"{_listed(unknown)} {are} not known; only {_listed(known)} {were} looked for"]


def _denied(found: Sequence[str]) -> list[str]:
    word = negation(found)
    if word is None:
        return []
    return [
        f"{word!r} is read as a negation: what it denies was looked for all the same, and present speaks of "
        "the thing, not of its absence"
    ]


def _listed(words: Sequence[str]) -> str:
    shown = [repr(word) for word in words[:_MOST]]
    if len(words) > _MOST:
        shown.append(f"{len(words) - _MOST} more")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
