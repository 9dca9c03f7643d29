"""CAM and the gradient methods on the signature of excitation backprop, to compare over the same activations.

Gradient methods all ask how the units' scores change with the activations x (Simonyan et al., arXiv 1312.6034), and
differ in what a ReLU hands back and in how channels become one map:

    gradient          the derivative;             max over channels of its size
    guided_backprop   its positive part, where the ReLU was on (Springenberg et al., arXiv 1412.6806)
    deconvnet         its positive part, on or off (Zeiler and Fergus, arXiv 1311.2901)
    grad_cam          the derivative, averaged over the plane, weighs the channels of x (Selvaraju et al.,
                      arXiv 1610.02391)
    cam               no derivative: the last features, weighed by the units (Zhou et al., arXiv 1512.04150)

The score of a unit is the mean of its scores at all locations. The ReLU rules are a function mode of a few lines
and not Captum's or zennit's: theirs replace modules by name, so they miss `F.relu` and refuse a plain callable, and
hooks on a shared model are not for threads.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from phrase_loc.attention.excitation import checked, mixed
from phrase_loc.errors import ConfigError

Net = Callable[[Tensor], Tensor]
_RELUS = (
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardtanh_
)  # fmt: skip  # a ReLU6 module calls hardtanh
_POOLS = (
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool1d, F.avg_pool2d,
    F.avg_pool3d, torch.mean, Tensor.mean,
)  # fmt: skip
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_SMOOTH = (F.silu, F.gelu, F.hardswish, F.mish, F.elu, F.leaky_relu, F.softplus)


def gradient(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Size of the scores' derivative at each location, largest channel: (K, N, h, w) >= 0.

    Args:
        net: the network above `x`, giving (N, D) or (N, D, h', w').
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over net's output.
        weights: (P, K) averages the words' scores into phrases; the result is then (P, N, h, w).

    Raises:
        ConfigError: shapes that do not fit.
    """
    return derivative(net, x, units, weights).abs().amax(2)


def grad_cam(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Channels weighed by their mean derivative, summed, clamped at 0. Arguments as `gradient`."""
    slope = derivative(net, x, units, weights)
    alpha = slope.flatten(3).mean(3)
    return torch.einsum("knc,nc...->kn...", alpha, x.detach().to(alpha)).clamp(min=0)


def guided_backprop(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """The gradient with only positive signals let back through a ReLU. Arguments as `gradient`."""
    return derivative(net, x, units, weights, ReluRule(gated=True)).abs().amax(2)


def deconvnet(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Positive signals go back through a ReLU whether it was on or off. Arguments as `gradient`."""
    return derivative(net, x, units, weights, ReluRule(gated=False)).abs().amax(2)


def cam(
    net: Net,
    x: Tensor,
    units: Tensor,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Class activation map, the weighted sum of the last features, clamped at 0: (K, N, h, w).

    It says nothing of the layers below: below the last convolution it is the same map, resized.

    Args:
        net: the network above `x`; it gives features with locations, or averages them as its last step.
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over net's output.
        weights: (P, K) averages the words' maps, before the clamp; the result is then (P, N, h, w).

    Raises:
        ConfigError: net ends in something else than an average over locations: it has no CAM.
    """
    with torch.inference_mode(False), torch.no_grad():
        h = _last_features(net, x.detach().clone())
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        units, weights = checked(h, units, weights)
        maps = mixed(torch.einsum("nd...,kd->kn...", h, units), weights).clamp(min=0)
        if maps.shape[2:] != x.shape[2:]:
            maps = F.interpolate(maps, x.shape[2:], mode=_MODES[x.dim() - 2], align_corners=False)
        return maps.to(torch.promote_types(x.dtype, torch.float32))


def derivative(
    net: Net,
    x: Tensor,
    units: Tensor,
    weights: Tensor | None = None,
    mode: AbstractContextManager[Any] | None = None,
) -> Tensor:
    """Derivative of each unit's score: (K, N, C, h, w), from one forward and one batched backward pass.

    The network runs in its own dtype and autocast; the result is float32 (float64 for float64 activations).
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        with mode or nullcontext():
            h = net(leaf)
        features = h.detach().to(torch.promote_types(h.dtype, torch.float32))
        with torch.no_grad():
            units, weights = checked(features, units, weights)
            signal = mixed(score_signal(features, units), weights).to(h.dtype)
        if len(signal) == 0:
            slope = signal.new_zeros(0, *x.shape)
        elif h is leaf:  # nothing between the map and the score
            slope = signal
        else:
            (slope,) = torch.autograd.grad(h, leaf, signal, is_grads_batched=True)
    return slope.detach().to(torch.promote_types(x.dtype, torch.float32))


def score_signal(h: Tensor, units: Tensor) -> Tensor:
    """The signal whose product with h is each unit's score, meaned over locations: (K, N, D, ...)."""
    places = h[0, 0].numel()
    return (units / places).view(len(units), 1, units.shape[1], *(1,) * (h.dim() - 2)).expand(-1, *h.shape)


class ReluRule(TorchFunctionMode):
    """Within it a ReLU hands back the positive part of what comes: only where it was on, or everywhere.

    Smooth activations keep their own derivative, after the same clamp. An in-place ReLU must be used by its
    result, as every module does.
    """

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RELUS and not self.gated:
            x = kwargs.pop("input", None) if "input" in kwargs else args[0]
            out = x + (func(x.detach().clone(), *args[1:], **kwargs) - x).detach()  # exactly the ReLU's value
        else:
            out = func(*args, **kwargs)
        if func in (*_RELUS, *_SMOOTH) and out.requires_grad:
            out.register_hook(lambda g: g.clamp(min=0))
        return out


def _last_features(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with _Pooled() as seen:
        h = net(x)
    if h.dim() > 2:
        return h
    for features in reversed(seen.features):
        plane = tuple(range(2, features.dim()))
        if features.shape[:2] == h.shape and torch.allclose(features.mean(plane), h, rtol=1e-2, atol=1e-6):
            return features
    raise ConfigError(
        "class activation maps need a network that ends in an average over locations; this one does not: "
        "use grad_cam, or cut the network above the pool"
    )


class _Pooled(TorchFunctionMode):
    """Remembers what was averaged over the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in _POOLS:
            source = args[0] if args else (kwargs or {}).get("input")
            if isinstance(source, Tensor) and source.dim() > 2:
                self.features.append(source)
        return func(*args, **(kwargs or {}))
