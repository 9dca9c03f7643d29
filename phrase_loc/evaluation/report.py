"""The files of a report: report.json, every phrase as CSV, a Markdown table, and one HTML page.

The page holds figures, words, reliability, and cases with their pictures as data URIs.
"""

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from phrase_loc.drawing import data_uri, small_jpeg
from phrase_loc.errors import DataError
from phrase_loc.evaluation.calibration import reliability
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.protocols import EvaluateConfig
from phrase_loc.evaluation.rows import records
from phrase_loc.evaluation.run import Evaluation, report
from phrase_loc.evaluation.scoring import BASELINES
from phrase_loc.evaluation.statistics import seal
from phrase_loc.files import lock, make_folder, refuse_foreign, write_text
from phrase_loc.gallery import template
from phrase_loc.images import load_image
from phrase_loc.structures import GroundingSample

if TYPE_CHECKING:
    from phrase_loc.localizer import PhraseLocalizer

COLUMNS = (
    *("image", "protocol", "method", "phrase", "type", "entity", "sentence", "known"),
    *("hit", "iou", "score", "peak_x", "peak_y", "x1", "y1", "x2", "y2", "supervision"),
)
ADVICE = "choose another output"
#: ending -> what a file of ours has in its first kilobytes
OURS = {
    ".json": '{\n "config": {',
    ".md": "by bootstrap over images",
    ".csv": ",".join(COLUMNS[:-1]),  # older ones lack the last
    ".html": "<title>phrase_loc: ",
}
CASES = 24  # of each group
PHOTO_SIDE = 320  # longer side of an embedded photograph in pixels
MAP_SIDE = 48  # longer side of an embedded map; the browser smooths it up
SEED = 11
WORDS = 40  # most frequent words shown

Record = dict[str, Any]


@contextmanager
def reserved(config: EvaluateConfig) -> Iterator[None]:
    """Holds the output of an evaluation from before it begins: the folder is made and can be written.

    Raises a ConfigError where a file of another kind would be overwritten, a DataError while another writes there.
    """
    output = config.output
    for ending, path in _files(config).items():
        refuse_foreign(path, re.escape(OURS[ending]), "report", ADVICE)
    make_folder(output.parent, ADVICE, f"the folder of output={output}")
    sentence = f"another evaluation is writing {output}; wait for it, or {ADVICE}"
    with lock(output.with_name(f".{output.name}.lock"), sentence):
        yield


def _files(config: EvaluateConfig) -> dict[str, Path]:
    asked = {".csv": config.csv, ".html": config.html}
    return {ending: config.output.with_suffix(ending) for ending in OURS if asked.get(ending, True)}


def write(evaluation: Evaluation) -> tuple[dict[str, Any], list[Path]]:
    """Write all files of a finished evaluation; give the report and the paths."""
    config, content = evaluation.config, report(evaluation)
    content["sha256"] = seal(content["by_image"], content["config"]["bootstrap"])
    files = _files(config)
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has no NaN
    write_text(files[".json"], json.dumps(finite, indent=1, allow_nan=False) + "\n", ADVICE)
    write_text(files[".md"], markdown(content), ADVICE)
    if config.csv:
        writer = csv.writer(lines := io.StringIO(newline=""))
        writer.writerow(COLUMNS)
        for r in _records(evaluation):
            names = [r[key] for key in ("image_id", "protocol", "method", "phrase")]
            kinds = ["/".join(r["labels"]), r["entity"], r["sentence"], int(r["known"]), f"{r['hit']:g}"]
            numbers = [r["iou"], r["score"], *r["peak"], *r["box"]]
            shown = ["" if math.isnan(x) else f"{x:.6g}" for x in numbers]
            writer.writerow([*names, *kinds, *shown, r["supervision"]])
        write_text(files[".csv"], lines.getvalue(), ADVICE)
    if config.html:
        text = page(content, list(_records(evaluation)), evaluation.plan.samples, evaluation.localizer)
        write_text(files[".html"], text, ADVICE)
    evaluation.progress.clear()
    return content, list(files.values())


def _records(evaluation: Evaluation) -> Iterator[Record]:
    said = {method.name: method.marks.get("supervision", "") for method in evaluation.plan.methods}
    for protocol, method in product(evaluation.plan.protocols, evaluation.config.methods):
        if evaluation.rows.tables[protocol.name, method].columns:
            for record in records(evaluation.rows.tables, protocol, method):
                yield record | {"supervision": said[method]}


def markdown(content: dict[str, Any]) -> str:
    """A report as a table for a paper: one line for each row, baselines beside the score."""
    rows, config = content["rows"], content["config"]
    names = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    chosen = ["threshold"] if any("threshold" in row for row in rows) else []
    words = ["protocol", "method", *chosen, "metric"]
    numbers = ["value", "95 %", "count", "images", *names]
    lines = [[*words, *numbers], ["---"] * len(words) + ["---:"] * len(numbers)]
    for row in rows:
        values = {name: row["baselines"].get(name) for name in names} | {"value": row["value"]}
        cells = row | {name: "" if value is None else f"{value:.2f}" for name, value in values.items()}
        cells |= {"95 %": " - ".join(f"{x:.2f}" for x in row["ci95"])}
        cells |= {key: f"{row[key]:,}" for key in ("count", "images")}
        cells["method"] += f" ({row['supervision']})" if "supervision" in row else ""
        cells["threshold"] = "{rule} {value:g}".format(**row["threshold"]) if "threshold" in row else ""
        lines.append([cells[name] for name in (*words, *numbers)])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    drawn = " drawn by a hash of their names" if config["sample"] else ""
    left_out = ", ".join(f"{v['count']} {k}" for k, v in content["skipped"].items() if isinstance(v, dict))
    notes = dict.fromkeys(f"Note: {row['note']}.\n\n" for row in rows if "note" in row)
    return (
        f"{config['data']['name']} {config['data']['split']}, {content['dataset']['images']:,} images{drawn}. "
        f"Values in percent; intervals by bootstrap over images, {config['bootstrap']:,} draws.\n\n{table}\n\n"
        f"{''.join(notes)}Left out or named: {left_out or 'nothing'}.\n"
    )


def page(
    report: dict[str, Any],
    records: list[Record],
    samples: Sequence[GroundingSample],
    localizer: "PhraseLocalizer | None" = None,
) -> str:
    """The page of report.json's content and all records; without a localizer it has no maps and probabilities."""
    # the first method may have no record of the first protocols
    first = [r for r in records if r["method"] == report["rows"][0]["method"]]
    shown, cases = gallery(first or records, samples, localizer)
    return template("report.html.j2").render(
        report=report,
        bars=bars(report, records),
        words=[w for w in report.get("by_word", ()) if (w["protocol"], w["method"]) == shown][:WORDS],
        shown=shown,
        cases=cases,
        labels=sorted({label for case in cases for label in case["record"]["labels"]}),
        diagram=reliability(localizer, samples) if localizer is not None else None,
        left_out={k: v for k, v in report["skipped"].items() if isinstance(v, dict)},
    )


def bars(report: dict[str, Any], records: list[Record]) -> list[dict[str, Any]]:
    """One figure for each row that has values by type: (label, value, count), highest count first."""
    counts = Counter((r["protocol"], r["method"], label) for r in records for label in r["labels"])
    figures = []
    for row in report["rows"]:
        of = row["protocol"], row["method"]
        lines = [(label, v, counts[*of, label]) for label, v in row["by_type"].items() if v is not None]
        if lines:
            lines.sort(key=lambda line: (-line[2], line[0]))
            figures.append({"title": " · ".join([*of, row["metric"]]), "lines": lines, "value": row["value"]})
    return figures


def gallery(
    records: list[Record], samples: Sequence[GroundingSample], localizer: "PhraseLocalizer | None"
) -> tuple[tuple[str, str] | None, list[dict[str, Any]]]:
    """The (protocol, method) shown, the first asked with ranked boxes, with boxes, or at all; and its cases.

    Pictures of a case are data URIs or ''; a photograph is looked at once.
    """
    if not records:
        return None, []
    name = records[0]["method"]
    own = [r for r in records if r["method"] == name]
    protocol = max(own, key=lambda r: 2 if "R@1" in r["values"] else not math.isnan(r["iou"]))["protocol"]
    asked = None if name in BASELINES or "@" in name else localizer
    chosen = choose_cases([r for r in own if r["protocol"] == protocol])
    phrases = defaultdict[str, dict[str, None]](dict)
    for _, record in chosen:
        phrases[record["image_id"]][record["phrase"]] = None
    shown = [sample for sample in samples if sample.image_id in phrases]
    seen = {s.image_id: _look(s, list(phrases[s.image_id]), asked, name) for s in shown}
    peaks = {_key(r): r["peak"] for r in own if not math.isnan(r["peak"][0])}  # a ranking has none
    cases = []
    for group, record in chosen:
        photo, answers = seen[record["image_id"]]
        overlay, present = answers.get(record["phrase"], ("", None))
        peak = peaks.get(_key(record)) if math.isnan(record["peak"][0]) else record["peak"]
        case = {"group": group, "record": record, "photo": photo, "overlay": overlay, "present": present}
        cases.append(case | {"peak": peak, "box": not math.isnan(sum(record["box"]))})
    return (protocol, name), cases


def choose_cases(records: Sequence[Record], count: int = CASES) -> list[tuple[str, Record]]:
    """Groups and records: best = hits with most overlap, worst = the surest misses, random = as they fall.

    At most one case of an image in a group; without overlaps or scores the order of the dataset decides.
    """
    order = np.random.default_rng(SEED).permutation(len(records)).tolist()
    hits = [r for r in records if r["hit"] >= 0.5]
    misses = [r for r in records if r["hit"] < 0.5 and r["known"]]
    groups = {
        "best": sorted(hits, key=lambda r: -np.nan_to_num(r["iou"], nan=-1.0)),
        "worst": sorted(misses, key=lambda r: -np.nan_to_num(r["score"], nan=-1.0)),
        "random": [records[i] for i in order],
    }
    chosen = []
    for group, found in groups.items():
        foremost: dict[str, Record] = {}
        for record in found:
            foremost.setdefault(record["image_id"], record)
        chosen += [(group, record) for record in islice(foremost.values(), count)]
    return chosen


def _key(record: Record) -> tuple[Any, ...]:
    return tuple(record[k] for k in ("image_id", "method", "phrase", "entity", "sentence"))


def _look(
    sample: GroundingSample, phrases: list[str], localizer: "PhraseLocalizer | None", method: str
) -> tuple[str, dict[str, tuple[str, float | None]]]:
    """The photograph, and per phrase its map and probability; nothing where the file is not there."""
    try:
        picture = load_image(framed(sample).picture)
    except DataError:
        return "", {}
    photo = data_uri(small_jpeg(picture, PHOTO_SIDE))
    if localizer is None:
        return photo, {}
    single = [phrase for text in phrases for phrase in text.split(" / ")]
    scene = localizer.look(picture, size=sample.size)
    maps = dict(zip(single, localizer.attend(scene, single, method=method), strict=True))
    present = dict(zip(single, localizer.present(scene, single), strict=True))
    height, width = (max(2, round(side * (MAP_SIDE / max(sample.size)))) for side in sample.size)
    answers = {}
    for text in phrases:
        parts = text.split(" / ")  # an entity's mentions: their mean, as it was scored
        mean = sum(maps[p] for p in parts) / len(parts)
        answers[text] = (_overlay(localizer.heat(mean[None], (height, width))[0]), present[parts[0]])
    return photo, answers


def _overlay(heat: Tensor) -> str:
    """(h, w) map -> a picture whose colour and opacity grow with the map; '' for a map of zeros."""
    import matplotlib

    values = heat.detach().float().cpu().numpy()
    if not values.max() > 0:
        return ""
    values = (values - values.min()) / max(float(values.max()) - float(values.min()), 1e-12)
    colours = matplotlib.colormaps["inferno"](values)
    colours[..., 3] = 0.8 * values**0.7
    png = io.BytesIO()
    Image.fromarray((255 * colours).astype(np.uint8), "RGBA").save(png, "PNG")
    return data_uri(png.getvalue(), "png")
