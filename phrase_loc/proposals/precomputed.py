"""Boxes made elsewhere: a file of proposals (MCG, EdgeBoxes, a detector, ...), by image id.

    boxes.npz   one array (R, 4) for each image id
    boxes.json  {"image id": [[x1, y1, x2, y2], ...], ...}
    boxes.csv   a header and rows image_id,x1,y1,x2,y2 (further columns are ignored), best first
    boxes.mat   MATLAB: variables `images` (cell of ids) and `boxes` (cell of (R, 4), or (R, 5) with a score)

MATLAB files of public proposal code count pixels from 1 and write rows before columns: say so with
`origin=1` and `order="yxyx"`.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.boxes import rescale
from phrase_loc.errors import ConfigError, DataError, choose

ORDERS = {"xyxy": [0, 1, 2, 3], "yxyx": [1, 0, 3, 2]}


@dataclass(frozen=True)
class Precomputed:
    """Boxes of many images.

    Attributes:
        table: image id -> boxes (R, 4) float32 xyxy in pixels of that image, origin 0.
        supervision: "boxes" if whatever made them was trained on annotated boxes.
        source: the file, for messages and reports.
    """

    table: dict[str, Tensor] = field(repr=False)
    supervision: str = "none"
    source: str = ""

    @classmethod
    def from_file(
        cls, path: str | Path, *, supervision: str = "none", origin: int = 0, order: str = "xyxy"
    ) -> "Precomputed":
        """Read a file of proposals.

        Args:
            path: a .npz, .json, .csv or .mat file.
            supervision: "none" or "boxes"; the file cannot say it.
            origin: number of the first pixel in the file, 0 or 1.
            order: order of the four numbers in the file, a key of ORDERS.

        Raises:
            DataError: no file, of another kind, or with boxes that are none.
            ConfigError: an unknown option.
        """
        path = Path(path)
        if supervision not in {"none", "boxes"} or origin not in {0, 1}:
            raise ConfigError(
                f"supervision is 'none' or 'boxes' and origin 0 or 1, got {supervision!r} and {origin!r}"
            )
        columns = choose(ORDERS, order, "order of box coordinates")
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"proposals are read from {', '.join(READERS)} files, got {path.name!r}")
        if not path.is_file():
            raise DataError(f"file of proposals {path} does not exist; check the path")
        try:
            raw = reader(path)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"file of proposals {path} is broken: {' '.join(str(error).split())}") from None
        table = {str(name): _boxes(values, columns, origin, path, name) for name, values in raw.items()}
        return cls(table, supervision, str(path))

    def of(self, image_id: str) -> "Fixed":
        """The source of one image.

        Raises:
            DataError: the file has no such image.
        """
        if image_id not in self.table:
            raise DataError(
                f"{self.source or 'the table of proposals'} has no boxes of image {image_id!r} "
                f"({len(self.table)} images); make it for all images"
            )
        return Fixed(self.table[image_id], self.supervision)


@dataclass(frozen=True)
class Fixed:
    """Given boxes (R, 4) in pixels of the picture, whatever the map."""

    boxes: Tensor = field(repr=False)
    supervision: str = "none"

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """The boxes in the frame."""
        return rescale(self.boxes, picture.size[::-1], size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""


def _boxes(values: Any, columns: list[int], origin: int, path: Path, name: str) -> Tensor:
    """Checked (R, 4) float32 xyxy with origin 0; a fifth column, a score, is dropped."""
    try:
        rows = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError):
        rows = np.empty(1, np.float32)  # no numbers, or rows of different lengths
    if rows.size == 0:
        return torch.zeros(0, 4)
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        raise DataError(f"{path}: boxes of image {name!r} are rows of 4 numbers (and a score)")
    boxes = torch.from_numpy(rows[:, columns].copy()) - origin
    if not bool(torch.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
        raise DataError(
            f"{path}: image {name!r} has a box that is not finite or ends before it begins; "
            "check the order of its numbers (order='yxyx', or widths instead of corners)"
        )
    return boxes


def _from_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _from_json(path: Path) -> dict[str, Any]:
    table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict):
        raise ValueError("expected an object of image ids")
    return table


def _from_csv(path: Path) -> dict[str, Any]:
    table: dict[str, list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["image_id"], []).append([float(row[c]) for c in ("x1", "y1", "x2", "y2")])
    return table


def _from_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)
    except NotImplementedError:
        raise ValueError("a MATLAB 7.3 file; save it with -v7") from None
    except MatReadError as error:
        raise ValueError(error) from None
    names = [str(np.ravel(name)[0]) for name in content["images"].ravel()]
    return dict(zip(names, content["boxes"].ravel(), strict=True))


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _from_npz,
    ".json": _from_json,
    ".csv": _from_csv,
    ".mat": _from_mat,
}
