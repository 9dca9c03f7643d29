"""How values show themselves in a notebook: small pictures and a few lines of HTML that need nothing else.

Pictures are JPEG or PNG inside the page; every text is escaped; colours are the notebook's own, so that dark
themes stay dark.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from phrase_loc.drawing import COLOURS, marked, overlay

if TYPE_CHECKING:  # structures shows itself by this module
    from phrase_loc.structures import Prediction, Scene, Word

SIDE = 400  # longest side of a shown photograph, in pixels


def small_jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    """An RGB picture as a JPEG of at most `side` pixels a side: about 25 kB in a millisecond or two."""
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return _encoded(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), "JPEG")


def predictions_png(predictions: "Sequence[Prediction]") -> bytes | None:
    """The panels of `drawing.overlay` as a PNG; None when the photograph of the first is not known."""
    ground = _ground(predictions[0]) if predictions else None
    return None if ground is None else _encoded(overlay(ground, predictions), "PNG")


def predictions_html(predictions: "Sequence[Prediction]") -> str:
    """A figure for each answer, side by side as the page is wide: picture, words, boxes."""
    figures = [_figure(p, COLOURS[i % len(COLOURS)]) for i, p in enumerate(predictions)]
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'


def scene_png(scene: "Scene") -> bytes | None:
    """The photograph that was looked at; None when it was not kept."""
    if scene.picture is None:
        return None
    return _encoded(Image.open(io.BytesIO(scene.picture)), "PNG")


def scene_html(scene: "Scene") -> str:
    """The photograph, its size, and how many boxes wait to be ranked."""
    boxes = "" if scene.proposals is None else f", {len(scene.proposals)} proposals"
    facts = f"{scene.size[1]} × {scene.size[0]} pixels{boxes}"
    return _framed("" if scene.picture is None else _image(scene.picture, "the photograph"), facts)


def _figure(prediction: "Prediction", colour: str) -> str:
    ground = _ground(prediction)
    picture = ""
    if ground is not None:
        picture = _image(_encoded(marked(ground, prediction, colour), "JPEG"), prediction.phrase)
    sure = "" if prediction.present is None else f" · present {prediction.present:.0%}"
    lines = [
        f'<b style="border-left:8px solid {colour};padding-left:6px">{escape(prediction.phrase)}</b>{sure}',
        " ".join(_word(word) for word in prediction.words),
    ]
    if len(prediction.boxes):
        best = ", ".join(f"{v:.0f}" for v in prediction.boxes[0].tolist())
        rest = len(prediction.boxes) - 1
        lines.append(f"<code>[{best}]</code>" + (f" and {rest} more" if rest else ""))
    else:
        lines.append("no known word, no box")
    if prediction.note:
        lines.append(f"<i>{escape(prediction.note)}</i>")
    return _framed(picture, "<br>".join(line for line in lines if line))


def _word(word: "Word") -> str:
    if not word.known:
        return f'<s title="the model does not know this word">{escape(word.text)}</s>'
    return f"{escape(word.text)} <small>{word.weight:.2f}</small>"


def _framed(picture: str, facts: str) -> str:
    style = f"margin:0;max-width:{SIDE}px;font:13px/1.5 system-ui,sans-serif"
    return f'<figure style="{style}">{picture}<figcaption>{facts}</figcaption></figure>'


def _image(jpeg: bytes, text: str) -> str:
    data = base64.b64encode(jpeg).decode("ascii")
    style = "display:block;max-width:100%"
    return f'<img style="{style}" alt="{escape(text)}" src="data:image/jpeg;base64,{data}">'


def _ground(prediction: "Prediction") -> Image.Image | None:
    """What the answer is drawn on: the photograph, or a grey field of its shape, or nothing."""
    if prediction.picture is not None:
        return Image.open(io.BytesIO(prediction.picture)).convert("RGB")
    if prediction.size is None:
        return None
    height, width = prediction.size
    scale = SIDE / max(height, width)
    return Image.new("RGB", (max(1, round(width * scale)), max(1, round(height * scale))), "#808080")


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 88} if form == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
