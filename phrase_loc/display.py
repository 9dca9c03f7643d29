"""Answers as plain values: a JSON-ready dictionary, a pandas table, COCO results.

Nothing here is needed to find a box; pandas is imported when a table is asked for.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phrase_loc.structures import Prediction

if TYPE_CHECKING:
    from pandas import DataFrame


def to_dict(prediction: Prediction) -> dict[str, Any]:
    """One answer with the keys of `phrase-loc query --json`, in pixels of the original image.

    Pixels are rounded to hundredths; `present` and `peak` are None and `boxes` [] when no word is known.
    """
    peak = prediction.peak
    return {
        "phrase": prediction.phrase,
        "words": [{"word": w.text, "known": w.known, "weight": round(w.weight, 4)} for w in prediction.words],
        "present": None if prediction.present is None else round(prediction.present, 4),
        "peak": None if peak is None else [round(v, 2) for v in peak.tolist()],
        "boxes": [
            {"xyxy": [round(v, 2) for v in box], "score": round(score, 6)}
            for box, score in zip(prediction.boxes.tolist(), prediction.scores.tolist(), strict=True)
        ],
    }


def to_frame(predictions: Sequence[Prediction]) -> "DataFrame":
    """One row a box: phrase, rank (from 1), x1, y1, x2, y2, score, present."""
    import pandas as pd

    rows = [
        {
            "phrase": p.phrase,
            "rank": rank,
            **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            "score": score,
        }
        | {"present": p.present}
        for p in predictions
        for rank, (box, score) in enumerate(zip(p.boxes.tolist(), p.scores.tolist(), strict=True), start=1)
    ]
    columns = ["phrase", "rank", "x1", "y1", "x2", "y2", "score", "present"]
    return pd.DataFrame(rows, columns=columns)


def to_coco(predictions: Sequence[Prediction], image_id: int) -> list[dict[str, Any]]:
    """Boxes in COCO's result format: `bbox` is [x, y, width, height]; the category is the phrase's number."""
    return [
        {
            "image_id": image_id,
            "category_id": number,
            "category_name": p.phrase,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for number, p in enumerate(predictions, start=1)
        for (x1, y1, x2, y2), score in zip(p.boxes.tolist(), p.scores.tolist(), strict=True)
    ]
