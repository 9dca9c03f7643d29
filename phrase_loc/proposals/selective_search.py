"""Selective Search cut down to what a query can wait for: the default source.

The search runs at 128 x 128 pixels over two colour spaces and two segmentations, without the costly texture
histograms. Measured on Flickr30k Entities val with one set of maps: about 240 boxes after 30 ms of one core,
and R@1, R@5 and R@10 not below those of the published fast setting at 300 pixels (twice the boxes, ten times
the time). Windows of all sizes beside these boxes lower recall: they crowd out the segments.
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

from phrase_loc.errors import ConfigError
from phrase_loc.proposals.source import MissingLibrary, in_frame


@dataclass(frozen=True)
class Regions:
    """Boxes around segments and around what similar neighbours grow into.

    Attributes:
        side: the picture is squashed to a square of so many pixels; the time grows with its square.
        scales: one segmentation each; larger numbers give larger segments (Felzenszwalb's k, colours 0..255).
        blur: Gaussian sigma in those pixels before the segmentation.
        smallest: share of the side below which a box is dropped.
    """

    side: int = 128
    scales: tuple[float, ...] = (150.0, 300.0)
    blur: float = 0.8
    smallest: float = 0.07
    supervision: str = "none"

    def __post_init__(self) -> None:
        if self.side < 16 or not self.scales or min(self.scales) <= 0:
            raise ConfigError(
                f"regions need side >= 16 and positive scales, got {self.side} and {self.scales}; raise them"
            )

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Boxes in the order of the search, large groups more likely first: (R, 4)."""
        import cv2

        square = picture.convert("RGB").resize((self.side, self.side), Image.Resampling.BOX, reducing_gap=3.0)
        pixels = np.asarray(square)
        search = ximgproc().segmentation.createSelectiveSearchSegmentation()
        for space in (cv2.COLOR_RGB2LAB, cv2.COLOR_RGB2HSV):
            search.addImage(cv2.cvtColor(pixels, space))
        for scale in self.scales:
            search.addGraphSegmentation(self._segmentation(scale))
        search.addStrategy(_similarity())
        search.setBaseImage(pixels[..., ::-1].copy())
        found = fractions_of(run_search(search), pixels)
        return in_frame(large(found, self.smallest), size)

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        """None: the boxes are those of `of_image`."""

    def _segmentation(self, scale: float) -> Any:
        least = max(10, self.side**2 // 1000)  # pixels of a segment
        return ximgproc().segmentation.createGraphSegmentation(self.blur, scale, least)


def _similarity() -> Any:
    """Equal parts of: like colours, small regions first, the union fills its box."""
    kinds = ximgproc().segmentation
    together = kinds.createSelectiveSearchSegmentationStrategyMultiple()
    for part in (
        kinds.createSelectiveSearchSegmentationStrategyColor(),
        kinds.createSelectiveSearchSegmentationStrategyFill(),
        kinds.createSelectiveSearchSegmentationStrategySize(),
    ):
        together.addStrategy(part, 1 / 3)
    return together


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
