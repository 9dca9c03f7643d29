"""A thing's outline from what points at it: the map, its box and the colours of the photograph.

Within the box, what of the map lies above a level is taken for the thing, and GrabCut (Rother, Kolmogorov & Blake
2004, as OpenCV has it) moves the border to where colours change, on a picture of at most `SIDE` pixels.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.image_inputs import Picture
from phrase_loc.images import MAX_PIXELS, checked_frame, load_image

SIDE = 256  # pixels of the longer side on which borders are looked for
LEVEL = 0.3  # share of the range of the map within the box from which a pixel is probably of the thing
SURE = 0.9  # and from which it surely is
ROUNDS = 2  # of GrabCut
GROUND = 0.15  # share of the picture outside the box, the background, that GrabCut has at least to learn from
LEAST = 0.1  # share of the box that its mask covers at least; with less of either, the level set stands

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def thing_mask(
    heat: NDArray[Any], box: Sequence[float], size: tuple[int, int], picture: Picture | None = None
) -> Mask:
    """The pixels of the thing in a box: (H, W) bool, within the box and of one piece.

    Args:
        heat: (h, w) the map over the whole photograph, at any resolution.
        box: xyxy in the photograph's pixels.
        size: (H, W) of the photograph.
        picture: the photograph at any resolution, as `load_image` takes it; None leaves the level set.

    Raises ConfigError: a map that is empty, not finite or no plane, a box that is reversed or outside, no frame.
    """
    import cv2

    size = checked_frame(size)
    heat, box = _inputs(heat, box, size)
    scale = min(1.0, SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    x1, x2 = _span(box[0], box[2], size[1], width)
    y1, y2 = _span(box[1], box[3], size[0], height)
    fine = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    inside = fine[y1:y2, x1:x2]
    low, high = float(inside.min()), float(inside.max())
    level = np.full((height, width), -1.0)  # from 0 to 1 within the box
    level[y1:y2, x1:x2] = (inside - low) / ((high - low) or 1.0)
    mask = (level >= LEVEL).astype(np.uint8)
    if picture is not None:
        pixels = np.asarray(load_image(picture))
        small: Any = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        mask = _grown(small, mask, level)
    _, pieces = cv2.connectedComponents(mask, connectivity=8)
    piece = (pieces == pieces.flat[int(level.argmax())]) & (mask > 0)  # in which the map is highest
    whole = cv2.resize(255 * piece.astype(np.uint8), size[::-1], interpolation=cv2.INTER_LINEAR) > 127
    if not whole.any():
        (x1, x2), (y1, y2) = _span(box[0], box[2], size[1], size[1]), _span(box[1], box[3], size[0], size[0])
        whole[y1:y2, x1:x2] = True
    return whole


def _inputs(heat: Any, box: Any, size: Sequence[int]) -> tuple[NDArray[np.float32], list[float]]:
    """The map (h, w) and the box xyxy within a photograph of `size` (H, W); a ConfigError for anything else."""
    with suppress(TypeError, ValueError, RuntimeError):
        plane, corners = np.asarray(heat, np.float32), np.asarray(box, float)
        if plane.ndim == 2 and plane.size and np.isfinite(plane).all() and corners.shape == (4,):
            x1, y1, x2, y2 = found = corners.tolist()
            if 0 <= x2 >= x1 <= size[1] and 0 <= y2 >= y1 <= size[0] and np.isfinite(corners).all():
                return plane, found
    shown = f"the shape {tuple(heat.shape)}" if hasattr(heat, "shape") else f"a {type(heat).__name__}"
    raise ConfigError(
        f"expected a box x1, y1, x2, y2 in a photograph of {size[1]} x {size[0]} pixels and a map (h, w) of finite "
        f"numbers, got the box {str(box)[:60]} and for the map {shown}"
    )


def _span(start: float, end: float, side: int, cells: int) -> tuple[int, int]:
    """Cells that an interval of pixels covers, one at least."""
    first = min(cells - 1, max(0, int(start * cells / side)))
    return first, max(first + 1, min(cells, round(end * cells / side)))


def _grown(picture: Pixels, seed: Pixels, level: NDArray[np.float64]) -> Pixels:
    """GrabCut from the level set; outside the box is background, what the map holds for sure is the thing."""
    import cv2

    inside = level >= 0
    labels: Any = np.where(seed, cv2.GC_PR_FGD, np.where(inside, cv2.GC_PR_BGD, cv2.GC_BGD)).astype(np.uint8)
    labels[level >= SURE] = cv2.GC_FGD
    if seed.sum() < 8 or (~inside).mean() < GROUND:
        return seed
    models: Any = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(picture, labels, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    except cv2.error:  # a picture of one colour has no model
        return seed
    grown = (labels & 1).astype(np.uint8)
    return grown if grown.sum() >= LEAST * inside.sum() else seed


def encoded(mask: Mask) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run lengths, {"size": [H, W], "counts": text}."""
    runs = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def decoded(runs: dict[str, Any]) -> Mask:
    """The mask (H, W) of run lengths."""
    with warnings.catch_warnings():
        # pycocotools 2.0.11 still hands numpy 2 an array without its copy keyword
        warnings.simplefilter("ignore", DeprecationWarning)
        return rle.decode(runs).astype(bool)


def checked(size: Sequence[int], counts: str) -> dict[str, Any]:
    """Compressed run lengths that somebody sent, of a mask of `size` (H, W), at most MAX_PIXELS; else a DataError.

    pycocotools writes where the runs lead, so they are decoded here by the rules of its `rleFrString`.
    """
    runs, value, shift = list[int](), 0, 0
    for letter in counts.encode():
        value |= (letter - 48 & 31) << shift
        shift += 5
        if shift > 60:  # no run is that long, and Python's numbers have no end
            break
        if not letter - 48 & 32:
            value -= (1 << shift) if letter - 48 & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or min(runs, default=-1) < 0 or not sum(runs) == size[0] * size[1] <= MAX_PIXELS:
        raise DataError(f"expected COCO's run lengths of {size[1]} x {size[0]} pixels, got {counts[:40]!r}")
    return {"size": list(size), "counts": counts}


def brush(mask: Mask) -> list[int]:
    """A mask (H, W) as bytes of Label Studio's brush: runs of the values 0 and 255, four a pixel, rows from the top.

    After the number of values (32 bits), the bits of a value less 1 (5) and those of four lengths less 1 (4 each), a
    run is a 1, which of the lengths (2 bits), the length less 1, the value.
    """
    flat, widths = mask.ravel(), (3, 4, 8, 16)
    bits = [f"{4 * flat.size:032b}00111", *(f"{width - 1:04b}" for width in widths)]
    edges = np.flatnonzero(np.diff(flat, prepend=~flat[:1], append=~flat[-1:])).tolist()
    for start, end in pairwise(edges):
        for left in range(4 * (end - start), 0, -(1 << 16)):
            length = min(left, 1 << 16) - 1
            which = next(i for i, width in enumerate(widths) if length < 1 << width)
            bits.append(f"1{which:02b}{length:0{widths[which]}b}{255 * int(flat[start]):08b}")
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def polygons(runs: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """Outlines of run lengths, points x, y, the one around most pixels first; holes are filled.

    They run along the edges of the pixels, one pixel aside at most.
    """
    import cv2

    # at twice the size every second place is an edge between pixels
    mask = decoded(runs).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simple = [cv2.approxPolyDP(outline, 2.0, True) for outline in found]
    simple = sorted((o for o in simple if len(o) >= 3), key=cv2.contourArea, reverse=True)
    return [[(x, y) for x, y in ((o[:, 0] + 0.5) / 2).round(2).tolist()] for o in simple]
