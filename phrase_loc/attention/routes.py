"""Rules (see `excitation`) for operations that only move values: whoever the value was taken from inherits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from phrase_loc.attention.functions import POOLED
from phrase_loc.attention.tape import Down, Move, Rule, Tape, is_live, tensors_in
from phrase_loc.attention.transposes import transpose


def reshaped(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The same values in the same order."""
    shape = input.shape
    if func is Tensor.view:  # a view of (N, C, h, w) that was made for another memory format
        func = Tensor.reshape
    return tape.record(func, func(input, *args, **kwargs), [Move(input, lambda p: p.reshape(len(p), *shape))])


def joined(tape: Tape, func: Rule, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any) -> Tensor:
    """Concatenation: each part gets back its own."""
    value = func(tensors, dim, **kwargs)
    axis = dim % value.dim()
    moves, start = [], 0
    for part in tensors:
        size = part.shape[axis]
        moves.append(Move(part, partial(torch.narrow, dim=axis + 1, start=start, length=size)))
        start += size
    return tape.record(func, value, moves)


def routed(tape: Tape, func: Rule, *args: Any, **kwargs: Any) -> Any:
    """Outputs that are copies of inputs: whoever was copied inherits, as the derivative says."""
    value = func(*args, **kwargs)
    sources = [t for t in tensors_in(args, kwargs) if is_live(t)]

    def recorded(out: Any, index: int) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        return tape.record(func, out, [Move(t, _routed_back(func, args, kwargs, t, index)) for t in sources])

    if not isinstance(value, (tuple, list)):
        return recorded(value, 0)
    parts = [recorded(out, index) for index, out in enumerate(value)]
    return type(value)(parts)  # a list, a tuple, or one of torch's named pairs


def pooled(tape: Tape, func: Rule, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Max pooling: the first maximum takes all. As `routed`, with the places kept instead of asked again."""
    kwargs.pop("return_indices", None)  # false here: with it another function is called, and routed
    value, place = POOLED[func](input, *args, **kwargs)
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

    return tape.record(func, value, [Move(input, down)])


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
