"""What the page takes away: labels of several photographs in the formats of `phrase-loc label`, by its own writers.

A format of one file is sent as it is, one of several as a zip with the photographs in it, which are read from memory.
"""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal
from zipfile import ZipFile

import torch
from pydantic import BaseModel, Field

from phrase_loc.errors import choose
from phrase_loc.images import upright
from phrase_loc.label_formats import FORMATS, Label, LabelledImage, Place, distinct
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.masks import checked, encoded, polygons
from phrase_loc.structures import Scene
from phrase_loc.web.answers import PAGE_METHODS, Kept, Refused
from phrase_loc.web.server import plain

HELD = "of a photograph that is still held"
PICTURES = {"yolo", "voc", "fiftyone"}  # formats with the photographs beside the labels

Pixel = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=1 << 20)]
Box = tuple[Pixel, Pixel, Pixel, Pixel]


class Asked(BaseModel, extra="forbid"):
    """A phrase and boxes of it, in pixels of the upright photograph."""

    key: str = Field(description=HELD, max_length=64)
    phrase: str
    boxes: list[Box] = Field(min_length=1, max_length=50)
    method: str | None = Field(default=None, max_length=64, description="attention method")


class Runs(BaseModel, extra="forbid"):
    """A mask as COCO's compressed run lengths."""

    size: tuple[Side, Side] = Field(description="height, width")
    counts: str = Field(max_length=1 << 20)


class PlacedLabel(BaseModel, extra="forbid"):
    """A box of a phrase, in pixels of the upright photograph."""

    phrase: str = Field(max_length=200)
    xyxy: Box
    present: float | None = Field(ge=0, le=1)
    mask: Runs | None = None


class LabelledPhotograph(BaseModel, extra="forbid"):
    """A photograph's name, (W, H) and boxes."""

    name: str = Field(max_length=255)
    size: tuple[Side, Side]
    labels: list[PlacedLabel]
    key: str | None = Field(
        default=None, max_length=64, description=f"{HELD}; for {', '.join(sorted(PICTURES))}"
    )


class Export(BaseModel, extra="forbid"):
    """Labels, to be written in the format of another tool."""

    format: Literal["coco", "yolo", "labelstudio", "cvat", "fiftyone", "voc", "jsonl", "parquet"]
    photographs: list[LabelledPhotograph] = Field(max_length=1000)


def outlined(localizer: PhraseLocalizer, scene: Scene, phrases: list[str], asked: Asked) -> dict[str, Any]:
    """A mask for each box, as run lengths and as outlines (points x, y)."""
    if asked.method is not None:
        choose(dict.fromkeys(PAGE_METHODS), asked.method, "attention method")
    found = localizer.locate(scene, phrases, 1, asked.method)[0]
    if found.peak is None:
        raise Refused(422, f"nothing stands out for {phrases[0]!r}, so it has no outline")
    found = replace(found, boxes=torch.tensor(asked.boxes))
    masks = map(found.mask_in, range(len(asked.boxes)))
    runs = [encoded(mask.numpy()) for mask in masks if mask is not None]
    return {"masks": [one | {"outlines": polygons(one)} for one in runs]}


def written(asked: Export, held: dict[str | None, Kept]) -> bytes:
    """The file that `phrase-loc label` writes, or a zip of its folder; names and boxes alone touch the disk."""
    form, taken = FORMATS[asked.format], set[str]()
    classes = list(dict.fromkeys(label.phrase for photo in asked.photographs for label in photo.labels))
    names = [plain(photo.name).replace("/", "_") or "photograph" for photo in asked.photographs]
    names = [distinct(stem, taken) + ending for stem, ending in map(os.path.splitext, names)]
    pairs = list(zip(names, asked.photographs, strict=True))
    content = {name: held[photo.key].content for name, photo in pairs if photo.key in held}
    put = dict[Path, str]()
    with TemporaryDirectory() as folder:
        path = Path(folder) / form.name
        place = Place(Path.cwd(), classes, "", lambda name, where: put.update({where: name}))
        form.write([_labelled(name, photo, classes) for name, photo in pairs], place, path)
        if path.is_file():
            return path.read_bytes()
        if asked.format == "fiftyone":
            put = {path / "data" / name: name for name in content}
            where = json.dumps({f"{name}.": f"data/{name}" for name in content}, ensure_ascii=False)
            (path / "data.json").write_text(where, encoding="utf-8")
        with ZipFile(sent := io.BytesIO(), "w") as file:
            for part in sorted(p for p in path.rglob("*") if p.is_file()):
                file.write(part, part.relative_to(folder))
            for part, name in put.items():
                turned = upright(content[name], part.suffix)
                file.writestr(str(part.relative_to(folder)), content[name] if turned is None else turned)
        return sent.getvalue()


def _labelled(name: str, photo: LabelledPhotograph, classes: list[str]) -> LabelledImage:
    labels = []
    for p in photo.labels:
        score = 1.0 if p.present is None else p.present
        if p.mask is not None and p.mask.size != photo.size[::-1]:
            raise Refused(422, f"the masks of {name} must have its size, {photo.size[1]} x {photo.size[0]}")
        mask = None if p.mask is None else checked(p.mask.size, p.mask.counts)
        labels.append(Label(classes.index(p.phrase), p.xyxy, score, p.phrase, score, mask))
    return LabelledImage(name, photo.size, tuple(labels))
