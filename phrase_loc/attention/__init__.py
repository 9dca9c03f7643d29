"""Top-down attention: which part of the activations is the evidence for a word?

Every method has one signature: `METHODS[name](net, x, units)` with the part of a network above some activations `x`
(N, C, h, w), and word units (K, D) over its output, gives maps (K, N, h, w) >= 0. Each also takes `weights=` (P,
K), which averages words into phrases. The package knows callables and tensors only, so it can be lifted out.
"""

from collections.abc import Callable

from torch import Tensor

from phrase_loc.attention.excitation import contrastive_mwp, excitation_backprop, maps_at_depths, mwp
from phrase_loc.attention.gradients import cam, deconvnet, grad_cam, gradient, guided_backprop
from phrase_loc.attention.lrp import lrp
from phrase_loc.attention.perturbation import occlusion, rise
from phrase_loc.attention.tape import KeptPositive

__all__ = [
    "METHODS",
    "KeptPositive",
    "cam",
    "contrastive_mwp",
    "deconvnet",
    "excitation_backprop",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "lrp",
    "maps_at_depths",
    "mwp",
    "occlusion",
    "rise",
]

METHODS: dict[str, Callable[..., Tensor]] = {
    "cam": cam,
    "contrastive_mwp": contrastive_mwp,
    "deconvnet": deconvnet,
    "grad_cam": grad_cam,
    "gradient": gradient,
    "guided_backprop": guided_backprop,
    "lrp": lrp,
    "mwp": mwp,
    "occlusion": occlusion,
    "rise": rise,
}
