"""Many answers as one page that needs nothing else: photographs, boxes, peaks, sorted and filtered in the browser."""

import base64
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from phrase_loc.display import phrase_rows
from phrase_loc.drawing import COLOURS, small_jpeg
from phrase_loc.errors import DataError
from phrase_loc.files import told, writing
from phrase_loc.images import load_image

MOST = 1000  # photographs on a page, of some 30 kB each


def write_gallery(answers: Path, page: Path, note: Callable[[str], None] = lambda _: None) -> int:
    """Shows the answers of a finished `query` (.jsonl, .csv or .parquet) on a page; how many photographs.

    The photographs are read again, one at a time. `note` is told when there are more than `MOST`.
    """
    rows = [list(group) for _, group in groupby(_rows(answers), key=lambda row: row["image"])]
    write_page(rows, page, answers.name, len(rows), note)
    return min(len(rows), MOST)


def write_page(
    rows: Sequence[list[dict[str, Any]]],
    page: Path,
    source: str,
    total: int,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """The page of rows a photograph as `display.phrase_rows` gives them, the first `MOST` of `total` photographs."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    phrases = list(dict.fromkeys(row["phrase"] for group in rows for row in group if not row.get("error")))
    if total > MOST:
        note(f"{page} shows the first {MOST:,} of {total:,} photographs; all answers are in {source}")
    options: Any = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = PackageLoader("phrase_loc.evaluation", "templates")
    environment = Environment(loader=loader, autoescape=True, **options)
    stream = environment.get_template("gallery.html.j2").stream(
        cards=map(_card, rows[:MOST]),
        total=total,
        most=MOST,
        phrases=phrases,
        states=sorted({row["state"] for group in rows for row in group if row.get("state")}),
        colours={phrase: COLOURS[i % len(COLOURS)] for i, phrase in enumerate(phrases)},
        source=source,
    )
    with writing(page) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(stream)


def _card(rows: list[dict[str, Any]]) -> dict[str, Any]:
    card = {"image": rows[0]["image"], "error": rows[0].get("error"), "rows": rows, "photo": ""}
    if not card["error"]:
        try:
            jpeg = small_jpeg(load_image(rows[0]["image"]))
            card["photo"] = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
        except DataError as error:  # it went after it was answered
            card["error"] = str(error)
    return card


def _rows(answers: Path) -> Iterator[dict[str, Any]]:
    """What `phrase_rows` gives, from any of the three formats."""
    with told(answers, "the file of answers"):
        if answers.suffix == ".parquet":
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(answers).iter_batches():
                yield from batch.to_pylist()
        elif answers.suffix == ".csv":
            with answers.open(encoding="utf-8", newline="") as file:
                yield from _rows_of_boxes(csv.DictReader(file))
        else:
            with answers.open(encoding="utf-8") as lines:
                for line in lines:
                    yield from phrase_rows(json.loads(line))


def _rows_of_boxes(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of `write_csv`, of which the first of a phrase has rank 1 or none, as one row a phrase."""
    row: dict[str, Any] = {}
    for line in lines:
        if line["rank"] in ("", "1"):
            if row:
                yield row
            x, y = line["peak_x"], line["peak_y"]
            row = line | {"boxes": [], "peak": [float(x), float(y)] if x else None}
            row["present"] = float(line["present"]) if line["present"] else None
        if line["rank"]:
            row["boxes"].append([float(line[side]) for side in ("x1", "y1", "x2", "y2")])
    if row:
        yield row
