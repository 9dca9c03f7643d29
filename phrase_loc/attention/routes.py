"""Rules (see `rules`) for operations that only move values: whoever the value was taken from inherits."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention.rules import Down, Move, Rule, tensors_in
from phrase_loc.attention.transpose import transpose

if TYPE_CHECKING:
    from phrase_loc.attention.chain import ExcitatoryChain

WITH_PLACES: dict[Rule, Rule] = {
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
        moves.append(Move(part, partial(torch.narrow, dim=axis + 1, start=start, length=size)))
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
    value, place = WITH_PLACES[func](input, *args, **kwargs)
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
