"""The phrases that somebody asks, as a list of text, or one sentence; without torch, for exported models too."""

from collections.abc import Iterable, Mapping

from phrase_loc.errors import ConfigError


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
