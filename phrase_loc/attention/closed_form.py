"""Excitation backprop at the last convolution: a matrix product, no backward pass.

When the map is read on the very features h (N, D, h, w) that the units weigh, the winners of unit k at
location i are

    prior_ki * sum_d max(u_kd, 0) max(h_di, 0) / Z_k,    Z_k the same summed over all i,

so K maps are one product (K, D) x (D, h w), two for the contrast. Only tensor operations: it exports to
ONNX and torch.export as it stands. `excitation` comes here by itself when the network above the map is
empty; 1x1 convolutions between map and features change nothing, since they move no mass in the plane.
"""

import torch
from torch import Tensor

from phrase_loc.attention.rules import reciprocal


def winning_map(h: Tensor, units: Tensor, prior: Tensor | None = None) -> Tensor:
    """MWP at the features themselves: (N, D, ...), (K, D) -> (K, N, ...), each map sums to 1 (or 0).

    Args:
        h: (N, D, *locations) features; their positive part competes.
        units: (K, D).
        prior: (K, N, *locations) weights >= 0 of the locations, None for all alike.
    """
    won = torch.einsum("nd...,kd->kn...", h.clamp(min=0), units.clamp(min=0))
    if prior is not None:
        won = won * prior
    total = won.unsqueeze(-1).flatten(2).sum(2)
    return won * reciprocal(total).view(total.shape + (1,) * (h.dim() - 2))


def contrastive_map(h: Tensor, units: Tensor, prior: Tensor | None = None) -> Tensor:
    """Each unit's map less its dual's, signed: average words first if you must, then clamp at 0 once."""
    return winning_map(h, units, prior) - winning_map(h, -units, prior)
