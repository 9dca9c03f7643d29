"""YAML and `key=value` to a frozen dataclass, checked by pydantic.

`a.b=c` replaces one leaf, in a list the element of that number or `name`. The types say what a word means, never its
looks: where text or a path is wanted it is taken as it is written (`runs/1 #2`, `{0..3}.tar`), elsewhere `1e-4` is a
number, and `[a, b]` is a list where a list can stand.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cache, reduce
from itertools import count
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from phrase_loc.errors import ConfigError, nearest
from phrase_loc.files import read_text

T = TypeVar("T")
#: `__pydantic_config__` of a dataclass read from JSON: no text and no true for a number, nothing endless or unknown
STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
fields_of: Callable[[Any], dict[str, Any]] = cache(get_type_hints)  # names and types of a dataclass
adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # what pydantic makes of a type, once

_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?")  # 010 and 1:30 are none
_WORDS: dict[str, Any] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
for _word in ("yes", "true", "on", "no", "false", "off"):
    _WORDS |= dict.fromkeys((_word, _word.capitalize(), _word.upper()), _word in ("yes", "true", "on"))


def read_yaml(path: Path, kind: Any = Any) -> dict[str, Any]:
    """The mapping in a YAML file, its words read for the types of `kind`; a ConfigError says what else is there."""
    what = f"config file {path}"
    if not os.path.exists(path):
        raise ConfigError(f"{shortened(what, 200)} does not exist; the shipped ones are in configs/")
    tree = parsed_yaml(read_text(path, "config file"), what, kind)
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{what} must hold `key: value` lines, got a {type(tree).__name__}")
    return tree or {}


def value_of(text: str, what: str = "the value", wanted: Any = Any) -> Any:
    """What stood behind `key=`, read for the type wanted there; a ConfigError, which calls it `what`, if no YAML."""
    shapes = _shapes(wanted)
    bracketed = len(text) > 1 and text[0] + text[-1] in ("[]", "{}", '""', "''")
    if str in shapes:
        found: Any = None if NoneType in shapes and text.lower() == "null" else text
        if bracketed:
            with suppress(ConfigError):  # {0..3}.tar is no YAML
                found = parsed_yaml(text, what, wanted)
        return found if type(found) in shapes else text
    if text and (bracketed or shapes & {list, dict}):
        return parsed_yaml(text, what, wanted)
    return _plain(text.strip()) if text else text


def shortened(value: Any, most: int = 80) -> str:
    """A value as a message shows it: on one line, and never much of it."""
    text = value if isinstance(value, str) else repr(value)[: 4 * most]
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[:most] + "..."


def options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(o for part in get_args(kind) for o in options(part))
    return (kind,)


def below(kind: Any, key: Any) -> Any:
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


def _shapes(kind: Any) -> set[Any]:
    """What can stand there as it is written: str, list, dict, NoneType, or another scalar type."""
    forms = {list: list, tuple: list, dict: dict, Literal: str}
    return {
        dict if is_dataclass(o) else str if o is Path else forms.get(get_origin(o), o) for o in options(kind)
    }


def parsed_yaml(text: str, what: str, wanted: Any) -> Any:
    """The value in a YAML text, its words read for the types of `wanted`; a ConfigError, which calls it `what`."""
    try:
        node = yaml.compose(text, yaml.BaseLoader)
        return None if node is None else _read(node, wanted, count())
    except ConfigError as error:
        raise ConfigError(f"{what} {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else shortened(str(error), 200)
        raise ConfigError(f"{what} is not YAML ({why}); quote what is text") from None


def _read(node: Any, wanted: Any, seen: Iterator[int], depth: int = 0) -> Any:
    """A node -> a scalar as the type wanted there has it, a list, or a dictionary with keys of text."""
    if depth > 50 or next(seen) >= 100_000:  # an anchor that multiplies itself
        raise ConfigError("is nested too deeply or repeats itself by anchors; write it out flat")
    if node.tag.rpartition(":")[2] not in ("str", "seq", "map"):
        raise ConfigError(f"has the tag {shortened(node.tag)}; write plain values without tags")
    if isinstance(node, yaml.SequenceNode):
        return [_read(part, below(wanted, ""), seen, depth + 1) for part in node.value]
    if isinstance(node, yaml.ScalarNode):
        shapes = _shapes(wanted)
        null = NoneType in shapes and _WORDS.get(node.value, "") is None
        return node.value if node.style is not None or (str in shapes and not null) else _plain(node.value)
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, inner in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"has a key that is no word in line {line}")
        if key.value == "<<" and key.style is None:
            for part in reversed(inner.value if isinstance(inner, yaml.SequenceNode) else [inner]):
                found = _read(part, wanted, seen, depth + 1)
                if not isinstance(found, dict):
                    raise ConfigError("merges (<<) what is no mapping")
                merged |= found
        elif key.value in own:
            raise ConfigError(f"has the key {shortened(key.value)} twice, again in line {line}; keep one")
        else:
            own[key.value] = _read(inner, below(wanted, key.value), seen, depth + 1)
    return merged | own


def _plain(word: str) -> Any:
    """What an unquoted word means where no text is wanted: 010, dates and 1:30 are none of YAML's surprises."""
    if word in _WORDS or not _NUMBER.fullmatch(word):
        return _WORDS.get(word, word)
    with suppress(ValueError):  # of 1__0, a lone dot, or thousands of digits
        return int(word) if word.lstrip("+-").replace("_", "").isdigit() else float(word)
    return word


def checked(kind: type[T], values: Any, what: str) -> T:
    """Plain values, as JSON has them -> a dataclass with `__pydantic_config__ = STRICT`; lists become tuples.

    A ConfigError names an unknown or a missing key, a wrong type, a number out of range; `what` a field is called.
    """
    try:
        text = json.dumps(values, default=lambda value: value.item())  # of numpy and torch
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # also RecursionError
        raise ConfigError(
            f"expected plain values for each {what}, got {shortened(values)} ({shortened(str(error))})"
        ) from None
    try:
        made: T = adapter(kind).validate_json(text)  # of JSON, strict still makes tuples of lists
        return made
    except ValidationError as error:
        raise ConfigError(problems(error, kind, what, quoted=True)) from None


def without_retired(values: dict[str, Any], retired: dict[str, Any], what: str) -> dict[str, Any]:
    """Values of an older version, less the `retired` settings; a ConfigError if one has not the value given there."""
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
    more = [f"and {len(found) - 3} more"] if len(found) > 3 else []
    return "; ".join(found[:3] + more)


def _explain(kind: Any, error: Any, what: str, quoted: bool) -> str:
    where = [str(part) for part in error["loc"]]
    name = shortened(".".join(where)) or "(none)"
    name = repr(name) if quoted else name
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        holder = next((o for o in options(reduce(below, where[:-1], kind)) if is_dataclass(o)), None)
        known = list(fields_of(holder)) if holder else []
        hint = nearest(where[-1][:80], known) if known else ""
        return f"unknown {what} {name}{hint}; known here: {', '.join(known)}"
    if error["type"].startswith("missing"):
        return f"{what} {name} is required; give it in the file or as {name}=VALUE"
    own = error.get("ctx", {}).get("error")
    if isinstance(own, ConfigError):  # a sentence of the dataclass itself, which names its key
        return str(own)
    return f"{what} {name}: {shortened(error['msg'].lower(), 200)}, got {shortened(repr(error['input']))}"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_dataclass(kind: type[T]) -> type[T]:
    """A frozen dataclass by keyword alone whose values are checked when they come; unknown keys are refused."""
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    checked: Any = checked_dataclass(frozen=True, kw_only=True, config=rules)(kind)
    return checked


def load_config(kind: type[T], arguments: Sequence[str]) -> T:
    """`[FILE.yaml] [key=value ...]`, as on the command line -> a config of a class made by `config_dataclass`.

    A ConfigError says what is wrong: the file missing or no mapping, a key unknown, a value of another type.
    """
    files = [a for a in arguments if "=" not in a or (a.endswith((".yaml", ".yml")) and Path(a).is_file())]
    if len(files) > 1:
        told = shortened(" and ".join(files))
        raise ConfigError(f"expected one config file and key=value pairs, got the files {told}")
    tree = read_yaml(Path(files[0]), kind) if files else {}
    for pair in (a for a in arguments if a not in files):
        key, _, text = pair.partition("=")
        keys = key.strip().split(".")
        _put(tree, keys, value_of(text, f"the value of {shortened(key)}", reduce(below, keys, kind)))
    return build(kind, tree)


def build(kind: type[T], tree: dict[str, Any]) -> T:
    """A nested dictionary -> a checked config; the first problems in one ConfigError."""
    _refuse_guesses(kind, tree, ())
    try:
        made: T = adapter(kind).validate_python(tree)
        return made
    except ValidationError as error:
        raise ConfigError(problems(error, kind, "config key")) from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-ready values, for reports and checkpoints."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return found


def _refuse_guesses(kind: Any, value: Any, where: tuple[str, ...]) -> None:
    """Refuses true and false for a number, which pydantic takes for 1 and 0, and no text for a path, which is '.'."""
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_guesses(below(kind, key), inner, (*where, str(key)))
    elif value == "" and Path in options(kind):
        raise ConfigError(f"config key {shortened('.'.join(where))} is empty; name a path, or leave it out")
    elif isinstance(value, bool) and bool not in options(kind) and {int, float} & set(options(kind)):
        raise ConfigError(f"config key {shortened('.'.join(where))} takes a number, got {str(value).lower()}")


def _put(holder: Any, keys: list[str], value: Any, above: str = "") -> None:
    """Changes the leaf at a path; an element of a list is called by its name or its number."""
    at: Any = keys[0]
    place = f"{above}.{at}" if above else at
    if isinstance(holder, list):
        names = [str(p.get("name", i)) if isinstance(p, dict) else str(i) for i, p in enumerate(holder)]
        known = [*names, *map(str, range(len(holder)))]
        if at not in known:
            there = shortened(", ".join(names), 200) or "nothing"
            raise ConfigError(f"{above} has no element {shortened(at)!r}; it holds {there}")
        at = known.index(at) % len(holder)
        if len(keys) > 1 and not isinstance(holder[at], dict):
            raise ConfigError(f"{place} is {shortened(holder[at])!r} and has no {shortened(keys[1])!r}")
    if len(keys) == 1:
        holder[at] = value
        return
    if isinstance(holder, dict) and not isinstance(holder.get(at), (dict, list)):
        holder[at] = {}
    _put(holder[at], keys[1:], value, place)
