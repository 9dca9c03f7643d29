"""The transpose of a linear operation, for K winners at once.

`transpose(op, x, ...)` is J', the map from (K, *output shape) to (K, *x.shape) with J the Jacobian of
`op(., ...)` at x. Convolution and linear have theirs spelt out, with K folded into the batch: half the time
of a batched derivative. Everything else asks autograd. Tensors come channels-last on a CPU, where that makes
the transposed convolution of many winners up to a third cheaper.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[..., Tensor]
_TRANSPOSED = {
    F.conv1d: F.conv_transpose1d,
    F.conv2d: F.conv_transpose2d,
    F.conv3d: F.conv_transpose3d,
}


def transpose(op: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor]:
    """J' of `op(x, *args, **kwargs)` with respect to x: (K, *output shape) -> (K, *x.shape)."""
    if op is F.linear and args:
        return lambda q: q @ args[0]
    if op in _TRANSPOSED and args and not isinstance(_padding(args, kwargs), str):
        return lambda q: _convolution(op, x, q, *args, **kwargs)
    if op is F.adaptive_avg_pool2d and (*args, *kwargs.values()) in (((1, 1),), (1,)) and x.dim() == 4:
        return lambda q: (q / (x.shape[2] * x.shape[3])).expand(len(q), *x.shape)
    return lambda q: _derivative(op, x, q, *args, **kwargs)


def summed_transpose(
    op: Operation, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Sum over channels of x * J'(p / z), without making it: (p (K, N, O, h', w'), 1 / z) -> (K, N, h, w).

    Below the lowest convolution only the sum over channels is asked for, and it can be pulled inside: with
    A = what x sends along each tap of the kernel to each output, made once for all winners, the map is
    p / z . A summed over outputs. For a 1x1 kernel A is z itself, and p goes down as it is wherever z is not
    0. Saves a transposed convolution for each winner. None where it does not apply (groups, other dimensions).
    """
    if op is not F.conv2d:
        return None
    stride, padding, dilation, groups = _geometry(args, kwargs)
    if groups != 1 or isinstance(padding, str):
        return None
    kernel = tuple(weight.shape[2:])

    def down(p: Tensor, per_unit: Tensor) -> Tensor:
        if kernel == (1, 1) and padding == (0, 0):
            won = (p * (per_unit != 0)).sum(2)
            out = won.new_zeros(*won.shape[:2], *x.shape[2:])
            out[..., : stride[0] * p.shape[-2] : stride[0], : stride[1] * p.shape[-1] : stride[1]] = won
            return out
        q = p * per_unit
        if len(q) == 1:
            return (_convolution(op, x, q, weight, None, stride, padding, dilation) * x).sum(2)
        return _by_taps(q, x, weight, kernel, stride, padding, dilation)

    return down


def _by_taps(
    q: Tensor, x: Tensor, weight: Tensor, kernel: tuple[int, int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    shape = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    n, c = x.shape[:2]
    taps = F.unfold(x, **shape).view(n, c, kernel[0] * kernel[1], -1)  # (N, C, T, J)
    sent = torch.einsum("oct,nctj->njot", weight.flatten(2), taps)  # (N, J, O, T)
    won = torch.einsum("knoj,njot->kntj", q.flatten(3), sent)  # (K, N, T, J)
    maps = F.fold(won.flatten(0, 1), x.shape[2:], **shape)  # (K N, 1, h, w)
    return maps.view(len(q), n, *x.shape[2:])


def _convolution(
    op: Operation, x: Tensor, q: Tensor, weight: Tensor, bias: None = None, *args: Any, **kwargs: Any
) -> Tensor:
    stride, padding, dilation, groups = _geometry(args, kwargs, x.dim() - 2)
    rest = [  # rows and columns of x that the stride left over
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(
            x.shape[2:], q.shape[3:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    pulled = _TRANSPOSED[op](q.flatten(0, 1), weight, None, stride, padding, rest, groups, dilation)
    return pulled.unflatten(0, q.shape[:2])


def _derivative(op: Operation, x: Tensor, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if len(q) == 0:
        return q.new_zeros(0, *x.shape)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        out = op(leaf, *args, **kwargs)
    return torch.autograd.grad(out, leaf, q, is_grads_batched=True)[0]


def _padding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get("padding", args[3] if len(args) > 3 else 0)


def _geometry(args: tuple[Any, ...], kwargs: dict[str, Any], dims: int = 2) -> tuple[Any, ...]:
    """(stride, padding, dilation, groups) as tuples, from what followed the bias."""
    names = ("stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    stride, padding, dilation, groups = (given.get(n, d) for n, d in zip(names, (1, 0, 1, 1), strict=True))

    def wide(value: Any) -> Any:
        if isinstance(value, str):
            return value
        value = (value,) if isinstance(value, int) else tuple(value)
        return value * dims if len(value) == 1 else value

    return wide(stride), wide(padding), wide(dilation), groups
