"""Relevance along the class token: `attn_lrp` of many units for little more than a forward pass.

In attn_lrp each unit has its own signal at every token of every block, which costs most of a forward pass a unit.
Here only the class token's signal is a unit's own, exact, one row a block. What the class token c reads from token t
in a block, its value v_t under the attention weights A and the signal g there (a sum over heads and channels),

    r(t) = A_ct <v_t, g>

is carried down to the first block by matrices that all units share: token i hands token j that share of a_i, the sum
of token i and of what attention adds to it through its projection W, that came from j, and keeps the rest,

    S_ij = A_ij <W v_j, a_i> / <a_i, a_i>  for j != i,    S_ii = 1 - sum_j S_ij

Values hold their biases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from phrase_loc.attention.baselines import PRODUCTS, Gates, attn_lrp, score_signal, wide
from phrase_loc.attention.excitation import Net, seeded
from phrase_loc.attention.functions import SUMS
from phrase_loc.attention.tape import BODIES, activations

CLOSE = 0.01  # of the features' size: how far those of the class token by itself may lie from the network's


def class_lrp(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Relevance of each token for the units' scores, opposition taken off: (K, N, T), or (K, N, T, 1), >= 0.

    Arguments as for `mwp`; x (N, C, T) or (N, C, T, 1), the class token first. It is `attn_lrp` itself where the
    features are not those of a class token (shares from SigLIP's probe down did ten points worse), or attention is
    not written as torch's own functions write it.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = activations(x).clone()
        if x.dim() < 3 or x.shape[2:].numel() != x.shape[2]:  # a plane
            return attn_lrp(net, x, units, weights=weights)
        leaf = x[:, :, :1].clone().requires_grad_()
        with _Watch() as seen:
            h = net(x)
        signal = seeded(score_signal, h.to(wide(h)), units, weights).to(h.dtype)
        alone = _class_token(net, leaf, seen.mixed)
        if not len(signal) or alone is None or not _close(alone[0], h):
            return attn_lrp(net, x, units, weights=weights)
        slopes = torch.autograd.grad(alone[0], [leaf, *alone[1]], signal, is_grads_batched=True)
        found = _carried(seen.mixed, slopes[1:], x.new_zeros(len(signal), *x.shape[::2][:2]))
        found[..., 0] += (slopes[0] * leaf).sum(2).flatten(2)[..., 0]
        return found.clamp_(min=0).view(*found.shape[:2], *x.shape[2:]).to(wide(x))


@dataclass
class _Mixed:
    """What one attention mixes."""

    row: Tensor  # (N, heads, 1, T): weights of the class token
    values: Tensor  # (N, heads, T, d)
    shares: Tensor | None = None  # (N, T, T): S; None where queries are no tokens or their sum was not seen


class _Watch(TorchFunctionMode):
    """Within it attention runs as it is, and what it mixes is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[_Mixed] = []
        self._weights: Tensor | None = None  # of an attention whose sum with its tokens was not seen yet
        self._output = self._projection = self._added = torch.empty(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            out = _looked_into(self, func, args, kwargs)
            return func(*args, **kwargs) if kwargs.get("need_weights", True) else out
        out, rows = func(*args, **kwargs), len(self._projection)
        if func is F.scaled_dot_product_attention:
            self._attended(out, *args, **kwargs)
        elif self._weights is not None and len(args) > 1:
            if func is F.linear and _same_rows(args[0], self._output):
                self._projection, self._added = args[1], out
            elif func in PRODUCTS and isinstance(args[-1], nn.Parameter) and args[-1].shape == (rows,):
                self._projection, self._added = self._projection * args[-1][:, None], out  # layer scale
            elif func in SUMS and rows:
                self._summed(out, *args)
        return out

    def _attended(
        self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **how: Any
    ) -> None:
        tokens = value.shape[-2]
        each = torch.eye(tokens, dtype=value.dtype, device=value.device).expand(*value.shape[:-1], tokens)
        weights = F.scaled_dot_product_attention(query, key, each, *args, **how)
        self.mixed.append(_Mixed(weights[..., :1, :], value))
        followed = weights.shape == (*value.shape[:-1], tokens) and value.dim() == 4
        self._weights, self._output, self._projection = weights if followed else None, out, torch.empty(0)

    def _summed(self, a: Tensor, *parts: Any) -> None:
        """Takes the shares of a sum `a` (N, T, C) if one of its parts is what attention gives."""
        weights, value = self._weights, self.mixed[-1].values
        if weights is None or a.shape != (len(value), value.shape[-2], len(self._projection)):
            return
        alike = (p for p in parts if isinstance(p, Tensor) and p.shape == a.shape)
        if not any(_same_rows(self._added, p[:, None]) for p in alike):  # a norm may stand between
            return
        back = (a @ self._projection).unflatten(2, (value.shape[1], -1)).transpose(1, 2)
        given = (weights * (back @ value.mT)).sum(1) / a.square().sum(2, keepdim=True)
        given.diagonal(dim1=1, dim2=2).zero_()
        self.mixed[-1].shares, self._weights = given + torch.diag_embed(1 - given.sum(2)), None


class _Replay(Gates):
    """Within it attention answers the tokens that are there from them and, held constant, from all that was seen."""

    def __init__(self, mixed: Sequence[_Mixed]) -> None:
        super().__init__()
        self.left, self.outputs = [*mixed], list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            return _looked_into(self, func, args, kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return super().__torch_function__(func, types, args, kwargs)
        value, one = args[2] if len(args) > 2 else kwargs["value"], self.left.pop(0)
        here = value.shape[-2]
        self.outputs.append(one.row[..., :here] @ value + one.row[..., here:] @ one.values[..., here:, :])
        return self.outputs[-1]


def _class_token(net: Net, leaf: Tensor, mixed: Sequence[_Mixed]) -> tuple[Tensor, list[Tensor]] | None:
    """What network and attentions make of the class token by itself; None where that cannot be asked."""
    if any(one.shares is None for one in mixed):
        return None
    try:
        with _Replay(mixed) as replay, torch.enable_grad():
            return net(leaf), replay.outputs
    except Exception:  # whatever a network says to one token, such as that the registers are missing
        return None


def _carried(mixed: Sequence[_Mixed], slopes: Sequence[Tensor], found: Tensor) -> Tensor:
    """Relevance (K, N, T) at the first block of all that was read, but for the first token's own signal."""
    for one, slope in zip(reversed(mixed), reversed(slopes), strict=True):
        read = (torch.einsum("knhrd,nhtd->knhrt", slope, one.values) * one.row).sum((2, 3))
        read[..., 0] = 0  # the class token's own signal goes on
        found = torch.einsum("knt,nts->kns", found, cast(Tensor, one.shares)) + read
    return found


def _looked_into(mode: TorchFunctionMode, func: Any, args: Any, kwargs: Any) -> Any:
    """A function written in Python, under the mode; its attention is fused."""
    with mode:
        return BODIES[func](*args, **{**kwargs, "need_weights": False})


def _same_rows(x: Tensor, output: Tensor) -> bool:
    """Whether x holds what attention gave, (N, heads, T, d), a row a token: images or tokens first."""
    rows = output.transpose(1, 2).flatten(2)
    flat = x.reshape(-1, x.shape[-1])
    return any(
        flat.shape == (r := way.reshape(-1, way.shape[-1])).shape and torch.equal(flat, r)
        for way in (rows, rows.transpose(0, 1))
    )


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).norm() <= CLOSE * other.norm())
