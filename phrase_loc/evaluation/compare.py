"""Two reports on the same images: paired differences, drawn image by image."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from phrase_loc.checked import STRICT, adapter, problems
from phrase_loc.config import to_dict
from phrase_loc.errors import ConfigError, DataError, nearest
from phrase_loc.evaluation.config import MOST_DRAWS
from phrase_loc.evaluation.rows import percent
from phrase_loc.evaluation.statistics import Sums, paired
from phrase_loc.files import digest, read_json


@dataclass(frozen=True)
class Cells:
    """What Sums.to_dict gives."""

    __pydantic_config__ = STRICT

    labels: tuple[str, ...]
    image: tuple[Annotated[int, Field(ge=0)], ...]
    label: tuple[Annotated[int, Field(ge=0)], ...]
    sum: tuple[Annotated[float, Field(ge=-1e12, le=1e12)], ...]
    count: tuple[Annotated[int, Field(ge=1, le=10**9)], ...]

    def whole(self, images: int) -> bool:
        """Whether each cell stands once, with a sum and a count, in an image and under a label that there are."""
        places = set(zip(self.image, self.label, strict=False))
        sizes = {len(self.image), len(self.label), len(self.sum), len(self.count), len(places)}
        last = (max(self.image, default=-1), max(self.label, default=-1))
        return len(sizes) == 1 and last[0] < images and last[1] < max(1, len(self.labels))


@dataclass(frozen=True)
class ByImage:
    """Image ids, and protocol -> method -> metric -> cells."""

    images: tuple[str, ...]
    sums: dict[str, dict[str, dict[str, Cells]]]


@dataclass(frozen=True)
class Row:
    """Of the method names alone."""

    method: str


@dataclass(frozen=True)
class Settings:
    """Of the draws alone."""

    bootstrap: Annotated[int, Field(strict=True, ge=1, le=MOST_DRAWS)]


@dataclass(frozen=True)
class Report:
    """What is read of a report."""

    config: Settings
    rows: tuple[Row, ...]
    by_image: ByImage
    sha256: str = ""


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
    if first.by_image.images != second.by_image.images:
        raise DataError(
            f"{a} and {b} are not on the same images in the same order; evaluate both on one split"
        )
    draws = min(first.config.bootstrap, second.config.bootstrap)
    pairs = _pairs(_methods(first), _methods(second), method_a, method_b)
    found = [
        row
        for one, other in pairs
        for row in _differences(first.by_image, second.by_image, one, other, draws)
    ]
    if not found:
        raise DataError(f"{a} and {b} share no protocol whose images were counted alike")
    return found


def read(path: Path) -> Report:
    """The part of a report that is compared, or a DataError that says what the file is instead."""
    content = read_json(path, "report")
    try:
        found: Report = adapter(Report).validate_json(json.dumps(content))
    except (ValidationError, RecursionError) as error:
        why = problems(error, Report, "key") if isinstance(error, ValidationError) else "nested too deeply"
        raise DataError(
            f"{path} is no report of evaluate.py (JSON with by_image and config): {why}"
        ) from None
    for cells in (
        c for methods in found.by_image.sums.values() for own in methods.values() for c in own.values()
    ):
        if not cells.whole(len(found.by_image.images)):
            raise DataError(f"{path} has cells in by_image that do not fit together; evaluate again")
    if found.sha256 and found.sha256 != seal(content["by_image"], content["config"]["bootstrap"]):
        raise DataError(f"{path} was changed after it was written (by_image or bootstrap); evaluate again")
    return found


def seal(by_image: Any, bootstrap: Any) -> str:
    """SHA-256 of what two reports are compared by, of a report as of its file."""
    return digest(json.dumps([by_image, bootstrap]).encode())


FORMS = {"a": ".2f", "b": ".2f", "value": "+.2f"}


def table(found: list[dict[str, Any]]) -> str:
    """Differences as a Markdown table."""
    lines = ["| protocol | metric | a | b | a | b | a - b | 95 % | p |", "|" + " --- |" * 9]
    for row in found:
        low_high = " - ".join(f"{x:+.2f}" for x in row["ci95"])
        names = [row["protocol"], row["metric"], row["method_a"], row["method_b"]]
        values = ["" if row[key] is None else f"{row[key]:{form}}" for key, form in FORMS.items()]
        numbers = [*values, low_high, f"{row['p_value']:.4f}"]
        lines.append("| " + " | ".join([*names, *numbers]) + " |")
    return "\n".join(lines)


def _methods(report: Report) -> list[str]:
    return list(dict.fromkeys(row.method for row in report.rows))


def _pairs(
    first: list[str], second: list[str], method_a: str | None, method_b: str | None
) -> list[tuple[str, str]]:
    for asked, there in ((method_a, first), (method_b, second)):
        if asked is not None and asked not in there:
            raise ConfigError(
                f"no method {asked!r} in the report{nearest(asked, there)}; it has {', '.join(there)[:300]}"
            )
    if method_a and method_b:
        return [(method_a, method_b)]
    shared = [(name, name) for name in first if name in second]
    if shared:
        return shared
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    raise ConfigError(
        f"the reports share no method ({', '.join(first)[:300]} and {', '.join(second)[:300]}); "
        "name a pair: --method A,B"
    )


def _differences(first: ByImage, second: ByImage, one: str, other: str, draws: int) -> list[dict[str, Any]]:
    images, found = len(first.images), []
    for protocol, methods in first.sums.items():
        mine, theirs = methods.get(one, {}), second.sums.get(protocol, {}).get(other, {})
        for metric in [m for m in mine if m in theirs]:
            a, b = (Sums.from_dict(vars(cells[metric]), images) for cells in (mine, theirs))
            if not a.same_things(b):
                raise DataError(
                    f"the reports count {protocol[:80]} differently (other images or phrases were left out); "
                    "evaluate both on one tree"
                )
            names = {"protocol": protocol, "metric": metric, "method_a": one, "method_b": other}
            values = {"a": percent(a.value()[0]), "b": percent(b.value()[0])}
            found.append(names | values | to_dict(paired(a, b, draws)))
    return found
