"""A network as a Markov chain: its operations, noted while they run, and walked down again.

Excitation backprop draws a winner at the top and hands it down: each operation says with which
probability its inputs inherit what its output has won (`rules`). `ExcitatoryChain` is a
`torch.overrides.TorchFunctionMode`: within it every torch function that touches the attended tensor runs
as ever, value for value, and leaves one step behind. `hand_down` then walks the steps backwards, with all
K winners of all N images in one batch.

The mode belongs to the thread that entered it; modules, weights and torch itself stay as they were. What
it cannot see: operations inside TorchScript or a compiled module, and writing through a view
(`x[:, 0] += y` raises, since `Tensor.__setitem__` has no rule).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from phrase_loc.attention.rule_table import RULES
from phrase_loc.attention.rules import Down, Move, Rule, tensors_in
from phrase_loc.errors import ConfigError


def positive_part(weight: Tensor) -> Tensor:
    """max(weight, 0), in the memory format of the pass."""
    positive = weight.detach().clamp(min=0)
    return positive.contiguous(memory_format=layout(positive))


def layout(tensor: Tensor) -> torch.memory_format:
    """Channels last for planes on a CPU, where transposed convolutions of many winners gain most by it."""
    planes = tensor.dim() == 4 and tensor.device.type == "cpu"
    return torch.channels_last if planes else torch.contiguous_format


@dataclass(slots=True)
class Node:
    """The number of a tensor made from the attended one, and its positive part once a rule asked for it."""

    number: int
    tensor: weakref.ref[Tensor]
    positive: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """To one source of an operation: its node, and what it inherits (see `rules.Move`)."""

    source: int
    down: Down
    down_summed: Down | None


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: the node it made, by what name, and how its sources inherit from it."""

    node: int
    name: str
    ways: tuple[Way, ...]


@dataclass
class ExcitatoryChain(TorchFunctionMode):
    """Records how every tensor made from `attended` inherits; use it as a context around the forward pass.

    Attributes:
        attended: (N, C, ...) the tensor to hand down to, in the dtype of the whole computation.
        residual: how the branches of a sum compete, 'positive' or 'proportional' (see `rules.added`).
        rules: rules for further torch functions, or others for known ones.
        positive: from a weight to max(weight, 0).
    """

    attended: Tensor
    residual: str = "positive"
    rules: Mapping[Callable[..., Any], Rule] = field(default_factory=dict)
    positive: Callable[[Tensor], Tensor] = positive_part

    def __post_init__(self) -> None:
        super().__init__()
        if self.residual not in ("positive", "proportional"):
            raise ConfigError(f"unknown residual rule {self.residual!r}; choose from positive, proportional")
        self._nodes: dict[int, Node] = {}
        self._steps: list[Step] = []
        self._enter(self.attended, 0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(self.is_live(t) for t in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        rule = self.rules.get(func) or RULES.get(func)
        with torch.autocast(self.attended.device.type, enabled=False):
            if rule is not None:
                return rule(self, func, *self._in_core_dtype(args), **self._in_core_dtype(kwargs))
            out = func(*args, **kwargs)
        if func is Tensor.__setitem__ or any(t.is_floating_point() for t in tensors_in((out,), {})):
            raise NotImplementedError(
                f"no excitation rule for {resolve_name(func) or func}: cut the network above it, or pass "
                f"rules={{function: rule}} with a rule of phrase_loc.attention.rules "
                f"('passed' if each output has one input, 'routed' if it only moves values, "
                f"'constant' if it only modulates)"
            )
        return out  # a shape, a flag, an index: nothing to inherit

    def is_live(self, tensor: Any) -> bool:
        """Whether `tensor` was made from the attended one."""
        return id(tensor) in self._nodes

    def record(self, func: Callable[..., Any], out: Tensor, moves: Sequence[Move]) -> Tensor:
        """Note that `out`, made by `func`, hands its winners to the sources of `moves`; gives `out` back.

        The sources are looked up before `out` gets its number, so an in-place function may return its input.
        """
        ways = tuple(
            Way(self._nodes[id(m.source)].number, m.down, m.down_summed)
            for m in moves
            if self.is_live(m.source)
        )
        number = len(self._steps) + 1
        self._steps.append(Step(number, getattr(func, "__name__", str(func)), ways))
        self._enter(out, number)
        return out

    def excitatory(self, tensor: Tensor) -> Tensor:
        """max(tensor, 0), a copy that later in-place operations leave alone; branches of a network share it."""
        node = self._nodes.get(id(tensor))
        if node is None:
            return tensor.clamp(min=0)
        if node.positive is None:
            node.positive = tensor.clamp(min=0)
        return node.positive

    def hand_down(self, top: Tensor, won: Tensor, *, channels: bool = True) -> Tensor:
        """Winner probability at the attended tensor.

        Args:
            top: a tensor made within the context.
            won: (K, *top.shape) what K winners have won there; signed values pass linearly.
            channels: with False the sum over the attended channels, which is cheaper to come by.

        Returns:
            (K, N, C, ...), or (K, N, ...) without channels.
        """
        mass = _Mass(self._nodes[id(top)].number, won)
        summed = _Mass()
        if not channels and (whole := mass.pop(0)) is not None:
            summed.add(0, whole.sum(2), whole)
        for _, way, p in self._walk(mass):
            if way.source or channels:
                mass.add(way.source, way.down(p), p)
            else:
                summed.add(0, way.down_summed(p) if way.down_summed else way.down(p).sum(2), p)
        out = (mass if channels else summed).pop(0)
        if out is None:  # no path leads down: everything was lost on the way
            shape = self.attended.shape if channels else (self.attended.shape[0], *self.attended.shape[2:])
            out = won.new_zeros(len(won), *shape)
        return out

    def losses(self, top: Tensor, won: Tensor) -> list[tuple[str, Tensor]]:
        """Each operation, from the top, with the mass (K,) that ended there instead of going on down."""
        mass = _Mass(self._nodes[id(top)].number, won)
        lost: dict[int, list[Any]] = {}
        for step, way, p in self._walk(mass):
            q = way.down(p)
            mass.add(way.source, q, p)
            entry = lost.setdefault(step.node, [step.name, p.flatten(1).sum(1)])
            entry[1] = entry[1] - q.flatten(1).sum(1)
        return [(name, share) for name, share in lost.values()]

    def _walk(self, mass: "_Mass") -> Iterator[tuple[Step, Way, Tensor]]:
        """Every way down that has something to hand on, highest first; takes it out of `mass`."""
        for step in reversed(self._steps):
            p = mass.pop(step.node)
            if p is not None:
                for way in step.ways:
                    yield step, way, p

    def _enter(self, tensor: Tensor, number: int) -> None:
        """Know a tensor by its number while it lives; the network may let it go, its id may come again."""
        key, nodes = id(tensor), self._nodes
        nodes[key] = Node(number, weakref.ref(tensor, lambda _: nodes.pop(key, None)))

    def _in_core_dtype(self, value: Any) -> Any:
        """Arguments with every floating tensor in the attended dtype: a bf16 network is read in float32."""
        if isinstance(value, Tensor):
            stranger = value.is_floating_point() and value.dtype != self.attended.dtype
            return value.to(self.attended.dtype) if stranger else value
        if isinstance(value, dict):
            return {k: self._in_core_dtype(v) for k, v in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._in_core_dtype(v) for v in value)
        return value


class _Mass:
    """What has been won at each node, {number: (K, *shape)}; sums are made in place where that harms nobody."""

    def __init__(self, number: int | None = None, won: Tensor | None = None) -> None:
        self._won: dict[int, Tensor] = {} if number is None or won is None else {number: won}
        self._own: set[int] = set()

    def add(self, number: int, won: Tensor, above: Tensor) -> None:
        """A branch's share, made from `above`, of which it may be a view: such a one is not written to."""
        held = self._won.get(number)
        ours = not _shared(won, above)
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


def _shared(won: Tensor, above: Tensor) -> bool:
    """Whether two places of `won` are one, or it lies in the memory of `above`."""
    overlaps = any(step == 0 and size > 1 for step, size in zip(won.stride(), won.shape, strict=True))
    return overlaps or won.untyped_storage().data_ptr() == above.untyped_storage().data_ptr()
