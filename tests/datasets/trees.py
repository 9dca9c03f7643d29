"""Small trees in the real formats of the class datasets, written on the spot."""

import json
from pathlib import Path

from PIL import Image


def photograph(path: Path, size: tuple[int, int] = (200, 100)) -> None:
    """A plain picture of `size` (W, H)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path, format="JPEG")


def xml(objects: list[tuple], size: tuple[int, int] = (200, 100)) -> str:
    """VOC and ILSVRC annotation: objects are (name, xmin, ymin, xmax, ymax[, difficult])."""
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for name, xmin, ymin, xmax, ymax, *rest in objects:
        flag = f"<difficult>{rest[0]}</difficult>" if rest else ""
        box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
        parts.append(f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def voc_tree(root: Path, annotations: dict[str, str], split: str = "test") -> Path:
    """VOCdevkit/VOC2007 below root, in the layout of torchvision's VOCDetection."""
    year = root / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / folder).mkdir(parents=True)
    (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(annotations) + "\n")
    for name, text in annotations.items():
        (year / "Annotations" / f"{name}.xml").write_text(text)
        photograph(year / "JPEGImages" / f"{name}.jpg")
    return root


def coco_tree(root: Path, annotations: list[dict], images: int = 2, split: str = "val2014") -> Path:
    """annotations/instances_<split>.json and the photographs, 200 x 100 (W x H) each."""
    names = [f"COCO_{split}_{i:012d}.jpg" for i in range(1, images + 1)]
    for name in names:
        photograph(root / split / name)
    facts = {
        "info": {},
        "images": [
            {"id": i, "file_name": n, "width": 200, "height": 100} for i, n in enumerate(names, start=1)
        ],
        "annotations": [{"id": i, "iscrowd": 0, **a} for i, a in enumerate(annotations, start=1)],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 72, "name": "tv"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(facts))
    return root


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A COCO polygon of an upright rectangle."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]
