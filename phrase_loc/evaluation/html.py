"""The report as one HTML page: figures, words, reliability, and cases with their pictures as data URIs."""

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from phrase_loc.errors import DataError
from phrase_loc.evaluation.baselines import BASELINES
from phrase_loc.evaluation.calibration import reliability
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.images import load_image
from phrase_loc.structures import GroundingSample

if TYPE_CHECKING:
    from phrase_loc.localizer import Localizer

CASES = 24  # of each group
PHOTO_SIDE = 320  # longer side of an embedded photograph in pixels
MAP_SIDE = 48  # longer side of an embedded map; the browser smooths it up
SEED = 11
WORDS = 40  # most frequent words shown
TICKS = {"centre": "centre", "random": "random", "whole_image": "whole image", "fixed_boxes": "fixed boxes"}

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One phrase on one photograph, ready for the template; boxes are (x, y, width, height) in pixels."""

    group: str  # best, worst or random
    record: Record  # of the shown protocol
    photo: str  # data URI, or '' where the file is not there
    overlay: str  # data URI of the map, or ''
    box: tuple[float, ...] | None
    truth: list[tuple[float, ...]]
    peak: tuple[float, float] | None
    present: float | None


def choose_cases(records: Sequence[Record], count: int = CASES) -> list[tuple[str, Record]]:
    """Groups and records: best = hits with most overlap, worst = the surest misses, random = as they fall.

    At most one case of an image in a group; without overlaps or scores the order of the dataset decides.
    """
    hits = [r for r in records if r["hit"] >= 0.5]
    misses = [r for r in records if r["hit"] < 0.5 and r["known"]]
    best = sorted(hits, key=lambda r: -_number(r["iou"]))
    worst = sorted(misses, key=lambda r: -_number(r["score"]))
    order = np.random.default_rng(SEED).permutation(len(records)).tolist()
    groups = {"best": best, "worst": worst, "random": [records[i] for i in order]}
    return [(group, r) for group, found in groups.items() for r in _one_an_image(found, count)]


def draw_cases(
    chosen: Sequence[tuple[str, Record]],
    peaks: dict[tuple[Any, ...], Any],
    samples: Sequence[GroundingSample],
    localizer: "Localizer | None",
    method: str,
) -> list[Case]:
    """Cases with pictures; each photograph is read and looked at once, and has no maps without a localizer."""
    places = {sample.image_id: sample for sample in samples}
    by_image: dict[str, dict[str, None]] = {}
    for _, record in chosen:
        by_image.setdefault(record["image_id"], {})[record["phrase"]] = None
    seen = {i: _look(places[i], list(phrases), localizer, method) for i, phrases in by_image.items()}
    cases = []
    for group, record in chosen:
        photo, answers = seen[record["image_id"]]
        overlay, present = answers.get(record["phrase"], ("", None))
        box = None if _empty(record["box"]) else _sides(record["box"])
        truth = [_sides(box) for box in record["truth"]]
        points = [p for p in (record["peak"], peaks.get(key_of(record))) if p is not None and not _empty(p)]
        peak = (points[0][0], points[0][1]) if points else None
        cases.append(Case(group, record, photo, overlay, box, truth, peak, present))
    return cases


def key_of(record: Record) -> tuple[Any, ...]:
    """What makes two records of different protocols the same phrase."""
    return tuple(record[k] for k in ("image_id", "method", "phrase", "entity", "sentence"))


def _look(
    sample: GroundingSample, phrases: list[str], localizer: "Localizer | None", method: str
) -> tuple[str, dict[str, tuple[str, float | None]]]:
    """The photograph, and per phrase its map and probability; nothing where the file is not there."""
    try:
        picture = load_image(framed(sample).picture)
    except DataError:
        return "", {}
    photo = _jpeg(picture)
    if localizer is None:
        return photo, {}
    single = [phrase for text in phrases for phrase in text.split(" / ")]
    scene = localizer.look(picture, size=sample.size)
    maps = dict(zip(single, localizer.attend(scene, single, method=method)))
    present = dict(zip(single, localizer.present(scene, single)))
    scale = MAP_SIDE / max(sample.size)
    size = (max(2, round(sample.size[0] * scale)), max(2, round(sample.size[1] * scale)))
    answers = {}
    for text in phrases:
        parts = text.split(" / ")  # an entity's mentions: their mean, as it was scored
        mean = sum(maps[p] for p in parts) / len(parts)
        answers[text] = (_overlay(localizer.heat(mean[None], size)[0]), present[parts[0]])
    return photo, answers


def _overlay(heat: Tensor) -> str:
    """(h, w) map -> a picture whose colour and opacity grow with the map; '' for a map of zeros."""
    values = heat.detach().float().cpu().numpy()
    top = float(values.max())
    if not top > 0:
        return ""
    values = (values - values.min()) / max(top - float(values.min()), 1e-12)
    colours = matplotlib.colormaps["inferno"](values)
    colours[..., 3] = 0.8 * values**0.7
    return _uri(Image.fromarray((255 * colours).astype(np.uint8), "RGBA"), "PNG")


def _jpeg(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    return _uri(small, "JPEG", quality=78)


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _one_an_image(records: Sequence[Record], count: int) -> list[Record]:
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record["image_id"], record)
        if len(first) == count:
            break
    return list(first.values())


def _sides(box: Sequence[float]) -> tuple[float, ...]:
    x1, y1, x2, y2 = (round(float(v), 1) for v in box)
    return x1, y1, round(x2 - x1, 1), round(y2 - y1, 1)


def _empty(values: Sequence[float]) -> bool:
    return len(values) == 0 or any(v is None or math.isnan(v) for v in values)


def _number(value: float | None) -> float:
    return -1.0 if value is None or math.isnan(value) else float(value)


def page(
    report: dict[str, Any],
    records: list[Record],
    samples: Sequence[GroundingSample],
    localizer: "Localizer | None" = None,
) -> str:
    """The text of the page.

    Args:
        report: what goes into report.json.
        records: of every protocol and method asked (`tables.records`).
        samples: the dataset.
        localizer: gives maps and probabilities; without it the page has neither.
    """
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
        words=[w for w in report.get("by_word", ()) if (w["protocol"], w["method"]) == shown][:WORDS],
        shown=shown,
        cases=cases,
        labels=sorted({label for case in cases for label in case.record["labels"]}),
        diagram=diagram,
        curve=" ".join(
            f"{100 * b.said:.1f},{100 - 100 * b.seen:.1f}" for b in (diagram.bins if diagram else ())
        ),
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


def gallery(
    records: list[Record], samples: Sequence[GroundingSample], localizer: "Localizer | None"
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
