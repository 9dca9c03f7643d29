"""The files of a report: report.json, every phrase as CSV, a Markdown table, and the page."""

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phrase_loc.errors import ConfigError
from phrase_loc.evaluation.config import EvaluateConfig
from phrase_loc.evaluation.rows import records
from phrase_loc.evaluation.run import Evaluation, report
from phrase_loc.evaluation.statistics import seal
from phrase_loc.files import lock, write_text, writing

COLUMNS = (
    *("image", "protocol", "method", "phrase", "type", "entity", "sentence", "known"),
    *("hit", "iou", "score", "peak_x", "peak_y", "x1", "y1", "x2", "y2"),
)
ADVICE = "choose another output"
#: ending -> what a file of ours has in its first kilobytes
OURS = {
    ".json": '{\n "config": {',
    ".md": "by bootstrap over images",
    ".csv": ",".join(COLUMNS),
    ".html": "<title>phrase_loc: ",
}


@contextmanager
def reserved(config: EvaluateConfig) -> Iterator[None]:
    """Holds the output of an evaluation from before it begins: the folder is made and can be written.

    Raises:
        ConfigError: a file of another kind stands where one of the report will be written.
        DataError: the folder cannot be written, or another evaluation writes there.
    """
    endings = [".json", ".md", *([".csv"] if config.csv else []), *([".html"] if config.html else [])]
    for path in (config.output.with_suffix(ending) for ending in endings):
        if os.path.exists(path) and not (path.is_file() and _is_ours(path)):
            raise ConfigError(f"output would overwrite {path}, which is no report; {ADVICE}")
    output = config.output
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder of output={output} cannot be made ({error.strerror}); {ADVICE}"
        ) from None
    sentence = f"another evaluation is writing {output}; wait for it, or {ADVICE}"
    with lock(output.with_name(f".{output.name}.lock"), sentence):
        yield


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return OURS[path.suffix] in file.read(4096).decode("utf-8", "replace")


def finite(value: Any) -> Any:
    """Plain values with null for NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(evaluation: Evaluation) -> tuple[dict[str, Any], list[Path]]:
    """Write all files of a finished evaluation; give the report and the paths."""
    output, content = evaluation.config.output, report(evaluation)
    content["sha256"] = seal(content["by_image"], content["config"]["bootstrap"])
    files = [output, output.with_suffix(".md")]
    write_text(output, json.dumps(finite(content), indent=1, allow_nan=False) + "\n", ADVICE)
    write_text(files[1], markdown(content), ADVICE)
    if evaluation.config.csv:
        files.append(output.with_suffix(".csv"))
        _write_csv(evaluation, files[-1])
    if evaluation.config.html:
        from phrase_loc.evaluation.html import page

        files.append(output.with_suffix(".html"))
        text = page(content, list(_records(evaluation)), evaluation.plan.samples, evaluation.localizer)
        write_text(files[-1], text, ADVICE)
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
        found = row.get("threshold")
        threshold = f"{found['rule']} {found['value']:g}" if found else ""
        known = [row["protocol"], row["method"], *[threshold for _ in chosen], row["metric"]]
        value = [_number(row["value"]), " - ".join(f"{x:.2f}" for x in row["ci95"])]
        counts = [f"{row['count']:,}", f"{row['images']:,}"]
        lines.append([*known, *value, *counts, *(_number(row["baselines"].get(name)) for name in names)])
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


def _records(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for protocol in evaluation.plan.protocols:
        for method in evaluation.asked:
            yield from records(evaluation.tables, protocol, method)


def _write_csv(evaluation: Evaluation, path: Path) -> None:
    with (
        writing(path, ADVICE) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(map(_line, _records(evaluation)))


def _line(record: dict[str, Any]) -> list[Any]:
    where = [*record["peak"], *record["box"]]
    numbers = ["" if math.isnan(x) else f"{x:.6g}" for x in (record["iou"], record["score"], *where)]
    names = [record[key] for key in ("image_id", "protocol", "method", "phrase")]
    kinds = ["/".join(record["labels"]), record["entity"], record["sentence"], int(record["known"])]
    return [*names, *kinds, f"{record['hit']:g}", *numbers]
