"""Selective Search and EdgeBoxes of OpenCV's contributed modules, made repeatable.

Selective Search draws from the C library's `rand()`, which `cv2.setRNGSeed` does not reach: without a seed
two runs differ. EdgeBoxes wants edges of a trained detector whose file is not ours to ship; gradients of the
picture in Lab colours stand in for it, so neither source has seen a box.
"""

import ctypes
import sys
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.proposals.source import MissingLibrary, in_frame

_RAND = threading.Lock()  # rand() is one state for the whole process


@dataclass(frozen=True)
class SelectiveSearch:
    """Boxes of a hierarchical grouping of segments (Uijlings et al., IJCV 2013).

    Attributes:
        side: pixels of the longer side at which the picture is searched; the time grows with its square.
        quality: the slow and thorough strategies instead of the fast ones.
        smallest: share of the side below which a box is dropped.
    """

    side: int = 300
    quality: bool = False
    smallest: float = 0.07
    supervision: str = "none"

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Boxes in the order of the search: (R, 4)."""
        pixels = at_side(picture, self.side)
        search = ximgproc().segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(pixels[..., ::-1].copy())
        if self.quality:
            search.switchToSelectiveSearchQuality()
        else:
            search.switchToSelectiveSearchFast()
        return in_frame(large(fractions_of(run_search(search), pixels), self.smallest), size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""


@dataclass(frozen=True)
class EdgeBoxes:
    """Boxes that wholly contain many contours (Zitnick and Dollar, ECCV 2014), best first.

    Attributes:
        side: pixels of the longer side at which edges are taken.
        boxes: how many are kept.
        smallest: share of the side below which a box is dropped.
    """

    side: int = 300
    boxes: int = 1000
    smallest: float = 0.07
    supervision: str = "none"

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Boxes, those of most enclosed contours first: (R, 4)."""
        pixels = at_side(picture, self.side)
        edges, angles = lab_edges(pixels)
        engine = ximgproc().createEdgeBoxes()
        engine.setMaxBoxes(self.boxes)
        found = engine.getBoundingBoxes(edges, angles)[0]
        return in_frame(large(fractions_of(found, pixels), self.smallest), size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""


def ximgproc() -> ModuleType:
    """OpenCV's `ximgproc`, or a MissingLibrary error naming the package that has it."""
    try:
        import cv2
    except ImportError:
        cv2 = None  # type: ignore[assignment]
    if cv2 is None or not hasattr(cv2, "ximgproc"):
        raise MissingLibrary(
            "this proposal source needs cv2.ximgproc, which this OpenCV lacks; install "
            "opencv-contrib-python-headless (and no other opencv package beside it)"
        )
    return cv2.ximgproc


def run_search(search: Any) -> Any:
    """The boxes x, y, width, height of a prepared search, the same each time."""
    with _RAND:
        _c_library().srand(0)
        return search.process()


def lab_edges(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thin edges in 0..1 and their angles in 0..pi of (H, W, 3) RGB bytes: two (H, W) float32."""
    import cv2

    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    dx, dy = cv2.Sobel(lab, cv2.CV_32F, 1, 0), cv2.Sobel(lab, cv2.CV_32F, 0, 1)
    strength = np.hypot(dx, dy)
    channel = strength.argmax(2)[..., None]
    edge, dx, dy = (np.take_along_axis(a, channel, 2)[..., 0] for a in (strength, dx, dy))
    angle = np.arctan2(dy, dx)
    rows, columns = np.indices(edge.shape, dtype=np.float32)
    u, v = np.cos(angle), np.sin(angle)
    ahead = cv2.remap(edge, columns + u, rows + v, cv2.INTER_LINEAR)
    behind = cv2.remap(edge, columns - u, rows - v, cv2.INTER_LINEAR)
    thin = np.where((edge >= ahead) & (edge >= behind), edge, 0) / max(float(edge.max()), 1e-6)
    return thin.astype(np.float32), np.mod(angle, np.pi).astype(np.float32)


def at_side(picture: Image.Image, side: int) -> np.ndarray:
    """The picture with its longer side of `side` pixels, as (H, W, 3) RGB bytes."""
    scale = side / max(picture.size)
    width, height = (max(8, round(length * scale)) for length in picture.size)
    return np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def large(fractions: Tensor, smallest: float) -> Tensor:
    """Boxes none of whose sides is below `smallest`, a share of the image's side: (R, 4) -> (R', 4)."""
    return fractions[(fractions[:, 2:] - fractions[:, :2]).amin(1) >= smallest]


def fractions_of(found: Any, pixels: np.ndarray) -> Tensor:
    """OpenCV's x, y, width, height in pixels -> xyxy in shares of the side: (R, 4) float64."""
    boxes = torch.as_tensor(np.asarray(found), dtype=torch.float64).reshape(-1, 4)
    height, width = pixels.shape[:2]
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) / boxes.new_tensor([width, height] * 2)


def _c_library() -> Any:
    """The C library whose rand() OpenCV uses."""
    return ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
