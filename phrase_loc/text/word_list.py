"""Which words are English, and which of those are adjectives: a list of 97,000 (SCOWL and WordNet) beside this.

It is opened when a word must be told from a misspelling or a comma has to be understood, never for a phrase
of known words: 25 ms once, half a millisecond a question. `benchmarks/word_list.py` makes it.
"""

import lzma
from functools import cache, lru_cache
from importlib.resources import files

from phrase_loc.text.english import canonical

SHORTEST = 5  # words that are not adjectives are listed from here on: shorter ones are never corrected


def is_word(token: str) -> bool:
    """Whether a lower-case token of five letters or more is a word of English, in any of its forms.

    >>> [is_word(w) for w in ("toaster", "toasters", "sloth", "umbrela")]
    [True, True, True, False]
    """
    return any(_is_listed(w, mark) for w in {token, canonical(token)} for mark in ("", "+", "="))


def is_adjective(token: str) -> bool:
    """Whether a lower-case token is an adjective more often than a noun.

    >>> [is_adjective(w) for w in ("odd", "weird", "puppy")]
    [True, True, False]
    """
    return _is_listed(token, "+")


def is_compound(token: str) -> bool:
    """Whether a lower-case word of English is a kind of what its second half names.

    >>> [is_compound(w) for w in ("goldfish", "ladybird", "carpet")]
    [True, False, False]
    """
    return _is_listed(canonical(token), "=")


@lru_cache(maxsize=1 << 12)
def _is_listed(token: str, mark: str) -> bool:
    return f"\n{token}{mark}\n".encode() in _list()


@cache
def _list() -> bytes:
    """One word a line, adjectives with a '+', compounds with a '='; searched as it is, a set would take 10 MB."""
    return lzma.decompress((files("phrase_loc.text") / "lists" / "words.txt.xz").read_bytes())
