"""YAML and `key=value` to a frozen dataclass, checked by pydantic.

A config is made once, printed with the result and saved beside it; the maths never sees it. Each procedure
declares its own frozen dataclass tree (`phrase_loc.evaluation.config`, `phrase_loc.training.config`); this
file only reads. The YAML mirrors the tree, and `a.b=c` on the command line replaces one leaf, in a list the element
of that number or `name`:

    python evaluate.py configs/flickr30k.yaml data.root=DIR data.split=val method=[contrastive_mwp,cam]
    python train.py configs/default.yaml phases.late.epochs=3

Types come from the dataclass, so `lr: 1e-4`, which YAML reads as a string, becomes a number, and a key that
no field has is an error that names the nearest one.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from phrase_loc.errors import ConfigError, nearest

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_dataclass(kind: type[T]) -> type[T]:
    """A frozen dataclass by keyword alone whose values are checked when they come; unknown keys are refused."""
    checked: Any = checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(kind)
    return checked


def load_config(kind: type[T], arguments: Sequence[str]) -> T:
    """`[FILE.yaml] [key=value ...]` -> a checked config of class `kind`.

    Args:
        kind: a class decorated with `config_dataclass`.
        arguments: what stood on the command line after the program's name.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown, a value has the wrong type.
    """
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise ConfigError(
            f"expected one config file and key=value pairs, got the files {' and '.join(files)}"
        )
    tree = read_yaml(Path(files[0])) if files else {}
    for pair in (a for a in arguments if "=" in a):
        key, _, text = pair.partition("=")
        _put(tree, key.strip().split("."), _value(key, text))
    return build(kind, tree)


def build(kind: type[T], tree: dict[str, Any]) -> T:
    """A nested dictionary -> a checked config; every problem in one ConfigError."""
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(kind, e) for e in error.errors())) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a ConfigError that says what is there instead."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; the shipped ones are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} must hold `key: value` lines, got a {type(tree).__name__}")
    return tree


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-ready values, for reports and checkpoints."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise ConfigError(f"the value of {key} is not YAML: {text!r}; quote it") from None


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for number, key in enumerate(keys[:-1]):
        below = tree.get(key)
        if isinstance(below, list):
            _put_in_list(below, keys[: number + 1], keys[number + 1 :], value)
            return
        tree[key] = below if isinstance(below, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _put_in_list(parts: list[Any], above: list[str], keys: list[str], value: Any) -> None:
    """Changes the element that is called, or has the number, keys[0]."""
    names = [str(part.get("name", i)) if isinstance(part, dict) else str(i) for i, part in enumerate(parts)]
    if keys[0] in names:
        place = names.index(keys[0])
    elif keys[0].isdecimal() and int(keys[0]) < len(parts):
        place = int(keys[0])
    else:
        raise ConfigError(
            f"{'.'.join(above)} has no element {keys[0]!r}; it holds {', '.join(names) or 'nothing'}"
        )
    if len(keys) == 1:
        parts[place] = value
    elif isinstance(parts[place], dict):
        _put(parts[place], keys[1:], value)
    else:
        raise ConfigError(f"{'.'.join([*above, keys[0]])} is {parts[place]!r} and has no {keys[1]!r}")


def _explain(kind: type, error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    name = ".".join(where) or "config"
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _known(kind, where[:-1])
        hint = nearest(where[-1], known) if known else ""
        return f"unknown config key {name}{hint}; known here: {', '.join(known)}"
    if error["type"].startswith("missing"):
        return f"config key {name} is required; give it in the file or as {name}=VALUE"
    own = error.get("ctx", {}).get("error")
    if isinstance(own, ConfigError):  # a sentence of the dataclass itself, which names its key
        return str(own)
    return f"config key {name}: {error['msg'].lower()}, got {error['input']!r}"


def _known(kind: Any, path: list[str]) -> list[str]:
    for part in path:
        if not is_dataclass(kind):
            return []
        kind = next((f.type for f in fields(kind) if f.name == part), None)
        options = [a for a in get_args(kind) if is_dataclass(a)]
        kind = options[0] if options else kind
    return [f.name for f in fields(kind)] if is_dataclass(kind) else []
