"""A network's operations, recorded while they run and walked down again.

`Tape.watch(x)` gives `x` as an `Attended` tensor. Every torch function that touches one runs as ever, value for
value, and its result is an `Attended` tensor that knows by its `Node` from which tensors it was made and which
probability mass each of them inherits: micrograd's `Value` on torch, with rules in place of derivatives.
`Tape.propagate` and `Tape.maps` hand what has been won at the top down, all K winners of all N images in one batch.

Modules, weights and torch itself stay as they were, so threads may share a network. What a tape cannot see:
operations inside TorchScript or a compiled module, and writing through a view (`x[:, 0] += y` raises, since
`Tensor.__setitem__` has no rule).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from phrase_loc.errors import ConfigError

Down = Callable[[Tensor], Tensor]
Rule = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Move:
    """What `source` (N, C, ...) inherits from (K, *output shape): `down` gives (K, N, C, ...).

    `down_summed` gives the same summed over the channels of the source, where that costs less.
    """

    source: Any
    down: Down
    down_summed: Down | None = None


@dataclass(slots=True, eq=False)
class Node:
    """How one tensor was made.

    Attributes:
        number: of the operation, ascending from 0, the watched tensor.
        shape: of the tensor.
        moves: to the nodes it was made from.
        tape: that recorded it.
        positive: max(tensor, 0) once a rule asked for it.
    """

    number: int
    shape: torch.Size
    moves: tuple[Move, ...]
    tape: "Tape"
    positive: Tensor | None = None


class Attended(Tensor):
    """A tensor made from the watched one; its values are torch's, bit for bit."""

    node: Node

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tape = next(t.node.tape for t in tensors_in(args, kwargs) if is_live(t))
        with torch._C.DisableTorchFunctionSubclass(), torch.autocast(tape.device, enabled=False):
            rule = tape.rules.get(func)
            if rule is not None:
                return rule(tape, func, *_in_dtype(args, tape.dtype), **_in_dtype(kwargs, tape.dtype))
            out = func(*args, **kwargs)
        if func is Tensor.__setitem__ or any(t.is_floating_point() for t in tensors_in((out,), {})):
            raise NotImplementedError(
                f"no excitation rule for {resolve_name(func) or func}: cut the network above it, or pass "
                "rules={function: rule} with a rule of phrase_loc.attention.excitation ('passed' if each output has "
                "one input, 'constant' if it only modulates) or 'routed' of .routes if it only moves values"
            )
        return out  # a shape, a flag, an index: nothing to inherit


class Tape:
    """The record of one forward pass.

    Args:
        rules: torch function -> rule (see `excitation`), called as rule(tape, func, *args, **kwargs).
        residual: how the branches of a sum compete, 'positive' or 'proportional' (see `excitation.added`).
        positive: from a weight to max(weight, 0).

    Raises:
        ConfigError: an unknown residual rule.
    """

    def __init__(
        self,
        rules: Mapping[Callable[..., Any], Rule],
        residual: str = "positive",
        positive: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if residual not in ("positive", "proportional"):
            raise ConfigError(f"unknown residual rule {residual!r}; choose from positive, proportional")
        self.rules, self.residual, self.positive = rules, residual, positive or positive_part
        self.marked: list[Node] = []
        self._count = 0

    def watch(self, x: Tensor) -> Attended:
        """(N, C, ...) the tensor to propagate to, as the network shall get it, in the dtype of the whole pass."""
        self.dtype, self.device = x.dtype, x.device.type
        watched = x.as_subclass(Attended)
        watched.node = Node(0, x.shape, (), self)
        self.mark(watched)
        return watched

    def mark(self, x: Attended) -> None:
        """Have `maps` tell of this tensor too; every path to the watched one must go through it."""
        self.marked.append(x.node)  # the node, since a later operation in place gives the tensor another

    def record(self, func: Callable[..., Any], out: Tensor, moves: Sequence[Move]) -> Attended:
        """`out`, made by `func`, as a tensor whose winners the sources of `moves` inherit.

        The sources' nodes are taken before `out` gets its own, so an in-place function may return its input.
        """
        known = tuple(Move(m.source.node, m.down, m.down_summed) for m in moves if is_live(m.source))
        self._count += 1
        made = out if isinstance(out, Attended) else out.as_subclass(Attended)
        made.node = Node(self._count, made.shape, known, self)
        return made

    def propagate(self, top: Attended, won: Tensor) -> Tensor:
        """Winning probability at every channel of the watched tensor: (K, *top.shape) -> (K, N, C, ...).

        Args:
            top: a tensor made from the watched one.
            won: what K winners have won there; signed values pass linearly.
        """
        mass = _Mass(top.node.number, won)
        for node, p in self._walk(top.node, mass):
            for move in node.moves:
                mass.add(move.source.number, move.down(p), p)
        out = mass.pop(0)
        return (
            won.new_zeros(len(won), *self.marked[0].shape) if out is None else out
        )  # all was lost on the way

    def maps(self, top: Attended, won: Tensor) -> list[Tensor]:
        """Winning probability summed over channels at every marked tensor, the watched one first: (K, N, ...) each.

        Args:
            top: a tensor made from the watched one.
            won: (K, *top.shape) as for `propagate`.
        """
        mass, lowest, found = _Mass(top.node.number, won), _Mass(), dict[int, Tensor]()
        wanted = {node.number for node in self.marked}
        if top.node.number == 0:
            found[0] = won.sum(2)
        for node, p in self._walk(top.node, mass):
            if node.number in wanted:
                found[node.number] = p.sum(2)
            for move in node.moves:
                if move.source.number:
                    mass.add(move.source.number, move.down(p), p)
                else:  # only the sum over channels is asked for, which is cheaper to come by
                    lowest.add(0, move.down_summed(p) if move.down_summed else move.down(p).sum(2), p)
        arrived = lowest.pop(0)
        if arrived is not None:
            found[0] = arrived
        empty = [won.new_zeros(len(won), node.shape[0], *node.shape[2:]) for node in self.marked]
        return [found.get(node.number, zero) for node, zero in zip(self.marked, empty, strict=True)]

    @staticmethod
    def _walk(top: Node, mass: "_Mass") -> Iterator[tuple[Node, Tensor]]:
        """Every node above the watched one that has won something, the latest first, with what it has won."""
        found, stack = {top.number: top}, [top]
        while stack:
            for move in stack.pop().moves:
                if move.source.number not in found:
                    found[move.source.number] = move.source
                    stack.append(move.source)
        with torch._C.DisableTorchFunctionSubclass():
            for number in sorted(found.keys() - {0}, reverse=True):
                p = mass.pop(number)
                if p is not None:
                    yield found[number], p


class _Mass:
    """What has been won at each node, {number: (K, *shape)}; sums are made in place where that harms nobody."""

    def __init__(self, number: int | None = None, won: Tensor | None = None) -> None:
        self._won: dict[int, Tensor] = {} if number is None or won is None else {number: won}
        self._own: set[int] = set()

    def add(self, number: int, won: Tensor, above: Tensor) -> None:
        """A branch's share, made from `above`, of which it may be a view: such a one is not written to."""
        held = self._won.get(number)
        ours = not _shares_memory(won, above)
        if held is None:
            self._won[number] = won
        elif number in self._own:
            held.add_(won)
        else:
            self._won[number] = won.add_(held) if ours else held + won
        if ours or held is not None:
            self._own.add(number)

    def pop(self, number: int) -> Tensor | None:
        """All that was won there; None if nothing arrived."""
        self._own.discard(number)
        return self._won.pop(number, None)


class KeptPositive:
    """A network with max(w, 0) of its weights beside it, for one that is asked many times; call it like the network.

    Making them anew on each call costs nothing beside a forward pass of ResNet-50's last stage, and as much as the
    pass itself for VGG16 (124 million weights). A weight that was changed in place or moved is noticed by its
    version; writing through `weight.data` is not.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._kept: dict[int, tuple[Tensor, Any, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """What the network gives."""
        return self.net(x)

    def positive(self, weight: Tensor) -> Tensor:
        """max(weight, 0), kept or made now; safe to call from many threads."""
        stamp = (weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version)
        held = self._kept.get(id(weight))  # the weight is held too, so its id goes to no other tensor
        if held is None or held[1] != stamp:
            held = (weight, stamp, positive_part(weight))
            if isinstance(weight, nn.Parameter):  # not a tensor computed on the way
                self._kept[id(weight)] = held
        return held[2]


def is_live(value: Any) -> bool:
    """Whether `value` was made from a watched tensor."""
    return isinstance(value, Attended)


def excitatory(tensor: Tensor) -> Tensor:
    """max(tensor, 0), a copy that later in-place operations leave alone; branches of a network share it."""
    if not isinstance(tensor, Attended):
        return tensor.clamp(min=0)
    if tensor.node.positive is None:
        tensor.node.positive = tensor.clamp(min=0)
    return tensor.node.positive


def positive_part(weight: Tensor) -> Tensor:
    """max(weight, 0), in the memory format of the pass."""
    positive = weight.detach().clamp(min=0)
    return positive.contiguous(memory_format=layout(positive))


def layout(tensor: Tensor) -> torch.memory_format:
    """Channels last for planes on a CPU, where transposed convolutions of many winners gain most by it."""
    planes = tensor.dim() == 4 and tensor.device.type == "cpu"
    return torch.channels_last if planes else torch.contiguous_format


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The tensors among arguments, also those in lists and tuples."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value, {})


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Arguments with every floating tensor in the pass's dtype: a bf16 network is read in float32."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value
    if isinstance(value, dict):
        return {k: _in_dtype(v, dtype) for k, v in value.items()}
    return type(value)(_in_dtype(v, dtype) for v in value) if type(value) in (tuple, list) else value


def _shares_memory(won: Tensor, above: Tensor) -> bool:
    """Whether two places of `won` are one, or it lies in the memory of `above`."""
    overlaps = any(step == 0 and size > 1 for step, size in zip(won.stride(), won.shape, strict=True))
    return overlaps or won.untyped_storage().data_ptr() == above.untyped_storage().data_ptr()
