"""What is asked at the top: K word units become K signals over a network's features.

Features h are (N, D) when the network pools, or (N, D, ...) with locations when a head scores locations
before it pools. A prior (K, N, ...) then says how much each location counts for each unit: softmax(r * score)
is the posterior of a log-sum-exp pool; none means that all count alike, which is average pooling.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from phrase_loc.attention.rules import reciprocal
from phrase_loc.errors import ConfigError

Prior = Callable[[Tensor], Tensor]  # scores (K, N, *locations) -> (K, N, *locations), >= 0


def asked(
    h: Tensor, units: Tensor, prior: Prior | None, weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What every method is asked of features h: units, word weights and location weights, checked.

    Raises:
        ConfigError: shapes that do not belong together, a prior without locations.
    """
    units, weights = _checked(h, units, weights)
    return units, weights, location_prior(h, units, prior)


def location_prior(h: Tensor, units: Tensor, prior: Prior | None) -> Tensor | None:
    """Weight of each location for each unit, (K, N, *locations), or None for all alike.

    Args:
        h: (N, D, *locations) features.
        units: (K, D).
        prior: from the units' scores at every location to weights of the same shape, scaled as one likes.

    Raises:
        ConfigError: the features have no locations, or the prior changed the shape.
    """
    if prior is None:
        return None
    if h.dim() == 2:
        raise ConfigError(
            f"a prior over locations needs features before pooling (N, D, h, w), got {tuple(h.shape)}; "
            "let the network return them, or leave the prior out"
        )
    scores = torch.einsum("nd...,kd->kn...", h, units)
    weight = prior(scores).detach()
    if weight.shape != scores.shape:
        raise ConfigError(
            f"a prior must keep the shape of the scores {tuple(scores.shape)}, got {tuple(weight.shape)}"
        )
    return weight


def wins(h: Tensor, units: Tensor, prior: Tensor | None = None) -> Tensor:
    """Which feature won for each unit: (N, D, ...), (K, D) -> (K, N, D, ...), each (k, n) sums to 1 (or 0).

    P(d, i | k) is proportional to prior_ki * max(h_di, 0) * max(u_kd, 0).
    """
    won = _beside(units.clamp(min=0), h) * h.clamp(min=0)
    if prior is not None:
        won = won * prior.unsqueeze(2)
    total = won.flatten(2).sum(2)
    return won * reciprocal(total).view(*total.shape, *(1,) * (h.dim() - 1))


def contrasts(h: Tensor, units: Tensor, prior: Tensor | None = None) -> Tensor:
    """Each unit's winners less those of its dual, the unit with negated weights; each (k, n) sums to 0."""
    return wins(h, units, prior) - wins(h, -units, prior)


def scores(h: Tensor, units: Tensor, prior: Tensor | None = None) -> Tensor:
    """The signal whose product with h is the units' score, (K, N, D, ...); locations by prior."""
    if prior is None:
        prior = h.new_ones(len(units), len(h), *h.shape[2:])
    total = prior.flatten(2).sum(2) if h.dim() > 2 else prior
    mean = prior * reciprocal(total).view(*total.shape, *(1,) * (h.dim() - 2))
    return _beside(units, h) * mean.unsqueeze(2)


def mixed(signals: Tensor, weights: Tensor | None) -> Tensor:
    """Signals of K words (K, ...) -> of P phrases (P, ...), by weights (P, K) if there are any."""
    return signals if weights is None else torch.tensordot(weights.to(signals), signals, dims=1)


def _checked(h: Tensor, units: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Units and weights beside the features they are asked of, on their device and in their dtype.

    Raises:
        ConfigError: shapes that do not belong together.
    """
    if h.dim() < 2 or units.dim() != 2 or units.shape[1] != h.shape[1]:
        raise ConfigError(
            f"units must be (K, D) rows over the D features of a network's (N, D, ...) output, "
            f"got units {tuple(units.shape)} for an output {tuple(h.shape)}; "
            "cut the network where the units begin"
        )
    if weights is not None and (weights.dim() != 2 or weights.shape[1] != len(units)):
        raise ConfigError(f"weights must be (P, {len(units)}), one column a unit, got {tuple(weights.shape)}")
    return units.detach().to(h), None if weights is None else weights.detach().to(h)


def _beside(units: Tensor, h: Tensor) -> Tensor:
    """(K, D) -> (K, 1, D, 1, ...), to stand beside (N, D, ...)."""
    return units.view(len(units), 1, units.shape[1], *(1,) * (h.dim() - 2))
