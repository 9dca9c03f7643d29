"""Attention maps: bring to a grid, smooth, min-max normalise, take the peak.

A map is a plain non-negative float tensor (..., h, w) that covers the whole image: cell (i, j) stands for
the rectangle [j W/w, (j+1) W/w) x [i H/h, (i+1) H/h) of an image of H x W pixels. Only its shape matters
here, never its scale; what needs one says which normalisation it takes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from phrase_loc.errors import ConfigError

_AT_ONCE = 8  # maps whose lines stay in a processor's cache
_ROUNDING = 64  # a product of two axes and torch's own kernel differ by at most 40 roundings


def checked(maps: Any, taken: str) -> Tensor:
    """Maps (..., h, w), of an array too, as a tensor; a ConfigError, which says what is `taken`, for all else."""
    if isinstance(maps, np.ndarray) and maps.dtype.kind in "biuf":
        maps = torch.from_numpy(maps.astype(np.float32))
    if not isinstance(maps, Tensor):
        raise ConfigError(f"{taken}, got a {type(maps).__name__}; of an answer give its attention")
    if maps.dim() < 2 or not maps.shape[-2:].numel() or maps.is_complex():
        raise ConfigError(f"{taken} of real numbers, got {maps.dtype} {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise ConfigError(f"{taken} of finite numbers, got some that are nan or inf; mend the map")
    return maps if maps.is_floating_point() else maps.float()


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps on another grid, bicubic: (..., h, w) -> (..., H, W), clamped at 0 since the weights overshoot."""
    if maps.shape[-2:] == tuple(size):
        return maps.clamp(min=0)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = functional.interpolate(flat, size=tuple(size), mode="bicubic", align_corners=False)
    return out.clamp(min=0).reshape(*maps.shape[:-2], *size)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing, each axis apart: (..., h, w) -> same shape.

    `sigma` is the standard deviation as a share of the grid's side, so that it means the same on every grid; 0
    returns the maps as they are. Nothing is won outside of the image: at the border the kernel is cut and not
    renormalised, which would count the outermost cells twice (docs/experiments.md).
    """
    if sigma == 0:
        return maps
    rows, columns = (_gaussian(side, sigma).to(maps) for side in maps.shape[-2:])
    return rows @ maps @ columns.T


def _gaussian(side: int, sigma: float) -> Tensor:
    """(side, side) matrix whose row i holds a Gaussian around cell i; far from the border it sums to 1."""
    cells = torch.arange(side, dtype=torch.float64) / side
    weights = torch.exp(-0.5 * ((cells[:, None] - cells[None, :]) / sigma) ** 2)
    offsets = torch.arange(-side, side + 1, dtype=torch.float64) / side
    return weights / torch.exp(-0.5 * (offsets / sigma) ** 2).sum()


def min_max(maps: Tensor) -> Tensor:
    """Each map min-max normalised to 0..1: (..., h, w) -> same shape. A map flat up to rounding becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span, info = high - low, torch.finfo(maps.dtype)
    stretched = (maps - low) / span.clamp(min=info.tiny)
    return torch.where(span > 16 * info.eps * high.abs(), stretched, 0.0)


def peak(maps: Tensor) -> Tensor:
    """Column and row of the first maximum in row order: (..., H, W) -> (..., 2) float32 x, y.

    Indices of cells, as the published pointing scripts take them; on a map resized to the image these are
    pixels. The first of equal maxima wins on every device, which torch's own argmax does not promise.
    """
    flat = maps.flatten(-2)
    top = flat == flat.amax(-1, keepdim=True)
    place = torch.arange(flat.shape[-1], device=flat.device)
    first = torch.where(top, place, flat.shape[-1]).amin(-1)
    width = maps.shape[-1]
    return torch.stack([first % width, first.div(width, rounding_mode="floor")], -1).float()


def resized_peak(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`peak(resize(maps, size))`, found without making the maps at full size: (P, h, w) -> (P, 2).

    Columns are interpolated first. A value of row y is then a weighted sum of these lines, which their greatest
    and least values bound, and only rows that may reach the maximum are made. Where one cell alone lies within
    rounding of the maximum it is the peak. A map with several such cells (a tie, a plateau) is resized and looked
    at as a whole, so the first maximum still wins; one that is nowhere positive has its peak at the first cell,
    since `resize` clamps at 0.
    """
    rows, columns = (_bicubic(n, side, maps) for n, side in zip(maps.shape[-2:], size, strict=True))
    found = [_peak_of_few(part, rows, columns) for part in maps.split(_AT_ONCE)] if len(maps) else []
    return torch.cat([maps.new_zeros(0, 2, dtype=torch.float32), *found])


def _peak_of_few(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P, h, w) with the weights of both axes, (H, h) and (W, w) -> (P, 2)."""
    size = (len(rows), len(columns))
    lines = maps @ columns.T  # (P, h, W)
    slack = _ROUNDING * torch.finfo(maps.dtype).eps * maps.abs().amax((-2, -1))  # (P,)
    most, least = lines.amax(-1), lines.amin(-1)  # (P, h)
    bounds = most @ rows.clamp(min=0).T + least @ rows.clamp(max=0).T  # (P, H)
    nearest = ((most.argmax(-1) + 0.5) * (size[0] / lines.shape[1])).long().clamp(max=size[0] - 1)
    attained = (rows[nearest][:, None] @ lines).amax((1, 2))  # in the row that lies nearest to the top line
    hopeful = bounds >= (attained - slack)[:, None]  # (P, H)
    found = maps.new_zeros(len(maps), 2, dtype=torch.float32)
    for i, margin in enumerate(slack.tolist()):
        chosen = hopeful[i].nonzero().flatten()
        fine = (rows[chosen] @ lines[i]).flatten()  # (rows * W,)
        top = float(fine.max()) if len(chosen) else 0.0
        at = (fine >= top - margin).nonzero()
        if len(at) == 1 and top > margin:
            row, column = divmod(int(at), size[1])
            found[i] = torch.stack([chosen.new_tensor(column), chosen[row]])
        elif maps[i].any():
            found[i] = peak(resize(maps[i], size))
    return found


def _bicubic(side: int, wide: int, like: Tensor) -> Tensor:
    """(wide, side) weights with which torch's bicubic kernel resizes an axis of maps `like` these."""
    identity = torch.eye(side, dtype=like.dtype, device=like.device)[None, None]
    return functional.interpolate(identity, size=(wide, side), mode="bicubic", align_corners=False)[0, 0]
