"""Answers for other tools: a JSON-ready dictionary, a pandas table, COCO results, detections, Parquet, a plot."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from numbers import Integral
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.drawing import COLOURS, glow
from phrase_loc.errors import ConfigError
from phrase_loc.files import told
from phrase_loc.image_inputs import Picture
from phrase_loc.images import load_image
from phrase_loc.maps import checked
from phrase_loc.masks import encoded
from phrase_loc.structures import Prediction

_BOX_COLUMNS = ("rank", "x1", "y1", "x2", "y2", "score")
_PHRASE_COLUMNS = ("image", "width", "height", "error", "phrase", "present", "state", "peak_x", "peak_y")
_CSV_COLUMNS = (*_PHRASE_COLUMNS, *_BOX_COLUMNS, "note")

#: One answer, or those for a photograph.
_Answers: TypeAlias = Prediction | Iterable[Prediction]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def to_dict(prediction: Prediction, masks: bool = False) -> dict[str, Any]:
    """One answer with the keys of `phrase-loc query --json`, in pixels of the original image.

    With `masks` each box of what is not "not there" has one, as COCO's compressed run lengths.

    Pixels are rounded to hundredths; `peak` is None and `boxes` [] when no word is known or the map is flat,
    `present` and `state` are None when the noun is not known, and `note` when there is nothing to say. JSON has no
    NaN: a number that is not finite is None. A ConfigError for anything but one answer.
    """
    if not isinstance(prediction, Prediction):
        got = type(prediction).__name__
        raise ConfigError(f"to_dict takes one answer, got a {got}; write [to_dict(p) for p in answers]")
    peak = prediction.peak
    boxes: list[dict[str, Any]] = [
        {"xyxy": [_rounded(v, 2) for v in box], "score": _rounded(score, 6)}
        for box, score in zip(prediction.boxes.tolist(), prediction.scores.tolist(), strict=True)
    ]
    for rank, box in enumerate(boxes if masks and prediction.state != "not there" else ()):
        if (mask := prediction.mask_in(rank)) is not None:
            box["mask"] = encoded(mask.numpy())
    return {
        "phrase": prediction.phrase,
        "words": [
            {"word": w.written, "known": w.known, "weight": _rounded(w.weight, 4), "read_as": w.read_as}
            for w in prediction.words
        ],
        "note": prediction.note,
        "present": None if prediction.present is None else _rounded(prediction.present, 4),
        "state": prediction.state,
        "peak": None if peak is None else [_rounded(v, 2) for v in peak.tolist()],
        "boxes": boxes,
    }


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def answer_dict(
    image: str, size: tuple[int, int], predictions: Iterable[Prediction], masks: bool = False
) -> dict[str, Any]:
    """The object that `phrase-loc query --json` prints; `size` is (H, W) of the photograph."""
    return {
        "image": image,
        "size": [size[1], size[0]],
        "predictions": [to_dict(p, masks) for p in predictions],
    }


def _answers(predictions: _Answers) -> list[Prediction]:
    """One answer or several as a list; a ConfigError for anything else, such as those for several photographs."""
    several = not isinstance(predictions, Prediction) and isinstance(predictions, Iterable)
    found: list[Any] = [*predictions] if several else [predictions]  # type: ignore[misc]
    if wrong := [type(p).__name__ for p in found if not isinstance(p, Prediction)]:
        got = f"a {type(predictions).__name__} with a {wrong[0]} in it" if several else f"a {wrong[0]}"
        raise ConfigError(
            f"expected the answers for one photograph, as localizer(image, phrases) gives them, got {got}; take one "
            "photograph at a time"
        )
    return found


def _boxes(predictions: _Answers) -> Iterator[tuple[int, Prediction, int, list[float], float]]:
    """Number of the phrase, its answer, rank, xyxy and score of every box; numbers count from 1."""
    for number, p in enumerate(_answers(predictions), start=1):
        for rank, (box, score) in enumerate(zip(p.boxes.tolist(), p.scores.tolist(), strict=True), start=1):
            yield number, p, rank, box, score


def to_frame(predictions: _Answers) -> "DataFrame":
    """One row a box: phrase, rank (from 1), x1, y1, x2, y2, score, present, state."""
    import pandas as pd

    found = _boxes(predictions)
    rows = [(p.phrase, rank, *box, score, p.present, p.state) for _, p, rank, box, score in found]
    return pd.DataFrame(rows, columns=["phrase", *_BOX_COLUMNS, "present", "state"])


def to_coco(predictions: _Answers, image_id: int | str) -> list[dict[str, Any]]:
    """Boxes in COCO's result format: `bbox` is [x, y, width, height]; the category is the phrase's number.

    A ConfigError for what is neither a whole number nor text, such as the numbers of several photographs.
    """
    try:
        image_id = image_id if isinstance(image_id, str) else index(image_id)  # JSON has no numbers of numpy
    except TypeError:
        told = "to_coco takes the answers for one photograph and its number"
        raise ConfigError(f"{told}, got {image_id!r:.80}") from None
    return [
        {"image_id": image_id, "category_id": number, "category_name": p.phrase}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for number, p, _, (x1, y1, x2, y2), score in _boxes(predictions)
    ]


def to_detections(predictions: _Answers, top_k: int | None = None) -> dict[str, Any]:
    """Boxes with the field names of supervision: `supervision.Detections(**to_detections(predictions))`.

    Of each phrase the `top_k` first boxes, None for all. Gives NumPy arrays: `xyxy` (n, 4) and `confidence` (n,)
    float32, `class_id` (n,) the phrase's place from 0, and `data` with `class_name` (n,), the phrases. The confidence
    is the probability that the phrase is in the photograph, the same for all its boxes (NaN from a model without
    calibration): scores rank the boxes of one phrase and cannot be compared between phrases.
    """
    predictions = _answers(predictions)
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1):
        raise ConfigError(f"top_k is a number of boxes, 1 or more, or None for all, got {str(top_k)[:40]!r}")
    counts = [len(p.boxes[:top_k]) for p in predictions]
    boxes = torch.cat([torch.zeros(0, 4), *(p.boxes[:top_k].cpu() for p in predictions)])
    present = [np.nan if p.present is None else p.present for p in predictions]
    return {
        "xyxy": boxes.numpy().astype(np.float32),
        "confidence": np.repeat(np.array(present, np.float32), counts),
        "class_id": np.repeat(np.arange(len(counts)), counts),
        "data": {"class_name": np.repeat(np.array([p.phrase for p in predictions], np.str_), counts)},
    }


def overlay(image: Picture, heat: Tensor) -> Image.Image:
    """A photograph with one map (h, w), or (1, ..., h, w), of any resolution laid over it as a warm glow."""
    picture, heat = load_image(image), checked(heat, "overlay takes one map (h, w)").detach().float().cpu()
    size = tuple(heat.shape[-2:])
    if heat.numel() != heat.shape[-2:].numel():
        raise ConfigError(
            f"overlay takes one map (h, w), got the shape {tuple(heat.shape)}; choose one of them"
        )
    return glow(picture, heat.reshape(size))


def plot(
    image: Picture,
    predictions: _Answers,
    heats: Tensor | None = None,
    axes: "Axes | Sequence[Axes] | None" = None,
    masks: bool = False,
) -> "np.ndarray":
    """Photograph, map (or, with `masks`, the thing), best box and peak of each of P phrases with matplotlib.

    `heats` (P, H', W'), or (H', W') of one phrase, are maps over the whole photograph, such as `localizer.heat`, None
    for the maps' grids. `axes` are at least P to draw on; None makes a figure of pyplot, at most three in a row.
    Returns (P,) the axes; the figure is `plot(...)[0].figure`.
    """
    picture, predictions = load_image(image), _answers(predictions)
    count = len(predictions)
    heats = None if heats is None else checked(heats, "plot takes maps (P, H', W')").detach().float()
    if heats is not None and (heats := heats[None] if heats.dim() == 2 else heats).shape[:-2] != (count,):
        raise ConfigError(
            f"expected a map for each of {count} phrases, (P, H', W'), got {tuple(heats.shape)}"
        )
    if axes is None and count:
        import matplotlib.pyplot as plt

        columns = min(3, count)
        rows = -(-count // columns)
        size = (4.5 * columns, rows * (4.5 * min(picture.height / picture.width, 3.0) + 0.4))
        figure = plt.figure(figsize=size, layout="constrained")
        axes = [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]
    places = np.ravel(np.array([] if axes is None else axes, object))
    if (found := sum(hasattr(place, "imshow") for place in places[:count])) < count:
        raise ConfigError(f"expected axes for {count} phrases, got {found}")
    for number, (p, place) in enumerate(zip(predictions, places[:count], strict=True)):
        heat = p.attention if heats is None else heats[number]
        if masks and p.state != "not there" and (mask := p.mask) is not None:
            heat = mask.float()
        _plot_one(place, picture, p, heat, COLOURS[number % len(COLOURS)])
    return places[:count]


def _plot_one(axes: "Axes", picture: Image.Image, prediction: Prediction, heat: Tensor, colour: str) -> None:
    height, width = prediction.size or (picture.height, picture.width)
    frame = (0, width, height, 0)  # pixels are 1 wide from 0, as boxes count them
    axes.imshow(picture, extent=frame)
    level = (heat / heat.max().clamp(min=1e-12)).clamp(0, 1).cpu().numpy()
    axes.imshow(level, "inferno", alpha=0.6 * level, extent=frame, interpolation="bilinear", vmin=0, vmax=1)
    absent = prediction.state == "not there"
    if len(prediction.boxes) and not absent:
        x1, y1, x2, y2 = prediction.boxes[0].tolist()
        line = "--" if prediction.unsure else "-"
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], line, color=colour, linewidth=2.5)
    if prediction.peak is not None:
        fill, edge = ("none", "#BBBBBB") if absent else (colour, "black")
        axes.plot(*prediction.peak[:, None].tolist(), "o", markerfacecolor=fill, markeredgecolor=edge)
    title = "\n".join(filter(None, (prediction.phrase, prediction.verdict)))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize="medium", parse_math=False)


def write_parquet(answers: Iterable[dict[str, Any]], path: Path) -> None:
    """Answers of `answer_dict` (or {"image", "error"}), one row a phrase."""
    import pyarrow as pa

    numbers = pa.list_(pa.float32())
    columns = {"image": pa.string(), "width": pa.int32(), "height": pa.int32(), "error": pa.string()}
    columns |= {"phrase": pa.string(), "present": pa.float32(), "peak": numbers, "boxes": pa.list_(numbers)}
    columns |= {"scores": numbers, "state": pa.string(), "note": pa.string()}
    write_rows(chain.from_iterable(map(phrase_rows, answers)), columns, path)


def write_rows(rows: Iterable[dict[str, Any]], columns: dict[str, Any], path: Path) -> None:
    """Rows as Parquet, in groups of some thousand; `columns` are names and pyarrow types, a lacking cell is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, schema = iter(rows), pa.schema(list(columns.items()))
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, 4096)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def write_csv(answers: Iterable[dict[str, Any]], path: Path) -> None:
    """The same answers, one row a box; a phrase without a box and an image with an error have one row as well."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in chain.from_iterable(map(phrase_rows, answers)):
            row |= dict(zip(("peak_x", "peak_y"), row.get("peak") or (), strict=False))
            found = enumerate(zip(row.get("boxes", ()), row.get("scores", ()), strict=True), start=1)
            cells = [dict(zip(_BOX_COLUMNS, (n, *box, score), strict=True)) for n, (box, score) in found]
            writer.writerows(row | box for box in cells or [{}])


def answers_in(path: Path) -> Iterator[dict[str, Any]]:
    """The answers of a finished .jsonl file, one at a time; a DataError where it cannot be read."""
    with told(path, "the file of answers"), path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def phrase_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a phrase of an answer of `answer_dict`, or the one row of {"image", "error"}."""
    if "error" in answer:
        return [{"image": utf8(answer["image"]), "error": utf8(answer["error"])}]
    shared = {"image": utf8(answer["image"]), "width": answer["size"][0], "height": answer["size"][1]}
    return [
        shared
        | {"phrase": utf8(p["phrase"]), "present": p["present"], "peak": p["peak"]}
        | {"state": p.get("state"), "note": p.get("note")}
        | {"boxes": [b["xyxy"] for b in p["boxes"]], "scores": [b["score"] for b in p["boxes"]]}
        for p in answer["predictions"]
    ]


def utf8(text: str) -> str:
    """What UTF-8 files can hold: bytes of a name that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
