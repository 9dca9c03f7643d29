"""What can go wrong that is the user's to mend, each in one sentence: what was expected, what came, what to do.

The command line prints it and exits with 2; every other exception is a bug of ours and keeps its traceback. A phrase
that the model does not know is an answer (`Prediction.present is None`), never an error.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class PhraseLocError(ValueError):
    """The root of the errors that a user can mend; a word of more than 300 characters is shown in part."""

    def __init__(self, message: str):
        super().__init__(re.sub(r"\S{300,}", lambda word: f"{word[0][:80]}...", message))


class ConfigError(PhraseLocError):
    """A setting, an option or an argument is wrong."""


class RuleError(ConfigError, NotImplementedError):
    """A network has an operation through which no winner can pass; a NotImplementedError too, as torch's own are."""


class DataError(PhraseLocError):
    """A file, an image or an annotation is missing, broken or of another kind than promised."""


def extra(name: str) -> str:
    """The command that installs what only a part of the project needs; the project itself is on no index."""
    return f"pip install '.[{name}]' in a clone of the project"


def choose(table: dict[str, T], name: str, what: str) -> T:
    """The entry `name` of a registry, or a ConfigError that lists what there is.

    >>> choose({"mwp": 1, "cam": 2}, "cam", "attention method")
    2
    """
    if not isinstance(name, str):
        raise ConfigError(f"the {what} is a name, got a {type(name).__name__}")
    if name in table:
        return table[name]
    shown = name if len(name) <= 80 else f"{name[:80]}..."  # what came may be anything
    hint = nearest(name[:80], table)
    raise ConfigError(f"unknown {what} {shown!r}{hint}; choose from {', '.join(sorted(table))}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ' (did you mean ...?)', or nothing when none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
