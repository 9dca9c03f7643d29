"""A new model put together from names and numbers, and a model made ready for queries."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from phrase_loc.models import backbones, library_nets
from phrase_loc.models.model import TextHead, TextToRegion, WordTable
from phrase_loc.models.model_config import ModelConfig
from phrase_loc.text.vocabulary import Vocabulary

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Trunk = TypeVar("Trunk", bound=nn.Module)


def create(
    vocabulary: Vocabulary,
    vectors: Tensor | None = None,
    *,
    backbone: str = "efficientnet_lite0",
    weights: str | Path | None = backbones.IMAGENET,
    fold: bool = True,
    image_size: int | None = None,
    hidden: int | None = 512,
    free: bool = False,
    tuned: bool = False,
    **head: Any,
) -> TextToRegion:
    """A model whose trunk has `weights` (see backbones.build) and whose head is untrained; `head`: see ModelConfig.

    `vectors` (V,E) are those of the vocabulary; None is a free head with random units, the usual linear classifier.
    Batch norms are folded now where `fold` says so; the trunk can then be fine-tuned as plain convolutions. Without,
    it trains with batch norms, and `folded` makes the model to be queried. `image_size` None is the backbone's own.
    """
    trunk = backbones.build(backbone, weights)
    facts = backbones.preprocessing(backbone)
    with torch.no_grad():
        channels = trunk(torch.zeros(1, 3, 64, 64)).shape[1]
    if vectors is None:
        dimensions = channels if hidden is None else hidden
        units = torch.randn(len(vocabulary), dimensions) * dimensions**-0.5
        vectors, free, tuned = torch.cat([units, torch.zeros(len(vocabulary), 1)], 1), True, True
    mean, std = (cast(Any, tuple(round(255 * v, 6) for v in values)) for values in (facts.mean, facts.std))
    source = backbone.removeprefix(backbones.TRANSFORMERS)
    config = ModelConfig(
        backbone=backbone,
        architecture=None if source == backbone else library_nets.architecture(source),
        folded=fold,
        mean=mean,
        std=std,
        image_size=facts.size if image_size is None else image_size,
        channels=channels,
        hidden=hidden,
        embedding=vectors.shape[1],
        free=free,
        tuned=tuned,
        **head,
    )
    trunk = fold_batch_norm(trunk) if fold else trunk
    return TextToRegion(config, trunk, TextHead(config), WordTable(vectors, tuned), vocabulary)


def folded(model: TextToRegion) -> TextToRegion:
    """The model to be queried: in eval mode, batch norms folded, nothing to train; `model` is untouched."""
    trunk = copy.deepcopy(model.trunk) if model.config.folded else fold_batch_norm(model.trunk)
    head, words = copy.deepcopy(model.head), copy.deepcopy(model.words)
    config = replace(model.config, folded=True)
    made = TextToRegion(config, trunk, head, words, model.vocabulary, model.extra)
    return made.eval().requires_grad_(False)


def fold_batch_norm(trunk: Trunk) -> Trunk:
    """A copy of `trunk`, in eval mode, whose batch norms are folded where one linear layer alone feeds them.

    A norm with a negative scale flips the sign of what its convolution computes. Excitation backprop splits
    weights by sign, so it must see the product of the two: the authors asked their users to "flip the filter".
    Elsewhere (DenseNet's norms before a convolution) norms stay and excitation passes through. Module names
    are kept: a folded norm becomes an Identity, so stages can still be cut by name.
    """
    whole = copy.deepcopy(trunk).eval()
    for norm_name, linear_name in _pairs(whole).items():
        linear: Any = whole.get_submodule(linear_name)
        fuse: Any = fuse_linear_bn_eval if isinstance(linear, nn.Linear) else fuse_conv_bn_eval
        whole.set_submodule(linear_name, fuse(linear, whole.get_submodule(norm_name)))
        whole.set_submodule(norm_name, nn.Identity())
    return whole


class _Tracer(Tracer):
    """Looks inside every module but torch's own and those built on a linear layer or a norm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LINEAR + NORMS) or super().is_leaf_module(m, module_qualified_name)


def _pairs(root: nn.Module, prefix: str = "") -> dict[str, str]:
    """Norm -> linear layer whose only reader it is, by name: in a Sequential, or as a forward() calls them."""
    found = {}
    for name, chain in root.named_modules(prefix=prefix):
        if isinstance(chain, nn.Sequential):
            for (first, linear), (second, norm) in pairwise(chain.named_children()):
                if isinstance(linear, LINEAR) and isinstance(norm, NORMS):
                    found[_join(name, second)] = _join(name, first)
    norms = sum(isinstance(m, NORMS) for m in root.modules())
    if len(found) == norms or isinstance(root, NORMS):  # tracing takes a while
        return found
    if not isinstance(root, nn.Sequential):
        try:
            return dict(_traced(root, prefix)) | found
        except Exception:  # control flow on values stops the tracer here; the parts may be traceable
            pass
    for name, part in root.named_children():
        found |= _pairs(part, _join(prefix, name))
    return found


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
            yield _join(prefix, str(node.target)), _join(prefix, str(before.target))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
