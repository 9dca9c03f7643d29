"""A photograph with its maps and boxes laid over it, by Pillow alone (a plot library costs a second)."""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from phrase_loc import files
from phrase_loc.errors import DataError
from phrase_loc.images import load_image

if TYPE_CHECKING:
    from phrase_loc.structures import Prediction, Scene

#: Okabe and Ito's colours for colour-blind readers, without black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")

#: black, dark red, orange, yellow, near white: brightness alone already orders it. 256 values of each channel.
_HEAT = [
    np.interp(np.arange(256), np.linspace(0, 255, 5), stops).round().astype(int).tolist()
    for stops in ((0, 120, 230, 255, 255), (0, 10, 90, 200, 250), (0, 30, 10, 40, 200))
]

_SOFTWARE = 0x0131  # the tag of EXIF
DRAWN = "drawn by phrase_loc"  # what a picture of ours says of itself, by which it may be drawn anew
#: Of `files.refuse_foreign`, for the place of an overlay.
OVERLAY = (DRAWN, "overlay with our mark", "delete it or give another --overlay")
PANEL, SIDE = 512, 400  # longest side in pixels of a panel, and of a shown photograph


def overlay(
    image: Image.Image, predictions: "Sequence[Prediction]", heats: Tensor | None = None, masks: bool = False
) -> Image.Image:
    """A panel for each phrase, at most three in a row: the map as a warm glow, best box, peak, words under it.

    `image` is RGB at any resolution, boxes are in pixels of their prediction's `size`, or of `image` if it has none.
    `heats` (P, H', W') are maps over the whole photograph at any resolution; None takes the predictions' grids.
    With `masks` the pixels of the thing are tinted.
    """
    if not predictions:
        return image.copy()
    panels = [
        _with_caption(
            marked(image, p, COLOURS[i % len(COLOURS)], None if heats is None else heats[i], masks), p
        )
        for i, p in enumerate(predictions)
    ]
    (width, height), columns = panels[0].size, min(3, len(panels))
    sheet = Image.new("RGB", (columns * width, -(-len(panels) // columns) * height), "white")
    for i, picture in enumerate(panels):
        sheet.paste(picture, ((i % columns) * width, (i // columns) * height))
    return sheet


def marked(
    image: Image.Image, prediction: "Prediction", colour: str, heat: Tensor | None = None, mask: bool = False
) -> Image.Image:
    """The photograph with glow (or the `mask`, tinted), best box and peak, at most `PANEL` pixels a side.

    The frame is dashed where the model is not sure; of what is not there the peak alone is shown, hollow and grey.
    """
    size = _within(image.size, PANEL)
    height, width = prediction.size or (image.height, image.width)
    scale = (size[0] / width, size[1] / height)
    picture = image.resize(size, Image.Resampling.LANCZOS)
    if mask and prediction.state != "not there" and (pixels := prediction.mask) is not None:
        thing = Image.fromarray(pixels.to(torch.uint8).mul(140).numpy()).resize(size)
        picture = Image.composite(Image.new("RGB", size, colour), picture, thing)
    else:
        picture = glow(picture, prediction.attention if heat is None else heat)
    draw = ImageDraw.Draw(picture)
    absent = prediction.state == "not there"
    if len(prediction.boxes) and not absent:
        bare = picture.copy()
        x1, y1, x2, y2 = (float(v) * scale[i % 2] for i, v in enumerate(prediction.boxes[0]))
        corner = max(x1, min(x2, size[0] - 1)), max(y1, min(y2, size[1] - 1))
        for outline, width in (("black", 5), (colour, 3)):
            draw.rectangle((max(0, x1), max(0, y1), *corner), outline=outline, width=width)
        if prediction.unsure:  # dashes
            gaps = np.indices(size[::-1]).sum(0) % 18 >= 11
            picture.paste(bare, mask=Image.fromarray(gaps))
    if prediction.peak is not None:
        x, y = (float(v) * s for v, s in zip(prediction.peak, scale, strict=True))
        for radius, outline in ((6, "black"), (5, "#BBBBBB")) if absent else ((5, "black"),):
            ends = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(ends, fill=None if absent else colour, outline=outline, width=2 if absent else 1)
    return picture


def glow(image: Image.Image, heat: Tensor, strength: float = 0.65) -> Image.Image:
    """Photograph darkened where `heat` (h, w) is low and warmed where it is high."""
    if heat.numel() == 0 or float(heat.max()) <= 0:
        return image.convert("RGB")
    level = (heat / heat.max()).clamp(0, 1).mul(255).to(torch.uint8).cpu().numpy()
    mask = Image.fromarray(level).resize(image.size, Image.Resampling.BICUBIC)
    warm = Image.merge("RGB", [mask.point(ramp) for ramp in _HEAT])
    return Image.composite(
        Image.blend(image, warm, strength), Image.blend(image, Image.new("RGB", image.size), 0.25), mask
    )


def picture_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that the ending asks for; a DataError if it cannot be written, or is no file."""
    target = Path(path)
    name = Image.registered_extensions().get(target.suffix.lower(), "")
    try:  # to be registered is not enough: some formats are read alone, some hold no colours
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=name)
    except Exception:
        raise DataError(
            f"cannot write {target}: the file name must end like an image that can be written, such as .png or .jpg"
        ) from None
    if os.path.exists(target) and not target.is_file():
        raise DataError(f"cannot write {target}: it is a folder or a device; name a file")
    return name


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture whole or not at all, in the format of the ending; a DataError says what is in the way.

    It is marked as `DRAWN` where its format has metadata.
    """
    target, content, exif = Path(path), io.BytesIO(), Image.Exif()
    name = picture_format(target)
    exif[_SOFTWARE] = DRAWN
    try:
        picture.save(content, format=name, exif=exif, comment=DRAWN)  # which GIF takes
    except Exception as error:  # each encoder has its own errors and its own greatest size
        what = f"{target} as {name} of {picture.width} x {picture.height} pixels"
        raise DataError(f"cannot write {what} ({files.reason(error)}); name a .png") from None
    if not os.path.isdir(target.parent):
        raise DataError(f"cannot write {target}: its folder does not exist; choose a folder that exists")
    files.write_bytes(target, content.getvalue(), "choose a folder that can be written")


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _with_caption(picture: Image.Image, prediction: "Prediction") -> Image.Image:
    note = f"  ({prediction.verdict})" if prediction.verdict else ""
    sheet = ImageOps.expand(picture, (0, 0, 0, 26), "white")
    font = ImageFont.load_default(size=15)
    text = " ".join(prediction.phrase.encode("utf-8", "replace").decode().split())[:200] + note
    while len(text) > 8 and font.getlength(text) > picture.width - 12:
        text = text[:-2].rstrip(".") + "."
    ImageDraw.Draw(sheet).text((6, picture.height + 4), text, fill="black", font=font)
    return sheet


def small_jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    """An RGB picture as a JPEG of at most `side` pixels a side: about 25 kB in a millisecond or two."""
    buffer = io.BytesIO()
    small = image.resize(_within(image.size, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    small.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "jpeg") -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def predictions_html(predictions: "Sequence[Prediction]") -> str:
    """A figure for each answer, side by side as the page is wide: picture, words, boxes."""
    figures = [_figure(p, COLOURS[i % len(COLOURS)]) for i, p in enumerate(predictions)]
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'


def scene_html(scene: "Scene") -> str:
    """The photograph, its size, and how many boxes wait to be ranked."""
    boxes = "" if scene.proposals is None else f", {len(scene.proposals)} proposals"
    facts = f"{scene.size[1]} × {scene.size[0]} pixels{boxes}"
    return _framed("" if scene.picture is None else _image(scene.picture, "the photograph"), facts)


def _figure(prediction: "Prediction", colour: str) -> str:
    ground, picture = None, ""
    if prediction.picture is not None:
        ground = load_image(prediction.picture)
    elif prediction.size is not None:  # a grey field of the photograph's shape
        height, width = (max(1, round(side * SIDE / max(prediction.size))) for side in prediction.size)
        ground = Image.new("RGB", (width, height), "#808080")
    if ground is not None:
        picture = _image(small_jpeg(marked(ground, prediction, colour), PANEL), prediction.phrase)
    words = (
        f"{escape(word.text)} <small>{word.weight:.2f}</small>"
        if word.known
        else f'<s title="the model does not know this word">{escape(word.text)}</s>'
        for word in prediction.words
    )
    sure = f" · {prediction.verdict}" if prediction.known and prediction.verdict else ""
    rest = len(prediction.boxes) - 1
    lines = [
        f'<b style="border-left:8px solid {colour};padding-left:6px">{escape(prediction.phrase)}</b>{sure}',
        " ".join(words),
        f"<code>{prediction.place}</code>{f' and {rest} more' if rest > 0 else ''}",
        prediction.note and f"<i>{escape(prediction.note)}</i>",
    ]
    return _framed(picture, "<br>".join(line for line in lines if line))


def _framed(picture: str, facts: str) -> str:
    style = f"margin:0;max-width:{SIDE}px;font:13px/1.5 system-ui,sans-serif"
    return f'<figure style="{style}">{picture}<figcaption>{facts}</figcaption></figure>'


def _image(jpeg: bytes, text: str) -> str:
    return f'<img style="display:block;max-width:100%" alt="{escape(text)}" src="{data_uri(jpeg)}">'
