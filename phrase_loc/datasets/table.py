"""Tables of photographs and phrases with boxes or points: CSV, TSV, JSON lines, Parquet, and COCO's JSON.

    image        its file name, path or id
    phrase       or the name or number of a category (`category`, `category_id`)
    box          x1, y1, x2, y2; or `box`, a list of the four; `bbox` is x, y, width, height as in COCO
    boxes        a list of such boxes with a list `scores`; or one row each with a `score`

One reader for two uses: true boxes of one's own photographs (`Table`) and predictions (evaluation/external.py). A
list in a cell of CSV is written as JSON. COCO's JSON is a file of instances (`images`, `annotations`, `categories`)
or a list of results; an annotation may have a `phrase` of its own. Pixels count from 0 in the frame of the image.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from phrase_loc.datasets.annotations import Annotated, Box, ClassName, brief, existing, frame, number
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import read_json
from phrase_loc.images import picture_size
from phrase_loc.skipped import Skipped
from phrase_loc.structures import GroundingSample
from phrase_loc.tables import TABLE_ENDINGS, image_path, is_table, open_table, whole

#: What is read -> the columns that may hold it, of which the first that is there counts.
COLUMNS = {
    "image": ("image", "image_id", "file_name", "filename", "file"),
    "phrase": ("phrase", "text", "category", "category_name", "label"),
    "category": ("category_id",),
    "number": ("image_id",),
    "sentence": ("sentence", "sentence_id", "sentence_index"),
    "phrase_index": ("phrase_index", "phrase_id", "index"),
    "entity": ("entity",),
    "protocol": ("protocol",),
    "point": ("point", "peak"),
    "x": ("point_x", "peak_x", "x"),
    "y": ("point_y", "peak_y", "y"),
    "boxes": ("boxes",),
    "box": ("box", "xyxy"),
    "bbox": ("bbox",),
    **{name: (name, old) for name, old in zip(("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"))},
    "scores": ("scores",),
    "score": ("score", "confidence"),
    "w": ("w",),
    "h": ("h",),
    "split": ("split",),
    "width": ("width",),
    "height": ("height",),
}
#: Those of them that hold texts, or the numbers by which things are called.
TEXTS = ("image", "phrase", "category", "number", "entity", "protocol", "split")


@dataclass(frozen=True)
class Row:
    """One row: where it stands ("row 3") and its cells by the names of COLUMNS, without the blank ones."""

    where: str
    cells: dict[str, Any]

    def text(self, name: str) -> str:
        """A cell as text, '' for none; numbers of JSON and of spreadsheets ('7.0') are ids."""
        cell = self.cells.get(name, "")
        return str(int(cell)) if isinstance(cell, float) and cell % 1 == 0 else whole(str(cell).strip())

    def whole(self, name: str) -> int | None:
        """A cell as a whole number, None for none."""
        if name not in self.cells:
            return None
        value = number(self.cells[name], name)
        if value % 1:
            raise DataError(f"its {name} is {value:g}; a whole number was expected")
        return int(value)

    def point(self) -> list[float] | None:
        """x, y in pixels."""
        given = self._side_by_side("point", ("x", "y"))
        return None if given is None else _numbers(given, 2, "its point")

    def boxes(self) -> tuple[list[Box], list[float] | None]:
        """Its boxes x1, y1, x2, y2 in pixels and their scores, None where it has no scores."""
        cells, scores = self.cells, self.cells.get("scores", self.cells.get("score"))
        if "boxes" in cells:
            listed = _listed(cells["boxes"], "its boxes")
            if listed and all(isinstance(box, dict) for box in listed):  # of `phrase-loc query --json`
                scores = [box.get("score") for box in listed]
                listed = [box.get("xyxy") for box in listed]
        elif "bbox" in cells and "box" not in cells:
            x, y, width, height = _numbers(cells["bbox"], 4, "its bbox")
            listed = [[x, y, x + width, y + height]]
        else:
            box = self._side_by_side("box", ("x1", "y1", "x2", "y2"))
            listed = [] if box is None else [box]
        found = [_numbers(box, 4, "its box") for box in listed]
        if scores is None or not found:
            return found, None
        listed = _listed(scores, "its scores") if "boxes" in cells else [scores]
        return found, _numbers(listed, len(found), "its scores")

    def _side_by_side(self, name: str, parts: Sequence[str]) -> Any:
        """The cell of this name, else those of its parts as a list; None where all are absent."""
        there = {*parts} & {*self.cells}
        return self.cells.get(name, [self.cells.get(part) for part in parts] if there else None)


def _listed(cell: Any, what: str) -> list[Any]:
    """A list, or one written as JSON."""
    if isinstance(cell, str):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    if not isinstance(cell, (list, tuple)):
        raise DataError(f"{what} are {brief(cell)}; a list was expected")
    return list(cell)


def _numbers(cell: Any, count: int, what: str) -> list[float]:
    listed = _listed(cell, what)
    if len(listed) != count:
        raise DataError(f"there are {len(listed)} numbers in {what}; {count} were expected")
    return [number(value, what) for value in listed]


def rows(path: Path, what: str, skipped: Skipped) -> Iterator[Row]:
    """The rows of a table or of COCO's JSON; one that cannot be read is named in `skipped`.

    Raises DataError: the file is missing, broken or of another kind.
    """
    if path.suffix.lower() == ".json":
        records = _of_json(path, what)
    elif is_table(path):
        table = open_table(path)
        wanted = [c for c in table.columns if c == "predictions" or c in set(chain(*COLUMNS.values()))]
        read = table.rows(wanted, bad=lambda where, why: skipped.note("rows", f"{where} {why}"))
        records = ((where, dict(zip(wanted, cells, strict=True))) for where, cells in read)
    else:
        raise DataError(f"{what} {path} ends in none of {', '.join(TABLE_ENDINGS)}, .json")
    for where, record in records:
        answers = record.get("predictions")  # a line of `phrase-loc query FOLDER` holds those of a photograph
        for inner in answers if isinstance(answers, list) else [record]:
            held = record | inner if isinstance(inner, dict) else record
            first = {name: next((c for c in known if c in held), "") for name, known in COLUMNS.items()}
            cells = {n: held[c] for n, c in first.items() if held.get(c) not in (None, "")}
            if odd := [n for n in TEXTS if isinstance(cells.get(n), (bool, list, dict))]:
                skipped.note("rows", f"{where}: its {odd[0]} is {brief(cells[odd[0]])}; a text was expected")
            else:
                yield Row(where, cells)


def _of_json(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results of COCO, or annotations with the names of their images and categories."""
    content = read_json(path, what)
    called = (("images", "file_name"), ("categories", "name"))
    images, kinds = (_by_id(content, *part, f"{what} {path}") for part in called)
    if isinstance(content, dict):
        content = content.get("annotations")
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{what} {path} is neither a list of COCO results nor a file of COCO annotations")
    for place, entry in enumerate(content, start=1):
        image, kind = images.get(_id(entry, "image_id")), kinds.get(_id(entry, "category_id"))
        held = {"image": image.get("file_name")} if image else {}
        held |= {side: image.get(side) for side in ("width", "height")} if image else {}
        held |= {"phrase": kind.get("name")} if kind else {}
        yield f"annotation {place}", held | entry


def _by_id(content: Any, part: str, name: str, where: str) -> dict[int | str | None, dict[str, Any]]:
    """The entries of COCO's `images` or `categories` by their ids; a DataError where two things bear one."""
    listed = content.get(part) if isinstance(content, dict) else None
    found: dict[int | str | None, dict[str, Any]] = {}
    for entry in [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []:
        if (key := _id(entry, "id")) is None:
            continue
        one, other = found.setdefault(key, entry).get(name), entry.get(name)
        if one != other:
            both = f"{brief(one)} and {brief(other)}"
            raise DataError(f"{where} gives {both} of its {part} one id, {brief(key)}; give each its own")
    return found


def _id(entry: dict[str, Any], name: str) -> int | str | None:
    value = entry.get(name)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


class Table(Annotated):
    """Photographs named by a table of image, phrase and box; a phrase for each distinct one of an image.

    Args:
        root: the table, with the photographs beside it; or their folder, where `table` names the file.
        split: whose rows are read where the table has a column `split`; '' reads all.
        table: the file, in `root` or anywhere.

    A photograph's size is read from it, or from the columns `width` and `height`, in which case it may be absent.
    """

    name = "table"

    def __init__(self, root: Path, split: str = "", table: str | None = None) -> None:
        super().__init__()
        path = Path(root) if table is None else Path(root) / str(table)
        path = Path(str(table)) if table is not None and not os.path.exists(path) else path
        if path.is_dir():
            raise ConfigError(f"{root} is a folder of photographs; name the table, data.options.table=FILE")
        self.photos = path.parent if table is None else Path(root)
        #: of COCO's JSON, number -> class and image -> number, by which results name them
        self.classes: dict[str, ClassName] = {}
        self.numbers: dict[str, str] = {}
        groups: dict[str, list[Row]] = {}
        for row in rows(path, "the table", self.skipped):
            if split and (own := row.text("split")) not in ("", split):
                said = f"{brief(own)}; data.split={split} is read, an empty data.split= reads all rows"
                self.skipped.note("other splits", said)
                continue
            image, phrase = row.text("image"), row.text("phrase")
            if image and phrase:
                groups.setdefault(image, []).append(row)
                self.numbers[image] = row.text("number") or image
                if category := row.text("category"):
                    one = self.classes.get(category, ClassName(phrase, 0, phrase)).phrase == phrase
                    # a number of several phrases names none
                    self.classes[category] = ClassName(phrase, 0, phrase if one else "")
            else:
                lacks = " and ".join(n for n, t in (("image", image), ("phrase", phrase)) if not t)
                there = ", ".join(row.cells) or "nothing"
                self.skipped.note("rows", f"{row.where}: it has no {lacks}, but {there}")
        entries = ((brief(image)[1:-1], partial(self._read, image, found)) for image, found in groups.items())
        self.fill(entries, f"the table {path}")

    def _read(self, image: str, group: list[Row]) -> GroundingSample:
        path, sides = image_path(self.photos, image), ("height", "width")
        given = [[number(row.cells[s], s) for s in sides] for row in group if {*sides} <= row.cells.keys()]
        if any(one != given[0] for one in given):
            raise DataError("its rows give different sizes; mend width and height")
        size = frame(*(given[0] if given else picture_size(existing(path))[0]))
        objects: dict[ClassName, list[Box]] = {}
        for row in group:
            phrase = row.text("phrase")
            try:
                boxes, _ = row.boxes()
                cut = [self.fit(f"{image}, {row.where}", box, size) for box in boxes]
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None
            if cut:
                objects.setdefault(ClassName(phrase, 0, phrase), []).extend(cut)
            else:
                self.skipped.note("rows without a box", f"{image}, {row.where}: {brief(phrase)}")
        if not objects:
            raise DataError("no box")
        return self.class_sample(image, path, size, objects)


class Places:
    """Finds what a row names among the samples of a dataset; a LookupError says that there is no such thing."""

    def __init__(self, samples: Annotated):
        self.images: dict[str, GroundingSample] = {sample.image_id: sample for sample in samples}
        numbers, names = image_numbers(samples), categories(samples)
        others = [(n, s) for s in samples for n in {s.path.name, s.path.stem, str(numbers[s.image_id])}]
        often = Counter(name for name, _ in others)
        self.images |= {name: s for name, s in others if often[name] == 1 and name not in self.images}
        self.categories = {str(number): name for number, name in names.items()}
        self.numbered = {s.image_id: numbered(s) for s in samples}
        self.phrases = cache(self._phrases)  # a file may have hundreds of boxes of a phrase, a row each

    def called(self, image: str, thing: int | str) -> str:
        """A phrase of an image, by its index, or a chain by its name, for people."""
        if isinstance(thing, str):
            return f"chain {thing}"
        sentence, index = self.numbered[image][thing]
        at = f" (sentence {sentence}, phrase {index})" if sentence >= 0 else ""
        return brief(self.images[image].phrases[thing].text) + at

    def of(self, row: Row, by_chain: bool) -> tuple[GroundingSample, list[int | str]]:
        """The image of a row, and the indices of its phrases or the name of the chain that the row answers.

        `by_chain` prefers the chain, which otherwise stands for a row that names no phrase.
        """
        name, text = row.text("image"), row.text("phrase")
        slashed = name.replace("\\", "/")
        sample = self.images.get(name) or self.images.get(slashed.rpartition("/")[2])
        if sample is None or not _may_be(slashed, sample):
            said = f"no image {brief(name)}" if name else f"it names no image, but {', '.join(row.cells)}"
            raise LookupError(said)
        sentence, index, entity = row.whole("sentence"), row.whole("phrase_index"), row.text("entity")
        text = text or self.categories.get(row.text("category"), "")
        if entity and (by_chain or not (text or index is not None)):
            if entity in {phrase.entity for phrase in sample.phrases}:
                return sample, [entity]
            raise LookupError(f"{name} has no chain {brief(entity)}")
        if found := self.phrases(sample.image_id, text, sentence, index):
            return sample, [*found]
        what = f"phrase {brief(text)}" if text else "phrase that is named"
        at = "".join(f", {k} {v}" for k, v in (("sentence", sentence), ("index", index)) if v is not None)
        raise LookupError(f"{name} has no {what}{at}")

    def _phrases(self, image: str, text: str, sentence: int | None, index: int | None) -> tuple[int, ...]:
        """Indices of the phrases of this text, if any, at this place, if any; a class has its name too."""
        there = {}
        for i, (place, p) in enumerate(zip(self.numbered[image], self.images[image].phrases, strict=True)):
            if sentence in (None, place[0]) and index in (None, place[1]):
                there[i] = [p.text, p.entity] if p.sentence < 0 else [p.text]
        if not text:
            return () if index is None else tuple(there)
        exact = tuple(i for i, names in there.items() if text in names)
        return exact or tuple(i for i, names in there.items() if plain(text) in map(plain, names))


def _may_be(name: str, sample: GroundingSample) -> bool:
    """Whether a photograph can be called so, perhaps without its ending: folders of both are the same at the end."""
    if "/" not in name or "/" not in sample.image_id:
        return True
    one = f"/{os.path.normpath(name)}"
    whole = (f"/{os.path.normpath(sample.image_id)}", os.path.abspath(sample.path))
    places = chain(whole, (os.path.splitext(place)[0] for place in whole))
    return any(one.endswith(place) or place.endswith(one) for place in places)


def plain(text: str) -> str:
    """A text whose case and blanks do not count."""
    return " ".join(text.split()).casefold()


def numbered(sample: GroundingSample) -> list[tuple[int, int]]:
    """Per phrase the number of its caption (-1: none) and its own in it, from 0, as the annotation counts them."""
    own = [p.sentence for p in sample.phrases]
    return sample.facts.get("places") or [(s, own[:i].count(s)) for i, s in enumerate(own)]


def categories(samples: Annotated) -> dict[Any, str]:
    """Number -> phrase: the classes of a set that numbers them, else all its phrases in alphabetical order from 1."""
    if classes := getattr(samples, "classes", None):
        return {number: kind.phrase for number, kind in classes.items()}
    return dict(enumerate(sorted({p.text for sample in samples for p in sample.phrases}), start=1))


def image_numbers(samples: Annotated) -> dict[str, Any]:
    """Image id -> its number in COCO's JSON: the file's own, the id where all are numbers, or its place from 1."""
    ids, own = [sample.image_id for sample in samples], getattr(samples, "numbers", {})
    are_numbers = all(name.isascii() and name.isdigit() and len(name) < 19 for name in ids)  # of 64 bits
    return {name: own.get(name, int(name) if are_numbers else at) for at, name in enumerate(ids, start=1)}
