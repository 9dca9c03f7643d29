"""Excitation Backprop: where in the image does the evidence for a word come from? The whole method.

Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (https://arxiv.org/abs/1608.00507).

A unit is a row of the linear layer over a network. A winner is drawn at each unit and propagated down operation by
operation. If unit i has won, its input j wins with

    P(j | i) = x_j w+_ij / z_i,    z_i = sum_k x_k w+_ik,    w+ = max(w, 0)                       (equation 5)

so that p(x) = x * J'(p(y) / z), J' the transpose of the layer with its positive weights (`transposes`). Biases are
dropped. Where z is 0 nothing excites the unit, and what it has won is lost. The map is the marginal winning
probability (MWP), the probability that the winner arrives at a location. It is linear in the seed, so all K units
share one recorded forward pass (`tape`) and one top-down pass.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from phrase_loc.attention.competition import RESIDUALS, SIGNED, Rules, reciprocal
from phrase_loc.attention.tape import attended_pass, plain
from phrase_loc.errors import ConfigError, choose

Net = Callable[[Tensor], Tensor]
Seed = Callable[[Tensor, Tensor], Tensor]  # features (N, D, ...), units (K, D) -> K signals
BATCH = 64  # winners propagated at once: bounds the memory of a query with hundreds of words
RULES = SIGNED["clamp"]


def wins(h: Tensor, units: Tensor, signed: str = "clamp") -> Tensor:
    """Which feature won for each unit: (N, D, ...), (K, D) -> (K, N, D, ...), each (k, n) sums to 1 (or 0).

    P(d, i | k) is proportional to max(h_di, 0) * max(u_kd, 0): equation 5 at the linear layer of the units; by
    "contributions" to max(h_di u_kd, 0). Features that keep their locations i compete over them too, which is
    average pooling.
    """
    if signed == "clamp":
        h, units = h.clamp(min=0), units.clamp(min=0)
    columns = units.view(len(units), 1, units.shape[1], *(1,) * (h.dim() - 2))
    return _normalised((columns * h).clamp_(min=0))


def winning_map(h: Tensor, units: Tensor, signed: str = "clamp") -> Tensor:
    """`wins` summed over the features, the MWP at h itself, as one matrix product: (K, N, ...).

    Maps read on the very features that the units weigh need no pass, and export as they stand.
    """
    won = torch.einsum("nd...,kd->kn...", h.clamp(min=0), units.clamp(min=0))
    if signed != "clamp":
        won += torch.einsum("nd...,kd->kn...", h.clamp(max=0), units.clamp(max=0))
    return _normalised(won)


def _contrast(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def seed(h: Tensor, units: Tensor, signed: str = "clamp", dual: Tensor | None = None) -> Tensor:
        if dual is not None and getattr(dual, "shape", None) not in ((1, units.shape[1]), units.shape):
            got = tuple(dual.shape) if isinstance(dual, Tensor) else dual
            raise ConfigError(f"a dual must be (1, {units.shape[1]}), as a unit is, got {str(got)[:40]}")
        return way(h, units, signed) - way(h, -units if dual is None else dual.to(h), signed)

    return seed


#: Each unit less its dual, the unit with negated weights or another (1, D). Signed: average words first if you must,
#: then clamp at 0.
contrasts, contrastive_map = _contrast(wins), _contrast(winning_map)


def _normalised(won: Tensor) -> Tensor:
    """(K, N, ...) to the sum 1 for each (k, n)."""
    total = won.unsqueeze(-1).flatten(2).sum(2)
    return won * reciprocal(total).view(total.shape + (1,) * (won.dim() - 2))


def mwp(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None,
    residual: str = "positive", signed: str = "clamp", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Marginal winning probability of K units: (K, N, h, w) >= 0, or (P, N, h, w); each map's sum is at most 1.

    Mass is lost only at units that fire without excitation, by a bias alone or over a signed bottleneck. Whatever the
    network's dtype, autocast or inference mode, the pass is in float32 (float64 for float64 activations).

    Args:
        net: the network above `x`, a callable or a `KeptPositive` of one; gives (N, D) features, or (N, D, h', w').
        x: (N, C, h, w) activations, >= 0 (of signed ones the positive part competes).
        units: (K, D) rows of the linear layer over net's output.
        weights: (P, K) averages the words' seeds into phrases before the pass.
        residual: how the branches of a sum compete: by their positive parts, a Markov chain; or 'proportional',
            x_i / sum, signed, which is the authors' newest code.
        signed: how signed activations compete (`competition`): 'clamp', their positive parts, or 'contributions',
            max(x_j w_ij, 0). The same for activations >= 0.
        rules: rules for torch functions that have none, or others for those that have.

    Raises:
        ConfigError: shapes that do not fit.
        RuleError: an operation without a rule, named, with the ways out; a NotImplementedError too.
    """
    ask = partial(maps_at_depths, [net], x, units, method=mwp)
    return ask(weights=weights, residual=residual, signed=signed, rules=rules)[0]


def contrastive_mwp(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None,
    residual: str = "positive", signed: str = "clamp", rules: Rules | None = None, dual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Each unit against its dual, the unit with negated weights: (K, N, h, w) >= 0. Arguments as for `mwp`, and

    dual: (1, D), held against every unit in place of its own negative, such as the mean of many units.

    The two seeds are subtracted before the pass and the map is clamped at 0 after it. It lights up something even
    for a word the image does not show: whether the word is there is the score's business.
    """
    ask = partial(maps_at_depths, [net], x, units, method=contrastive_mwp, dual=dual)
    return ask(weights=weights, residual=residual, signed=signed, rules=rules)[0]


def maps_at_depths(
    parts: Sequence[Net], x: Tensor, units: Tensor, *,
    method: Callable[..., Tensor] = contrastive_mwp, weights: Tensor | None = None,
    residual: str = "positive", signed: str = "clamp", rules: Rules | None = None, dual: Tensor | None = None,
    seen: list[Tensor] | None = None,
) -> list[Tensor]:  # fmt: skip
    """What a method of METHODS gives at the input of each part of a network; `mwp`, `contrastive_mwp` in one pass.

    `parts` are the network above `x`, each takes what the one before gives; the network's output is put into `seen`,
    for who needs it as well; the rest is as for `mwp`.
    Returns (K, N, h', w') or (P, N, h', w') for each part, from the lowest, on the grid of its input.
    """
    maps = []
    if method not in (mwp, contrastive_mwp):
        for number, part in enumerate(parts):
            above = partial(reduce, lambda value, step: step(value), parts[number:])
            maps.append(method(above, x, units, weights=weights))
            x = part(x)
        if seen is not None:
            seen.append(x)
        return maps
    ways = (
        (wins, winning_map)
        if method is mwp
        else (partial(w, dual=dual) for w in (contrasts, contrastive_map))
    )
    seed, closed = (partial(way, signed=signed) for way in ways)
    with attended_pass(parts, x, _rules(residual, signed, rules)) as (tape, top):
        if seen is not None:
            seen.append(plain(top).to(x.dtype))
        if top.node.number == 0:  # the output is x itself, no pass is needed
            maps = [seeded(closed, plain(top), units, weights) for _ in parts]
        else:
            won = seeded(seed, plain(top), units, weights)
            batches = (tape.propagate(top, part, channels=False) for part in won.split(BATCH))
            maps = [torch.cat(found) for found in zip(*batches, strict=True)]
        return maps if method is mwp else [found.clamp_(min=0) for found in maps]


def excitation_backprop(
    net: Net, x: Tensor, seed: Callable[[Tensor], Tensor], *,
    residual: str = "positive", signed: str = "clamp", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Winning probability at every activation, (K, N, C, ...), signed if the seed is. Arguments as for `mwp`, and

    seed: from net's output h to K signals over it, (K, *h.shape): distributions, or signed contrasts.
    """
    with attended_pass([net], x, _rules(residual, signed, rules)) as (tape, top):
        h = plain(top)
        won = seed(h).to(h)
        if won.shape[1:] != h.shape:
            raise ConfigError(
                f"a seed must be (K, *{tuple(h.shape)}), as the output is, got {tuple(won.shape)}"
            )
        return tape.propagate(top, won)[0]


def _rules(residual: str, signed: str, rules: Rules | None) -> Rules:
    rules = rules or {}
    if not isinstance(rules, Mapping) or not all(map(callable, rules.values())):
        raise ConfigError(f"rules are {{function: rule}}, both functions and no names, got {rules!r:.80}")
    linear: Rules = choose(SIGNED, signed, "rule for signed activations")
    sums: Rules = choose(RESIDUALS, residual, "residual rule")
    return {**linear, **sums, **rules}


def seeded(seed: Seed, h: Tensor, units: Tensor, weights: Tensor | None) -> Tensor:
    """seed(h, units): K signals over the features h (N, D, ...), mixed into P by weights (P, K) if there are any."""
    given = {"a network's output": h, "units": units} | ({} if weights is None else {"weights": weights})
    for what, numbers in given.items():
        if not isinstance(numbers, Tensor) or not numbers.isfinite().all():
            got = "NaN or infinite ones" if isinstance(numbers, Tensor) else f"a {type(numbers).__name__}"
            raise ConfigError(f"{what} must be a tensor of finite numbers, got {got}")
    if h.dim() < 2 or units.dim() != 2 or units.shape[1] != h.shape[1]:
        raise ConfigError(
            "units must be (K, D) rows over the D features of a network's (N, D, ...) output, "
            f"got units {tuple(units.shape)} for an output {tuple(h.shape)}; cut the network where the units begin"
        )
    if weights is not None and (weights.dim() != 2 or weights.shape[1] != len(units)):
        raise ConfigError(f"weights must be (P, {len(units)}), one column a unit, got {tuple(weights.shape)}")
    signals = seed(h.contiguous(), units.detach().to(h))  # sums and products of signals then copy none
    return signals if weights is None else torch.tensordot(weights.detach().to(signals), signals, dims=1)
