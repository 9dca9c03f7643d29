"""Labels in the formats of other tools. Each writer goes through the labelled photographs one at a time.

Boxes are in pixels of the upright photograph, origin 0, x2 and y2 outside. File names are relative to the folder that
was labelled. A photograph without a label is in all, one that could not be read in JSON Lines alone, with the reason.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

import yaml
from pycocotools import mask as rle

from phrase_loc import __version__
from phrase_loc.display import utf8, write_rows
from phrase_loc.errors import DataError, choose
from phrase_loc.images import upright
from phrase_loc.masks import brush, decoded, polygons

_LONGEST = 150  # bytes of a name that a photograph gets in a flat folder


class Label(NamedTuple):
    """A box of a class: its place among the classes, xyxy, score and what it was labelled by."""

    category: int
    box: tuple[float, ...]
    score: float
    phrase: str
    present: float | None
    mask: dict[str, Any] | None = None  # COCO's compressed run lengths


class LabelledImage(NamedTuple):
    """A photograph, its (W, H) and labels, or the sentence that says why there are none."""

    image: str
    size: tuple[int, ...]
    labels: tuple[Label, ...]
    error: str | None = None


def link(photograph: str, place: Path) -> None:
    """The photograph under a second name, or else a link or a copy; an upright copy of one that is stored turned.

    Tools differ in whether they turn photographs, and some read none behind symbolic links.
    """
    if (turned := upright(photograph, place.suffix)) is not None:
        place.write_bytes(turned)
        return
    for put in (os.link, os.symlink, shutil.copyfile):
        with suppress(OSError):
            put(os.path.realpath(photograph), place)
            return
    raise DataError(f"{photograph} cannot be linked or copied to {place.parent}; free space there")


class Place(NamedTuple):
    """Where the photographs are, for those who read the labels."""

    root: Path  # names are relative to this folder
    classes: Sequence[str]
    url: str  # before a name in Label Studio's tasks
    put: Callable[[str, Path], None] = link  # a photograph to where a format has it

    def name(self, image: str) -> str:
        """The photograph's name, with '/' between folders."""
        return utf8(Path(os.path.relpath(image, self.root)).as_posix())

    def kind(self, label: Label) -> str:
        """The name of a label's class."""
        return utf8(self.classes[label.category])


Images = Iterable[LabelledImage]


def _read(images: Images) -> Iterator[LabelledImage]:
    return (image for image in images if image.error is None)


def write_coco(images: Images, place: Place, path: Path) -> None:
    """COCO's instances JSON; an annotation has a `score`, and run lengths where there are masks."""
    pairs = ((n, label) for n, image in enumerate(_read(images), 1) for label in image.labels)
    annotations = (_annotation(key, *pair) for key, pair in enumerate(pairs, 1))
    files = (
        {"id": n, "file_name": place.name(i.image), "width": i.size[0], "height": i.size[1]}
        for n, i in enumerate(_read(images), 1)
    )
    info = {"description": f"labelled by phrase_loc {__version__}"}
    categories = [{"id": n, "name": utf8(name)} for n, name in enumerate(place.classes, 1)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {_json(info)},\n"categories": {_json(categories)},\n"images": ')
        file.writelines(_pieces("[]", map(_json, files)))
        file.write(',\n"annotations": ')
        file.writelines(_pieces("[]", map(_json, annotations)))
        file.write("}")


def _annotation(key: int, image: int, label: Label) -> dict[str, Any]:
    x1, y1, x2, y2 = label.box
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    area = round(width * height, 2) if label.mask is None else int(rle.area(label.mask))
    return {
        "id": key, "image_id": image, "category_id": label.category + 1, "bbox": [x1, y1, width, height],
        "area": area, "iscrowd": 0, "segmentation": label.mask or [], "score": label.score,
    }  # fmt: skip


def write_yolo(images: Images, place: Place, folder: Path) -> None:
    """Ultralytics' layout: dataset.yaml, labels/*.txt, images/* that link to the photographs; outlines of masks."""
    (folder / "labels").mkdir(parents=True)
    (folder / "images").mkdir()
    names = dict(enumerate(map(utf8, place.classes)))
    about = {"train": "images", "val": "images", "nc": len(names), "names": names}
    text = yaml.safe_dump(about, allow_unicode=True, sort_keys=False, width=10**6)
    (folder / "dataset.yaml").write_text(text, encoding="utf-8")
    for name, image in _flat(_read(images), place):
        lines = (f"{label.category} {_shares(label, image.size)}\n" for label in image.labels)
        (folder / "labels" / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
        place.put(image.image, folder / "images" / name)


def _shares(label: Label, size: Sequence[int]) -> str:
    """Centre, width and height of the box, or the points of the mask's greatest part, in shares of the image."""
    x1, y1, x2, y2 = label.box
    shares = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    if outline := _outline(label):
        shares = [v for point in outline for v in point]
    return " ".join(f"{min(max(v / size[i % 2], 0), 1):.6f}" for i, v in enumerate(shares))


def _outline(label: Label) -> list[tuple[float, float]]:
    """Points x, y around the greatest part of a mask; [] without one."""
    found = polygons(label.mask) if label.mask is not None else []
    return found[0] if found else []


def write_voc(images: Images, place: Place, folder: Path) -> None:
    """PASCAL VOC's tree: Annotations, JPEGImages (links to the photographs) and ImageSets/Main/trainval.txt."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    with (folder / "ImageSets/Main/trainval.txt").open("w", encoding="utf-8") as listing:
        for name, image in _flat(_read(images), place):
            stem = Path(name).stem
            listing.write(f"{stem}\n")
            size = {"width": image.size[0], "height": image.size[1], "depth": 3}
            about = {"folder": "JPEGImages", "filename": name, "path": place.name(image.image), "size": size}
            things = [("object", _voc_object(label, place)) for label in image.labels]
            top = _element("annotation", [*about.items(), *things])
            (folder / "Annotations" / f"{stem}.xml").write_bytes(ElementTree.tostring(top, "utf-8"))
            place.put(image.image, folder / "JPEGImages" / name)


def _voc_object(label: Label, place: Place) -> dict[str, Any]:
    x1, y1, x2, y2 = label.box  # VOC counts pixels from 1 and names the last one
    sides = {"xmin": floor(x1) + 1, "ymin": floor(y1) + 1, "xmax": ceil(x2), "ymax": ceil(y2)}
    about = {"name": place.kind(label), "pose": "Unspecified", "truncated": 0, "difficult": 0}
    return about | {"confidence": label.score, "bndbox": sides}


def write_cvat(images: Images, place: Place, path: Path) -> None:
    """CVAT for images 1.1: a box, or an outline where there are masks, for each label."""
    labels = [("label", {"name": name, "attributes": ""}) for name in place.classes]
    meta = _element("meta", {"task": {"labels": labels}})
    with path.open("wb") as file:
        file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(ElementTree.tostring(meta, "utf-8") + b"\n")
        for number, image in enumerate(_read(images)):
            sides = {"width": image.size[0], "height": image.size[1]}
            top = _element("image", "", id=number, name=place.name(image.image), **sides)
            top.extend(_shape(label, place) for label in image.labels)
            file.write(ElementTree.tostring(top, "utf-8") + b"\n")
        file.write(b"</annotations>\n")


def _shape(label: Label, place: Place) -> ElementTree.Element:
    """CVAT's box, or the polygon of a mask."""
    about = {"label": place.kind(label), "source": "auto", "occluded": 0, "z_order": 0}
    if outline := _outline(label):
        return _element("polygon", "", **about, points=";".join(f"{x},{y}" for x, y in outline))
    corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), label.box, strict=True))
    return _element("box", "", **about, **corners)


def write_labelstudio(images: Images, place: Place, path: Path) -> None:
    """Label Studio's tasks with predictions; the labelling interface that they fit stands in a second file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_pieces("[]", (_json(_task(image, place)) for image in _read(images))))


def labelling_interface(classes: Sequence[str]) -> str:
    """The XML to paste into Label Studio's settings: rectangles and polygons with these labels."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    for kind, name in list(CONTROLS.items())[:2]:
        labels = ElementTree.SubElement(view, kind, name=name, toName="image")
        labels.extend(_element("Label", "", value=c) for c in classes)
    ElementTree.indent(view)
    return ElementTree.tostring(view, "unicode") + "\n"


def _task(image: LabelledImage, place: Place) -> dict[str, Any]:
    name = place.name(image.image)
    labels = enumerate(image.labels, 1)
    results = [region(f"{n}", label, image.size, place.kind(label)) for n, label in labels]
    score = max((label.score for label in image.labels), default=0.0)
    prediction = {"model_version": f"phrase_loc {__version__}", "score": score, "result": results}
    return {"data": {"image": place.url + quote(name), "name": name}, "predictions": [prediction]}


#: Label Studio's controls, and the names that `labelling_interface` gives two of them.
CONTROLS = {"RectangleLabels": "label", "PolygonLabels": "outline", "BrushLabels": "brush"}


def region(
    key: str, label: Label, size: Sequence[int], name: str, control: str | None = None
) -> dict[str, Any]:
    """Label Studio's rectangle, polygon (percent of a photograph of `size` (W, H), from its upper left) or brush.

    It fits a control of CONTROLS; without one it is a polygon where there is a mask, else a rectangle. A polygon of a
    label without a mask has the corners of its box.
    """
    width, height = size
    outline = _outline(label)
    control = control or ("PolygonLabels" if outline else "RectangleLabels")
    kind = control.lower()
    shared = {
        "id": key, "to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0,
        "score": label.score,
    }  # fmt: skip
    x1, y1, x2, y2 = label.box
    value: dict[str, Any] = {kind: [name]}
    if control == "BrushLabels":
        value |= {"format": "rle", "rle": brush(decoded(label.mask or {}))}
    elif control == "PolygonLabels":
        outline = outline or [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        value |= {"points": [[100 * x / width, 100 * y / height] for x, y in outline], "closed": True}
    else:
        value |= {"x": 100 * x1 / width, "y": 100 * y1 / height, "rotation": 0}
        value |= {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}
    return shared | {"from_name": CONTROLS[control], "type": kind, "value": value}


def write_fiftyone(images: Images, place: Place, folder: Path) -> None:
    """FiftyOneImageDetectionDataset: labels.json, and data.json, where each photograph is. It has no masks."""
    folder.mkdir()
    with (folder / "labels.json").open("w", encoding="utf-8") as file:
        file.write(f'{{"classes": {_json([utf8(name) for name in place.classes])}, "labels": ')
        found = ((i, [_detection(label, i.size, place) for label in i.labels]) for i in _read(images))
        pairs = (f"{_json(place.name(i.image))}: {_json(detections)}" for i, detections in found)
        file.writelines(_pieces("{}", pairs))
        file.write("}\n")
    with (folder / "data.json").open("w", encoding="utf-8") as file:  # it is read without the keys' endings
        where = ((f"{place.name(i.image)}.", utf8(os.path.abspath(i.image))) for i in _read(images))
        file.writelines(_pieces("{}", (f"{_json(name)}: {_json(path)}" for name, path in where)))


def _detection(label: Label, size: Sequence[int], place: Place) -> dict[str, Any]:
    x1, y1, x2, y2 = (v / size[i % 2] for i, v in enumerate(label.box))
    box = [x1, y1, x2 - x1, y2 - y1]
    return {"label": place.kind(label), "bounding_box": box, "confidence": label.score}


def _rows(image: LabelledImage, place: Place) -> list[dict[str, Any]]:
    return [
        {"label": place.kind(x), "phrase": utf8(x.phrase), "xyxy": list(x.box)}
        | {"score": x.score, "present": x.present, "mask": x.mask}
        for x in image.labels
    ]


def write_jsonl(images: Images, place: Place, path: Path) -> None:
    """A line a photograph: image, size [W, H] and labels with xyxy, score, present, phrase and mask; or its error."""
    with path.open("w", encoding="utf-8") as file:
        for i in images:
            found = {"size": list(i.size), "labels": _rows(i, place)}
            said = found if i.error is None else {"error": utf8(i.error)}
            file.write(_json({"image": utf8(i.image)} | said) + "\n")


def write_parquet(images: Images, place: Place, path: Path) -> None:
    """A row a label; a photograph without one has a row without label and box."""
    import pyarrow as pa

    columns = {"image": pa.string(), "width": pa.int32(), "height": pa.int32(), "label": pa.string()}
    columns |= {"phrase": pa.string(), "xyxy": pa.list_(pa.float32()), "score": pa.float32()}
    columns |= {"present": pa.float32(), "mask": pa.string()}
    rows = (
        {"image": utf8(i.image), "width": i.size[0], "height": i.size[1]}
        | row
        | {"mask": (row.get("mask") or {}).get("counts")}
        for i in _read(images)
        for row in _rows(i, place) or [{}]
    )
    write_rows(rows, columns, path)


def _flat(images: Images, place: Place) -> Iterator[tuple[str, LabelledImage]]:
    """Each photograph and its name in one folder: those of subfolders joined by '__', no stem twice.

    The ending stays the photograph's own; a name that is too long is cut.
    """
    taken: set[str] = set()
    for image in images:
        stem, ending = os.path.splitext(place.name(image.image).replace("../", "").replace("/", "__"))
        stem = "".join(c if c.isprintable() else "_" for c in stem)
        stem = stem.encode()[:_LONGEST].decode(errors="ignore")
        yield distinct(stem, taken) + ending, image


def distinct(name: str, taken: set[str]) -> str:
    """A name, with a number behind it where it is `taken`, which it is from then on; 'A' is 'a' to some systems."""
    found, number = name, 1
    while found.casefold() in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found.casefold())
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _pieces(brackets: str, items: Iterable[str]) -> Iterator[str]:
    """JSON of an array "[]", or an object "{}", an item a line: it is never held whole."""
    yield brackets[0]
    for number, item in enumerate(items):
        yield (",\n" if number else "\n") + item
    yield brackets[1]


def _element(tag: str, content: Any, **attributes: Any) -> ElementTree.Element:
    """An element of text, or of further elements: a dictionary, or pairs of tags and contents."""
    element = ElementTree.Element(tag, {key: _xml(value) for key, value in attributes.items()})
    pairs = content.items() if isinstance(content, dict) else content
    if isinstance(pairs, str | int | float):
        element.text = _xml(pairs)
    else:
        element.extend(_element(key, value) for key, value in pairs)
    return element


def _xml(value: Any) -> str:
    """Text without the control characters that XML 1.0 cannot hold."""
    return "".join(c if c >= " " or c in "\t\n\r" else "\ufffd" for c in utf8(str(value)))


class Format(NamedTuple):
    """A writer, and the file or folder that it makes."""

    write: Callable[[Images, Place, Path], None]
    name: str


FORMATS = {
    "coco": Format(write_coco, "coco.json"),
    "yolo": Format(write_yolo, "yolo"),
    "labelstudio": Format(write_labelstudio, "labelstudio.json"),
    "cvat": Format(write_cvat, "cvat.xml"),
    "fiftyone": Format(write_fiftyone, "fiftyone"),
    "voc": Format(write_voc, "voc"),
    "jsonl": Format(write_jsonl, "labels.jsonl"),
    "parquet": Format(write_parquet, "labels.parquet"),
}


def formats_of(text: str) -> list[str]:
    """The formats of a comma list, each once; a ConfigError that lists them for another name."""
    names = list(dict.fromkeys(filter(None, (name.strip().lower() for name in text.split(",")))))
    for name in names or [""]:
        choose(FORMATS, name, "format")
    return names
