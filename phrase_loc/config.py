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

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from phrase_loc.checked import adapter, problems
from phrase_loc.errors import ConfigError
from phrase_loc.yaml_values import below, options, read_yaml, shortened, value_of



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
