"""Two reports on the same images: paired differences, drawn image by image."""

import json
from pathlib import Path
from typing import Any

from phrase_loc.config import to_dict
from phrase_loc.errors import ConfigError, DataError, nearest
from phrase_loc.evaluation.statistics import Sums, paired


def compare(
    a: Path, b: Path, method_a: str | None = None, method_b: str | None = None
) -> list[dict[str, Any]]:
    """Differences a - b for every protocol and metric that both reports have.

    A method of both reports is compared with itself; reports of one method each whatever its name.
    Mean average precision is no sum over images and is left out.

    Args:
        a: report.json of evaluate.py.
        b: another, on the same images.
        method_a: the method of a, None for all that b has too.
        method_b: the method of b.

    Returns:
        Per protocol, metric and pair of methods: names, `a` and `b` in percent, `value` = a - b in points,
        `ci95`, `p_value`.
    """
    first, second = read(a), read(b)
    if first["by_image"]["images"] != second["by_image"]["images"]:
        raise DataError(
            f"{a} and {b} are not on the same images in the same order; evaluate both on one split"
        )
    draws = min(first["config"]["bootstrap"], second["config"]["bootstrap"])
    pairs = _pairs(_methods(first), _methods(second), method_a, method_b)
    found = [
        row
        for one, other in pairs
        for row in _differences(first["by_image"], second["by_image"], one, other, draws)
    ]
    if not found:
        raise DataError(f"{a} and {b} share no protocol whose images were counted alike")
    return found


def read(path: Path) -> dict[str, Any]:
    """A report, or a DataError that says what the file is instead."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["by_image"]["images"], content["config"]["bootstrap"]
    except FileNotFoundError:
        raise DataError(f"report {path} does not exist; evaluate.py writes one") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is no report of evaluate.py (JSON with by_image and config)") from None
    return content


def table(found: list[dict[str, Any]]) -> str:
    """Differences as a Markdown table."""
    lines = ["| protocol | metric | a | b | a | b | a - b | 95 % | p |", "|" + " --- |" * 9]
    for row in found:
        low_high = " - ".join(f"{x:+.2f}" for x in row["ci95"])
        names = [row["protocol"], row["metric"], row["method_a"], row["method_b"]]
        numbers = [
            f"{row['a']:.2f}",
            f"{row['b']:.2f}",
            f"{row['value']:+.2f}",
            low_high,
            f"{row['p_value']:.4f}",
        ]
        lines.append("| " + " | ".join([*names, *numbers]) + " |")
    return "\n".join(lines)


def _methods(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in report["rows"]))


def _pairs(
    first: list[str], second: list[str], method_a: str | None, method_b: str | None
) -> list[tuple[str, str]]:
    for asked, there in ((method_a, first), (method_b, second)):
        if asked is not None and asked not in there:
            raise ConfigError(
                f"no method {asked!r} in the report{nearest(asked, there)}; it has {', '.join(there)}"
            )
    if method_a and method_b:
        return [(method_a, method_b)]
    shared = [(name, name) for name in first if name in second]
    if shared:
        return shared
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    raise ConfigError(
        f"the reports share no method ({', '.join(first)} and {', '.join(second)}); name a pair: --method A,B"
    )


def _differences(
    first: dict[str, Any], second: dict[str, Any], one: str, other: str, draws: int
) -> list[dict[str, Any]]:
    images, found = len(first["images"]), []
    for protocol, methods in first["sums"].items():
        mine, theirs = methods.get(one, {}), second["sums"].get(protocol, {}).get(other, {})
        for metric in [m for m in mine if m in theirs]:
            a, b = Sums.from_dict(mine[metric], images), Sums.from_dict(theirs[metric], images)
            if a.labels != b.labels or (a.counts != b.counts).any():
                raise DataError(
                    f"the reports count {protocol} differently (other images or phrases were left out); "
                    "evaluate both on one tree"
                )
            names = {"protocol": protocol, "metric": metric, "method_a": one, "method_b": other}
            values = {"a": round(100 * float(a.value()[0]), 2), "b": round(100 * float(b.value()[0]), 2)}
            found.append(names | values | to_dict(paired(a, b, draws)))
    return found
