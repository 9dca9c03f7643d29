"""Which torch functions do the same to a winner: one tuple for each rule of `excitation`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTED = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
)  # fmt: skip
MULTIPLIED = (torch.matmul, Tensor.matmul, Tensor.__rmatmul__, torch.mm, Tensor.mm)
AVERAGED = (
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, F.interpolate, F.upsample, torch.mean, Tensor.mean, torch.sum, Tensor.sum,
)  # fmt: skip
ADDED = (torch.add, Tensor.add, Tensor.add_, Tensor.__radd__)
SUBTRACTED = (torch.sub, Tensor.sub, Tensor.sub_)
DIVIDED = (torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.true_divide, Tensor.__truediv__)
GATED = (torch.mul, Tensor.mul, Tensor.mul_, Tensor.__rmul__, *DIVIDED)
GATED_AND_SHIFTED = (torch.addcmul, Tensor.addcmul)

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
PASSED = (*_ACTIVATIONS, *_NORMALISATIONS, *_COPIES)
CAST = (
    Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as,
    Tensor.cpu, Tensor.cuda,
)  # fmt: skip

RESHAPED = (
    torch.flatten, Tensor.flatten, Tensor.unflatten, torch.unflatten, Tensor.view, Tensor.view_as,
    torch.reshape, Tensor.reshape, Tensor.reshape_as, torch.squeeze, Tensor.squeeze, torch.unsqueeze,
    Tensor.unsqueeze,
)  # fmt: skip
JOINED = (torch.cat, torch.concat, torch.concatenate)
#: max pooling -> the function that gives the places of the maxima as well
POOLED: dict[Any, Any] = {
    F.max_pool1d: F.max_pool1d_with_indices,
    F.max_pool2d: F.max_pool2d_with_indices,
    F.max_pool3d: F.max_pool3d_with_indices,
    F.adaptive_max_pool1d: F.adaptive_max_pool1d_with_indices,
    F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d: F.adaptive_max_pool3d_with_indices,
    torch.max_pool1d: F.max_pool1d_with_indices,
    torch.max_pool2d: F.max_pool2d_with_indices,
    torch.max_pool3d: F.max_pool3d_with_indices,
}
_TURNED: tuple[Any, ...] = (Tensor.T, Tensor.mT)  # descriptors, which the stubs take for tensors
ROUTED = (
    *POOLED.values(), F.pad, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.transpose,
    Tensor.transpose, torch.permute, Tensor.permute,
    torch.movedim, Tensor.movedim, torch.swapaxes, Tensor.t, Tensor.__getitem__, torch.narrow, Tensor.narrow,
    torch.chunk, Tensor.chunk, torch.split, Tensor.split, Tensor.unbind, torch.unbind, torch.stack,
    Tensor.expand, Tensor.expand_as, torch.amax, Tensor.amax, torch.max, Tensor.max, torch.maximum,
    torch.flip, Tensor.flip, torch.roll, torch.index_select, Tensor.index_select,
    *(p.__get__ for p in _TURNED), torch.select, Tensor.select,
)  # fmt: skip

_DATA: Any = Tensor.data
CONSTANT = (
    torch.norm, Tensor.norm, torch.linalg.vector_norm, torch.var, Tensor.var, torch.std, Tensor.std,
    torch.var_mean, torch.std_mean, Tensor.detach, torch.detach, _DATA.__get__, torch.zeros_like,
    torch.ones_like, torch.empty_like, torch.full_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty,
    Tensor.new_full, Tensor.new_tensor, Tensor.item, Tensor.tolist,
)  # fmt: skip
