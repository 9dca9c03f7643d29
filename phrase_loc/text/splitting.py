"""Typed text to phrases: the one rule for the command line and the page.

A line break, a semicolon and a full stop separate; a comma separates too, unless it stands within one noun
phrase: 'a big, brown dog', 'a red, white and blue flag', 'a man, in a hat'. Phrases that a program
hands over (a Python list, the API's JSON, a table, a line of a file) are taken as they are.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from phrase_loc.errors import ConfigError
from phrase_loc.text import english
from phrase_loc.text.english import tokens
from phrase_loc.text.word_list import is_adjective

_ABBREVIATED = "".join(
    rf"(?<!\b{name})" for name in ("st", "mr", "mrs", "ms", "dr", "jr", "sr", "no", "vs", r"\w")
)
_STOP = re.compile(rf"[\n\r;；。！？]+|{_ABBREVIATED}(?<![.!?．])[.!?．]+(?=\s|$|[\"'”’)])", re.IGNORECASE)
_COMMA = re.compile(r"[,，、](?!\d)|(?<!\d)[,，、]")  # '1,000 people' is one
_EDGES = '"“”„«»:,.!?' + "".join(filter(str.isspace, map(chr, range(0x3001))))  # the last space is U+3000
_GOES_ON = english.PREPOSITIONS - frozenset(("then", "so", "but", "here", "there", "away", "together"))
_PARTICIPLES = english.PRESENT_PARTICIPLES | english.PAST_PARTICIPLES
_JOINING = re.compile(r"^(?:and|or|then|but|&)\s+", re.IGNORECASE)


def split_phrases(text: str) -> list[str]:
    """The phrases of a typed text, in order; [] when it is blank.

    >>> split_phrases("a dog, a big, brown cat, and the 1,000 birds. Two men in long, dark coats")
    ['a dog', 'a big, brown cat', 'the 1,000 birds', 'Two men in long, dark coats']
    """
    found = [phrase for part in _STOP.split(text) for phrase in _between_commas(part)]
    return found or [kept for kept in [text.strip()] if kept]


def _between_commas(text: str) -> Iterator[str]:
    """Phrases of a stretch without full stops."""
    ends = [match.span() for match in _COMMA.finditer(text)]
    starts = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(text)]
    pieces = [tokens(text[a:b]) for a, b in zip(starts, stops)]
    for run in _runs(pieces):
        phrase = text[starts[run[0]] : stops[run[-1]]].strip(_EDGES)
        if run[0]:
            phrase = _JOINING.sub("", phrase, count=1)
        if phrase:
            yield phrase


def _runs(pieces: list[list[str]]) -> Iterator[range]:
    """Places of the pieces that are one phrase together."""
    start = 0
    for end in range(1, len(pieces) + 1):
        if end < len(pieces) and _belongs(pieces[end - 1], pieces[end]):
            continue
        if end - start > 1 and not _opened(pieces[start]) and not _has_noun(pieces[end - 1]):
            yield from (
                range(place, place + 1) for place in range(start, end)
            )  # adjectives alone: 'red, green'
        else:
            yield range(start, end)
        start = end


def _belongs(before: list[str], after: list[str]) -> bool:
    """Whether a comma between these tokens stands within one noun phrase."""
    if not before or not after or _opens(after[0]):
        return False
    if after[0] in _GOES_ON or _begins_clause(after):
        return True
    if _has_noun(before):
        return False
    rest = after[1:] if after[0] in english.CONJUNCTIONS else after
    return bool(rest) and not _opens(rest[0]) and (_opened(before) or _is_modifier(rest[0]))


def _begins_clause(found: list[str]) -> bool:
    """'wearing a hat', but not 'running water'."""
    return found[0] in english.PRESENT_PARTICIPLES and len(found) > 1 and english.is_function_word(found[1])


def _last_noun_phrase(found: list[str]) -> list[str]:
    """The tokens behind the last function word."""
    places = [place for place, token in enumerate(found) if english.is_function_word(token)]
    return found[places[-1] + 1 :] if places else found


def _opens(token: str) -> bool:
    return token in english.DETERMINERS or token in english.NUMBERS or token.isdigit()


def _opened(found: list[str]) -> bool:
    """Whether an article or a number opens the last noun phrase, so that a noun must come."""
    before = len(found) - len(_last_noun_phrase(found)) - 1
    return before >= 0 and _opens(found[before])


def _has_noun(found: list[str]) -> bool:
    return not all(_is_modifier(token) for token in _last_noun_phrase(found))


def _is_modifier(token: str) -> bool:
    formed = token in _PARTICIPLES or ("-" in token and token.endswith(("ed", "ing")))
    return formed or english.is_modifier(token) or is_adjective(token)


def phrase_list(phrases: object) -> list[str]:
    """Any iterable of text, generators and arrays included, as a list.

    >>> phrase_list(phrase for phrase in ("a dog", "a cat"))
    ['a dog', 'a cat']

    Raises:
        ConfigError: a bare string (it would be taken letter by letter), no iterable, or something that is no text.
    """
    if isinstance(phrases, str):
        shown = phrases if len(phrases) <= 60 else phrases[:60] + "..."
        raise ConfigError(f"expected a list of phrases, got a string; write [{shown!r}]")
    if isinstance(phrases, (bytes, bytearray, memoryview, Mapping)) or not _iterable(phrases):
        raise ConfigError(f"expected a list of phrases, got {_kind(phrases)}")
    asked: list[str] = []
    for phrase in phrases:  # type: ignore[attr-defined]
        if not isinstance(phrase, str):
            raise ConfigError(
                f"phrase {len(asked) + 1} is {_kind(phrase)}; expected text such as 'a red hat'"
            )
        asked.append(str(phrase))  # numpy has strings of its own
    return asked


def _iterable(value: object) -> bool:
    if not isinstance(value, Iterable):
        return False
    try:
        iter(value)  # an array without axes calls itself iterable
    except TypeError:
        return False
    return True


def _kind(value: object) -> str:
    """The value where it is a short plain one, else its type: never the content of an array or a file."""
    name = type(value).__qualname__
    return (
        f"{value!r} ({name})"[:60]
        if value is None or isinstance(value, (bool, int, float))
        else f"a {name}"[:60]
    )
