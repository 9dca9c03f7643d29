"""Which rule of `rules` each torch function follows: one table, read from top to bottom."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention import routes, rules
from phrase_loc.attention.rules import Rule

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_AVERAGES = (
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, F.interpolate, F.upsample, torch.mean, Tensor.mean, torch.sum, Tensor.sum,
)  # fmt: skip
_ACTIVATIONS = (
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardtanh_,
    F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.elu, F.elu_, F.selu, F.celu, F.silu, F.gelu, F.mish,
    F.hardswish, F.hardsigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_,
    F.softplus, F.tanh, torch.tanh, Tensor.tanh, torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_,
)  # fmt: skip
_NORMALISATIONS = (
    F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm, F.rms_norm, F.normalize,
)  # fmt: skip
_COPIES = (
    F.dropout, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.clone, Tensor.clone, Tensor.contiguous, Tensor.requires_grad_, torch.nan_to_num,
)  # fmt: skip
_RESHAPES = (
    torch.flatten, Tensor.flatten, Tensor.unflatten, torch.unflatten, Tensor.view, Tensor.view_as,
    torch.reshape, Tensor.reshape, Tensor.reshape_as, torch.squeeze, Tensor.squeeze, torch.unsqueeze,
    Tensor.unsqueeze,
)  # fmt: skip
_TURNED: tuple[Any, ...] = (Tensor.T, Tensor.mT)  # descriptors, which the stubs take for tensors
_DATA: Any = Tensor.data
_ROUTES = (
    *routes.WITH_PLACES.values(), F.pad, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.transpose,
    Tensor.transpose, torch.permute, Tensor.permute,
    torch.movedim, Tensor.movedim, torch.swapaxes, Tensor.t, Tensor.__getitem__, torch.narrow, Tensor.narrow,
    torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.unbind, torch.unbind, torch.stack,
    Tensor.expand, Tensor.expand_as, torch.amax, Tensor.amax, torch.max, Tensor.max, torch.maximum,
    torch.flip, Tensor.flip, torch.roll, torch.index_select, Tensor.index_select,
    *(p.__get__ for p in _TURNED), torch.select, Tensor.select,
)  # fmt: skip
_STATISTICS = (
    torch.norm, Tensor.norm, torch.linalg.vector_norm, torch.var, Tensor.var, torch.std, Tensor.std,
    torch.var_mean, torch.std_mean, Tensor.detach, torch.detach, _DATA.__get__, torch.zeros_like,
    torch.ones_like, torch.empty_like, torch.full_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty,
    Tensor.new_full, Tensor.new_tensor, Tensor.item, Tensor.tolist,
)  # fmt: skip

RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys((*_CONVOLUTIONS, F.linear), rules.weighted),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__rmatmul__, torch.mm, Tensor.mm), rules.multiplied),
    **dict.fromkeys(_AVERAGES, rules.averaged),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__radd__), rules.added),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_), rules.subtracted),
    **dict.fromkeys((*_ACTIVATIONS, *_NORMALISATIONS, *_COPIES), rules.passed),
    **dict.fromkeys(
        (Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as,
         Tensor.cpu, Tensor.cuda), rules.cast),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_, Tensor.__rmul__, *rules.DIVISIONS), rules.gated),
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), rules.shifted_gate),
    **dict.fromkeys(_RESHAPES, routes.reshaped),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), routes.joined),
    **dict.fromkeys(routes.WITH_PLACES, routes.pooled),
    **dict.fromkeys(_ROUTES, routes.routed),
    **dict.fromkeys(_STATISTICS, rules.constant),
}  # fmt: skip
