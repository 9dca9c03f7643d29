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
| pooled, routed (`routes`) | max pooling; padding, permuting, slicing | whoever the value was taken from |
| constant | statistics that only modulate (a norm, a variance) | nobody |

A rule is `rule(chain, func, *args, **kwargs) -> value`. It runs `func` and records moves; p and whatever
moves return have the K winners in front: (K, *shape). Inputs may be signed (linear bottlenecks): their
positive part competes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from phrase_loc.attention.transpose import summed_transpose, transpose

if TYPE_CHECKING:
    from phrase_loc.attention.chain import ExcitatoryChain

Down = Callable[[Tensor], Tensor]
Rule = Callable[..., Any]
_NOTHING = {torch.float32: 1e-30, torch.float64: 1e-290}  # smaller counts as 0: no inf * 0 further down


DIVISIONS = (torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.true_divide, Tensor.__truediv__)


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
        moves = [Move(source, partial(reduced_to, shape=source.shape))]
    else:
        scaled = other if alpha == 1 else other * alpha
        a, b = (
            (input, scaled) if chain.residual == "proportional" else (input.clamp(min=0), scaled.clamp(min=0))
        )
        per_unit = reciprocal(a + b)
        # Shares are made now: an in-place sum is about to overwrite its input.
        shares = (a * per_unit, b * per_unit)
        moves = [
            Move(t, partial(_share_of, share=share, shape=t.shape))
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
    if len(live) == 2 and func not in DIVISIONS and other.numel() > input.numel():
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


def _share_of(p: Tensor, share: Tensor, shape: torch.Size) -> Tensor:
    return reduced_to(p * share, shape)


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also those in lists and tuples."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value, {})
