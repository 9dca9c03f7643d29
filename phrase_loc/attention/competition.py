"""The rules under which several inputs compete for a winner: equation 5, and what it is for signed activations.

Let unit i have won, y_i = sum_j x_j w_ij + b_i. The paper has activations x >= 0 and says

    P(j | i) = x_j w+_ij / z_i,    z_i = sum_k x_k w+_ik,    w+ = max(w, 0)                       (equation 5)

For signed x (linear bottlenecks, nearly all that flows in a transformer) the whole pass takes one rule of SIGNED:

    "clamp"          P(j | i) ~ max(x_j, 0) max(w_ij, 0)        only what is positive excites
    "contributions"  P(j | i) ~ max(s_i x_j w_ij, 0)            s_i = 1 where y_i > 0, else -1

By contributions an input wins by what it added to the unit, whatever the two signs, and a negative unit is explained
by what made it negative. Where x >= 0 and y >= 0 the two are one. Both serve convolution, linear layers and products
with a constant, means, sums and resizing (w >= 0), sums of branches (w = 1), and softmax attention,
o_i = sum_j A_ij v_j:

    P(v_j | o_i) ~ A_ij max(v_j, 0)    or    A_ij max(s_i v_j, 0)

The attention weights A are a gate as any softmax is: queries and keys never win. Biases are dropped. Where z is 0
nothing excites the unit and what it has won is lost: where a bias alone fires and, by "clamp", where no positive
input has a positive weight.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention import functions
from phrase_loc.attention.functions import beside_constants, unbroadcast
from phrase_loc.attention.tape import Move, Rows, Rule, Tape, is_live, layout, once, refusal
from phrase_loc.attention.transposes import channel_sums, left_product, right_product, transpose
from phrase_loc.errors import RuleError

Rules = Mapping[Callable[..., Any], Rule]
Weights = Callable[[], tuple[Any, ...]]  # made when a winner comes: gates, queries and keys never need them
_NOTHING = {torch.float32: 1e-30, torch.float64: 1e-290}  # smaller counts as 0: no inf * 0 further down
_ROUNDED = 64  # contributions that add up to fewer roundings than this of what was added are 0


def equation_5(
    tape: Tape, source: Any, value: Tensor, op: Callable[..., Tensor],
    weight: Tensor | None = None, *args: Any, **kwargs: Any,
) -> Move:  # fmt: skip
    """What the input of `op`, linear in it, inherits: the positive parts of inputs and weights compete ("clamp")."""
    seen = once(source, torch.relu)

    def per_unit(x: Tensor, side: None, *weights: Any) -> Tensor:  # 1 / z
        return reciprocal(op(x, *weights, *args, **kwargs))

    def pull(q: Tensor, x: Tensor, side: None, *weights: Any) -> Tensor:
        return _drawn(op, x, q, *weights, *args, **kwargs)

    def weights() -> tuple[Any, ...]:
        return () if weight is None else (tape.kept(weight, _positive),)

    move = _move(source, op, seen, None, weights, per_unit, pull)
    sums = channel_sums(op, seen, weight, *args, **kwargs)
    if sums is None:
        return move
    return move._replace(down_summed=lambda p: sums(p, per_unit(seen, None, *weights()), *weights()))


def contributions(
    tape: Tape, source: Any, value: Tensor, op: Callable[..., Tensor],
    weight: Tensor | None = None, *args: Any, **kwargs: Any,
) -> Move:  # fmt: skip
    """The same where inputs compete by max(s_i x_j w_ij, 0) = (|x_j| |w_ij| + s_i x_j w_ij) / 2 ("contributions")."""
    seen, side = once(source, Tensor.clone), value > 0

    def towards(y: Tensor, side: Tensor) -> Tensor:
        return y * torch.where(side, 1, -1).to(y.dtype)

    def per_unit(x: Tensor, side: Tensor, *weights: Any) -> Tensor:  # 1 / 2z
        signed, size = weights[:1], weights[1:]
        added = op(x.abs(), *size, *args, **kwargs)
        z = added + towards(op(x, *signed, *args, **kwargs), side)
        return reciprocal(z.masked_fill_(z <= _ROUNDED * torch.finfo(z.dtype).eps * added, 0.0))

    def pull(q: Tensor, x: Tensor, side: Tensor, *weights: Any) -> Tensor:
        signed, size = weights[:1], weights[1:]
        back = _drawn(op, x.abs(), q, *size, *args, **kwargs)
        return back.addcmul_(transpose(op, x, *signed, *args, **kwargs)(towards(q, side)), x)

    def weights() -> tuple[Any, ...]:
        return () if weight is None else (weight, tape.kept(weight, _absolute))

    return _move(source, op, seen, side, weights, per_unit, pull)


def _positive(weight: Tensor) -> Tensor:
    return weight.detach().relu().contiguous(memory_format=layout(weight))


def _absolute(weight: Tensor) -> Tensor:
    return weight.detach().abs().contiguous(memory_format=layout(weight))


def _drawn(op: Callable[..., Tensor], x: Tensor, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a signal q over the outputs draws from x, x * J'(q), as a tensor that nobody else holds."""
    back = transpose(op, x, *args, **kwargs)(q)
    return back.mul_(x) if op in functions.WEIGHTED else x * back  # of others `back` may be a view


def _move(
    source: Any, op: Callable[..., Tensor], seen: Tensor, side: Tensor | None,
    weights: Weights, per_unit: Callable[..., Tensor], pull: Callable[..., Tensor],
) -> Move:  # fmt: skip
    """The way down from per_unit, 1 / z of each output, and pull, what a signal p / z over the outputs draws."""
    last, tokens = seen.dim() - 1, op is F.linear and seen.dim() > 2

    def narrowed(p: Any) -> tuple[Any, ...]:
        """Where there are winners: p, x, the sides, the weights."""
        parts = weights()
        if not isinstance(p, Rows):
            return p, seen, side, *parts
        s = None if side is None else p.of(side)
        if tokens and p.axis != last:
            return p.values, p.of(seen), s, *parts
        outputs = 0 if tokens else -2
        return p.values, seen, s, *(w.index_select(outputs, p.where()) for w in parts)

    def asked(p: Any, then: Callable[..., Tensor]) -> Any:
        if isinstance(p, Rows) and not tokens and (p.axis, p.values.dim()) != (last - 1, last + 2):
            p = p.dense()
        values = then(*narrowed(p))
        return p._replace(values=values) if isinstance(p, Rows) and tokens and p.axis != last else values

    def down(p: Any) -> Any:
        return asked(p, lambda p, *rest: pull(p * per_unit(*rest), *rest))

    def summed(p: Any) -> Any:
        return asked(p, lambda p, *rest: (p * (per_unit(*rest) != 0)).sum(-1, keepdim=True))

    if tokens:
        return Move(source, down, summed, last, sparse=True)
    return Move(source, down, sparse=op is left_product)


def weighted(
    compete: Callable[..., Move], tape: Tape, func: Rule, input: Tensor, weight: Tensor, bias: Any = None,
    *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Convolution, linear: inputs compete through their weights; the bias does not."""
    if is_live(weight) or not is_live(input):
        raise RuleError(f"no excitation rule for a weight that depends on the image ({func.__name__})")
    value = func(input, weight, bias, *args, **kwargs)
    return tape.record(value, compete(tape, input, value, func, weight, None, *args, **kwargs), gate=0)


def multiplied(compete: Callable[..., Move], tape: Tape, func: Rule, a: Any, b: Any) -> Tensor:
    """Matrix product with a constant on one side: weighted. Of two activations (q k^T) nobody may win."""
    value = func(a, b)
    if is_live(a) and is_live(b):
        return tape.record(value, Move(a, refusal(func)), Move(b, refusal(func)), gate=0)
    source, weight = (a, b) if is_live(a) else (b, a)
    op = right_product if (source is a) != (func in functions.REVERSED) else left_product
    return tape.record(value, compete(tape, source, value, op, weight), gate=0)


def contracted(compete: Callable[..., Move], tape: Tape, func: Rule, equation: Any, *operands: Any) -> Tensor:
    """torch.einsum, as `multiplied`: of an activation and a constant the one inherits, the other is its weight."""
    value = func(equation, *operands)
    live = [t for t in operands if is_live(t)]
    if len(live) != 1 or len(operands) != 2:
        return tape.record(value, *(Move(t, refusal(func)) for t in live), gate=0)
    first = live[0] is operands[0]

    def op(x: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum(equation, *((x, weight) if first else (weight, x)))

    return tape.record(value, compete(tape, live[0], value, op, operands[first]), gate=0)


def attended(
    compete: Callable[..., Move], tape: Tape, func: Rule, query: Any, key: Any, value: Any,
    attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """scaled_dot_product_attention: the values inherit, P(v_j | o_i) ~ A_ij max(v_j, 0) (module docstring)."""
    out = func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if not is_live(value):  # the image has a say in the gate alone
        return tape.record(out)
    gate = _gate(query, key, attn_mask, is_causal, scale)
    return tape.record(out, compete(tape, value, out, left_product, gate), gate=0)


def _gate(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """softmax(scale q k^T + mask), (..., heads, L, S); 0 in a row where all is masked."""
    if key.dim() > 2 and key.shape[-3] != query.shape[-3]:  # grouped queries
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1).nan_to_num_(0.0)


def averaged(
    compete: Callable[..., Move], tape: Tape, func: Rule, input: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """Average pooling, mean, sum, resize: linear with weights that are positive already, but for those of bicubic."""
    value = func(input, *args, **kwargs)
    if "bicubic" in (*args, *kwargs.values()):
        return tape.record(value, Move(input, refusal(func, "resize in another mode than bicubic")))
    return tape.record(value, compete(tape, input, value, func, None, *args, **kwargs))


def added(
    tape: Tape, func: Rule, input: Any, other: Any, *, alpha: float = 1, by: str = "clamp", **_: Any
) -> Tensor:
    """Residual sum: branches inherit in proportion to their parts, which `by` says (see `mwp`); a bias nothing."""
    if not (is_live(input) and is_live(other)):
        return beside_constants(tape, func, input if is_live(input) else other, input, other, alpha=alpha)
    a, b = input, other if alpha == 1 else other * alpha
    if by == "contributions":
        side = torch.where(a + b > 0, 1, -1).to(a)
        a, b = a * side, b * side
    if by != "proportional":
        a, b = a.clamp(min=0), b.clamp(min=0)
    per_unit, same = reciprocal(a + b), input.shape == other.shape
    # Shares are made now: an in-place sum is about to overwrite its input.
    moves = [
        Move(source, partial(unbroadcast, shape=source.shape, share=part * per_unit), sparse=same)
        for source, part in ((input, a), (other, b))
    ]
    return tape.record(func(input, other, alpha=alpha), *moves, gate=0)


def reciprocal(z: Tensor) -> Tensor:
    """1 / z, and 0 where z is 0: a unit that nothing excites hands nothing down."""
    # as a mask that is where(|z| <= nothing, 0, 1 / z), in a tenth of the time
    nothing = _NOTHING.get(z.dtype, 0.0)
    return F.hardshrink(z, nothing).reciprocal().nan_to_num_(nan=torch.nan, posinf=0.0, neginf=0.0)


def _rules(compete: Callable[..., Move], by: str) -> dict[Callable[..., Any], Rule]:
    return {
        **functions.RULES,
        **dict.fromkeys(functions.WEIGHTED, partial(weighted, compete)),
        **dict.fromkeys(functions.MULTIPLIED, partial(multiplied, compete)),
        **dict.fromkeys(functions.AVERAGED, partial(averaged, compete)),
        **dict.fromkeys(functions.SUMS, partial(added, by=by)),
        torch.einsum: partial(contracted, compete),
        F.scaled_dot_product_attention: partial(attended, compete),
    }


#: How signed activations compete (`signed=`) and what they are then.
SIGNED: dict[str, Rules] = {
    "clamp": _rules(equation_5, "clamp"),
    "contributions": _rules(contributions, "contributions"),
}
#: How the branches of a sum compete (`residual=`): None is as all else.
RESIDUALS: dict[str, Rules] = {
    "positive": {},
    "proportional": dict.fromkeys(functions.SUMS, partial(added, by="proportional")),
}
