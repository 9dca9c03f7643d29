"""YAML and `key=value` to a frozen dataclass, checked by pydantic.

A config is made once, printed with the result and saved beside it; the maths never sees it. Each procedure
declares its own frozen dataclass tree (`phrase_loc.evaluation.config`, `phrase_loc.training.config`); this
file only reads. The YAML mirrors the tree, and `a.b=c` on the command line replaces one leaf, in a list the element
of that number or `name`:

    python evaluate.py configs/flickr30k.yaml data.root=DIR data.split=val method=[contrastive_mwp,cam]
    python train.py configs/default.yaml phases.late.epochs=3

The dataclass's types say what a word means, never its looks. Where text or a path is wanted it is taken as it is
written: `out='runs/1 #2'`, `data.shards=*.tar`, `data.shards={00000..00003}.tar`, `data.split=2007`. `[a, b]` is a
list where a list can stand. Elsewhere `1e-4` is a number, and a key that no field has is an error that names the
nearest one.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from phrase_loc.errors import ConfigError, DataError, nearest
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


T = TypeVar("T")
#: `__pydantic_config__` of a dataclass read from JSON: no text and no true for a number, nothing endless or unknown
STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # what pydantic makes of a type, once


def checked(kind: type[T], values: Any, what: str) -> T:
    """Plain values, as JSON has them -> a checked dataclass; lists become tuples.

    Args:
        kind: a dataclass with `__pydantic_config__ = STRICT`.
        values: of its fields.
        what: a field is called in messages ('inference setting').

    Raises:
        ConfigError: an unknown or a missing key, a wrong type, a number out of its range.
    """
    try:
        text = json.dumps(values, default=lambda value: value.item())  # of numpy and torch
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # also RecursionError
        raise ConfigError(
            f"expected plain values for each {what}, got {shortened(values)} ({shortened(str(error))})"
        ) from None
    try:
        found: T = adapter(kind).validate_json(text)  # of JSON, strict still makes tuples of lists
        return found
    except ValidationError as error:
        raise ConfigError(problems(error, kind, what, quoted=True)) from None


def without_retired(values: dict[str, Any], retired: dict[str, Any], what: str) -> dict[str, Any]:
    """Values that an older version wrote, less the settings that are gone, where those did nothing.

    Args:
        values: name -> value.
        retired: a setting that is gone -> the value at which it did nothing.
        what: a setting is called in messages ('inference setting').

    Raises:
        ConfigError: a retired setting is in use.
    """
    for key in sorted(values.keys() & retired.keys()):
        if values[key] != retired[key]:
            raise ConfigError(
                f"the {what} {key}={shortened(repr(values[key]))} is no longer there: it did not help "
                f"(docs/experiments.md); set it to {retired[key]!r} or leave it out"
            )
    return {key: value for key, value in values.items() if key not in retired}


def problems(error: ValidationError, kind: Any, what: str, quoted: bool = False) -> str:
    """The first three problems that pydantic found, in one sentence; `what` is a key called ('config key')."""
    found = list(dict.fromkeys(_explain(kind, e, what, quoted) for e in error.errors()))
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _explain(kind: Any, error: Any, what: str, quoted: bool) -> str:
    where = [str(part) for part in error["loc"]]
    name = shortened(".".join(where)) or "(none)"
    name = repr(name) if quoted else name
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        holder = _holder(kind, where[:-1])
        known = list(fields_of(holder)) if holder else []
        if where[-1] in getattr(holder, "RETIRED", ()):
            return f"{what} {name} is no longer there: it did not help (docs/experiments.md); leave it out"
        hint = nearest(where[-1][:80], known) if known else ""
        return f"unknown {what} {name}{hint}; known here: {', '.join(known)}"
    if error["type"].startswith("missing"):
        return f"{what} {name} is required; give it in the file or as {name}=VALUE"
    own = error.get("ctx", {}).get("error")
    if isinstance(own, ConfigError):  # a sentence of the dataclass itself, which names its key
        return str(own)
    return f"{what} {name}: {shortened(error['msg'].lower(), 200)}, got {shortened(repr(error['input']))}"


def _holder(kind: Any, path: list[str]) -> Any:
    """The dataclass at a path of keys."""
    for part in path:
        kind = below(kind, part)
    return next((o for o in options(kind) if is_dataclass(o)), None)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_dataclass(kind: type[T]) -> type[T]:
    """A frozen dataclass by keyword alone whose values are checked when they come; unknown keys are refused."""
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    checked: Any = checked_dataclass(frozen=True, kw_only=True, config=rules)(kind)
    return checked


def load_config(kind: type[T], arguments: Sequence[str]) -> T:
    """`[FILE.yaml] [key=value ...]` -> a checked config of class `kind`.

    Args:
        kind: a class decorated with `config_dataclass`.
        arguments: what stood on the command line after the program's name.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown, a value has the wrong type.
    """
    files = [a for a in arguments if "=" not in a or (a.endswith((".yaml", ".yml")) and Path(a).is_file())]
    if len(files) > 1:
        raise ConfigError(
            f"expected one config file and key=value pairs, got the files {shortened(' and '.join(files))}"
        )
    tree = read_yaml(Path(files[0]), kind) if files else {}
    for pair in (a for a in arguments if a not in files):
        key, _, text = pair.partition("=")
        keys, wanted = key.strip().split("."), kind
        for name in keys:
            wanted = below(wanted, name)
        _put(tree, keys, value_of(text, f"the value of {shortened(key)}", wanted))
    return build(kind, tree)


def build(kind: type[T], tree: dict[str, Any]) -> T:
    """A nested dictionary -> a checked config; the first problems in one ConfigError."""
    _refuse_bools(kind, tree, ())
    try:
        found: T = adapter(kind).validate_python(tree)
        return found
    except ValidationError as error:
        raise ConfigError(problems(error, kind, "config key")) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-ready values, for reports and checkpoints."""
    return {key: _to_json(value) for key, value in asdict(config).items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _refuse_bools(kind: Any, value: Any, where: tuple[str, ...]) -> None:
    """Refuses true and false for a number: pydantic takes them for 1 and 0."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_bools(below(kind, key), inner, (*where, str(key)))
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            _refuse_bools(below(kind, ""), inner, (*where, str(place)))
    elif isinstance(value, bool) and bool not in options(kind) and {int, float} & set(options(kind)):
        raise ConfigError(f"config key {shortened('.'.join(where))} takes a number, got {str(value).lower()}")


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for number, key in enumerate(keys[:-1]):
        inner = tree.get(key)
        if isinstance(inner, list):
            _put_in_list(inner, keys[: number + 1], keys[number + 1 :], value)
            return
        tree[key] = inner if isinstance(inner, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _put_in_list(parts: list[Any], above: list[str], keys: list[str], value: Any) -> None:
    """Changes the element that is called, or has the number, keys[0]."""
    names = [str(part.get("name", i)) if isinstance(part, dict) else str(i) for i, part in enumerate(parts)]
    if keys[0] in names:
        place = names.index(keys[0])
    elif keys[0].isdecimal() and len(keys[0]) < 9 and int(keys[0]) < len(parts):
        place = int(keys[0])
    else:
        there = shortened(", ".join(names), 200) or "nothing"
        raise ConfigError(f"{'.'.join(above)} has no element {shortened(keys[0])!r}; it holds {there}")
    if len(keys) == 1:
        parts[place] = value
    elif isinstance(parts[place], dict):
        _put(parts[place], keys[1:], value)
    else:
        raise ConfigError(
            f"{'.'.join([*above, keys[0]])} is {shortened(parts[place])!r} and has no {shortened(keys[1])!r}"
        )
