"""Sound annotation trees of three images, in the form of each dataset, to be spoilt by annotations.py."""

import json
from collections.abc import Callable

IDS = ("1000268201", "1000344755", "1000366164")
WIDTH, HEIGHT = 200, 120

#: file -> (content, number of the one image that it is about, or None)
Tree = dict[str, tuple[bytes, int | None]]


def _xml(*objects: tuple[str, int, int, int, int], size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for name, *corners in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in sides)
        parts.append(f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>".encode()


def _list() -> bytes:
    return "".join(f"{name}\n" for name in IDS).encode()


def _flickr30k() -> Tree:
    files: Tree = {"val.txt": (_list(), None)}
    captions = (
        "[/EN#1/people A man] in [/EN#2/clothing a red hat] .\n[/EN#1/people He] is in [/EN#3/scene a park]\n"
    )
    for number, name in enumerate(IDS):
        xml = _xml(("1", 11 + number, 11, 90, 100), ("2", 20, 15, 60, 40), ("2", 61, 15, 99, 40))
        files[f"Annotations/{name}.xml"] = (xml, number)
        files[f"Sentences/{name}.txt"] = (captions.encode(), number)
    return files


def _voc() -> Tree:
    files: Tree = {"VOCdevkit/VOC2007/ImageSets/Main/val.txt": (_list(), None)}
    for number, name in enumerate(IDS):
        xml = _xml(("dog", 11 + number, 11, 90, 100), ("person", 20, 15, 60, 40))
        files[f"VOCdevkit/VOC2007/Annotations/{name}.xml"] = (xml, number)
    return files


def _coco() -> Tree:
    images = [
        {"id": i + 1, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
        for i, name in enumerate(IDS)
    ]
    corners = [20, 20, 80, 20, 80, 90, 20, 90]
    runs = {"size": [HEIGHT, WIDTH], "counts": [10, HEIGHT, HEIGHT * (WIDTH - 1) - 10]}
    annotations = []
    for i in (1, 2, 3):
        common = {"image_id": i, "iscrowd": 0, "area": 4200.0}
        annotations += [
            {"id": 2 * i, "category_id": 1, "bbox": [20, 20, 60, 70], "segmentation": [corners], **common},
            {"id": 2 * i + 1, "category_id": 18, "bbox": [0, 0, 2, 120], "segmentation": runs, **common},
        ]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    facts = {"images": images, "annotations": annotations, "categories": categories}
    return {"annotations/instances_val.json": (json.dumps(facts).encode(), None)}


def _yolo() -> Tree:
    files: Tree = {}
    for number, name in enumerate(IDS):
        lines = f"16 0.5 0.5 0.2 0.{number + 2}\n0 0.25 0.5 0.5 1\n0 0.1 0.1 0.4 0.1 0.4 0.4\n"
        files[f"labels/{name}.txt"] = (lines.encode(), number)
    return files


def _imagenet() -> Tree:
    return {
        f"val/{name}.xml": (_xml(("n01443537", 10 + number, 5, 99, 49)), number)
        for number, name in enumerate(IDS)
    }


def _tiny() -> Tree:
    lines = "".join(f"{name}.JPEG\tn01443537\t{number}\t2\t30\t40\n" for number, name in enumerate(IDS))
    return {"val/val_annotations.txt": (lines.encode(), None)}


TREES: dict[str, Callable[[], Tree]] = {
    "flickr30k": _flickr30k,
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "imagenet": _imagenet,
    "tiny": _tiny,
}
PHOTOGRAPHS = {
    "flickr30k": [],  # never opened while annotations are read
    "voc": [],
    "coco": [],
    "yolo": [f"images/{name}.jpg" for name in IDS],
    "imagenet": [f"val/{name}.JPEG" for name in IDS],
    "tiny": [],
}
LISTS = ("val.txt", "VOCdevkit/VOC2007/ImageSets/Main/val.txt", "val/val_annotations.txt")
SPLITTERS = {"xml": "<>/", "txt": " \n\t[]/"}
