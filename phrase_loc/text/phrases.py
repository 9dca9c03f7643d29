"""The one rule from a phrase to weighted words: what is known, what stands for it, how much it counts.

0. A word for which the user gave a synonym ('perro: dog') is read as that.
1. `parsing` gives the content words with their roles (head, modifier, context).
2. Two neighbours that are a unit together become one word: 'hot dog' by the pair, 'fire fighter' by 'firefighter',
   and by a word learned from a class where that class has the pair as a name too ('dog sled' by 'dogsled').
3. Every other word is looked up, first hit wins: dictionary form, as written, without its hyphen, its hyphenated
   parts, and, for what is no word of English, two frequent words written as one ('videocamera') or a frequent word
   one edit away ('dooorway'). A number is a modifier where it is known, else passed over.
4. The known words share the weight 1 in proportion to their roles; an unknown one has weight 0, and is noted, as is
   what tells where the thing is, or which one, which `parsing` leaves out. Names of persons, places and brands that
   are no trained words count as unknown: the vectors that text gives them say little of what they look like. A word
   that was learned from a class has seen pictures and is no name ('a Dalmatian'), unless it is one of the few that
   with a capital name something else first ('a Jaguar').
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.structures import Word
from phrase_loc.tables import listed_lines
from phrase_loc.text import english
from phrase_loc.text.english import LISTS, canonical, is_function_word, is_word, spellings, tokens
from phrase_loc.text.parsing import Role, Token, negation, parse, relations
from phrase_loc.text.vocabulary import Vocabulary

ROLE_WEIGHTS = {Role.HEAD: 1.0, Role.MODIFIER: 0.7, Role.CONTEXT: 0.3}
"""Shares before normalising, chosen on the Flickr30k Entities val phrases: with one model (1,606 words) 1/.35/.1 gave
pointing A 71.9 and R@1 U 35.3, 1/.5/.3 72.4 35.4, 1/.7/.3 72.4 35.9, 1/.8/.5 72.4 36.1, 1/1/1 72.3 36.1: a plateau.
Passing over the numbers cost 0.9 points of A."""

_FREQUENT = 20  # a misspelt word is only corrected to a vocabulary word seen so often
_SHORTEST_CORRECTED = 5  # 'dgo' has too many neighbours to guess which is meant
_SHORTEST_FURTHER = 7  # 'perro' is no misspelt 'perry': out-of-vocabulary words hold names and rare ones
_SHORTEST_PART = 3
_JOINING = LISTS.prepositions | LISTS.conjunctions | LISTS.determiners
_CACHED = 1 << 14  # tokens whose reading is kept
_MOST = 5  # words that one sentence lists


@dataclass(frozen=True)
class EncodedPhrase:
    """A phrase as the model sees it."""

    words: tuple[Word, ...]  # every content word in reading order, unknown ones with weight 0
    #: rows of the K known words: below V the vocabulary's, from V on the extra table's; of an image-text pair the
    #: embedding of the phrase, one array (E,)
    ids: tuple[Any, ...]
    weights: tuple[float, ...]  # > 0 with sum 1, in the order of `ids`
    note: str | None = None  # what of the phrase is not asked as it is written, None when all is
    head_known: bool = True  # whether every noun that names the thing is known

    @property
    def known(self) -> bool:
        """Whether there is anything to look for."""
        return len(self.ids) > 0


class PhraseEncoder:
    """Phrases to weighted rows of a table: V words of a vocabulary, then `extra` ones, most frequent first.

    `synonyms` maps a word to what is read instead, one or several words; a ConfigError where one of them is unknown.
    `class_words` are those of `extra` that were learned from pictures, and names of two words for the same.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        extra: Sequence[str] = (),
        synonyms: Mapping[str, str] | None = None,
        class_words: Iterable[str] = (),
    ) -> None:
        self.vocabulary, self._class_words = vocabulary, frozenset(class_words)
        self._trained = len(vocabulary)
        further = {word: row for row, word in reversed([*enumerate(extra, self._trained)])}
        self._rows = further | {word: row for row, word in enumerate(vocabulary.words)}
        self._cache: dict[str, tuple[Word, ...]] = {}
        self.synonyms: dict[str, list[str]] = {}
        given = synonyms or {}
        texts = chain.from_iterable(given.items()) if isinstance(given, Mapping) else [None]
        if not all(isinstance(text, str) for text in texts):
            shown = str(synonyms)[:80]
            raise ConfigError(f"synonyms map words to words, such as {{'perro': 'dog'}}, got {shown}")
        self.synonyms = dict(self._synonym(*entry) for entry in given.items())

    def _synonym(self, word: str, text: str) -> tuple[str, list[str]]:
        found, read = tokens(word), tokens(text)
        if len(found) != 1:
            raise ConfigError(f"a synonym stands for one word, got {word!r}; give each of its words a line")
        named = not all(map(is_function_word, read))  # 'un: a' passes a word over
        unknown = [repr(part.text) for part in self.encode(text).words if not part.known] if named else []
        if unknown or not read:
            what = ", ".join(unknown) or "an empty text"
            raise ConfigError(f"{word!r} cannot be read as {text!r}: the model does not know {what}")
        return canonical(found[0]), read

    def encode(self, phrase: str) -> EncodedPhrase:
        """The words of a phrase, which of them are known, and their weights.

        >>> from phrase_loc.text.vocabulary import Vocabulary
        >>> encoder = PhraseEncoder(Vocabulary(("man", "red", "hat"), (9, 5, 3)))
        >>> [(w.text, w.known, round(w.weight, 2)) for w in encoder.encode("the zorgs' red hats").words]
        [('zorgs', False, 0.0), ('red', True, 0.41), ('hat', True, 0.59)]
        """
        found, instead = self._translated(tokens(phrase))
        read: dict[str, Word] = {}
        shares: dict[str, float] = {}
        heads = []
        content = parse(found)
        names = [name for name in self._names(phrase, content) if name not in instead]
        for word, role in self._units(content, names, instead):
            text = word.text
            read.setdefault(text, word)
            shares[text] = max(shares.get(text, 0.0), ROLE_WEIGHTS[role] if word.known else 0.0)
            heads += [word.known] if role is Role.HEAD else []
        total = sum(shares.values()) or 1.0
        words = tuple([Word(text, w.known, shares[text] / total, w.misspelt) for text, w in read.items()])
        if not words and (text := english.normalise(phrase).strip()[: english.MAX_LETTERS]):
            words = (Word(text, False, 0.0),)  # without a content word ('it', an emoji)
        ids = tuple([self._rows[word.text] for word in words if word.known])
        weights = tuple([word.weight for word in words if word.known])
        return EncodedPhrase(words, ids, weights, note(found, words, names), any(heads) and all(heads))

    def _translated(self, found: list[str]) -> tuple[list[str], dict[str, str]]:
        """Tokens with the synonyms in their places, and for each of those what was written."""
        if not self.synonyms:
            return found, {}
        read = [(token, self.synonyms.get(canonical(token), [token])) for token in found]
        instead = {new: token for token, parts in read for new in parts if parts != [token]}
        return [part for _, parts in read for part in parts], instead

    def _names(self, phrase: str, found: Sequence[Token]) -> list[str]:
        """The tokens that name one person, place or brand and that the model was not trained on."""
        texts = ["", *(text for text, _, _ in found)]
        new = [t for before, t in pairwise(texts) if t not in LISTS.counts and not self._has_seen(t, before)]
        if not new:
            return new
        written = [word.strip("\"'([") for word in phrase.split()]
        large = [word[:1].isupper() and not word.isupper() for word in written]
        within = [word for word, is_large in zip(written[1:], large[1:]) if is_large and not all(large)]
        capital = set(tokens(" ".join(within)))
        return [text for text in new if english.is_name(text, text in capital)]

    def _has_seen(self, token: str, before: str) -> bool:
        """Whether the model learned a word from pictures, by captions or by a class that its capital means too."""
        of_class = self._class_words.intersection(way[0] for way in spellings(token) if len(way) == 1)
        in_two = f"{before}-{canonical(token)}" in LISTS.classes_in_two  # 'a Saint Bernard'
        first = set() if in_two else LISTS.names_first & {token, canonical(token)}
        return bool(self.vocabulary.read(token)) or (bool(of_class) and not first)

    def _units(
        self, found: Sequence[Token], names: Sequence[str], instead: Mapping[str, str]
    ) -> Iterator[tuple[Word, Role]]:
        """Words of weight 0 with their roles."""
        paired = False
        for here, after in zip_longest(found, found[1:]):
            if paired:  # with the one before
                paired = False
            elif after and here.clause == after.clause and (pair := self._pair(here.text, after.text)):
                yield Word(pair, True, 0.0, instead.get(here.text)), max(here.role, after.role)
                paired = True
            else:
                name = (Word(here.text, False, 0.0),) if here.text in names else ()
                words = name or self._read(here.text)
                for word in words:
                    # of 'zorg-hat' the last part names the thing
                    role = here.role if word.known or word is words[-1] else min(here.role, Role.MODIFIER)
                    if word.known or word.text not in LISTS.counts:  # an unknown number is passed over
                        written = instead.get(here.text, word.misspelt)
                        yield Word(word.text, word.known, 0.0, written), role

    def _pair(self, first: str, second: str) -> str | None:
        """The unit that two neighbours form, spaced or written as one word.

        Trained words, and those of classes that have the two as a name: a 'green house' is no 'greenhouse'.
        """
        one, two = canonical(first), canonical(second)
        units = (f"{one} {two}", f"{one}-{two}", one + two)
        learned = self._class_words.intersection(units) if units[0] in self._class_words else ()
        for unit in units:
            row = self._rows.get(unit)
            if row is not None and (row < self._trained or unit in learned):
                return unit
        return None

    def _read(self, token: str) -> tuple[Word, ...]:
        """The known words a token stands for, or the token itself, unknown; all with weight 0."""
        words = self._cache.get(token)
        if words is None:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            words = self._cache[token] = self._look_up(token)
        return words

    def _look_up(self, token: str) -> tuple[Word, ...]:
        if len(token) > english.MAX_LETTERS:
            return (Word(token, False, 0.0),)
        word, ways = canonical(token), spellings(token)
        if token.count("-") == 1 and word not in self.vocabulary and (pair := self._pair(*token.split("-"))):
            ways = ((pair,), *ways)
        for way in ways:
            divides = _JOINING.isdisjoint(way[1:-1])  # 'man-of-war' has no parts
            if divides and not self._rows.keys().isdisjoint(way):
                shown = (part for part in way if part in self._rows or english.may_be_shown(part))
                return tuple([Word(part, part in self._rows, 0.0) for part in shown])
        instead = self._split(word) or self._corrected(word)
        if instead and (not is_word(token) or (len(instead) > 1 and english.is_compound(token))):
            return tuple([Word(near, True, 0.0, token) for near in instead])
        return (Word(token, False, 0.0),)

    def _split(self, word: str) -> tuple[str, ...]:
        """Two frequent words written as one; of several cuts the one whose rarer part is most frequent."""
        places = range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1)
        cuts = [(word[:i], canonical(word[i:])) for i in places]
        count, cut = max(((min(map(self.vocabulary.count, cut)), cut) for cut in cuts), default=(0, ()))
        return cut if count >= _FREQUENT else ()

    def _corrected(self, word: str) -> tuple[str, ...]:
        """The most frequent vocabulary word one edit away, else the most frequent out-of-vocabulary word."""
        if len(word) < _SHORTEST_CORRECTED or not word.isascii():
            return ()
        near = one_edit_away(word)
        count, best = max((self.vocabulary.count(other), other) for other in near)
        if count >= _FREQUENT:
            return (best,)
        if len(word) < _SHORTEST_FURTHER:
            return ()
        further = [w for w in near if self._rows.get(w, 0) >= self._trained and is_word(w)]
        return (min(further, key=self._rows.__getitem__),) if further else ()


def read_synonyms(path: Path) -> dict[str, str]:
    """Word -> what is read instead, of lines `word: known word` (a ';' separates as well); '#' opens a comment."""
    lines = listed_lines(path, what := "the file of synonyms")
    entries = [entry.strip() for line in lines if line[0] != "#" for entry in line.split(";")]
    synonyms: dict[str, str] = {}
    for entry in filter(None, entries):
        word, colon, read = (part.strip() for part in entry.partition(":"))
        if not (word and colon and read):
            raise DataError(f"{what} {path} has the line {entry[:60]!r}; expected `word: known word`")
        if synonyms.setdefault(word, read) != read:
            raise DataError(f"{what} {path} gives {word!r} two meanings; keep one")
    if not synonyms:
        raise DataError(f"{what} {path} is empty; write a line `word: known word` for each")
    return synonyms


def one_edit_away(word: str) -> set[str]:
    """All strings one deletion, swap of neighbours, replacement or insertion from `word`, itself excluded."""
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    near = {left + right[1:] for left, right in halves if right}
    near |= {left + right[1] + right[0] + right[2:] for left, right in halves if len(right) > 1}
    near |= {left + letter + right[1:] for left, right in halves if right for letter in ascii_lowercase}
    near |= {left + letter + right for left, right in halves for letter in ascii_lowercase}
    return near - {word}


def distinct_words(encoded: Sequence[EncodedPhrase]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The distinct word rows (K,) or embeddings (K, E) of all phrases, and the weight of each in each (P, K)."""
    rows = [row for e in encoded for row in e.ids]
    every = np.array(rows) if rows else np.zeros(0, dtype=np.int64)
    ids, place = np.unique(every, axis=0, return_inverse=True)
    weights = np.zeros((len(encoded), len(ids)), dtype=np.float32)
    owner = [p for p, e in enumerate(encoded) for _ in e.ids]
    weights[owner, place.reshape(-1)] = [weight for e in encoded for weight in e.weights]
    return ids, weights


def note(found: Sequence[str], words: Sequence[Word], names: Sequence[str] = ()) -> str | None:
    """The note of an answer: how the content words of a phrase's tokens were read, None when as written.

    `names` are the tokens that are taken for proper names.

    >>> note(["a", "red", "lorry"], (Word("red", True, 1.0), Word("lorry", False, 0.0)))
    "'lorry' is not known; only 'red' was looked for"
    """
    corrected: dict[str, list[str]] = {}
    for word in words:
        if word.misspelt:
            corrected.setdefault(word.misspelt, []).append(word.text)
    said = [f"{text!r} is read as {' '.join(parts)!r}" for text, parts in corrected.items()]
    known, unknown = ([w.text for w in words if w.known is state] for state in (True, False))
    if unknown and known:
        said.append(
            f"{_listed(unknown, 'is', 'are')} not known; only {_listed(known, 'was', 'were')} looked for"
        )
    elif unknown:
        shown = ", ".join(unknown[:_MOST])
        said.append(f"no word of it is known to the model ({shown}); try another word")
    said += [_listed(names, "is read as a name", "are read as names")] if names else []
    unread: dict[str, list[str]] = {}
    for token, what in relations(found).items():
        if token not in known:
            unread.setdefault(what, []).append(token)
    if unread:
        tell = " and ".join(f"{_listed(part, 'tells', 'tell')} {what}" for what, part in unread.items())
        looked = f"; {_listed(known, 'was', 'were')} looked for anywhere" if known and not unknown else ""
        said.append(f"{tell}, which the model does not read{looked}")
    if denied := negation(found):
        said.append(
            f"{denied!r} is read as a negation: what it denies was looked for all the same, and present speaks of "
            "the thing, not of its absence"
        )
    if len(found) >= english.MAX_TOKENS:
        said.append(f"no more than the first {english.MAX_TOKENS} words were read")
    return ". ".join(said) or None


def _listed(words: Sequence[str], one: str, several: str) -> str:
    more = [f"{len(words) - _MOST} more"] if len(words) > _MOST else []
    shown = [*map(repr, words[:_MOST]), *more]
    listed = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return f"{listed} {several if len(words) > 1 else one}"
