"""Class activation mapping on the signature of excitation backprop (Zhou et al., arXiv 1512.04150).

CAM reads the last features h (N, D, h', w') that are averaged over the plane and weighed by the units: the
map is their weighted sum, sum_d u_kd h_d. It says nothing of the layers below, so below the last
convolution it is the same map, resized.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from phrase_loc.attention import seeds
from phrase_loc.errors import ConfigError

_POOLS = (
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool1d, F.avg_pool2d,
    F.avg_pool3d, torch.mean, Tensor.mean,
)  # fmt: skip
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def cam(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    units: Tensor,
    *,
    prior: seeds.Prior | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Weighted sum of the last features, clamped at 0: (K, N, h, w).

    Args:
        net: the network above `x`; it gives features with locations, or averages them as its last step.
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over net's output.
        prior: weights of the locations (K, N, h', w') from the units' scores there.
        weights: (P, K) averages the words' maps, before the clamp; the result is then (P, N, h, w).

    Raises:
        ConfigError: net ends in something else than an average over locations: it has no CAM.
    """
    with torch.inference_mode(False), torch.no_grad():
        h = _last_features(net, x.detach().clone())
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        units, weights, at_location = seeds.asked(h, units, prior, weights)
        maps = torch.einsum("nd...,kd->kn...", h, units)
        maps = seeds.mixed(maps if at_location is None else maps * at_location, weights).clamp(min=0)
        if maps.shape[2:] != x.shape[2:]:
            maps = F.interpolate(maps, x.shape[2:], mode=_MODES[x.dim() - 2], align_corners=False)
        return maps.to(torch.promote_types(x.dtype, torch.float32))


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
