"""Typed text to phrases: the one rule for the command line and the page.

A line break, a semicolon and a full stop separate; a comma separates too, unless it stands within one noun
phrase: 'a big, brown dog', 'a red, white and blue flag', 'a man, in a hat'. Phrases that a program
hands over (a Python list, the API's JSON, a table, a line of a file) are taken as they are.
"""

import re
from collections.abc import Iterator

from phrase_loc.text import grammar
from phrase_loc.text.word_list import is_adjective
from phrase_loc.text.words import tokens

_ABBREVIATED = "".join(
    rf"(?<!\b{name})" for name in ("st", "mr", "mrs", "ms", "dr", "jr", "sr", "no", "vs", r"\w")
)
_STOP = re.compile(rf"[\n\r;；。！？]+|{_ABBREVIATED}(?<![.!?．])[.!?．]+(?=\s|$|[\"'”’)])", re.IGNORECASE)
_COMMA = re.compile(r"[,，、](?!\d)|(?<!\d)[,，、]")  # '1,000 people' is one
_EDGES = ' \t"“”„«»:,.!?'
_GOES_ON = grammar.PREPOSITIONS - frozenset(("then", "so", "but", "here", "there", "away", "together"))
_PARTICIPLES = grammar.PRESENT_PARTICIPLES | grammar.PAST_PARTICIPLES
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
    rest = after[1:] if after[0] in grammar.CONJUNCTIONS else after
    return bool(rest) and not _opens(rest[0]) and (_opened(before) or _is_modifier(rest[0]))


def _begins_clause(found: list[str]) -> bool:
    """'wearing a hat', but not 'running water'."""
    return found[0] in grammar.PRESENT_PARTICIPLES and len(found) > 1 and grammar.is_function_word(found[1])


def _last_noun_phrase(found: list[str]) -> list[str]:
    """The tokens behind the last function word."""
    places = [place for place, token in enumerate(found) if grammar.is_function_word(token)]
    return found[places[-1] + 1 :] if places else found


def _opens(token: str) -> bool:
    return token in grammar.DETERMINERS or token in grammar.NUMBERS or token.isdigit()


def _opened(found: list[str]) -> bool:
    """Whether an article or a number opens the last noun phrase, so that a noun must come."""
    before = len(found) - len(_last_noun_phrase(found)) - 1
    return before >= 0 and _opens(found[before])


def _has_noun(found: list[str]) -> bool:
    return not all(_is_modifier(token) for token in _last_noun_phrase(found))


def _is_modifier(token: str) -> bool:
    formed = token in _PARTICIPLES or ("-" in token and token.endswith(("ed", "ing")))
    return formed or grammar.is_modifier(token) or is_adjective(token)
