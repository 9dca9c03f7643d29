"""Plain values to a dataclass by its annotated types, and a sentence for what is wrong with them (pydantic)."""

import json
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from phrase_loc.errors import ConfigError, nearest
from phrase_loc.yaml_values import below, fields_of, options, shortened

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
