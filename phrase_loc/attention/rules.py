"""How each operation hands a winner down: the rules of excitation backprop, each where its layer stands.

Zhang et al., "Top-down Neural Attention by Excitation Backprop" (arXiv 1608.00507), equation 5: if unit i
has won, its input j wins with

    P(j | i) = x_j w+_ij / z_i,    z_i = sum_k x_k w+_ik,    w+ = max(w, 0)

so that p(x) = x * J'(p(y) / z), J' the transpose of the layer with its positive weights. Biases are dropped.
Where z is 0 nothing excites the unit, and what it has won is lost.

| rule | operations | who inherits |
|---|---|---|
| weighted | convolution, linear, matmul with a constant | x+ through w+ |
| averaged | average and adaptive pooling, mean, sum, resize | x+ |
| added | residual sum | the branches, by one of two rules |
| passed | activations, normalisation, dropout, casts | the one input of each output |
| gated | a product with a factor: squeeze-excitation, layer scale | the signal; the gate never |
| pooled, routed | max pooling; padding, permuting, slicing | whoever the value was taken from |
| constant | statistics that only modulate (a norm, a variance) | nobody |

A rule is `rule(chain, func, *args, **kwargs) -> value`. It runs `func` and records moves; p and whatever
moves return have the K winners in front: (K, *shape). Inputs may be signed (linear bottlenecks): their
positive part competes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention.transpose import summed_transpose, transpose

if TYPE_CHECKING:
    from phrase_loc.attention.chain import ExcitatoryChain

Down = Callable[[Tensor], Tensor]
Rule = Callable[..., Any]
_NOTHING = {torch.float32: 1e-30, torch.float64: 1e-290}  # smaller counts as 0: no inf * 0 further down


@dataclass(frozen=True, slots=True)
class Move:
    """What `source` (N, C, ...) inherits from (K, *output shape): `down` gives (K, N, C, ...).

    `down_summed` gives the same summed over the channels of the source, where that costs less.
    """

    source: Tensor
    down: Down
    down_summed: Down | None = None


def weighted(
    chain: "ExcitatoryChain", func: Rule, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """Inputs compete through their positive weights; the bias does not."""
    if chain.is_live(weight) or not chain.is_live(input):
        raise NotImplementedError(
            f"no excitation rule for a weight that depends on the image ({func.__name__})"
        )
    seen, excitatory = chain.excitatory(input), chain.positive(weight)
    per_unit = reciprocal(func(seen, excitatory, None, *args, **kwargs))
    value = func(input, weight, bias, *args, **kwargs)

    def down(p: Tensor) -> Tensor:
        return transpose(func, seen, excitatory, None, *args, **kwargs)(p * per_unit).mul_(seen)

    summed = summed_transpose(func, seen, excitatory, *args, **kwargs)
    return chain.record(func, value, [Move(input, down, summed and (lambda p: summed(p, per_unit)))])


def multiplied(chain: "ExcitatoryChain", func: Rule, a: Any, b: Any) -> Tensor:
    """Matrix product with a constant on one side: weighted."""
    if chain.is_live(a) and chain.is_live(b):
        raise NotImplementedError(f"no excitation rule for {func.__name__} of two activations: cut above it")
    source, weight = (a, b) if chain.is_live(a) else (b, a)
    seen, excitatory = chain.excitatory(source), chain.positive(weight)
    pair = (lambda t: func(t, excitatory)) if source is a else (lambda t: func(excitatory, t))
    per_unit = reciprocal(pair(seen))
    return chain.record(
        func, func(a, b), [Move(source, lambda p: seen * transpose(pair, seen)(p * per_unit))]
    )


def averaged(chain: "ExcitatoryChain", func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Average pooling, mean, sum, resize: the weights are positive already."""
    seen = chain.excitatory(input)
    per_unit = reciprocal(func(seen, *args, **kwargs))
    return chain.record(
        func,
        func(input, *args, **kwargs),
        [Move(input, lambda p: seen * transpose(func, seen, *args, **kwargs)(p * per_unit))],
    )


def added(
    chain: "ExcitatoryChain", func: Rule, input: Any, other: Any, *, alpha: float = 1, out: None = None
) -> Tensor:
    """Residual sum: two published rules, chosen for the whole pass.

    'positive': branches inherit in proportion to their positive parts. A Markov chain: nothing is lost,
    nothing is negative. 'proportional': x_i / sum, signed; the rule of the authors' newest code, kept to
    compare with their maps. A constant summand (a bias) never inherits.
    """
    live = [t for t in (input, other) if chain.is_live(t)]
    if len(live) == 1:
        source = live[0]
        shape = source.shape
        moves = [Move(source, lambda p: reduced_to(p, shape))]
    else:
        scaled = other if alpha == 1 else other * alpha
        a, b = (
            (input, scaled) if chain.residual == "proportional" else (input.clamp(min=0), scaled.clamp(min=0))
        )
        per_unit = reciprocal(a + b)
        # Shares are made now: an in-place sum is about to overwrite its input.
        shares = (a * per_unit, b * per_unit)
        moves = [
            Move(t, lambda p, s=share, to=t.shape: reduced_to(p * s, to))
            for t, share in zip((input, other), shares, strict=True)
        ]
    return chain.record(func, func(input, other, alpha=alpha), moves)


def subtracted(chain: "ExcitatoryChain", func: Rule, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """A constant taken away, as a bias would be."""
    if chain.is_live(other):
        raise NotImplementedError(f"no excitation rule for subtracting an activation ({func.__name__})")
    shape = input.shape
    return chain.record(func, func(input, other, **kwargs), [Move(input, lambda p: reduced_to(p, shape))])


def passed(chain: "ExcitatoryChain", func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One input for each output: an activation, a normalisation, a copy. It wins all."""
    return chain.record(func, func(input, *args, **kwargs), [Move(input, lambda p: p)])


def cast(chain: "ExcitatoryChain", func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Another dtype or device: the value goes on in the chain's own dtype unless it becomes an integer."""
    out = func(input, *args, **kwargs)
    if not out.is_floating_point():
        return out
    return chain.record(func, out.to(chain.attended.dtype), [Move(input, lambda p: p.to(input.device))])


def gated(chain: "ExcitatoryChain", func: Rule, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """A product: the signal inherits everything, the gate modulates and never wins.

    The gate is the constant, else the divisor, else the smaller factor (squeeze-excitation), else the second.
    """
    live = [t for t in (input, other) if chain.is_live(t)]
    signal = live[0]
    if len(live) == 2 and func not in _DIVISIONS and other.numel() > input.numel():
        signal = other
    shape = signal.shape
    return chain.record(func, func(input, other, **kwargs), [Move(signal, lambda p: reduced_to(p, shape))])


def shifted_gate(chain: "ExcitatoryChain", func: Rule, input: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """torch.addcmul(bias, weight, x): a gated signal and a bias."""
    live = [t for t in (a, b) if chain.is_live(t)]
    if chain.is_live(input) or len(live) != 1:
        raise NotImplementedError(f"no excitation rule for {func.__name__} of several activations")
    shape = live[0].shape
    return chain.record(func, func(input, a, b, **kwargs), [Move(live[0], lambda p: reduced_to(p, shape))])


def reshaped(chain: "ExcitatoryChain", func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The same values in the same order."""
    shape = input.shape
    if func is Tensor.view:  # a view of (N, C, h, w) that was made for another memory format
        func = Tensor.reshape
    return chain.record(
        func, func(input, *args, **kwargs), [Move(input, lambda p: p.reshape(len(p), *shape))]
    )


def joined(
    chain: "ExcitatoryChain", func: Rule, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any
) -> Tensor:
    """Concatenation: each part gets back its own."""
    value = func(tensors, dim, **kwargs)
    axis = dim % value.dim()
    moves, start = [], 0
    for part in tensors:
        size = part.shape[axis]
        moves.append(Move(part, lambda p, at=start, size=size: p.narrow(axis + 1, at, size)))
        start += size
    return chain.record(func, value, moves)


def routed(chain: "ExcitatoryChain", func: Rule, *args: Any, **kwargs: Any) -> Any:
    """Outputs that are copies of inputs: whoever was copied inherits, as the derivative says."""
    value = func(*args, **kwargs)
    sources = [t for t in tensors_in(args, kwargs) if chain.is_live(t)]
    outs = value if isinstance(value, (tuple, list)) else (value,)
    for i, out in enumerate(outs):
        if isinstance(out, Tensor) and out.is_floating_point():
            moves = [Move(t, _routed_back(func, args, kwargs, t, i)) for t in sources]
            chain.record(func, out, moves)
    return value


def pooled(chain: "ExcitatoryChain", func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Max pooling: the first maximum takes all. As `routed`, with the places noted instead of asked again."""
    kwargs.pop("return_indices", None)  # false here: with it another function is called, and routed
    value, place = _WITH_PLACES[func](input, *args, **kwargs)
    channels, plane = input.shape[1], input.shape[2:]
    # Places count through (plane, channels): in memory's own order when channels are last.
    of_channel = torch.arange(channels, device=place.device)
    place = (place.movedim(1, -1) * channels + of_channel).flatten(1)
    place = place.to(
        torch.int32 if plane.numel() * channels < 2**31 else torch.int64
    )  # kept: half the memory

    def down(p: Tensor) -> Tensor:
        won = p.new_zeros(*p.shape[:2], plane.numel() * channels)
        won.scatter_add_(2, place.long().expand(len(p), -1, -1), p.movedim(2, -1).flatten(2))
        return won.unflatten(2, (*plane, channels)).movedim(-1, 2)

    return chain.record(func, value, [Move(input, down)])


def constant(chain: "ExcitatoryChain", func: Rule, *args: Any, **kwargs: Any) -> Any:
    """Statistics that only modulate: nobody inherits."""
    return func(*args, **kwargs)


def reciprocal(z: Tensor) -> Tensor:
    """1 / z, and 0 where z is 0: a unit that nothing excites hands nothing down."""
    dead = z.abs() <= _NOTHING.get(z.dtype, 0.0)
    return z.reciprocal().masked_fill_(dead, 0.0)


def reduced_to(p: Tensor, shape: torch.Size) -> Tensor:
    """(K, *output shape) summed over the axes along which a source of `shape` was broadcast."""
    if p.shape[1:] == shape:
        return p
    return p.sum_to_size(len(p), *(1,) * (p.dim() - 1 - len(shape)), *shape).reshape(len(p), *shape)


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also those in lists and tuples."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value, {})


def _routed_back(func: Rule, args: Sequence[Any], kwargs: dict[str, Any], source: Tensor, index: int) -> Down:
    kept = source.clone()  # it may be overwritten in place before we come back

    def again(leaf: Tensor) -> Tensor:
        def swap(value: Any) -> Any:
            if isinstance(value, (tuple, list)) and any(t is source for t in tensors_in(value, {})):
                return type(value)(swap(v) for v in value)
            return leaf if value is source else value

        out = func(*(swap(a) for a in args), **{k: swap(v) for k, v in kwargs.items()})
        return out[index] if isinstance(out, (tuple, list)) else out

    return lambda p: transpose(again, kept)(p)


_DIVISIONS = (torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.true_divide, Tensor.__truediv__)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_AVERAGES = (
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, F.interpolate, F.upsample, torch.mean, Tensor.mean, torch.sum, Tensor.sum,
)  # fmt: skip
_ACTIVATIONS = (
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardtanh_,
    F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.elu, F.elu_, F.selu, F.celu, F.silu, F.gelu, F.mish,
    F.hardswish, F.hardsigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_,
    F.softplus, F.tanh, torch.tanh, Tensor.tanh, torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_,
)  # fmt: skip
_NORMALISATIONS = (
    F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm, F.rms_norm, F.normalize,
)  # fmt: skip
_COPIES = (
    F.dropout, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.clone, Tensor.clone, Tensor.contiguous, Tensor.requires_grad_, torch.nan_to_num,
)  # fmt: skip
_RESHAPES = (
    torch.flatten, Tensor.flatten, Tensor.unflatten, torch.unflatten, Tensor.view, Tensor.view_as,
    torch.reshape, Tensor.reshape, Tensor.reshape_as, torch.squeeze, Tensor.squeeze, torch.unsqueeze,
    Tensor.unsqueeze,
)  # fmt: skip
_WITH_PLACES = {
    F.max_pool1d: F.max_pool1d_with_indices,
    F.max_pool2d: F.max_pool2d_with_indices,
    F.max_pool3d: F.max_pool3d_with_indices,
    F.adaptive_max_pool1d: F.adaptive_max_pool1d_with_indices,
    F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d: F.adaptive_max_pool3d_with_indices,
    torch.max_pool1d: F.max_pool1d_with_indices,
    torch.max_pool2d: F.max_pool2d_with_indices,
    torch.max_pool3d: F.max_pool3d_with_indices,
}
_ROUTES = (
    *_WITH_PLACES.values(), F.pad, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.transpose,
    Tensor.transpose, torch.permute, Tensor.permute,
    torch.movedim, Tensor.movedim, torch.swapaxes, Tensor.t, Tensor.__getitem__, torch.narrow, Tensor.narrow,
    torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.unbind, torch.unbind, torch.stack,
    Tensor.expand, Tensor.expand_as, torch.amax, Tensor.amax, torch.max, Tensor.max, torch.maximum,
    torch.flip, Tensor.flip, torch.roll, torch.index_select, Tensor.index_select, Tensor.T.__get__,
    Tensor.mT.__get__, torch.select, Tensor.select,
)  # fmt: skip
_STATISTICS = (
    torch.norm, Tensor.norm, torch.linalg.vector_norm, torch.var, Tensor.var, torch.std, Tensor.std,
    torch.var_mean, torch.std_mean, Tensor.detach, torch.detach, Tensor.data.__get__, torch.zeros_like,
    torch.ones_like, torch.empty_like, torch.full_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty,
    Tensor.new_full, Tensor.new_tensor, Tensor.item, Tensor.tolist,
)  # fmt: skip

RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys((*_CONVOLUTIONS, F.linear), weighted),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__rmatmul__, torch.mm, Tensor.mm), multiplied),
    **dict.fromkeys(_AVERAGES, averaged),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__radd__), added),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_), subtracted),
    **dict.fromkeys((*_ACTIVATIONS, *_NORMALISATIONS, *_COPIES), passed),
    **dict.fromkeys(
        (Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as,
         Tensor.cpu, Tensor.cuda), cast),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_, Tensor.__rmul__, *_DIVISIONS), gated),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), shifted_gate),
    **dict.fromkeys(_RESHAPES, reshaped),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), joined),
    **dict.fromkeys(_WITH_PLACES, pooled),
    **dict.fromkeys(_ROUTES, routed),
    **dict.fromkeys(_STATISTICS, constant),
}  # fmt: skip
