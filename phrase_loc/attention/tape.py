"""A network's operations, recorded while they run and walked down again: micrograd's `Value` on torch, with rules
in place of derivatives.

A torch function that touches an `Attended` tensor runs as ever, value for value, and its result is `Attended`: its
`Node` knows from which tensors it was made and what each of them inherits. Modules, weights and torch itself stay as
they were, so threads may share a network. Operations inside TorchScript or a compiled module are not seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from phrase_loc.errors import ConfigError, RuleError

Down = Callable[[Any], Any]
Part = Callable[[Tensor], Tensor]  # of a weight: what of it excites
Rule = Callable[..., Any]


class Move(NamedTuple):
    """From (K, *output shape) what `source` inherits, (K, N, C, ...); or cheaper, its sum over `axis` of the source.

    That axis is left with length 1. `sparse`: both take and may give `Rows` as well as tensors.
    """

    source: Any
    down: Down
    down_summed: Down | None = None
    axis: int = 1
    sparse: bool = False


class Rows(NamedTuple):
    """Mass that is 0 but at some places of one axis of a tensor: of a class token, of the values among q, k and v.

    `values` (K, ...) with those places alone along the `axis` (counted without K), which has `size` places in all.
    """

    values: Tensor
    axis: int
    places: tuple[int, ...]
    size: int

    def dense(self) -> Tensor:
        """The mass (K, *shape) with its zeros."""
        shape, axis = list(self.values.shape), self.axis + 1
        shape[axis] = self.size
        return self.values.new_zeros(shape).index_copy_(axis, self.where(), self.values)

    def where(self) -> Tensor:
        """The places as a tensor."""
        return torch.tensor(self.places, device=self.values.device)

    def of(self, tensor: Tensor) -> Tensor:
        """Those places of a tensor that has the whole axis (and no K)."""
        return tensor.index_select(self.axis, self.where())


@dataclass(slots=True, eq=False)
class Node:
    """How one tensor was made: numbers ascend in the order of the operations; `seen` is what `once` keeps.

    `channels` is the axis of the channels of the lowest watched tensor while they stand apart from all else: maps
    are summed over them, so nothing else need be known of this tensor's mass. `gate`: the result of an activation is
    1, that of a sigmoid 2, also moved, scaled or shifted (1 - sigmoid(x)).
    """

    number: int
    shape: torch.Size
    moves: tuple[Move, ...]
    tape: "Tape"
    channels: int | None = None
    gate: int = 0
    seen: dict[Part, Tensor] = field(default_factory=dict)


class Attended(Tensor):
    """A tensor made from the watched one; its values are torch's, bit for bit."""

    node: Node

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in(args, kwargs)
        live = [t for t in tensors if is_live(t)]
        tape: Tape = live[0].node.tape
        if func in BODIES and func not in tape.rules:
            return BODIES[func](*args, **kwargs)

        def cast(value: Any) -> Any:  # a bf16 network is read in float32
            return value.to(tape.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        with torch._C.DisableTorchFunctionSubclass(), torch.autocast(tape.device, enabled=False):
            target: Any = tensors[0] if _in_place(func) else None
            foreign = target is not None and not is_live(target)
            unseen = foreign and (func not in tape.rules or target._is_view())
            if unseen or func in _WRITES or kwargs.get("out") is not None:
                raise RuleError(_no_rule(func, _WRITTEN))
            sources = [t.node for t in live]  # an operation in place gives the tensor another
            if func in tape.rules:
                if any(t.is_floating_point() and t.dtype != tape.dtype for t in tensors):
                    args, kwargs = tree_map(cast, (args, kwargs))
                out = tape.rules[func](tape, func, *args, **kwargs)
            else:
                # What only modulates, such as the way to an attention weight, needs no rule: no winner comes there.
                moves = [Move(node, refusal(func)) for node in sources]
                made = func(*args, **kwargs)
                out = tree_map(lambda t: tape.record(t, *moves) if _floating(t) else t, made)
            if foreign and _overlap(out, target):
                tape.adopt(target, out.node)
            elif is_live(target) and (
                func not in tape.rules or [move.source for move in target.node.moves] != sources[:1]
            ):
                tape.outdate(target, func)
        return out


class Tape:
    """The record of one forward pass.

    `rules[func](tape, func, *args, **kwargs)` runs a torch function and records its result; `kept(weight, part)`
    gives part(weight), such as max(weight, 0), perhaps from an earlier pass.
    """

    def __init__(
        self, rules: Mapping[Any, Rule], kept: Callable[[Tensor, Part], Tensor] | None = None
    ) -> None:
        self.rules, self.kept = rules, kept or (lambda weight, part: part(weight))
        self.watched: list[Node] = []
        self.modulator: Any = None  # the last function that `functions.constant` ran
        self.adopted: list[tuple[Any, type]] = []  # tensors of others' that were written to
        self._made: list[ref[Any]] = []
        self._numbers = count()

    def watch(self, x: Tensor) -> Attended:
        """`x` (N, C, ...) that `propagate` tells of, the lowest first: every path to it meets the next."""
        if not isinstance(x, Attended):
            self.dtype, self.device = x.dtype, x.device.type
            x = self.record(x, channels=1)
        self.watched.append(x.node)  # the node, since a later operation in place gives the tensor another
        return x

    def record(
        self, out: Tensor, *moves: Move, channels: int | None = None, gate: int | None = None
    ) -> Attended:
        """`out` as a tensor whose winners the sources of `moves` inherit; constants among them do not."""
        # taken before `out` gets its own node: an in-place function may return its input
        known = tuple(
            m if isinstance(m.source, Node) else m._replace(source=m.source.node)
            for m in moves
            if isinstance(m.source, Node) or is_live(m.source)
        )
        gate = min((m.source.gate & 2 for m in known), default=0) if gate is None else gate
        node = Node(next(self._numbers), out.shape, known, self, channels, gate)
        made = out if isinstance(out, Attended) else out.as_subclass(Attended)
        made.node = node
        self._made.append(ref(made))
        return made

    def adopt(self, target: Any, node: Node) -> None:
        """Makes a constant that was written to a recorded tensor until the pass is over."""
        self.adopted.append((target, type(target)))
        target.__class__, target.node = Attended, node

    def outdate(self, target: Attended, func: Any) -> None:
        """Refuses winners at other tensors that share memory with `target`, which func wrote to."""
        for other in [tensor for made in self._made if (tensor := made()) is not None]:
            if other is not target and _overlap(other, target):
                self.record(other, Move(other, refusal(func, _WRITTEN)))

    def propagate(self, top: Attended, won: Tensor, channels: bool = True) -> list[Tensor]:
        """Winning probability at each watched tensor: (K, N, C, ...), or (K, N, ...) summed over its channels.

        `won` (K, *top.shape) is what K winners have won at `top`; signed values pass linearly.
        """
        if won.dim() == 5:  # in the layout of the activations: products of two layouts take ten times as long
            planes = won.flatten(0, 1)
            won = planes.contiguous(memory_format=layout(planes)).unflatten(0, won.shape[:2])
        lowest, found = self.watched[0], dict[Node, Tensor]()
        mass: dict[Node, Any] = {top.node: won if channels or top.node is not lowest else _summed(won, 1)}
        ours = set[Node]()  # whose mass nobody else reads: sums are made in place
        with torch._C.DisableTorchFunctionSubclass():
            while mass:
                node = max(mass, key=lambda n: n.number)
                p = mass.pop(node)
                if node in self.watched or not all(move.sparse for move in node.moves):
                    p = _dense(p)
                if node in self.watched:
                    found[node] = p if channels else p.sum(2)
                for source, down, down_summed, axis, _ in node.moves:
                    if down_summed and not channels and source.channels == axis:
                        down = down_summed
                    part, held = down(p), mass.get(source)
                    if source is lowest and not channels:
                        part = _summed(part, 1)
                    if isinstance(part, Rows) and (held is None or _alike(part, held)):
                        more = part if held is None else part._replace(values=part.values + held.values)
                        mass[source] = more
                        continue
                    part, held = _dense(part), _dense(held)
                    if held is not None and held.shape != part.shape:  # one of them is a sum
                        part, held = _summed(part, source.channels), _summed(held, source.channels)
                    own = not _shares_memory(part, p.values if isinstance(p, Rows) else p)
                    if held is not None:
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
    """The tape that watches a copy of `x` and the input of each further part, and the last one's output."""
    x = activations(x)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        top: Any = x.to(dtype, copy=True, memory_format=layout(x))
        tape = Tape(rules, parts[0].kept if isinstance(parts[0], KeptPositive) else None)
        try:
            for part in parts:
                try:
                    top = part(tape.watch(top))
                except Exception as error:
                    if not type(error).__module__.startswith("torch._dynamo"):
                        raise
                    told = "the operations of a compiled network are not seen; give it without torch.compile"
                    raise RuleError(told) from None
                if not is_live(top):
                    raise _nothing_inherits(tape, top)
            yield tape, top
        finally:
            tape.watched.clear()  # nodes know their tape: all of the pass would wait for the collector of cycles
            for tensor, kind in tape.adopted:
                tensor.__class__ = kind
                del tensor.node


def activations(x: Any) -> Tensor:
    """`x` without its gradient; a ConfigError unless it is floating, finite and (N, C, ...)."""
    if not _floating(x) or x.dim() < 2:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ConfigError(f"activations must be a floating tensor (N, C, h, w), got {got}")
    if not x.isfinite().all():
        raise ConfigError("activations hold NaN or infinite numbers, which would be spread over every map")
    return x.detach()


class KeptPositive:
    """A network to be asked many times, with max(w, 0) or |w| of its weights beside it. Call it like the network.

    For VGG16 (124 million weights) making them anew costs as much as a pass. A weight that was changed in place or
    moved is noticed by its version; writing through `weight.data` is not.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._kept: dict[tuple[int, Part], tuple[Tensor, Any, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """What the network gives."""
        return self.net(x)

    def kept(self, weight: Tensor, part: Part) -> Tensor:
        """`part` of the weight, kept or made now; safe to call from many threads."""
        stamp = (weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version)
        held = self._kept.get((id(weight), part))  # the weight is held too, so its id goes to no other tensor
        if held is None or held[1] != stamp:
            held = (weight, stamp, part(weight))
            if isinstance(weight, nn.Parameter):  # not a tensor computed on the way
                self._kept[id(weight), part] = held
        return held[2]


def is_live(value: Any) -> bool:
    """Whether `value` was made from a watched tensor."""
    return isinstance(value, Attended)


def plain(tensor: Tensor) -> Tensor:
    """The same values as a tensor that is not recorded."""
    return tensor.as_subclass(Tensor)


def once(tensor: Any, part: Part) -> Tensor:
    """`part` of a live tensor, a copy that later in-place operations leave alone and branches share."""
    seen: dict[Part, Tensor] = tensor.node.seen
    if part not in seen:
        seen[part] = part(tensor)
    return seen[part]


def layout(tensor: Tensor) -> torch.memory_format:
    """Channels last for planes on a CPU: transposed convolutions of many winners take up to a third less time."""
    planes = tensor.dim() == 4 and tensor.device.type == "cpu"
    return torch.channels_last if planes else torch.contiguous_format


def tensors_in(*values: Any) -> list[Any]:
    """The tensors among values, also those in lists, tuples and dictionaries."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


_RULES = (
    "pass rules={function: rule} with a rule of phrase_loc.attention.functions ('passed' if each output has "
    "one input, 'routed' if it only moves values, 'constant' if it only modulates)"
)
_WRITTEN = "write to a new tensor, as y = y + z and torch.cat do, not into the memory of another"


def refusal(func: Any, advice: str = _RULES) -> Down:
    """The way down through a function without a rule: an error that names it."""

    def down(p: Tensor) -> Tensor:
        raise RuleError(_no_rule(func, advice))

    return down


def _no_rule(func: Any, advice: str = _RULES) -> str:
    return f"no excitation rule for {resolve_name(func) or func}: cut the network above it, or {advice}"


def _nothing_inherits(tape: Tape, top: Any) -> Exception:
    if not isinstance(top, Tensor):
        return ConfigError(f"a network must give one tensor (N, D, ...), got a {type(top).__name__}")
    if tape.modulator is not None:  # such as the softmax over the classes
        only = "here it only modulates, and all that follows depends on it"
        return RuleError(f"{_no_rule(tape.modulator)}; {only}")
    return ConfigError("the network's output does not depend on the activations it is asked about")


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _summed(p: Any, channels: int | None) -> Any:
    """The sum of p (K, ...) over its axis of channels, which is left with length 1."""
    if isinstance(p, Rows) and p.axis != channels:
        return p._replace(values=_summed(p.values, channels))
    p = _dense(p)
    return p if channels is None or p.shape[channels + 1] == 1 else p.sum(channels + 1, keepdim=True)


def _dense(p: Any) -> Any:
    return p.dense() if isinstance(p, Rows) else p


def _alike(a: Rows, b: Any) -> bool:
    return isinstance(b, Rows) and a[1:] == b[1:] and a.values.shape == b.values.shape


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _body(func: Any) -> Callable[..., Any]:
    """A Python function of torch that looks for no subclass at its door, so that what it calls is recorded."""
    unseen = {"has_torch_function": lambda tensors: False}
    body = FunctionType(func.__code__, {**func.__globals__, **unseen}, func.__name__, func.__defaults__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


#: functions written in Python that are looked into
BODIES = {F.multi_head_attention_forward: _body(F.multi_head_attention_forward)}
_WRITES: set[Any] = {Tensor.__setitem__, Tensor.data.__set__}  # type: ignore[attr-defined]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether an element of `a` is one of `b` in memory; of slices of one tensor perhaps none is."""
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    places = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    places.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(places.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two places of `a` are one, or it lies in the memory of `b`: it must not be written to."""
    overlaps = any(step == 0 and size > 1 for step, size in zip(a.stride(), a.shape, strict=True))
    return overlaps or a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
