"""What an answer has to say about its phrase: which words were read otherwise, passed over, or denied."""

from collections.abc import Sequence

from phrase_loc.structures import Word
from phrase_loc.text.parsing import negation
from phrase_loc.text.words import MAX_TOKENS

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
    said = [*_misspelt(words), *_unknown(words), *_denied(found)]
    if len(found) >= MAX_TOKENS:
        said.append(f"no more than the first {MAX_TOKENS} words were read")
    return ". ".join(said) or None


def _misspelt(words: Sequence[Word]) -> list[str]:
    read: dict[str, list[str]] = {}
    for word in words:
        if word.misspelt:
            read.setdefault(word.misspelt, []).append(word.text)
    return [f"{text!r} is read as {' '.join(parts)!r}" for text, parts in read.items()]


def _unknown(words: Sequence[Word]) -> list[str]:
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
