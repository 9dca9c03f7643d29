"""Top-down attention: which part of the activations is the evidence for a word?

Every method has one signature: `METHODS[name](net, x, units)` with the part of a network above some activations `x`
(N, C, h, w), and word units (K, D) over its output, gives maps (K, N, h, w) >= 0. Each also takes `weights=` (P,
K), which averages words into phrases. The package knows callables and tensors only, so it can be lifted out.
"""

from collections.abc import Callable

from torch import Tensor

from phrase_loc.attention.baselines import (
    attn_lrp,
    cam,
    deconvnet,
    grad_cam,
    gradient,
    guided_backprop,
    lrp,
    occlusion,
    rise,
)  # fmt: skip
from phrase_loc.attention.class_token import class_lrp
from phrase_loc.attention.competition import SIGNED
from phrase_loc.attention.excitation import contrastive_mwp, excitation_backprop, maps_at_depths, mwp
from phrase_loc.attention.tape import KeptPositive

METHODS: dict[str, Callable[..., Tensor]] = {
    method.__name__: method
    for method in (
        attn_lrp, cam, class_lrp, contrastive_mwp, deconvnet, grad_cam, gradient, guided_backprop, lrp, mwp,
        occlusion, rise,
    )
}  # fmt: skip

__all__ = ["METHODS", "SIGNED", "KeptPositive", "excitation_backprop", "maps_at_depths", *METHODS]
