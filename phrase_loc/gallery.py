"""Many answers as one page that needs nothing else: photographs, boxes, peaks, sorted and filtered in the browser."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, groupby, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from phrase_loc.display import answers_in, phrase_rows
from phrase_loc.drawing import COLOURS, OVERLAY, data_uri, overlay, save_picture, small_jpeg
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import make_folder, refuse_foreign, told, writing
from phrase_loc.images import IMAGE_ENDINGS, load_image
from phrase_loc.tables import open_table

if TYPE_CHECKING:
    from jinja2 import Template

    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.streaming import Question
    from phrase_loc.structures import Prediction

MOST = 1000  # photographs on a page


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
    order: str = "as asked",
) -> None:
    """The page of rows a photograph as `display.phrase_rows` gives them, the first `MOST` of `total` photographs.

    `order` names the one in which they come.
    """
    phrases = list(dict.fromkeys(row["phrase"] for group in rows for row in group if not row.get("error")))
    if total > MOST:
        note(f"{page} shows the first {MOST:,} of {total:,} photographs; all answers are in {source}")
    stream = template("gallery.html.j2").stream(
        cards=map(_card, rows[:MOST]),
        total=total,
        most=MOST,
        phrases=phrases,
        states=sorted({row["state"] for group in rows for row in group if row.get("state")}),
        colours={phrase: COLOURS[i % len(COLOURS)] for i, phrase in enumerate(phrases)},
        source=source,
        order=order,
    )
    with writing(page) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(stream)


def template(name: str) -> "Template":
    """A page of evaluation/templates, in which what is filled in is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("phrase_loc.evaluation", "templates")
    options: Any = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=loader, autoescape=True, **options).get_template(name)


def _card(rows: list[dict[str, Any]]) -> dict[str, Any]:
    card = {"image": rows[0]["image"], "error": rows[0].get("error"), "rows": rows, "photo": ""}
    if not card["error"]:
        try:
            card["photo"] = data_uri(small_jpeg(load_image(rows[0]["image"])))
        except DataError as error:  # it went after it was answered
            card["error"] = str(error)
    return card


def _rows(answers: Path) -> Iterator[dict[str, Any]]:
    """What `phrase_rows` gives, from any of the three formats."""
    if answers.suffix == ".jsonl":
        with told(answers, "the file of answers"):  # of a line that is JSON and no answer
            yield from chain.from_iterable(map(phrase_rows, answers_in(answers)))
        return
    table = open_table(answers)
    rows = (dict(zip(table.columns, cells, strict=True)) for _, cells in table.rows(table.columns))
    yield from _rows_of_boxes(rows) if answers.suffix == ".csv" else rows


def _rows_of_boxes(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of `write_csv`, of which the first of a phrase has rank 1 or none, as one row a phrase."""
    lines, ahead = tee(lines)
    phrases = accumulate(line["rank"] in ("", "1") for line in ahead)
    for _, (first, *more) in groupby(lines, key=lambda _: next(phrases)):
        x, y, present = first["peak_x"], first["peak_y"], first["present"]
        places = [[line[side] for side in ("x1", "y1", "x2", "y2")] for line in (first, *more)]
        boxes = [list(map(float, place)) for place in places if place[0]]
        row = first | {"boxes": boxes, "peak": [float(x), float(y)] if x else None}
        yield row | {"present": float(present) if present else None}


def overlay_places(folder: Path, images: Sequence[str], sources: Iterable[str]) -> dict[str, Path]:
    """Where the overlay of each photograph goes: `folder` with the names and folders that they share, all as .jpg.

    Makes `folder`. ConfigError: it is no folder, would replace a photograph, or is within one of the `sources`.
    """
    if folder.suffix.lower() in IMAGE_ENDINGS or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"overlays of a folder, of many photographs or beside --output go to a folder, got {folder}"
        )
    paths = [os.path.abspath(image) for image in images]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, shared) for path in paths]
    pictures = [n if n.lower().endswith((".jpg", ".jpeg")) else f"{n}.jpg" for n in names]
    if len(set(pictures)) < len(set(names)):  # of 1.png, 1.png.jpg
        pictures = [f"{n}.jpg" for n in names]
    places = [folder / name for name in pictures]
    within = [os.path.join(os.path.realpath(source), "") for source in sources if os.path.isdir(source)]
    if os.path.join(os.path.realpath(folder), "").startswith(tuple(within)) or not {
        os.path.realpath(place) for place in places
    }.isdisjoint(map(os.path.realpath, images)):
        raise ConfigError(
            f"overlays in {folder} would lie among the photographs that are asked; name another folder"
        )
    for place in filter(os.path.exists, places):
        refuse_foreign(place, *OVERLAY)
    make_folder(folder)
    return dict(zip(images, places, strict=True))


def write_overlays(
    localizer: "PhraseLocalizer",
    questions: "Sequence[Question]",
    places: Mapping[str, Path],
    threshold: float | None = None,
    masks: bool = False,
) -> None:
    """Draw maps (or masks) and boxes over each photograph that can be read; it is looked at again for that."""
    for question in tqdm(questions, desc="overlays", unit="image", disable=None):
        try:
            picture = load_image(question.image)
        except DataError:  # whose sentence stands in the answers
            continue
        scene = localizer.look(picture)
        predictions = localizer.locate(scene, question.phrases, top_k=1, threshold=threshold)
        place = places[question.image]
        make_folder(place.parent)
        write_overlay(localizer, picture, predictions, place, masks)


def write_overlay(
    localizer: "PhraseLocalizer",
    picture: Image.Image,
    predictions: "Sequence[Prediction]",
    place: Path,
    masks: bool,
) -> None:
    """Draw maps (or masks) and boxes over a photograph, RGB."""
    import torch

    grid = (min(picture.height, 256), min(picture.width, 256))
    heats = localizer.heat(torch.stack([p.attention for p in predictions]), grid)
    save_picture(overlay(picture, predictions, heats, masks), place)
