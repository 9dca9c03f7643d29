"""Selective Search by OpenCV, and the default source: the same cut down to what a query can wait for.

The default searches at 128 x 128 pixels over two colour spaces and two segmentations, without the costly texture
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

from phrase_loc.proposals.source import FromImage, MissingLibrary, in_frame

_RAND = threading.Lock()  # rand() is one state for the whole process


@dataclass(frozen=True)
class Regions(FromImage):
    """Boxes around segments and around what similar neighbours grow into."""

    side: int = 128  # pixels of the square to which the picture is squashed; the time grows with its square
    #: Felzenszwalb's k of each segmentation: larger, larger segments
    scales: tuple[float, ...] = (150.0, 300.0)
    blur: float = 0.8  # Gaussian sigma in those pixels before the segmentation
    smallest: float = 0.07  # share of the side below which a box is dropped

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Boxes in the order of the search, large groups more likely first: (R, 4)."""
        kinds = ximgproc().segmentation
        import cv2

        square = picture.convert("RGB").resize((self.side, self.side), Image.Resampling.BOX, reducing_gap=3.0)
        pixels = np.asarray(square)
        search = kinds.createSelectiveSearchSegmentation()
        for space in (cv2.COLOR_RGB2LAB, cv2.COLOR_RGB2HSV):
            search.addImage(cv2.cvtColor(pixels, space))
        least = max(10, self.side**2 // 1000)  # pixels of a segment
        for scale in self.scales:
            search.addGraphSegmentation(kinds.createGraphSegmentation(self.blur, scale, least))
        together = kinds.createSelectiveSearchSegmentationStrategyMultiple()
        for like in (  # equal parts of: like colours, the union fills its box, small regions first
            kinds.createSelectiveSearchSegmentationStrategyColor(),
            kinds.createSelectiveSearchSegmentationStrategyFill(),
            kinds.createSelectiveSearchSegmentationStrategySize(),
        ):
            together.addStrategy(like, 1 / 3)
        search.addStrategy(together)
        search.setBaseImage(pixels[..., ::-1].copy())
        return _found(search, pixels, self.smallest, size)


@dataclass(frozen=True)
class SelectiveSearch(FromImage):
    """Boxes of a hierarchical grouping of segments (Uijlings et al., IJCV 2013)."""

    side: int = 300  # pixels of the longer side of what is searched; the time grows with its square
    smallest: float = 0.07  # share of the side below which a box is dropped

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Boxes in the order of the search: (R, 4)."""
        search = ximgproc().segmentation.createSelectiveSearchSegmentation()
        scale = self.side / max(picture.size)
        width, height = (max(8, round(length * scale)) for length in picture.size)
        pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        search.setBaseImage(pixels[..., ::-1].copy())
        search.switchToSelectiveSearchFast()
        return _found(search, pixels, self.smallest, size)


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


def _found(search: Any, pixels: np.ndarray, smallest: float, size: tuple[int, int]) -> Tensor:
    """The boxes of a prepared search over (H, W, 3) pixels in a frame of `size`, the same each time: (R, 4)."""
    with _RAND:
        library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        library.srand(0)  # of the rand() that OpenCV uses
        found = search.process()
    boxes = torch.as_tensor(np.asarray(found), dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    height, width = pixels.shape[:2]
    corners = boxes / boxes.new_tensor([width, height] * 2)
    large = (corners[:, 2:] - corners[:, :2]).amin(1) >= smallest
    return in_frame(corners[large], size)
