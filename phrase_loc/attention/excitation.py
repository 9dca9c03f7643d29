"""Excitation Backprop: where in the image does the evidence for a word come from? The whole method.

Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (https://arxiv.org/abs/1608.00507).

A unit is a row of the linear layer over a network. A winner is drawn at each unit and propagated down operation by
operation. If unit i has won, its input j wins with

    P(j | i) = x_j w+_ij / z_i,    z_i = sum_k x_k w+_ik,    w+ = max(w, 0)                       (equation 5)

so that p(x) = x * J'(p(y) / z), J' the transpose of the layer with its positive weights (`transposes`). Biases are
dropped. Where z is 0 nothing excites the unit, and what it has won is lost. The map is the marginal winning
probability (MWP), the probability that the winner arrives at a location.

What is propagated is linear in the seed, so all K units share one recorded forward pass (`tape`) and one top-down
pass. It runs in float32 (float64 for float64 activations) whatever the network's dtype, under autocast and
inference mode as well; it leaves modules, weights and gradients as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from phrase_loc.attention import functions
from phrase_loc.attention.functions import beside_constants, unbroadcast
from phrase_loc.attention.tape import Move, Rule, Tape, attended_pass, excitatory, is_live, plain
from phrase_loc.attention.transposes import summed_transpose, transpose
from phrase_loc.errors import ConfigError, choose

Net = Callable[[Tensor], Tensor]
Rules = Mapping[Callable[..., Any], Rule]
Seed = Callable[[Tensor, Tensor], Tensor]  # features (N, D, ...), units (K, D) -> K signals
BATCH = 64  # winners propagated at once: bounds the memory of a query with hundreds of words
_NOTHING = {torch.float32: 1e-30, torch.float64: 1e-290}  # smaller counts as 0: no inf * 0 further down


# One operation down. A rule runs `func` and records how its inputs inherit what its output has won.


def equation_5(source: Tensor, op: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Move:
    """Inputs of `op`, linear with weights >= 0, compete; of signed ones (linear bottlenecks) the positive part."""
    seen = excitatory(source)
    per_unit = reciprocal(op(seen, *args, **kwargs))  # 1 / z
    summed = summed_transpose(op, seen, *args, **kwargs)

    def down(p: Tensor) -> Tensor:
        back = transpose(op, seen, *args, **kwargs)(p * per_unit)
        return back.mul_(seen) if op in functions.WEIGHTED else seen * back  # of others `back` may be a view

    return Move(source, down, summed and (lambda p: summed(p, per_unit)))


def weighted(
    tape: Tape, func: Rule, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Convolution, linear: inputs compete through their positive weights; the bias does not."""
    if is_live(weight) or not is_live(input):
        raise NotImplementedError(
            f"no excitation rule for a weight that depends on the image ({func.__name__})"
        )
    move = equation_5(input, func, tape.positive(weight), None, *args, **kwargs)
    return tape.record(func(input, weight, bias, *args, **kwargs), move)


def multiplied(tape: Tape, func: Rule, a: Any, b: Any) -> Tensor:
    """Matrix product with a constant on one side: weighted."""
    if is_live(a) and is_live(b):
        raise NotImplementedError(f"no excitation rule for {func.__name__} of two activations: cut above it")
    source, positive = (a, tape.positive(b)) if is_live(a) else (b, tape.positive(a))
    move = equation_5(source, lambda t: func(t, positive) if source is a else func(positive, t))
    return tape.record(func(a, b), move)


def averaged(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Average pooling, mean, sum, resize: linear with weights that are positive already."""
    move = equation_5(input, func, *args, **kwargs)
    return tape.record(func(input, *args, **kwargs), move)


def added(
    tape: Tape, func: Rule, input: Any, other: Any, *, alpha: float = 1, signed: bool = False, **_: Any
) -> Tensor:
    """Residual sum: branches inherit in proportion to their positive parts, or signed (see `mwp`); a bias nothing."""
    if not (is_live(input) and is_live(other)):
        return beside_constants(tape, func, input if is_live(input) else other, input, other, alpha=alpha)
    a, b = input, other if alpha == 1 else other * alpha
    if not signed:
        a, b = a.clamp(min=0), b.clamp(min=0)
    per_unit = reciprocal(a + b)
    # Shares are made now: an in-place sum is about to overwrite its input.
    moves = [
        Move(source, partial(unbroadcast, shape=source.shape, share=part * per_unit))
        for source, part in ((input, a), (other, b))
    ]
    return tape.record(func(input, other, alpha=alpha), *moves)


def reciprocal(z: Tensor) -> Tensor:
    """1 / z, and 0 where z is 0: a unit that nothing excites hands nothing down."""
    return z.reciprocal().masked_fill_(z.abs() <= _NOTHING.get(z.dtype, 0.0), 0.0)


RULES: dict[Callable[..., Any], Rule] = {
    **functions.RULES,
    **dict.fromkeys(functions.WEIGHTED, weighted),
    **dict.fromkeys(functions.MULTIPLIED, multiplied),
    **dict.fromkeys(functions.AVERAGED, averaged),
    **dict.fromkeys(functions.SUMS, added),
}
SIGNED_SUMS: dict[Callable[..., Any], Rule] = dict.fromkeys(functions.SUMS, partial(added, signed=True))


# The top: K units become K signals over the network's features.


def wins(h: Tensor, units: Tensor) -> Tensor:
    """Which feature won for each unit: (N, D, ...), (K, D) -> (K, N, D, ...), each (k, n) sums to 1 (or 0).

    P(d, i | k) is proportional to max(h_di, 0) * max(u_kd, 0): equation 5 at the linear layer of the units. Features
    that keep their locations i compete over them too, which is average pooling.
    """
    return _normalised(
        units.clamp(min=0).view(len(units), 1, units.shape[1], *(1,) * (h.dim() - 2)) * h.clamp(min=0)
    )


def contrasts(h: Tensor, units: Tensor) -> Tensor:
    """Each unit's winners less those of its dual, the unit with negated weights; each (k, n) sums to 0."""
    return wins(h, units) - wins(h, -units)


def winning_map(h: Tensor, units: Tensor) -> Tensor:
    """`wins` summed over the features, the MWP at h itself, as one matrix product: (K, N, ...).

    So maps read on the very features that the units weigh need no pass, and export to ONNX and torch.export as they
    stand. 1x1 convolutions between map and features change nothing: they move no mass in the plane.
    """
    return _normalised(torch.einsum("nd...,kd->kn...", h.clamp(min=0), units.clamp(min=0)))


def contrastive_map(h: Tensor, units: Tensor) -> Tensor:
    """Each unit's map less its dual's, signed: average words first if you must, then clamp at 0 once."""
    return winning_map(h, units) - winning_map(h, -units)


def _normalised(won: Tensor) -> Tensor:
    """(K, N, ...) to the sum 1 for each (k, n)."""
    total = won.unsqueeze(-1).flatten(2).sum(2)
    return won * reciprocal(total).view(total.shape + (1,) * (won.dim() - 2))


# The pass.


def mwp(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Marginal winning probability of K units.

    Args:
        net: the network above `x`, a callable or a `KeptPositive` of one; gives (N, D) features, or (N, D, h', w').
        x: (N, C, h, w) activations, >= 0 (of signed ones the positive part competes).
        units: (K, D) rows of the linear layer over net's output.
        weights: (P, K) averages the words' seeds into phrases before the pass.
        residual: how the branches of a sum compete. 'positive', by their positive parts: a Markov chain, nothing is
            negative. 'proportional', x_i / sum, signed: the authors' newest code, to compare with their maps.
        rules: rules for torch functions that have none, or others for those that have.

    Returns:
        (K, N, h, w), or (P, N, h, w) with weights: >= 0, each map's sum at most 1. Mass is lost only at units that
        fire without excitation, by a bias alone or over a signed bottleneck.

    Raises:
        ConfigError: shapes that do not fit.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    return _maps([net], x, units, weights, (wins, winning_map), _rules(residual, rules))[0]


def contrastive_mwp(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Each unit against its dual, the unit with negated weights: (K, N, h, w) >= 0. Arguments as for `mwp`.

    The two seeds are subtracted before the pass and the map is clamped at 0 after it. It lights up something even
    for a word the image does not show: whether the word is there is the score's business.
    """
    way = (contrasts, contrastive_map)
    return _maps([net], x, units, weights, way, _rules(residual, rules))[0].clamp_(min=0)


def maps_at_depths(
    parts: Sequence[Net], x: Tensor, units: Tensor, *,
    method: Callable[..., Tensor] = contrastive_mwp, weights: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """What a method of METHODS gives at the input of each part of a network; `mwp`, `contrastive_mwp` in one pass.

    `parts` are the network above `x`, each takes what the one before gives; units (K, D) and weights (P, K) as for
    `mwp`. Returns (K, N, h', w') or (P, N, h', w') >= 0 for each part, from the lowest, on the grid of its input.
    """
    if method in (mwp, contrastive_mwp):
        way = (wins, winning_map) if method is mwp else (contrasts, contrastive_map)
        return [signed.clamp_(min=0) for signed in _maps(parts, x, units, weights, way, RULES)]
    maps = []
    for number, part in enumerate(parts):
        above = partial(reduce, lambda value, step: step(value), parts[number:])
        maps.append(method(above, x, units, weights=weights))
        x = part(x)
    return maps


def excitation_backprop(
    net: Net, x: Tensor, seed: Callable[[Tensor], Tensor], *,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Winning probability at every activation, (K, N, C, ...), signed if the seed is. Arguments as for `mwp`, and

    seed: from net's output h to K signals over it, (K, *h.shape): distributions, or signed contrasts.
    """
    with attended_pass([net], x, _rules(residual, rules)) as (tape, top):
        h = plain(top)
        won = seed(h).to(h)
        if won.shape[1:] != h.shape:
            raise ConfigError(
                f"a seed must be (K, *{tuple(h.shape)}), as the output is, got {tuple(won.shape)}"
            )
        return tape.propagate(top, won)[0]


def _maps(
    parts: Sequence[Net], x: Tensor, units: Tensor, weights: Tensor | None, way: tuple[Seed, Seed],
    rules: Rules,
) -> list[Tensor]:  # fmt: skip
    """Signed maps at the input of each part; `way` is the seed of a pass, and the map where no pass is needed."""
    with attended_pass(parts, x, rules) as (tape, top):
        seed, closed = way
        if top.node.number == 0:  # the output is x itself
            return [seeded(closed, plain(top), units, weights) for _ in parts]
        won = seeded(seed, plain(top), units, weights)
        batches = (tape.propagate(top, part, channels=False) for part in won.split(BATCH))
        return [torch.cat(maps) for maps in zip(*batches, strict=True)]


def _rules(residual: str, rules: Rules | None) -> Rules:
    sums = choose({"positive": {}, "proportional": SIGNED_SUMS}, residual, "residual rule")
    return {**RULES, **sums, **(rules or {})}


def seeded(seed: Seed, h: Tensor, units: Tensor, weights: Tensor | None) -> Tensor:
    """seed(h, units): K signals over the features h (N, D, ...), mixed into P by weights (P, K) if there are any."""
    if h.dim() < 2 or units.dim() != 2 or units.shape[1] != h.shape[1]:
        raise ConfigError(
            "units must be (K, D) rows over the D features of a network's (N, D, ...) output, "
            f"got units {tuple(units.shape)} for an output {tuple(h.shape)}; cut the network where the units begin"
        )
    if weights is not None and (weights.dim() != 2 or weights.shape[1] != len(units)):
        raise ConfigError(f"weights must be (P, {len(units)}), one column a unit, got {tuple(weights.shape)}")
    signals = seed(h, units.detach().to(h))
    return signals if weights is None else torch.tensordot(weights.detach().to(signals), signals, dims=1)
