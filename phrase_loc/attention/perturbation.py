"""Methods that only ask: cover a part of the activations and see what becomes of the score.

They know nothing of the network's inside, so they are the check on those that do. The price is a forward
pass above the map for every mask.

    occlusion   a window slides over the plane (Zeiler and Fergus, arXiv 1311.2901)
    rise        random masks, each weighed by the score it leaves (Petsiuk et al., arXiv 1806.07421)

Masks lie on the activations, not on the pixels, so that all methods compare over the same ones.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention.excitation import checked, mixed, reciprocal
from phrase_loc.attention.gradients import score_signal
from phrase_loc.errors import ConfigError

Net = Callable[[Tensor], Tensor]
BATCH = 32  # masked copies of all images that run at once


def occlusion(
    net: Net,
    x: Tensor,
    units: Tensor,
    *,
    weights: Tensor | None = None,
    window: int = 3,
) -> Tensor:
    """Mean fall of the score over the windows that cover a location, clamped at 0: (K, N, h, w).

    Args:
        net: the network above `x`, giving (N, D) or (N, D, h', w').
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over net's output.
        weights: (P, K) averages the words' scores into phrases; the result is then (P, N, h, w).
        window: side of the covered square in cells, odd.

    Raises:
        ConfigError: shapes that do not fit, an even window.
    """
    if window % 2 == 0 or window < 1:
        raise ConfigError(f"the side of an occluding window must be odd and positive, got {window}")
    covered = _windows((x.shape[2], x.shape[3]), window // 2).to(x.device, _core(x))
    with torch.inference_mode(False), torch.no_grad():
        whole, score = _asked(net, x, units, weights)
        fall = whole - score(1 - covered)  # (M, K, N)
        return _spread(fall, covered).clamp(min=0)


def rise(
    net: Net,
    x: Tensor,
    units: Tensor,
    *,
    weights: Tensor | None = None,
    masks: int = 512,
    cells: int = 4,
    seed: int = 0,
) -> Tensor:
    """Mean score, above the mean of all, that masks keeping a location leave: (K, N, h, w) >= 0.

    Arguments as for `occlusion`, and: masks, how many; cells, the side of their grid of fair coins before it
    is resized smoothly to the plane at a random offset; seed of the coins.
    """
    with torch.inference_mode(False), torch.no_grad():
        kept = _coin_masks(masks, cells, (x.shape[2], x.shape[3]), seed).to(x.device, _core(x))
        _, score = _asked(net, x, units, weights)
        left = score(kept)
        return _spread(left - left.mean(0), kept).clamp(min=0)


def _asked(
    net: Net, x: Tensor, units: Tensor, weights: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The score (K, N), and a function from masks (M, h, w) to the scores (M, K, N) that they leave."""
    x = x.detach().clone()
    h = net(x)
    h = h.to(_core(h))
    units, weights = checked(h, units, weights)
    signal = mixed(score_signal(h, units), weights)

    def score_of(h: Tensor) -> Tensor:  # (M * N, D, ...) -> (M, K, N)
        return torch.einsum("kn...,mn...->mkn", signal, h.to(signal).unflatten(0, (-1, len(x))))

    def score(masks: Tensor) -> Tensor:
        parts = (m[:, None, None].to(x) * x for m in masks.split(BATCH))  # (M, N, C, h, w)
        return torch.cat([score_of(net(part.flatten(0, 1))) for part in parts])

    return score_of(h)[0], score


def _spread(gain: Tensor, masks: Tensor) -> Tensor:
    """Mean gain (M, K, N) of the masks (M, h, w) at each location -> (K, N, h, w)."""
    return torch.einsum("mkn,mhw->knhw", gain.to(masks), masks) * reciprocal(masks.sum(0))


def _windows(size: tuple[int, int], reach: int) -> Tensor:
    """Every square of side 2 reach + 1 that meets the plane, (M, h, w): each cell lies in equally many."""
    rows, columns = (
        (torch.arange(-reach, s + reach)[:, None] - torch.arange(s)).abs() <= reach for s in size
    )
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).float()


def _coin_masks(count: int, cells: int, size: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coins = torch.randint(0, 2, (count, 1, cells + 1, cells + 1), generator=generator).float()
    step = [-(-s // cells) for s in size]  # a cell more than the plane, to shift within
    wide = F.interpolate(coins, [(cells + 1) * s for s in step], mode="bilinear", align_corners=False)
    offset = [torch.randint(0, s, (count,), generator=generator).tolist() for s in step]
    return torch.stack(
        [m[0, i : i + size[0], j : j + size[1]] for m, i, j in zip(wide, *offset, strict=True)]
    )


def _core(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
