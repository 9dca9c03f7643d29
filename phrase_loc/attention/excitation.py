"""Excitation Backprop: where in the image does the evidence for a word come from? The whole method.

Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 / IJCV 2018
(https://arxiv.org/abs/1608.00507).

    maps = contrastive_mwp(net, x, units)          # (N, C, h, w) activations, (K, D) units -> (K, N, h, w)
    maps = maps_at_depths([low, high], x, units)   # at x and at low(x), both from one pass

`net` is the part of a network above the activations `x`; a unit is a row of the linear layer over its output. A
winner is drawn at each unit and propagated operation by operation. If unit i has won, its input j wins with

    P(j | i) = x_j w+_ij / z_i,    z_i = sum_k x_k w+_ik,    w+ = max(w, 0)                       (equation 5)

so that p(x) = x * J'(p(y) / z), J' the transpose of the layer with its positive weights (`transposes`). Biases are
dropped. Where z is 0 nothing excites the unit, and what it has won is lost. The map is the marginal winning
probability (MWP), the probability that the winner arrives at a location.

What is propagated is linear in the seed, so all K units share one recorded forward pass (`tape`) and one top-down
pass. The contrast against the dual unit is taken where the authors take it, in the seed, and clamped once, at the
map. The pass runs in float32 (float64 for float64 activations) whatever the network's dtype, under autocast and
inference mode as well; it leaves modules, weights and gradients as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from phrase_loc.attention import functions, routes
from phrase_loc.attention.tape import Attended, KeptPositive, Move, Rule, Tape, excitatory, is_live, layout
from phrase_loc.attention.transposes import summed_transpose, transpose
from phrase_loc.errors import ConfigError

Net = Callable[[Tensor], Tensor]
Rules = Mapping[Callable[..., Any], Rule]
BATCH = 64  # winners propagated at once: bounds the memory of a query with hundreds of words
_NOTHING = {torch.float32: 1e-30, torch.float64: 1e-290}  # smaller counts as 0: no inf * 0 further down

# --- one operation down: who inherits what its output has won ------------------------------------------------
#
# A rule runs `func`, and records how its inputs inherit: from p (K, *output shape) to (K, *input shape). Inputs may
# be signed (linear bottlenecks): their positive part competes.


def weighted(
    tape: Tape, func: Rule, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Convolution, linear: inputs compete through their positive weights; the bias does not."""
    if is_live(weight) or not is_live(input):
        raise NotImplementedError(
            f"no excitation rule for a weight that depends on the image ({func.__name__})"
        )
    seen, positive = excitatory(input), tape.positive(weight)
    per_unit = reciprocal(func(seen, positive, None, *args, **kwargs))
    value = func(input, weight, bias, *args, **kwargs)

    def down(p: Tensor) -> Tensor:
        return transpose(func, seen, positive, None, *args, **kwargs)(p * per_unit).mul_(seen)

    summed = summed_transpose(func, seen, positive, *args, **kwargs)
    return tape.record(func, value, [Move(input, down, summed and (lambda p: summed(p, per_unit)))])


def multiplied(tape: Tape, func: Rule, a: Any, b: Any) -> Tensor:
    """Matrix product with a constant on one side: weighted."""
    if is_live(a) and is_live(b):
        raise NotImplementedError(f"no excitation rule for {func.__name__} of two activations: cut above it")
    source, weight = (a, b) if is_live(a) else (b, a)
    seen, positive = excitatory(source), tape.positive(weight)
    product = (lambda t: func(t, positive)) if source is a else (lambda t: func(positive, t))
    per_unit = reciprocal(product(seen))
    move = Move(source, lambda p: seen * transpose(product, seen)(p * per_unit))
    return tape.record(func, func(a, b), [move])


def averaged(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Average pooling, mean, sum, resize: linear with weights that are positive already."""
    seen = excitatory(input)
    per_unit = reciprocal(func(seen, *args, **kwargs))
    move = Move(input, lambda p: seen * transpose(func, seen, *args, **kwargs)(p * per_unit))
    return tape.record(func, func(input, *args, **kwargs), [move])


def added(tape: Tape, func: Rule, input: Any, other: Any, *, alpha: float = 1, out: None = None) -> Tensor:
    """Residual sum: two published rules, chosen for the whole pass.

    'positive': branches inherit in proportion to their positive parts. A Markov chain: nothing is lost, nothing is
    negative. 'proportional': x_i / sum, signed; the rule of the authors' newest code, kept to compare with
    their maps. A constant summand (a bias) never inherits.
    """
    if not (is_live(input) and is_live(other)):
        return _constant_beside(tape, func, input if is_live(input) else other, input, other, alpha=alpha)
    a, b = input, other if alpha == 1 else other * alpha
    if tape.residual == "positive":
        a, b = a.clamp(min=0), b.clamp(min=0)
    per_unit = reciprocal(a + b)
    # Shares are made now: an in-place sum is about to overwrite its input.
    moves = [
        Move(source, partial(_share, share=part * per_unit, shape=source.shape))
        for source, part in ((input, a), (other, b))
    ]
    return tape.record(func, func(input, other, alpha=alpha), moves)


def subtracted(tape: Tape, func: Rule, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """A constant taken away, as a bias would be."""
    if is_live(other):
        raise NotImplementedError(f"no excitation rule for subtracting an activation ({func.__name__})")
    return _constant_beside(tape, func, input, input, other, **kwargs)


def passed(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One input for each output, an activation, a normalisation, a copy: it wins all."""
    return tape.record(func, func(input, *args, **kwargs), [Move(input, lambda p: p)])


def cast(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Another dtype or device: the value goes on in the tape's own dtype unless it becomes an integer."""
    out = func(input, *args, **kwargs)
    if not out.is_floating_point():
        return out
    device = input.device
    return tape.record(func, out.to(tape.dtype), [Move(input, lambda p: p.to(device))])


def gated(tape: Tape, func: Rule, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """A product: the signal inherits everything, the gate modulates and never wins.

    The gate is the constant, else the divisor, else the smaller factor (squeeze-excitation), else the second.
    """
    signal = input if is_live(input) else other
    if is_live(input) and is_live(other) and func not in functions.DIVIDED and other.numel() > input.numel():
        signal = other
    return _constant_beside(tape, func, signal, input, other, **kwargs)


def gated_and_shifted(tape: Tape, func: Rule, input: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """torch.addcmul(bias, weight, x): a gated signal and a bias."""
    if is_live(input) or is_live(a) == is_live(b):
        raise NotImplementedError(f"no excitation rule for {func.__name__} of several activations")
    return _constant_beside(tape, func, a if is_live(a) else b, input, a, b, **kwargs)


def constant(tape: Tape, func: Rule, *args: Any, **kwargs: Any) -> Any:
    """Statistics that only modulate: nobody inherits."""
    return func(*args, **kwargs)


def reciprocal(z: Tensor) -> Tensor:
    """1 / z, and 0 where z is 0: a unit that nothing excites hands nothing down."""
    return z.reciprocal().masked_fill_(z.abs() <= _NOTHING.get(z.dtype, 0.0), 0.0)


def _constant_beside(tape: Tape, func: Rule, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`func(*args)` with one source that inherits all; the other arguments, perhaps broadcast, only modulate."""
    shape = source.shape
    return tape.record(func, func(*args, **kwargs), [Move(source, lambda p: _reduced_to(p, shape))])


def _share(p: Tensor, share: Tensor, shape: torch.Size) -> Tensor:
    return _reduced_to(p * share, shape)


def _reduced_to(p: Tensor, shape: torch.Size) -> Tensor:
    """(K, *output shape) summed over the axes along which a source of `shape` was broadcast."""
    if p.shape[1:] == shape:
        return p
    return p.sum_to_size(len(p), *(1,) * (p.dim() - 1 - len(shape)), *shape).reshape(len(p), *shape)


RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys(functions.WEIGHTED, weighted),
    **dict.fromkeys(functions.MULTIPLIED, multiplied),
    **dict.fromkeys(functions.AVERAGED, averaged),
    **dict.fromkeys(functions.ADDED, added),
    **dict.fromkeys(functions.SUBTRACTED, subtracted),
    **dict.fromkeys(functions.PASSED, passed),
    **dict.fromkeys(functions.CAST, cast),
    **dict.fromkeys(functions.GATED, gated),
    **dict.fromkeys(functions.GATED_AND_SHIFTED, gated_and_shifted),
    **dict.fromkeys(functions.RESHAPED, routes.reshaped),
    **dict.fromkeys(functions.JOINED, routes.joined),
    **dict.fromkeys(functions.POOLED, routes.pooled),
    **dict.fromkeys(functions.ROUTED, routes.routed),
    **dict.fromkeys(functions.CONSTANT, constant),
}

# --- the top: K units become K signals over the network's features -------------------------------------------


def wins(h: Tensor, units: Tensor) -> Tensor:
    """Which feature won for each unit: (N, D, ...), (K, D) -> (K, N, D, ...), each (k, n) sums to 1 (or 0).

    P(d, i | k) is proportional to max(h_di, 0) * max(u_kd, 0): equation 5 at the linear layer of the units. Features
    that keep their locations i compete over them too, which is average pooling.
    """
    won = units.clamp(min=0).view(len(units), 1, units.shape[1], *(1,) * (h.dim() - 2)) * h.clamp(min=0)
    total = won.flatten(2).sum(2)
    return won * reciprocal(total).view(*total.shape, *(1,) * (h.dim() - 1))


def contrasts(h: Tensor, units: Tensor) -> Tensor:
    """Each unit's winners less those of its dual, the unit with negated weights; each (k, n) sums to 0."""
    return wins(h, units) - wins(h, -units)


def winning_map(h: Tensor, units: Tensor) -> Tensor:
    """`wins` summed over the features, the MWP at h itself, as one matrix product: (K, N, ...).

    So maps read on the very features that the units weigh need no pass, and export to ONNX and torch.export as they
    stand. 1x1 convolutions between map and features change nothing: they move no mass in the plane.
    """
    won = torch.einsum("nd...,kd->kn...", h.clamp(min=0), units.clamp(min=0))
    total = won.unsqueeze(-1).flatten(2).sum(2)
    return won * reciprocal(total).view(total.shape + (1,) * (h.dim() - 2))


def contrastive_map(h: Tensor, units: Tensor) -> Tensor:
    """Each unit's map less its dual's, signed: average words first if you must, then clamp at 0 once."""
    return winning_map(h, units) - winning_map(h, -units)


# --- the pass --------------------------------------------------------------------------------------------------


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
        residual: how branches of a sum compete (see `added`): 'positive' or 'proportional'.
        rules: rules for torch functions that have none, or others for those that have.

    Returns:
        (K, N, h, w), or (P, N, h, w) with weights: >= 0, each map's sum at most 1. Mass is lost only at units that
        fire without excitation, by a bias alone or over a signed bottleneck (under 'proportional' it may be
        signed).

    Raises:
        ConfigError: shapes that do not fit.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    with attended_pass(net, x, residual, rules) as (tape, top):
        return _maps(tape, top, units, weights, wins, winning_map)[0]


def contrastive_mwp(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Each unit against its dual, the unit with negated weights: (K, N, h, w) >= 0. Arguments as for `mwp`.

    The two seeds are subtracted before the pass and the map is clamped at 0 after it. It lights up something even
    for a word the image does not show: whether the word is there is the score's business.
    """
    with attended_pass(net, x, residual, rules) as (tape, top):
        return _maps(tape, top, units, weights, contrasts, contrastive_map)[0].clamp_(min=0)


def maps_at_depths(
    parts: Sequence[Net], x: Tensor, units: Tensor, *, method: Callable[..., Tensor] = contrastive_mwp,
    weights: Tensor | None = None, residual: str = "positive", rules: Rules | None = None,
) -> list[Tensor]:  # fmt: skip
    """What a method gives at the input of each part of a network; `mwp` and `contrastive_mwp` from one pass.

    Args:
        parts: the network above `x`, cut into parts of which each takes what the one before gives.
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over the last part's output.
        method: of METHODS; any other is asked over each part anew.
        weights: (P, K) as for `mwp`.
        residual: as for `mwp`.
        rules: as for `mwp`.

    Returns:
        For each part, from the lowest, (K, N, h', w') or (P, N, h', w') >= 0 on the grid of its input.
    """
    if method not in (mwp, contrastive_mwp):
        found = []
        for number, part in enumerate(parts):
            above = partial(reduce, lambda value, step: step(value), parts[number:])
            found.append(method(above, x, units, weights=weights))
            x = part(x)
        return found
    ways = (wins, winning_map) if method is mwp else (contrasts, contrastive_map)
    with attended_pass(parts, x, residual, rules) as (tape, top):
        return [signed.clamp_(min=0) for signed in _maps(tape, top, units, weights, *ways)]


def excitation_backprop(
    net: Net, x: Tensor, seed: Callable[[Tensor], Tensor], *,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Winning probability at every activation, for seeds of any kind.

    Args:
        net: the network above `x`.
        x: (N, C, ...) activations.
        seed: from net's output h to K signals over it, (K, *h.shape): distributions, or signed contrasts.
        residual: as for `mwp`.
        rules: as for `mwp`.

    Returns:
        (K, N, C, ...), signed if the seed is.

    Raises:
        ConfigError: a seed of another shape.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    with attended_pass(net, x, residual, rules) as (tape, top):
        h = plain(top)
        won = seed(h).to(h)
        if won.shape[1:] != h.shape:
            raise ConfigError(
                f"a seed must be (K, *{tuple(h.shape)}), as the output is, got {tuple(won.shape)}"
            )
        return tape.propagate(top, won)


@contextmanager
def attended_pass(
    net: Net | Sequence[Net], x: Tensor, residual: str = "positive", rules: Rules | None = None
) -> Iterator[tuple[Tape, Attended]]:
    """The tape that watches a copy of `x`, and net's output; in float32 or float64, without autograd or autocast.

    Of a network in parts the input of each part is marked.

    Raises:
        ConfigError: activations or an output that cannot be attended.
    """
    if not x.is_floating_point() or x.dim() < 2:
        raise ConfigError(f"activations must be floating (N, C, h, w), got {x.dtype} {tuple(x.shape)}")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        copy = x.detach().to(dtype, copy=True, memory_format=layout(x))
        kept = net.positive if isinstance(net, KeptPositive) else None
        tape = Tape({**RULES, **(rules or {})}, residual, kept)
        try:
            top: Tensor = tape.watch(copy)
            for number, part in enumerate(net if isinstance(net, Sequence) else [net]):
                if number:
                    tape.mark(_live(top))
                top = part(top)
            top = _live(top)
            yield tape, top
        finally:
            tape.marked.clear()  # nodes know their tape: all of the pass would wait for the collector of cycles


def checked(h: Tensor, units: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Units (K, D) and weights (P, K) beside the features h (N, D, ...) they are asked of, in its device and dtype.

    Raises:
        ConfigError: shapes that do not belong together.
    """
    if h.dim() < 2 or units.dim() != 2 or units.shape[1] != h.shape[1]:
        raise ConfigError(
            "units must be (K, D) rows over the D features of a network's (N, D, ...) output, "
            f"got units {tuple(units.shape)} for an output {tuple(h.shape)}; cut the network where the units begin"
        )
    if weights is not None and (weights.dim() != 2 or weights.shape[1] != len(units)):
        raise ConfigError(f"weights must be (P, {len(units)}), one column a unit, got {tuple(weights.shape)}")
    return units.detach().to(h), None if weights is None else weights.detach().to(h)


def mixed(signals: Tensor, weights: Tensor | None) -> Tensor:
    """Signals of K words (K, ...) -> of P phrases (P, ...), by weights (P, K) if there are any."""
    return signals if weights is None else torch.tensordot(weights.to(signals), signals, dims=1)


def _live(tensor: Any) -> Attended:
    if not isinstance(tensor, Attended):
        raise ConfigError("the network's output does not depend on the activations it is asked about")
    return tensor


def plain(tensor: Tensor) -> Tensor:
    """The same values as a tensor that is not recorded."""
    return tensor.as_subclass(Tensor)


def _maps(
    tape: Tape, top: Attended, units: Tensor, weights: Tensor | None,
    seed: Callable[[Tensor, Tensor], Tensor], closed: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:  # fmt: skip
    """Signed maps at each mark, (P, N, h, w): a matrix product if the output is watched itself, else one pass."""
    h = plain(top)
    units, weights = checked(h, units, weights)
    if top.node.number == 0:
        return [mixed(closed(h, units), weights) for _ in tape.marked]
    won = mixed(seed(h, units), weights)
    batches = zip(*(tape.maps(top, part) for part in won.split(BATCH)), strict=True)
    return [torch.cat(maps) for maps in batches]
