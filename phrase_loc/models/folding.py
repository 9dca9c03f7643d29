"""Batch norm folded into the convolution before it: the same function, fewer steps, right excitations.

A norm with a negative scale flips the sign of what its convolution computes. Excitation backprop splits
weights by sign, so it must see the product of the two: folding at load does that, exactly as the authors of
the method asked their users to "flip the filter".
"""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

from torch import nn
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Trunk = TypeVar("Trunk", bound=nn.Module)


def fold_batch_norm(trunk: Trunk) -> Trunk:
    """A copy of `trunk`, in eval mode, whose batch norms are folded where one linear layer alone feeds them.

    Elsewhere (DenseNet's norms before a convolution) they stay and excitation passes through. Module names
    are kept: a folded norm becomes an Identity, so stages can still be cut by name.

    Args:
        trunk: any module; itself left as it is. Its parameters may be on the meta device.
    """
    folded = copy.deepcopy(trunk).eval()
    for linear_name, norm_name in list(_pairs(folded)):
        linear, norm = folded.get_submodule(linear_name), folded.get_submodule(norm_name)
        fuse: Callable[[Any, Any], nn.Module] = (
            fuse_linear_bn_eval if isinstance(linear, nn.Linear) else fuse_conv_bn_eval
        )
        folded.set_submodule(linear_name, fuse(linear, norm))
        folded.set_submodule(norm_name, nn.Identity())
    return folded


class _Tracer(Tracer):
    """Looks inside every module but torch's own and those built on a linear layer or a norm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LINEAR + NORMS) or super().is_leaf_module(m, module_qualified_name)


def _pairs(root: nn.Module) -> Iterator[tuple[str, str]]:
    """Names (linear layer, norm) such that the norm is the layer's only reader."""
    chained = dict(_chained(root))
    yield from ((linear, norm) for norm, linear in chained.items())
    if any(isinstance(m, NORMS) and name not in chained for name, m in root.named_modules()):
        yield from (pair for pair in _written(root, chained) if pair[1] not in chained)


def _chained(root: nn.Module) -> Iterator[tuple[str, str]]:
    """Neighbours in a Sequential, (norm, linear layer): found without tracing, which costs a while."""
    for prefix, chain in root.named_modules():
        if isinstance(chain, nn.Sequential):
            for (first, linear), (second, norm) in pairwise(chain.named_children()):
                if isinstance(linear, LINEAR) and isinstance(norm, NORMS):
                    yield _join(prefix, second), _join(prefix, first)


def _written(root: nn.Module, chained: dict[str, str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Pairs that some forward() makes, found by tracing the largest parts that can be traced."""
    names = [_join(prefix, name) for name, m in root.named_modules() if isinstance(m, NORMS)]
    if all(name in chained for name in names):
        return
    if not isinstance(root, nn.Sequential):
        try:
            yield from list(_traced(root, prefix))
            return
        except Exception:  # control flow on values stops the tracer here; the parts may be traceable
            pass
    for name, part in root.named_children():
        if not isinstance(part, LINEAR + NORMS):
            yield from _written(part, chained, _join(prefix, name))


def _traced(root: nn.Module, prefix: str) -> Iterator[tuple[str, str]]:
    graph = _Tracer().trace(root)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    for node in calls:
        before = node.args[0] if node.args else None
        if (
            isinstance(before, Node)
            and before.op == "call_module"
            and isinstance(root.get_submodule(str(node.target)), NORMS)
            and isinstance(root.get_submodule(str(before.target)), LINEAR)
            and len(before.users) == 1
            and sum(n.target in (node.target, before.target) for n in calls) == 2  # neither is used twice
        ):
            yield _join(prefix, str(before.target)), _join(prefix, str(node.target))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
