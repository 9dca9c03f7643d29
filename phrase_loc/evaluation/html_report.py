"""The report as one HTML file: no script, font or picture comes from elsewhere, so it can be mailed.

Tables with intervals (one a protocol, since numbers of two protocols are never compared), bars by type,
values by word, a reliability diagram of `present`, and a gallery with map, boxes and truth.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from phrase_loc.evaluation.baselines import BASELINES
from phrase_loc.evaluation.html_gallery import Case, Record, choose_cases, draw_cases, key_of
from phrase_loc.evaluation.reliability import Reliability, reliability
from phrase_loc.files import write_text
from phrase_loc.structures import GroundingSample

WORDS = 40  # most frequent words shown
TICKS = {"centre": "centre", "random": "random", "whole_image": "whole image", "fixed_boxes": "fixed boxes"}


def write_html(
    path: Path,
    report: dict[str, Any],
    records: list[Record],
    samples: Sequence[GroundingSample],
    localizer: Any = None,
) -> None:
    """Write the page.

    Args:
        path: the file, replaced at once.
        report: what goes into report.json.
        records: of every protocol and method asked (`results.records`).
        samples: the dataset.
        localizer: gives maps and probabilities; without it the page has neither.

    Raises:
        DataError: the file cannot be written.
    """
    write_text(path, page(report, records, samples, localizer), "choose another output")


def page(
    report: dict[str, Any], records: list[Record], samples: Sequence[GroundingSample], localizer: Any = None
) -> str:
    """The text of the page."""
    shown, cases = gallery(records, samples, localizer)
    diagram = reliability(localizer, samples) if localizer is not None else None
    environment = Environment(
        loader=PackageLoader("phrase_loc.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        protocols=by_protocol(report),
        bars=bars(report, records),
        words=words(report, shown),
        shown=shown,
        cases=cases,
        labels=sorted({label for case in cases for label in case.record["labels"]}),
        diagram=diagram,
        curve=curve(diagram),
        left_out={k: v for k, v in report["skipped"].items() if isinstance(v, dict)},
        ticks=TICKS,
    )


def by_protocol(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of each protocol with what is said of it, and the paired differences."""
    found: dict[str, dict[str, Any]] = {}
    for row in report["rows"]:
        facts = report["protocols"].get(row["protocol"], {})
        entry = {"name": row["protocol"], "about": facts.get("about", ""), "rows": [], "differences": []}
        found.setdefault(row["protocol"], entry)["rows"].append(row)
    for change in report.get("differences", ()):
        if change["protocol"] in found and change["ci95"]:
            found[change["protocol"]]["differences"].append(change)
    return list(found.values())


def bars(report: dict[str, Any], records: list[Record]) -> list[dict[str, Any]]:
    """One figure for each row that has values by type: (label, value, count), highest count first."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for r in records:
        counts.setdefault((r["protocol"], r["method"]), Counter()).update(r["labels"])
    figures = []
    for row in report["rows"]:
        many = counts.get((row["protocol"], row["method"]), Counter())
        lines = [(label, v, many[label]) for label, v in row["by_type"].items() if v is not None]
        if lines:
            title = f"{row['protocol']} · {row['method']} · {row['metric']}"
            lines.sort(key=lambda line: (-line[2], line[0]))
            figures.append({"title": title, "lines": lines, "value": row["value"]})
    return figures


def words(report: dict[str, Any], shown: tuple[str, str] | None) -> list[dict[str, Any]]:
    """Values of the most frequent words under the protocol and method of the gallery."""
    lines = [w for w in report.get("by_word", ()) if (w["protocol"], w["method"]) == shown]
    return lines[:WORDS]


def gallery(
    records: list[Record], samples: Sequence[GroundingSample], localizer: Any
) -> tuple[tuple[str, str] | None, list[Case]]:
    """The (protocol, method) shown, the first asked with ranked boxes, with boxes, or at all, and its cases."""
    if not records:
        return None, []
    method = records[0]["method"]
    own = [r for r in records if r["method"] == method]
    ranked = [r["protocol"] for r in own if "R@1" in r["values"]]
    boxed = [r["protocol"] for r in own if r["iou"] == r["iou"]]
    protocol = (ranked or boxed or [own[0]["protocol"]])[0]
    peaks = {key_of(r): r["peak"] for r in own if r["peak"] and r["peak"][0] == r["peak"][0]}
    chosen = choose_cases([r for r in own if r["protocol"] == protocol])
    asked = None if method in BASELINES or "@" in method else localizer
    if asked is not None and method.endswith("_no_prior"):
        asked, method = asked.with_settings(prior=0.0), method.removesuffix("_no_prior")
    return (protocol, own[0]["method"]), draw_cases(chosen, peaks, samples, asked, method)


def curve(diagram: Reliability | None) -> str:
    """Points of the reliability curve in a 100 x 100 square, y down."""
    if diagram is None:
        return ""
    return " ".join(f"{100 * b.said:.1f},{100 - 100 * b.seen:.1f}" for b in diagram.bins)
