"""YAML and the words behind `key=`, read for the types that are wanted: text stays as it is written.

YAML alone guesses by looks: `1 #2` is 1, `*.tar` an alias, `no` false, `2023-01-01` a date, `1:30` ninety. Here
every word is text until a type says otherwise, and where none does, null, true, false (yes, no, on, off) and plain
numbers are what they look like. Keys stand once; tags are not read; anchors may not multiply.
"""

import os
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import read_text

DEEPEST, MOST_VALUES = 50, 100_000  # of a file of settings; more is an anchor that multiplies itself
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLS = {
    word: value
    for words, value in (("yes true on", True), ("no false off", False))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
)
fields_of: Callable[[Any], dict[str, Any]] = cache(get_type_hints)  # names and types of a dataclass
_ENDLESS = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")


def read_yaml(path: Path, kind: Any = Any) -> dict[str, Any]:
    """The mapping in a YAML file, its words read for the types of `kind`; a ConfigError says what else is there."""
    if not os.path.exists(path):
        raise ConfigError(
            f"config file {shortened(str(path), 200)} does not exist; the shipped ones are in configs/"
        )
    try:
        text = read_text(path, "config file")
    except DataError as error:
        raise ConfigError(str(error)) from None
    tree = _parsed(text, f"config file {path}", kind)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} must hold `key: value` lines, got a {type(tree).__name__}")
    return tree


def value_of(text: str, what: str = "the value", wanted: Any = Any) -> Any:
    """What stood behind `key=`, read for the type that is wanted there.

    Args:
        text: as the shell gave it.
        what: it is called in messages.
        wanted: a type; Any reads numbers, null, true and false, lists and mappings as such, all else as text.

    Raises:
        ConfigError: a list or mapping is wanted, and the text is no YAML.
    """
    kinds = options(wanted)
    takes_text = _takes_text(kinds)
    if text[:1] + text[-1:] in ("[]", "{}", '""', "''") and len(text) > 1:
        try:
            found = _parsed(text, what, wanted)
        except ConfigError:
            if not takes_text:
                raise
            return text  # {0..3}.tar
        return text if takes_text and not _stands(found, kinds) else found
    if takes_text:
        return None if NoneType in kinds and text.lower() == "null" else text
    if _structured(kinds) and text:
        return _parsed(text, what, wanted)
    return _plain(text.strip()) if text else text


def shortened(value: Any, most: int = 80) -> str:
    """A value as a message shows it: on one line, and never much of it."""
    text = value if isinstance(value, str) else repr(value)[: 4 * most]
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[:most] + "..."


def options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        return options(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(o for part in get_args(kind) for o in options(part))
    return (kind,)


def below(kind: Any, key: str) -> Any:
    """The type under a key: of a dataclass's field, of a list's elements, of a mapping's values; else Any."""
    for option in options(kind):
        if is_dataclass(option):
            return fields_of(option).get(key, Any)
        arguments = get_args(option)
        if get_origin(option) in (list, tuple) and arguments:
            return arguments[0]
        if get_origin(option) is dict:
            return arguments[1]
    return Any


def _takes_text(kinds: tuple[Any, ...]) -> bool:
    return any(
        k in (str, Path) or (get_origin(k) is Literal and isinstance(get_args(k)[0], str)) for k in kinds
    )


def _structured(kinds: tuple[Any, ...]) -> bool:
    """Whether a list or a mapping is wanted."""
    return any(is_dataclass(k) or get_origin(k) in (list, tuple, dict) for k in kinds)


def _stands(found: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether what was read in brackets or quotation marks can stand where text can."""
    if isinstance(found, list):
        return any(get_origin(k) in (list, tuple) for k in kinds)
    if isinstance(found, dict):
        return any(is_dataclass(k) or get_origin(k) is dict for k in kinds)
    return isinstance(found, str)


class _Loader(yaml.SafeLoader):
    """Gives every word as text: what it means is for the types to say."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    values = 0

    def value(self, node: Any, wanted: Any, depth: int = 0) -> Any:
        """A node -> a scalar, list or dictionary; keys are text."""
        self.values += 1
        if depth > DEEPEST or self.values > MOST_VALUES:
            raise ConfigError("is nested too deeply or repeats itself by anchors; write it out flat")
        if node.tag.rpartition(":")[2] not in ("str", "seq", "map"):
            raise ConfigError(f"has the tag {shortened(node.tag)}; write plain values without tags")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(part, below(wanted, ""), depth + 1) for part in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, wanted, depth)
        kinds = options(wanted)
        if node.style is not None or (_takes_text(kinds) and not (node.value in _NULL and NoneType in kinds)):
            return node.value
        return _plain(node.value)

    def _mapping(self, node: Any, wanted: Any, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"has a key that is no word in line {key.start_mark.line + 1}")
            if key.value == "<<" and key.style is None:
                parts = inner.value if isinstance(inner, yaml.SequenceNode) else [inner]
                for part in reversed(parts):
                    found = self.value(part, wanted, depth + 1)
                    if not isinstance(found, dict):
                        raise ConfigError("merges (<<) what is no mapping")
                    merged |= found
            elif key.value in own:
                raise ConfigError(
                    f"has the key {shortened(key.value)} twice, again in line {key.start_mark.line + 1}; keep one"
                )
            else:
                own[key.value] = self.value(inner, below(wanted, key.value), depth + 1)
        return merged | own


def _parsed(text: str, what: str, wanted: Any) -> Any:
    """One YAML document; `what` it is goes into messages."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.value(node, wanted)
    except ConfigError as error:
        raise ConfigError(f"{what} {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else shortened(str(error), 200)
        raise ConfigError(f"{what} is not YAML ({why}); quote what is text") from None


def _plain(word: str) -> Any:
    """What an unquoted word means where no text is wanted."""
    if word in _NULL:
        return None
    if word in _BOOLS:
        return _BOOLS[word]
    try:
        if _INT.fullmatch(word):
            return int(word, 0)
        if _FLOAT.fullmatch(word):
            return float(word)
    except ValueError:  # 1__0, or thousands of digits
        return word
    endless = _ENDLESS.fullmatch(word)
    return float(endless[1] + endless[2]) if endless else word
