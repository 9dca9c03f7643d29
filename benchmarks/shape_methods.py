"""The maps that `shapes.py` compares: excitation backprop's, and short versions of what others do.

Each takes a network of `shape_networks`, the activations x under its part number `depth`, units (K, D) of queries
(rows of the word layer) and weights (P, K) that mix words into phrases, and gives (P, N, h, w); larger is more. Those
that do not know the word repeat one map P times.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from shape_networks import PATCH, ConvNet, ViT
from shape_pictures import SIDE
from torch import Tensor
from torch.overrides import TorchFunctionMode

from phrase_loc.attention import attn_lrp, class_lrp, contrastive_mwp, maps_at_depths, mwp

Net = ViT | ConvNet


def activations(net: Net, images: Tensor, depth: int) -> Tensor:
    """What the part number `depth` is given: (N, C, T) or (N, C, h, w)."""
    return reduce(lambda x, part: part(x), net.parts()[:depth], net.embed(images))


def excitation(
    net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor,
    method: Callable[..., Tensor] = contrastive_mwp, **options: Any,
) -> Tensor:  # fmt: skip
    """MWP or c-MWP at the input of part `depth`."""
    above = net.parts()[depth:]
    return net.grid(maps_at_depths(above, x, units, method=method, weights=weights, **options)[0])


def relevance(
    net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor, method: Callable[..., Tensor] = attn_lrp
) -> Tensor:
    """The package's attn_lrp or class_lrp at the input of part `depth`."""
    above = net.parts()[depth:]
    return net.grid(method(lambda x: reduce(lambda h, part: part(h), above, x), x, units, weights=weights))


class Attention(TorchFunctionMode):
    """Within it softmax attention is written out, and its matrices (N, heads, T', T) are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        self.matrices.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1))
        return self.matrices[-1] @ v


def _attention(net: Net, x: Tensor, depth: int) -> tuple[Tensor, list[Tensor]]:
    with Attention() as seen:
        h = reduce(lambda value, part: part(value), net.parts()[depth:], x)
    return h, seen.matrices


def _read(net: Net, relevance: Tensor) -> Tensor:
    """What the head reads of a matrix from tokens to tokens, (..., T', T) -> (..., T), on the grid."""
    if isinstance(net, ConvNet):  # the pool's one query, over the mean and the places
        side = math.isqrt(relevance.shape[-1] - 1)
        return relevance[..., 0, 1:].unflatten(-1, (side, side))
    return net.grid(relevance[..., 0, :] if net.extra else relevance.mean(-2))


def raw_attention(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """The last attention matrix, averaged over its heads."""
    matrix = _attention(net, x, depth)[1][-1].mean(1)
    return _read(net, matrix).expand(len(weights), -1, -1, -1)


def rollout(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv 2005.00928): the product of (A + 1) / 2 over the blocks."""
    matrices = [matrix.mean(1) for matrix in _attention(net, x, depth)[1]]
    if isinstance(net, ViT):
        matrices = [(matrix + torch.eye(matrix.shape[-1])) / 2 for matrix in matrices]
    return _read(net, reduce(lambda below, matrix: matrix @ below, matrices)).expand(len(weights), -1, -1, -1)


def _slopes(score: Tensor, of: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Derivatives of the queries' scores, (P, *t.shape) for each t, from `score` (N, K) of the units.

    The words' own are made in one batch and mixed.
    """
    words = torch.eye(score.shape[1])[:, None].expand(-1, len(score), -1)
    found = torch.autograd.grad(score, of, words, is_grads_batched=True, allow_unused=True)
    return [
        torch.tensordot(weights, torch.zeros(len(words), *t.shape) if slope is None else slope, 1)
        for slope, t in zip(found, of, strict=True)
    ]


def chefer(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """Chefer et al., arXiv 2103.15679: rollout of the positive part of attention times its gradient."""
    h, matrices = _attention(net, x.requires_grad_(), depth)
    slopes = _slopes(h @ units.T, matrices, weights)
    steps = [(a.detach() * s).clamp(min=0).mean(2) for a, s in zip(matrices, slopes, strict=True)]
    if isinstance(net, ViT):
        steps = [step + torch.eye(step.shape[-1]) for step in steps]
    return _read(net, reduce(lambda below, step: step @ below, steps))


def legrad(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """LeGrad (Bousselham et al., arXiv 2404.03214): attention by the positive gradient of its block."""
    *blocks, head = net.parts()[depth:]
    found = torch.zeros(())
    for block in blocks or [lambda h: h]:
        with Attention() as seen:
            score = head(block(x.detach().requires_grad_())) @ units.T
        found = found + _read(net, _slopes(score, seen.matrices, weights)[0].clamp(min=0).mean(2))
        x = block(x.detach())
    return found


def _derivative(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    h = reduce(lambda value, part: part(value), net.parts()[depth:], x.requires_grad_())
    return _slopes(h @ units.T, [x], weights)[0]


def grad_cam(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """Channels weighed by their mean derivative over the places, summed, clamped at 0."""
    slopes = net.grid(_derivative(net, x, depth, units, weights))  # (P, N, C, h, w)
    return torch.einsum("pnc,nchw->pnhw", slopes.mean((3, 4)), net.grid(x.detach())).clamp(min=0)


def gradient_x_input(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """Activations times their derivatives, summed over channels, clamped at 0."""
    return net.grid((_derivative(net, x, depth, units, weights) * x.detach()).sum(2)).clamp(min=0)


class Relevance(TorchFunctionMode):
    """AttnLRP (Achtibat et al., arXiv 2402.05602) as gradient times input, the way of its authors' library.

    Linear layers: the epsilon rule with epsilon 0. LayerNorm: its spread is a constant. GELU: the identity rule. A
    product of two activations: half of the relevance for each.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.layer_norm:
            centred = args[0] - args[0].mean(-1, keepdim=True)
            spread = centred.square().mean(-1, keepdim=True).sqrt().detach()
            return centred / spread * kwargs["weight"] + kwargs["bias"]
        if func is F.gelu:
            return args[0] * (func(args[0]) / args[0]).detach()
        if func is F.scaled_dot_product_attention:
            q, k, v = args
            matrix = _halved(q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
            return _halved(matrix @ v)
        return func(*args, **(kwargs or {}))


def _halved(x: Tensor) -> Tensor:
    """The same values with half the derivative."""
    return x / 2 + x.detach() / 2


def lrp(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """Layer-wise relevance propagation by the rules of AttnLRP, clamped at 0."""
    with Relevance():
        return gradient_x_input(net, x, depth, units, weights)


def random(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """Chance: noise on the cells."""
    generator = torch.Generator().manual_seed(0)
    side = net.grid(x).shape[-1]
    return torch.rand(len(weights), len(x), side, side, generator=generator)


def occlusion(net: Net, x: Tensor, depth: int, units: Tensor, weights: Tensor) -> Tensor:
    """How far the score falls when 3 x 3 cells are blank, at their middle; `x` are images here."""
    side = SIDE // PATCH
    empty, falls = blank(x), []
    whole = net(x)
    for row in range(side):
        for column in range(side):
            part = x.clone()
            rows, columns = (slice(max(0, i - 1) * PATCH, (i + 2) * PATCH) for i in (row, column))
            part[:, :, rows, columns] = empty[:, :, rows, columns]
            falls.append(whole - net(part))
    maps = torch.stack(falls, -1).unflatten(-1, (side, side))  # (N, V, h, w)
    return torch.einsum("pv,nvhw->pnhw", weights, maps).clamp(min=0)


def blank(images: Tensor) -> Tensor:
    """Pictures without any thing: the median colour of each one's border everywhere."""
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], 2)
    return border.median(2).values[..., None, None].expand_as(images)


METHODS: dict[str, Callable[..., Tensor]] = {
    "c-MWP, contributions": partial(excitation, signed="contributions"),
    "c-MWP, clamp": partial(excitation, signed="clamp"),
    "MWP, contributions": partial(excitation, method=mwp, signed="contributions"),
    "MWP, clamp": partial(excitation, method=mwp, signed="clamp"),
    "class_lrp": partial(relevance, method=class_lrp),
    "attn_lrp": relevance,
    "AttnLRP": lrp,
    "Chefer": chefer,
    "LeGrad": legrad,
    "Grad-CAM": grad_cam,
    "gradient x input": gradient_x_input,
    "rollout": rollout,
    "raw attention": raw_attention,
    "occlusion": occlusion,
    "chance": random,
}
