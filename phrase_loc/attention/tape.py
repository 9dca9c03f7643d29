"""A network's operations, recorded while they run and walked down again: micrograd's `Value` on torch, with rules
in place of derivatives.

A torch function that touches an `Attended` tensor runs as ever, value for value, and its result is an `Attended`
tensor whose `Node` knows from which tensors it was made and what each of them inherits. Modules, weights and torch
itself stay as they were, so threads may share a network. Not seen are operations inside TorchScript or a compiled
module, and writing through a view (`x[:, 0] += y` raises, since `Tensor.__setitem__` has no rule).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from phrase_loc.errors import ConfigError

Down = Callable[[Tensor], Tensor]
Rule = Callable[..., Any]


class Move(NamedTuple):
    """What `source` (N, C, ...) inherits from (K, *output shape): `down` gives (K, N, C, ...).

    `down_summed` gives the same summed over the channels of the source, where that costs less.
    """

    source: Any
    down: Down
    down_summed: Down | None = None


@dataclass(slots=True, eq=False)
class Node:
    """How one tensor was made: numbers ascend in the order of the operations; `positive` is max(tensor, 0)."""

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
                "rules={function: rule} with a rule of phrase_loc.attention.functions ('passed' if each output has "
                "one input, 'routed' if it only moves values, 'constant' if it only modulates)"
            )
        return out  # a shape, a flag, an index: nothing to inherit


class Tape:
    """The record of one forward pass.

    Args:
        rules: torch function -> rule, called as rule(tape, func, *args, **kwargs); it runs func and records its
            result (see `excitation`).
        positive: from a weight to max(weight, 0).
    """

    def __init__(self, rules: Mapping[Any, Rule], positive: Callable[[Tensor], Tensor] | None = None) -> None:
        self.rules, self.positive = rules, positive or positive_part
        self.watched: list[Node] = []
        self._numbers = count()

    def watch(self, x: Tensor) -> Attended:
        """`x` (N, C, ...) as a tensor that `propagate` tells of; the lowest comes first and sets the pass's dtype.

        Of several tensors, every path from the top to a lower one must go through the higher.
        """
        if not isinstance(x, Attended):
            self.dtype, self.device = x.dtype, x.device.type
            x = self.record(x)
        self.watched.append(x.node)  # the node, since a later operation in place gives the tensor another
        return x

    def record(self, out: Tensor, *moves: Move) -> Attended:
        """`out` as a tensor whose winners the sources of `moves` inherit; constants among them do not.

        The sources' nodes are taken before `out` gets its own, so an in-place function may return its input.
        """
        known = tuple(m._replace(source=m.source.node) for m in moves if is_live(m.source))
        node = Node(next(self._numbers), out.shape, known, self)
        made = out if isinstance(out, Attended) else out.as_subclass(Attended)
        made.node = node
        return made

    def propagate(self, top: Attended, won: Tensor, channels: bool = True) -> list[Tensor]:
        """Winning probability at each watched tensor: (K, N, C, ...), or (K, N, ...) summed over its channels.

        Args:
            top: a tensor made from the watched ones.
            won: (K, *top.shape), what K winners have won there; signed values pass linearly.
            channels: False is cheaper than summing the result.
        """
        lowest, found = self.watched[0], dict[Node, Tensor]()
        mass = {top.node: won if channels or top.node is not lowest else won.sum(2)}
        ours = set[Node]()  # whose mass nobody else reads: sums are made in place
        with torch._C.DisableTorchFunctionSubclass():
            while mass:
                node = max(mass, key=lambda n: n.number)
                p = mass.pop(node)
                if node in self.watched:
                    found[node] = p if channels or node is lowest else p.sum(2)
                for source, down, down_summed in node.moves:
                    if channels or source is not lowest:
                        part = down(p)
                    else:
                        part = down_summed(p) if down_summed else down(p).sum(2)
                    own = not _shares_memory(part, p)
                    if (held := mass.get(source)) is not None:
                        part = held.add_(part) if source in ours else part.add_(held) if own else held + part
                    if own or held is not None:
                        ours.add(source)
                    mass[source] = part
        empty = (n.shape if channels else (n.shape[0], *n.shape[2:]) for n in self.watched)
        return [
            found[node] if node in found else won.new_zeros(len(won), *shape)
            for node, shape in zip(self.watched, empty, strict=True)
        ]


@contextmanager
def attended_pass(
    parts: Sequence[Callable[[Tensor], Tensor]], x: Tensor, rules: Mapping[Any, Rule]
) -> Iterator[tuple[Tape, Attended]]:
    """The tape that watches a copy of `x` and the input of each further part, and the last one's output.

    In float32 (float64 for float64 activations), without autograd and autocast, also under inference mode.
    """
    if not x.is_floating_point() or x.dim() < 2:
        raise ConfigError(f"activations must be floating (N, C, h, w), got {x.dtype} {tuple(x.shape)}")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        top: Any = x.detach().to(dtype, copy=True, memory_format=layout(x))
        tape = Tape(rules, parts[0].positive if isinstance(parts[0], KeptPositive) else None)
        try:
            for part in parts:
                top = part(tape.watch(top))
                if not is_live(top):
                    raise ConfigError(
                        "the network's output does not depend on the activations it is asked about"
                    )
            yield tape, top
        finally:
            tape.watched.clear()  # nodes know their tape: all of the pass would wait for the collector of cycles


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


def plain(tensor: Tensor) -> Tensor:
    """The same values as a tensor that is not recorded."""
    return tensor.as_subclass(Tensor)


def excitatory(tensor: Any) -> Tensor:
    """max(tensor, 0) of a live tensor, a copy that later in-place operations leave alone and branches share."""
    if tensor.node.positive is None:
        tensor.node.positive = tensor.clamp(min=0)
    positive: Tensor = tensor.node.positive
    return positive


def positive_part(weight: Tensor) -> Tensor:
    """max(weight, 0), in the memory format of the pass."""
    positive = weight.detach().clamp(min=0)
    return positive.contiguous(memory_format=layout(positive))


def layout(tensor: Tensor) -> torch.memory_format:
    """Channels last for planes on a CPU: transposed convolutions of many winners take up to a third less time."""
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


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two places of `a` are one, or it lies in the memory of `b`: it must not be written to."""
    overlaps = any(step == 0 and size > 1 for step, size in zip(a.stride(), a.shape, strict=True))
    return overlaps or a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
