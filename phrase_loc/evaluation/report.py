"""The files of a report: report.json, every phrase as CSV, a Markdown table, and the page."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

from phrase_loc.errors import ConfigError
from phrase_loc.evaluation.procedure import Evaluation, report
from phrase_loc.evaluation.results import records

COLUMNS = (
    *("image", "protocol", "method", "phrase", "type", "entity", "sentence", "known"),
    *("hit", "iou", "score", "peak_x", "peak_y", "x1", "y1", "x2", "y2"),
)


def write(evaluation: Evaluation) -> tuple[dict[str, Any], list[Path]]:
    """Write all files of a finished evaluation; give the report and the paths."""
    output, content = evaluation.config.output, report(evaluation)
    files = [output, output.with_suffix(".md")]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _replace(output, json.dumps(content, indent=1, allow_nan=False) + "\n")
        _replace(files[1], markdown(content))
        if evaluation.config.csv:
            files.append(output.with_suffix(".csv"))
            _write_csv(evaluation, files[-1])
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {output}: {error.strerror}") from None
    if evaluation.config.html:
        from phrase_loc.evaluation.html_report import write_html

        files.append(output.with_suffix(".html"))
        found = [
            r for p in evaluation.plan.protocols for m in evaluation.asked for r in _records(evaluation, p, m)
        ]
        write_html(files[-1], content, found, evaluation.plan.samples, evaluation.localizer)
    evaluation.progress.clear()
    return content, files


def markdown(content: dict[str, Any]) -> str:
    """A report as a table for a paper: one line for each row, baselines beside the score."""
    names = list(dict.fromkeys(name for row in content["rows"] for name in row["baselines"]))
    chosen = ["threshold"] if any("threshold" in row for row in content["rows"]) else []
    head = ["protocol", "method", *chosen, "metric", "value", "95 %", "count", "images", *names]
    words = 3 + len(chosen)
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words)]
    for row in content["rows"]:
        low_high = " - ".join(f"{x:.2f}" for x in row["ci95"])
        counts = [f"{row['count']:,}", f"{row['images']:,}"]
        beside = [_number(row["baselines"].get(name)) for name in names]
        known = [row["protocol"], row["method"], *[_threshold(row) for _ in chosen], row["metric"]]
        known += [_number(row["value"]), low_high]
        lines.append([*known, *counts, *beside])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    data = content["config"]["data"]
    drawn = " drawn by a hash of their names" if content["config"]["sample"] else ""
    left_out = ", ".join(f"{v['count']} {k}" for k, v in content["skipped"].items() if isinstance(v, dict))
    notes = "".join(
        f"Note: {note}.\n\n" for note in dict.fromkeys(r["note"] for r in content["rows"] if "note" in r)
    )
    return (
        f"{data['name']} {data['split']}, {content['dataset']['images']:,} images{drawn}. Values in percent; "
        f"intervals by bootstrap over images, {content['config']['bootstrap']:,} draws.\n\n{table}\n\n"
        f"{notes}Left out or named: {left_out or 'nothing'}.\n"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _threshold(row: dict[str, Any]) -> str:
    """The rule and value that a row's method chose."""
    found = row.get("threshold")
    return f"{found['rule']} {found['value']:g}" if found else ""


def _records(evaluation: Evaluation, protocol: Any, method: str) -> list[dict[str, Any]]:
    return records(evaluation.tables, protocol, method)


def _write_csv(evaluation: Evaluation, path: Path) -> None:
    partial = path.with_name(path.name + ".part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for protocol in evaluation.plan.protocols:
            for method in evaluation.asked:
                writer.writerows(_line(record) for record in _records(evaluation, protocol, method))
    os.replace(partial, path)


def _line(record: dict[str, Any]) -> list[Any]:
    where = [*record["peak"], *record["box"]]
    numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in (record["iou"], record["score"], *where)]
    names = [record[key] for key in ("image_id", "protocol", "method", "phrase")]
    kinds = ["/".join(record["labels"]), record["entity"], record["sentence"], int(record["known"])]
    return [*names, *kinds, f"{record['hit']:g}", *numbers]


def _replace(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old one or the new one, never half."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
