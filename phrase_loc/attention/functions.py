"""Which torch functions follow which rule, and the rules under which one input inherits all that an output has won.

A rule runs `func`, and records (`tape`) how its inputs inherit: from p (K, *output shape) to (K, *input shape). Those
under which several inputs compete stand in `competition`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from phrase_loc.attention.tape import Move, Rows, Rule, Tape, is_live, refusal, tensors_in
from phrase_loc.attention.transposes import transpose
from phrase_loc.errors import RuleError


def named(names: str) -> list[Callable[..., Any]]:
    """Every function of these names in torch.nn.functional, torch and torch.Tensor."""
    found = [getattr(home, name, None) for name in names.split() for home in (F, torch, Tensor)]
    return [func for func in found if callable(func)]


def passed(tape: Tape, func: Rule, input: Any, *args: Any, **kwargs: Any) -> Tensor:
    """One input for each output, a normalisation, a copy: it wins all, and mean and variance only modulate."""
    channels = input.node.channels
    return tape.record(func(input, *args, **kwargs), Move(input, unchanged, sparse=True), channels=channels)


def activated(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `passed`; in a product of two activations this one is the gate (x sigmoid(1.702 x), silu(g) x)."""
    gate = 2 if func in _SIGMOIDS else 1
    return tape.record(func(input, *args, **kwargs), Move(input, unchanged, sparse=True), gate=gate)


def unchanged(p: Any) -> Any:
    """What is won is handed on as it is."""
    return p


def beside_constants(tape: Tape, func: Rule, source: Any, *args: Any, **kwargs: Any) -> Tensor:
    """`func(*args)` of which `source`, perhaps broadcast, inherits all; what else there is only modulates."""
    value, shape = func(*args, **kwargs), source.shape
    return tape.record(value, Move(source, partial(unbroadcast, shape=shape), sparse=value.shape == shape))


def unbroadcast(p: Any, shape: torch.Size, share: Tensor | None = None) -> Any:
    """`share` of (K, *output shape), summed over the axes along which a source of `shape` was broadcast."""
    if isinstance(p, Rows):  # nothing was broadcast
        return p if share is None else p._replace(values=p.values * p.of(share))
    p = p if share is None else p * share
    if p.shape[1:] == shape:
        return p
    return p.sum_to_size(len(p), *(1,) * (p.dim() - 1 - len(shape)), *shape).reshape(len(p), *shape)


def subtracted(tape: Tape, func: Rule, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """A constant taken away, as a bias would be, or a mean that is smaller than what it is taken from."""
    if is_live(other) and not (is_live(input) and other.numel() < input.numel()):
        moves = [Move(t, refusal(func)) for t in (input, other) if is_live(t)]
        return tape.record(func(input, other, **kwargs), *moves)
    return beside_constants(tape, func, input, input, other, **kwargs)


def gated(tape: Tape, func: Rule, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """The signal inherits everything, the gate nothing.

    A gate is a constant, a divisor, the smaller factor; of two as large the result of a sigmoid, then of another
    activation, else the second.
    """
    signal = input if is_live(input) else other
    if func in _DIVIDED and signal is other:  # it divides a constant
        return tape.record(func(input, other, **kwargs), Move(other, refusal(func)))
    if is_live(input) and is_live(other) and func not in _DIVIDED:
        sizes, gates = (input.numel(), other.numel()), (input.node.gate, other.node.gate)
        if sizes[1] > sizes[0] or (sizes[0] == sizes[1] and gates[0] > gates[1]):
            signal = other
    return beside_constants(tape, func, signal, input, other, **kwargs)


def gated_and_shifted(tape: Tape, func: Rule, input: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """torch.addcmul(bias, weight, x): a gated signal and a bias."""
    if is_live(input) or is_live(a) == is_live(b):
        raise RuleError(f"no excitation rule for {func.__name__} of several activations")
    return beside_constants(tape, func, a if is_live(a) else b, input, a, b, **kwargs)


def cast(tape: Tape, func: Rule, input: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Another dtype or device: the value goes on in the tape's own dtype unless it becomes an integer."""
    out = func(input, *args, **kwargs)
    if not out.is_floating_point() or not is_live(input):  # a constant in the dtype of an activation
        return out
    device = input.device
    return tape.record(out.to(tape.dtype), Move(input, lambda p: p.to(device)))


def constant(tape: Tape, func: Rule, *args: Any, **kwargs: Any) -> Any:
    """Statistics and gates that only modulate, a variance, a softmax: nobody inherits."""
    tape.modulator = func
    return func(*args, **kwargs)


def reshaped(tape: Tape, func: Rule, input: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The same values in the same order."""
    if not is_live(input):  # a constant in the shape of an activation
        return func(input, *args, **kwargs)
    shape, channels = input.shape, input.node.channels
    if func is Tensor.view:  # a view of (N, C, h, w) that was made for another memory format
        func = Tensor.reshape
    value = func(input, *args, **kwargs)
    if channels is not None and value.shape[: channels + 1] != shape[: channels + 1]:
        channels = None

    def down(p: Any) -> Any:
        if isinstance(p, Rows):
            return _reshaped_rows(p, value.shape, shape)
        if channels is not None and p.shape[channels + 1] == 1:  # summed already
            return p.reshape(len(p), *shape[:channels], 1, *shape[channels + 1 :])
        return p.reshape(len(p), *shape)

    return tape.record(value, Move(input, down, sparse=True), channels=channels)


def _reshaped_rows(p: Rows, shape: torch.Size, wanted: torch.Size) -> Any:
    """Rows of a tensor of `shape` as those of the same values in the `wanted` shape, dense where they are no rows."""
    before = prod(shape[: p.axis])
    axes = [a for a in range(len(wanted)) if prod(wanted[:a]) == before and wanted[a] % p.size == 0]
    if not axes or p.values.shape[1:] != (*shape[: p.axis], len(p.places), *shape[p.axis + 1 :]):
        return p.dense().reshape(len(p.values), *wanted)
    axis = axes[-1]  # axes of length 1 may stand before it
    block = wanted[axis] // p.size  # of the wanted axis lies behind one place
    places = tuple(place * block + i for place in p.places for i in range(block))
    values = p.values.reshape(len(p.values), *wanted[:axis], len(places), *wanted[axis + 1 :])
    return Rows(values, axis, places, wanted[axis])


def permuted(tape: Tape, func: Rule, input: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Axes in another order; a tensor without data, each axis of its own length, tells which."""
    order = func(torch.empty(*range(2, input.dim() + 2), device="meta"), *args, **kwargs).shape
    back = [0, *(list(order).index(axis + 2) + 1 for axis in range(input.dim()))]
    channels = None if input.node.channels is None else back[input.node.channels + 1] - 1
    move = Move(input, lambda p: p.permute(back))
    return tape.record(func(input, *args, **kwargs), move, channels=channels)


def sliced(tape: Tape, func: Rule, input: Any, *args: Any, **kwargs: Any) -> Any:
    """A part of a tensor or all of its parts, views of it; what else an index may give is `routed`."""
    index = args[0] if func is Tensor.__getitem__ else ()
    value, shape = func(input, *args, **kwargs), input.shape
    parts = [value] if isinstance(value, Tensor) else list(value)
    by_list = any(isinstance(i, (Tensor, list)) for i in (index if isinstance(index, tuple) else (index,)))
    if by_list or not all(part.numel() for part in parts):
        return routed(tape, func, input, *args, **kwargs)
    # Along each axis, the places that a part has: ask where the places themselves went.
    places = [dict[int, tuple[int, ...]]() for _ in parts]
    for axis, size in enumerate(shape):
        line = torch.arange(size).view(size, *(1,) * (len(shape) - axis - 1)).expand(shape)
        went = func(line, *args, **kwargs)
        for found, part in zip(places, [went] if isinstance(went, Tensor) else went, strict=True):
            kept = part[tuple(slice(None) if step else 0 for step in part.stride())].reshape(-1).tolist()
            if kept != list(range(size)):
                found[axis] = tuple(kept)

    def back(cuts: dict[int, tuple[int, ...]], p: Tensor) -> Any:
        sizes = [len(cuts.get(axis, range(size))) for axis, size in enumerate(shape)]
        rows: Any = p.reshape(len(p), *sizes)
        for axis, kept in cuts.items():
            values = rows.dense() if isinstance(rows, Rows) else rows
            rows = Rows(values, axis, kept, shape[axis])
        return rows

    moves = [Move(input, partial(back, cuts)) for cuts in places]
    recorded = [tape.record(part, move) for part, move in zip(parts, moves, strict=True)]
    return recorded[0] if isinstance(value, Tensor) else type(value)(recorded)


def joined(tape: Tape, func: Rule, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any) -> Tensor:
    """Concatenation: each part gets back its own."""
    value = func(tensors, dim, **kwargs)
    axis = dim % value.dim()
    sizes = [part.shape[axis] for part in tensors]
    moves = [
        Move(part, partial(torch.narrow, dim=axis + 1, start=sum(sizes[:i]), length=sizes[i]))
        for i, part in enumerate(tensors)
    ]
    return tape.record(value, *moves, gate=0)


def routed(tape: Tape, func: Rule, *args: Any, **kwargs: Any) -> Any:
    """Outputs that are copies of inputs: whoever was copied inherits, as the derivative says."""
    if func is Tensor.expand_as:  # of the other one the shape is taken
        func, args, kwargs = Tensor.expand, (args[0], tensors_in(args, kwargs)[1].shape), {}
    value = func(*args, **kwargs)
    sources = [*{id(t): t for t in tensors_in(args, kwargs) if is_live(t)}.values()]

    def recorded(out: Any, index: int) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        moves = (Move(t, _routed_back(func, args, kwargs, t, index)) for t in sources)
        return tape.record(out, *moves) if sources else out

    if not isinstance(value, (tuple, list)):
        return recorded(value, 0)
    parts = [recorded(out, index) for index, out in enumerate(value)]
    return type(value)(parts)  # a list, a tuple, or one of torch's named pairs


def _routed_back(
    func: Rule, args: Sequence[Any], kwargs: dict[str, Any], source: Tensor, index: int
) -> Callable[[Tensor], Tensor]:
    def again(leaf: Tensor) -> Tensor:
        swapped, named = tree_map(lambda value: leaf if value is source else value, (args, kwargs))
        out = func(*swapped, **named)
        return out[index] if isinstance(out, (tuple, list)) else out

    return transpose(again, source.clone())  # the source may be overwritten in place before we come back


def pooled(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Max pooling: the first maximum takes all. As `routed`, with the places kept instead of asked again."""
    kwargs.pop("return_indices", None)  # false here
    with_places, dim = _WITH_PLACES[func]
    if input.dim() != dim:  # one picture by itself
        return routed(tape, func, input, *args, **kwargs)
    value, place = with_places(input, *args, **kwargs)
    channels, plane = input.shape[1], input.shape[2:]
    # Places count through (plane, channels): in memory's own order when channels are last.
    of_channel = torch.arange(channels, device=place.device)
    place = (place.movedim(1, -1) * channels + of_channel).flatten(1)
    fits = plane.numel() * channels < 2**31  # int32 takes half the memory while the tape lives
    place = place.to(torch.int32 if fits else torch.int64)

    def down(p: Tensor) -> Tensor:
        won = p.new_zeros(*p.shape[:2], plane.numel() * channels)
        won.scatter_add_(2, place.long().expand(len(p), -1, -1), p.movedim(2, -1).flatten(2))
        return won.unflatten(2, (*plane, channels)).movedim(-1, 2)

    return tape.record(value, Move(input, down), gate=0)


# Inputs compete (`competition`).
WEIGHTED = named("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear")
REVERSED = named("__rmatmul__")
MULTIPLIED = [*named("matmul mm bmm __matmul__"), *REVERSED]
POOLS = named(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean"
)
AVERAGED = [*POOLS, *named("interpolate upsample sum")]
SUMS = named("add add_ __radd__")

_WITH_PLACES: dict[Any, Any] = {
    pool: (getattr(F, f"{name}{n}d_with_indices"), n + 2)
    for n in (1, 2, 3)
    for home, name in ((F, "max_pool"), (torch, "max_pool"), (F, "adaptive_max_pool"))
    for pool in (getattr(home, f"{name}{n}d"),)
}
_SIGMOIDS = named("sigmoid sigmoid_ hardsigmoid")
_DIVIDED = named("div div_ divide true_divide __truediv__")
_DESCRIPTORS: Any = {
    Tensor.T: permuted,
    Tensor.mT: permuted,
    Tensor.data: constant,
}  # tensors, say torch's stubs
_NAMES: dict[Rule, str] = {
    passed: "clamp clamp_ clamp_min clamp_max clip batch_norm layer_norm group_norm instance_norm rms_norm normalize "
    "local_response_norm dropout dropout2d dropout3d alpha_dropout feature_alpha_dropout clone contiguous "
    "requires_grad_ nan_to_num",
    activated: "relu relu_ relu6 hardtanh hardtanh_ leaky_relu leaky_relu_ prelu rrelu elu elu_ selu celu silu gelu "
    "mish hardswish hardsigmoid sigmoid sigmoid_ softplus tanh threshold",
    subtracted: "sub sub_ subtract",
    gated: "mul mul_ multiply __rmul__ divide div div_ true_divide __truediv__",
    gated_and_shifted: "addcmul",
    cast: "to float double half bfloat16 type type_as cpu cuda",
    reshaped: "flatten unflatten view view_as reshape reshape_as squeeze unsqueeze ravel",
    permuted: "transpose permute movedim moveaxis swapaxes swapdims t",
    sliced: "__getitem__ narrow select chunk split tensor_split unbind",
    joined: "cat concat concatenate",
    routed: "pad pixel_shuffle pixel_unshuffle channel_shuffle index_select gather take_along_dim stack expand "
    "expand_as repeat tile repeat_interleave unfold where masked_fill amax max maximum flip roll",
    constant: "norm var std var_mean std_mean detach zeros_like ones_like empty_like full_like new_zeros new_ones "
    "new_empty new_full new_tensor item tolist softmax rsqrt",
}
RULES: dict[Callable[..., Any], Rule] = {
    **{func: rule for rule, names in _NAMES.items() for func in named(names)},
    **{descriptor.__get__: rule for descriptor, rule in _DESCRIPTORS.items()},
    **dict.fromkeys(_WITH_PLACES, pooled),
    **{with_places: routed for with_places, _ in _WITH_PLACES.values()},
    torch.linalg.vector_norm: constant,
}
