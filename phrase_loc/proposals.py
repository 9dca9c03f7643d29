"""Proposal sources: candidate boxes for the ranking, float32 xyxy in pixels of the frame in which they are wanted.

The same picture gives the same boxes in every process. A new source is a frozen dataclass with the two methods of
`Source` and one entry of PROPOSALS; `Cached` keeps the boxes of a source on disk.

The default is Selective Search by OpenCV, cut down to what a query can wait for: 128 x 128 pixels, two colour spaces,
three segmentations, three groupings, no costly texture histograms. On Flickr30k Entities val 821 boxes hold a right
one for 95 % of the phrases, more than those of the whole search (docs/experiments.md). Windows of all sizes beside
these boxes lower recall: they crowd out the segments.
"""

import hashlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import SEAL, digest, make_folder, write_bytes
from phrase_loc.maps import min_max, resize

ROOM = 1 << 30  # bytes that a folder keeps when it is tidied: boxes of some 250,000 pictures


class Source(Protocol):
    """Where candidate boxes come from: from the picture alone (`Scene.proposals`), from one map, or from both."""

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """Once an image: boxes from 8-bit RGB in a frame of `size` (H, W): (R, 4); None where they need a map."""
        return None

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """Once a phrase: boxes from its map (h, w) in that frame: (R, 4); None where no phrase changes them."""
        return None


@dataclass(frozen=True)
class Windows(Source):
    """Every box whose corners lie on a grid of `cells` x `cells`; 8 gives 1,248 boxes."""

    cells: int = 8
    aspect: float = 6.0  # greatest ratio of the longer to the shorter side, in steps

    def of_image(self, picture: Image.Image | None, size: tuple[int, int]) -> Tensor:
        """The grid's boxes in the frame: (R, 4); the picture is not looked at."""
        # (S, 2) every way to choose a start and an end
        spans = torch.combinations(torch.arange(self.cells + 1))
        x, y = torch.cartesian_prod(*[torch.arange(len(spans))] * 2).T
        wide, high = spans[x].diff()[:, 0], spans[y].diff()[:, 0]
        kept = torch.maximum(wide / high, high / wide) <= self.aspect
        boxes = torch.stack([spans[x, 0], spans[y, 0], spans[x, 1], spans[y, 1]], -1)[kept]
        return in_frame(boxes.double() / self.cells, size)


@dataclass(frozen=True)
class LevelSets(Source):
    """Tight boxes of the map's level sets: of each connected component and, for phrases of several things, of all."""

    steps: int = 19  # thresholds, evenly spaced between the map's minimum and maximum, both left out
    grid: int = 48  # side of the grid on which the map is cut; finer than the map, coarser than the image
    smallest: float = 0.004  # share of the grid's cells below which a component is no box

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """Distinct boxes of one map (h, w), largest sets first: (R, 4); the whole image if it is flat."""
        fine = resize(attention.detach().float().cpu(), (self.grid, self.grid))
        levels = min_max(fine).numpy()
        found = [(0, 0, self.grid, self.grid)]
        for step in range(1, self.steps + 1):
            found += self._boxes(levels > step / (self.steps + 1))
        boxes = torch.tensor(list(dict.fromkeys(found)), dtype=torch.float64)
        return in_frame(boxes / self.grid, size)

    def _boxes(self, mask: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Boxes of the components of a mask, and of all of them together, in cells."""
        from scipy import ndimage

        slices = ndimage.find_objects(ndimage.label(mask)[0])
        large = [(r, c) for r, c in slices if mask[r, c].sum() >= self.smallest * mask.size]
        boxes = [(c.start, r.start, c.stop, r.stop) for r, c in large]
        if len(boxes) > 1:
            x1, y1, x2, y2 = zip(*boxes)
            boxes.append((min(x1), min(y1), max(x2), max(y2)))
        return boxes


def in_frame(fractions: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in shares of width and height, in pixels of a frame of `size` (H, W): (R, 4) -> (R, 4)."""
    return (fractions * fractions.new_tensor([size[1], size[0]] * 2)).float()


@dataclass(frozen=True)
class Regions(Source):
    """Boxes around segments and around what similar neighbours grow into."""

    side: int = 128  # pixels of the square to which the picture is squashed; the time grows with its square
    #: Felzenszwalb's k of each segmentation: larger, larger segments
    scales: tuple[float, ...] = (75.0, 150.0, 300.0)
    blur: float = 0.8  # Gaussian sigma in those pixels before the segmentation
    smallest: float = 0.07  # share of the side below which a box is dropped

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Distinct boxes, the largest first: (R, 4). The colour spaces are searched at the same time."""
        ximgproc()  # a sentence where it is missing
        import cv2

        square = picture.convert("RGB").resize((self.side, self.side), Image.Resampling.BOX, reducing_gap=3.0)
        pixels = np.asarray(square)
        spaces = (cv2.cvtColor(pixels, space) for space in (cv2.COLOR_RGB2LAB, cv2.COLOR_RGB2HSV))
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._search, spaces))
        return _boxes(found, pixels, self.smallest, size)

    def _search(self, pixels: np.ndarray) -> np.ndarray:
        """Boxes x, y, width, height in the pixels of a picture (side, side, 3): (R, 4)."""
        kinds = ximgproc().segmentation
        search = kinds.createSelectiveSearchSegmentation()
        search.addImage(pixels)
        least = max(10, self.side**2 // 1000)  # pixels of a segment
        for scale in self.scales:
            search.addGraphSegmentation(kinds.createGraphSegmentation(self.blur, scale, least))
        # shared by the groupings, so that a segmentation's histograms are made once
        colour = kinds.createSelectiveSearchSegmentationStrategyColor()
        fill = kinds.createSelectiveSearchSegmentationStrategyFill()
        small_first = kinds.createSelectiveSearchSegmentationStrategySize()
        # each grouping by equal parts; by fill: the union fills its box
        for parts in ((colour, fill, small_first), (fill, small_first), (colour, small_first)):
            together = kinds.createSelectiveSearchSegmentationStrategyMultiple()
            for like in parts:
                together.addStrategy(like, 1 / len(parts))
            search.addStrategy(together)
        search.setBaseImage(pixels)
        return search.process()


@dataclass(frozen=True)
class SelectiveSearch(Source):
    """Boxes of a hierarchical grouping of segments (Uijlings et al., IJCV 2013)."""

    side: int = 300  # pixels of the longer side of what is searched; the time grows with its square
    smallest: float = 0.07  # share of the side below which a box is dropped

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """Distinct boxes, the largest first: (R, 4)."""
        search = ximgproc().segmentation.createSelectiveSearchSegmentation()
        scale = self.side / max(picture.size)
        width, height = (max(8, round(length * scale)) for length in picture.size)
        pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        search.setBaseImage(pixels[..., ::-1].copy())
        search.switchToSelectiveSearchFast()
        return _boxes([search.process()], pixels, self.smallest, size)


PROPOSALS: dict[str, Source] = {
    "default": Regions(),
    "regions": Regions(),
    "windows": Windows(),
    "level_sets": LevelSets(),
    "selective_search": SelectiveSearch(),
}


def ximgproc() -> ModuleType:
    """OpenCV's `ximgproc`, or a ConfigError naming the package that has it."""
    with suppress(ImportError, AttributeError):
        import cv2

        return cv2.ximgproc
    raise ConfigError(
        "this proposal source needs cv2.ximgproc, which this OpenCV lacks; install "
        "opencv-contrib-python-headless (and no other opencv package beside it)"
    )


def _boxes(found: Sequence[np.ndarray], pixels: np.ndarray, smallest: float, size: tuple[int, int]) -> Tensor:
    """Boxes x, y, width, height in pixels (H, W, 3) of several searches, in a frame of `size`: (R, 4)."""
    # a search draws its order by rand()
    distinct = np.unique(np.concatenate([np.reshape(boxes, (-1, 4)) for boxes in found]), axis=0)
    boxes = torch.from_numpy(distinct[np.argsort(-distinct[:, 2:].prod(1), kind="stable")]).double()
    boxes[:, 2:] += boxes[:, :2]
    height, width = pixels.shape[:2]
    corners = boxes / boxes.new_tensor([width, height] * 2)
    large = (corners[:, 2:] - corners[:, :2]).amin(1) >= smallest
    return in_frame(corners[large], size)


@dataclass(frozen=True)
class Cached(Source):
    """A source whose `of_image` boxes are kept in `folder`, for who looks at the same pictures again.

    The name of a file is a digest of all that its boxes depend on, so nothing is ever stale; their own digest stands
    behind them. Processes may share a folder. A file in which a bit has changed is made again and named on stderr; a
    folder that cannot be written to costs a warning and time, no answer.
    """

    source: Source
    folder: Path

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor | None:
        """The source's boxes, from disk if they are there."""
        path = self.folder / f"{self.key(picture, size)}.npy"
        boxes = _read(path)
        if boxes is None and (boxes := self.source.of_image(picture, size)) is not None:
            np.save(file := io.BytesIO(), boxes.numpy())
            content = file.getvalue()
            try:
                make_folder(self.folder)
                write_bytes(path, content + _seal(path, content))
            except (OSError, DataError) as error:
                warnings.warn(
                    f"proposals are not kept in {self.folder} ({error})", RuntimeWarning, stacklevel=3
                )
        return boxes

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The source's boxes; maps are not kept."""
        return self.source.of_map(attention, size)

    def key(self, picture: Image.Image, size: tuple[int, int]) -> str:
        """Hexadecimal digest of picture, frame and source."""
        about = f"{_makers()} {self.source!r} {picture.mode} {picture.size} {tuple(size)}"
        hashed = hashlib.sha256(about.encode())
        hashed.update(picture.tobytes())
        return hashed.hexdigest()[:32]


def tidy(folder: Path, room: int = ROOM) -> None:
    """Delete the boxes that were used longest ago until `room` bytes are left; other files stay."""
    found = []
    for path in folder.glob("*.npy"):
        with suppress(OSError):  # another process was faster
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    for _, size, path in sorted(found, reverse=True):  # the latest stay
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)


@cache
def _makers() -> str:
    """What boxes come from beside a source's constants: our code and libraries, which may change."""
    own = f"{digest(Path(__file__))} Pillow {PIL.__version__}, numpy {np.__version__}, torch {torch.__version__}"
    with suppress(ImportError):
        import cv2

        own += f", OpenCV {cv2.__version__}"
    return own


def _read(path: Path) -> Tensor | None:
    """Boxes (R, 4), marked as just used; None where there is no whole file of them."""
    try:
        blob = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    content = blob[:-SEAL]
    if blob[-SEAL:] != _seal(path, content):
        print(f"{path}: the kept proposals were damaged and are made anew", file=sys.stderr)
        return None
    return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))


def _seal(path: Path, content: bytes) -> bytes:
    """Digest of key and array; it stands behind the array, so that numpy reads the file as well."""
    return hashlib.sha256(path.stem.encode() + content).digest()
