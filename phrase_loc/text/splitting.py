"""Texts to phrases: what somebody types, what a program hands over, and the noun phrases of a caption.

For noun phrases each token gets a tag from closed word classes, and a regular expression finds them in the string of
tags, as NLTK's RegexpTagger and RegexpParser work (whose import takes 3 to 5 s). Against the marked phrases of the
1,235 Flickr30k Entities val captions (exact ends, without lone pronouns): precision 92 %, recall 93 %.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, cast

from phrase_loc.errors import ConfigError
from phrase_loc.text import english
from phrase_loc.text.english import LISTS, canonical, is_adjective, is_function_word, normalise, tokens

_ABBREVIATED = r"(?<!\bst)(?<!\bmr)(?<!\bmrs)(?<!\bms)(?<!\bdr)(?<!\bjr)(?<!\bsr)(?<!\bno)(?<!\bvs)(?<!\b\w)"
_STOP = re.compile(rf"[\n\r;；。！？]+|{_ABBREVIATED}(?<![.!?．])[.!?．]+(?=\s|$|[\"'”’)])", re.IGNORECASE)
_COMMA = re.compile(r"([,，、](?!\d)|(?<!\d)[,，、])")  # '1,000 people' is one
_EDGES = '"“”„«»:,.!?' + "".join(filter(str.isspace, map(chr, range(0x3001))))  # the last space is U+3000
_GOES_ON = LISTS.prepositions - LISTS.going_nowhere
_PARTICIPLES = english.PRESENT_PARTICIPLES | LISTS.past_participles
_JOINING = re.compile(r"^(?:and|or|then|but|&)\s+", re.IGNORECASE)


def split_phrases(text: str) -> list[str]:
    """The phrases of a typed text, in order; [] when it is blank.

    A line break, a semicolon and a full stop separate; so does a comma that does not stand within one noun phrase.

    >>> split_phrases("a dog, a big, brown cat, and the 1,000 birds. Two men in long, dark coats")
    ['a dog', 'a big, brown cat', 'the 1,000 birds', 'Two men in long, dark coats']
    """
    found = [phrase for part in _STOP.split(text) for phrase in _between_commas(part)]
    return found or [kept for kept in [text.strip()] if kept]


def _between_commas(text: str) -> Iterator[str]:
    parts = _COMMA.split(text)  # pieces at even places, their commas between
    pieces = [tokens(piece) for piece in parts[::2]]
    start = 0
    for end in range(1, len(pieces) + 1):
        if end < len(pieces) and _belongs(pieces[end - 1], pieces[end]):
            continue
        adjectives = end - start > 1 and not _opened(pieces[start]) and not _has_noun(pieces[end - 1])
        step = 1 if adjectives else end - start  # 'red, green' are two phrases
        for first in range(start, end, step):
            phrase = "".join(parts[2 * first : 2 * (first + step) - 1]).strip(_EDGES)
            if phrase := _JOINING.sub("", phrase, count=1) if first else phrase:
                yield phrase
        start = end


def _belongs(before: list[str], after: list[str]) -> bool:
    """Whether a comma between these tokens stands within one noun phrase."""
    if not before or not after or _opens(after[0]):
        return False
    clause = len(after) > 1 and after[0] in english.PRESENT_PARTICIPLES and is_function_word(after[1])
    if clause or after[0] in _GOES_ON:  # 'wearing a hat', but not 'running water'
        return True
    if _has_noun(before):
        return False
    rest = after[1:] if after[0] in LISTS.conjunctions else after
    return bool(rest) and not _opens(rest[0]) and (_opened(before) or _is_modifier(rest[0]))


def _opens(token: str) -> bool:
    return token in LISTS.determiners or token in english.NUMBERS or token.isdigit()


def _opened(found: list[str]) -> bool:
    """Whether an article or a number opens the last noun phrase, so that a noun must come."""
    return next((_opens(token) for token in reversed(found) if is_function_word(token)), False)


def _has_noun(found: list[str]) -> bool:
    """Whether a noun stands behind the last function word."""
    last = takewhile(lambda token: not is_function_word(token), reversed(found))
    return not all(map(_is_modifier, last))


def _is_modifier(token: str) -> bool:
    formed = token in _PARTICIPLES or ("-" in token and token.endswith(("ed", "ing")))
    return formed or english.is_modifier(token) or is_adjective(token)


def phrase_list(phrases: object) -> list[str]:
    """Any iterable of text, generators and arrays included, as a list.

    Raises ConfigError: a bare string (it would be taken letter by letter), no iterable, or something that is no text.
    """
    if isinstance(phrases, str):
        shown = phrases if len(phrases) <= 60 else phrases[:60] + "..."
        raise ConfigError(f"expected a list of phrases, got a string; write [{shown!r}]")
    try:
        if isinstance(phrases, (bytes, bytearray, memoryview, Mapping)):
            raise TypeError
        given = iter(cast(Any, phrases))
    except TypeError:
        raise ConfigError(f"expected a list of phrases, got {_kind(phrases)}") from None
    asked = list(given)
    for place, phrase in enumerate(asked, 1):
        if not isinstance(phrase, str):
            raise ConfigError(f"phrase {place} is {_kind(phrase)}; expected text such as 'a red hat'")
    return list(map(str, asked))  # numpy has strings of its own


def _kind(value: object) -> str:
    """The value where it is a short plain one, else its type: never the content of an array or a file."""
    name, plain = type(value).__qualname__, value is None or isinstance(value, (bool, int, float))
    return (f"{value!r} ({name})" if plain else f"a {name}")[:60]


_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|['’]s\b|[^\w\s]")
_CLITIC = ("'s", "’s")
_WORD = r"(?:R(?=[AG])|[AK](?:,?C|,)(?=[AK])|[AMGNK])"
_NOUN_PHRASE = rf"D?{_WORD}*(?:NS{_WORD}*)*[NK]"
CHUNK = re.compile(rf"{_NOUN_PHRASE}(?:O{_NOUN_PHRASE})*")
"""One letter a token. D determiner or possessive, M number, A adjective, R adverb before one, G verb form
that stands as one, N noun, K colour (adjective or noun), S the clitic 's, C and/or, O 'of', V verb, P what
ends a noun phrase."""
_OPENED = re.compile(r"[DM][AKGNR]*$")
_JOINED = re.compile(r"NC[DAMK]*N$")
_LISTED = (
    ("D", LISTS.determiners),
    ("M", english.NUMBERS),
    ("O", {"of"}),
    ("P", LISTS.prepositions | LISTS.auxiliaries | english.PRONOUNS),
    ("C", LISTS.conjunctions),
    ("K", LISTS.colours),
)


def noun_phrases(caption: str) -> list[str]:
    """The noun phrases of a caption in order; a bare phrase gives itself, a text without nouns nothing.

    >>> noun_phrases("Two young men in red hats are playing the guitar.")
    ['Two young men', 'red hats', 'the guitar']
    """
    return [caption[span] for span in noun_spans(caption)]


def noun_spans(caption: str) -> list[slice]:
    """Where `noun_phrases` stand in the caption, articles included."""
    found = list(_TOKEN.finditer(caption))
    chunks = CHUNK.finditer(tag([match.group() for match in found]))
    return [slice(found[chunk.start()].start(), found[chunk.end() - 1].end()) for chunk in chunks]


def tag(tokens: list[str]) -> str:
    """One letter a token, see CHUNK."""
    lower = [token if token in _CLITIC else normalise(token) for token in tokens]
    tags = ""
    for previous, word, following in zip(["", *lower], lower, [*lower[1:], ""]):
        opened = _OPENED.search(tags)
        singular = opened is not None and lower[opened.start()] in LISTS.singular_openers
        tags += _tag(tags, previous, word, following, singular)
    return tags


def _tag(before: str, previous: str, word: str, following: str, singular: bool) -> str:
    """The tag of a word behind the tags `before`; behind 'a' (`singular`), a plural cannot be the noun."""
    after_noun = before.endswith(("N", "K"))
    if word in _CLITIC:
        return "S" if after_noun else "P"
    if not word[:1].isalnum():
        return "," if word == "," else "P"
    if (word == "that" and after_noun) or (previous, word, following) == ("in", "front", "of"):
        return "P"  # 'a shirt that says'
    for letter, known in _LISTED:
        if word in known:
            return letter
    if word.isdigit():
        return "M"
    closed = not following[:1].isalnum() or is_function_word(following)  # the noun phrase cannot go on
    if _is_verb(before, previous, word, following, singular, closed):
        return "V"
    return _before_noun(word, following, closed) or "N"


def _is_verb(before: str, previous: str, word: str, following: str, singular: bool, closed: bool) -> bool:
    """By form and place."""
    plural, after_noun = _plural(word), before.endswith(("N", "K"))
    if previous == "to" and closed and not plural:
        return following not in ("", ".", ",", "and") or word in english.VERB_BASES
    if before.endswith("P") and previous in LISTS.subjects and (plural or word in english.VERB_FORMS):
        return True
    if after_noun and plural and (singular or (word in english.THIRD_PERSON and not _plural(previous))):
        return True
    if after_noun and word in english.VERB_BASES:
        loose = previous.endswith("s") and not previous.endswith("ss")
        if loose or _plural(previous) or _JOINED.search(before):  # several of them
            return True
    if _is_ing(word):  # 'a running man', but 'is playing soccer'
        verbal = previous in LISTS.auxiliaries or previous in ("while", "whilst", "by", "for")
        return closed or before[-1:] not in "DMAKSROP" or verbal
    return closed and after_noun and _is_past(word)


def _before_noun(word: str, following: str, closed: bool) -> str:
    """A, G or R for what may stand before a noun, P for an adverb that cannot, else nothing."""
    if _is_ing(word):
        return "G"
    if word in LISTS.adverbs or (len(word) > 4 and word.endswith("ly") and word not in LISTS.nouns_in_ly):
        return "P" if closed else "R"
    if word in LISTS.people_too and (_is_ing(following) or following in english.THIRD_PERSON):
        return ""
    goes_on = not closed or following in LISTS.conjunctions or following == ","
    return "A" if _is_past(word) or (english.is_modifier(word) and goes_on) else ""


def _is_ing(word: str) -> bool:
    listed = word in english.PRESENT_PARTICIPLES or (len(word) > 5 and word.endswith("ing"))
    return listed and word not in LISTS.nouns_in_ing


def _is_past(word: str) -> bool:
    return word in LISTS.past_participles or (len(word) > 4 and word.endswith("ed") and "-" not in word)


def _plural(word: str) -> bool:
    return word == "people" or canonical(word) != word
