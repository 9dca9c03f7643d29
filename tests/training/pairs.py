"""Small sets of drawn images with captions, made on the spot: a coloured shape on a background."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle")
GROUNDS = {"snow": (240, 240, 250), "night": (20, 20, 40), "sand": (210, 180, 140)}


def draw(number: int, side: int = 32) -> tuple[bytes, list[str]]:
    """The bytes of a PNG and its texts, a function of its number."""
    random = np.random.default_rng(number)
    colour, shape, ground = (str(random.choice(list(kind))) for kind in (COLOURS, SHAPES, GROUNDS))
    image = Image.new("RGB", (side, side), GROUNDS[ground])
    x, y = (int(v) for v in random.integers(0, side // 2, 2))
    box = (x, y, x + side // 2, y + side // 2)
    pen = ImageDraw.Draw(image)
    (pen.rectangle if shape == "square" else pen.ellipse)(box, fill=COLOURS[colour])
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue(), [f"A {colour} {shape} on the {ground} .", f"One {shape} , {colour} ."]


def write_shard(path: Path, numbers: range, side: int = 32) -> Path:
    """A tar in WebDataset's form: key.png and key.json."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            image, texts = draw(number, side)
            add(tar, f"{number:06d}.png", image)
            add(tar, f"{number:06d}.json", json.dumps({"captions": texts}).encode())
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file into a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_set(folder: Path, sizes: tuple[int, ...] = (30, 7, 20), side: int = 32) -> str:
    """Shards of unequal sizes; the glob that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for i, size in enumerate(sizes):
        write_shard(folder / f"{i:05d}.tar", range(start, start + size), side)
        start += size
    return str(folder / "*.tar")
