"""Other libraries at the tasks of `attention.py`, called as their own pages show it.

A library gets a copy of the network, since TorchRay and grad-cam leave traces on it. None offers many units of
one image from one forward pass: 16 units are 16 calls. Each function raises ImportError when its library is
absent and gives {} for a network it cannot do.
"""

import copy
from collections.abc import Callable

import torch
from attention_networks import Network
from torch import Tensor, nn

Tasks = dict[str, Callable[[], object]]
UNIT = 5
UNITS = [i * 61 % 1000 for i in range(16)]


def torchray(network: Network, images: Tensor) -> Tasks:
    """MWP and c-MWP; its residual split needs the network's blocks rewritten first."""
    from torchray.attribution.excitation_backprop import (
        contrastive_excitation_backprop,
        excitation_backprop,
        update_resnet,
    )

    if not network.contrast:
        return {}
    net, one, at = network.copy(), images[:1], network.stage
    if network.name == "resnet50":
        update_resnet(net)

    def plain(unit: int | list[int], x: Tensor = one) -> Tensor:
        return excitation_backprop(net, x, unit, saliency_layer=at)

    def contrast(unit: int) -> Tensor:
        return contrastive_excitation_backprop(
            net, one, unit, saliency_layer=at, contrast_layer=network.contrast
        )

    return {
        "u1": lambda: plain(UNIT),
        "c1": lambda: contrast(UNIT),
        "u16": lambda: [plain(u) for u in UNITS],
        "c16": lambda: [contrast(u) for u in UNITS],
        "b8": lambda: plain([UNIT] * len(images), images),
    }


def zennit(network: Network, images: Tensor) -> Tasks:
    """MWP by its ExcitationBackprop composite, with the activations below the map made once by hand."""
    from zennit.composites import ExcitationBackprop
    from zennit.torchvision import ResNetCanonizer

    if network.above is None or not network.contrast:
        return {}
    canonizers = [ResNetCanonizer()] if network.name == "resnet50" else []
    composite = ExcitationBackprop(canonizers=canonizers, stabilizer=1e-20, zero_params="bias")
    top = nn.Linear(network.units.shape[1], len(network.units), bias=False).requires_grad_(False)
    top.weight.data = network.units
    upper = nn.Sequential(copy.deepcopy(network.above), top).eval()

    def maps(units: list[int], x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            seen = network.below(x)
        leaf, found = seen.requires_grad_(), []
        with composite.context(upper) as hooked:
            scores = hooked(leaf)
            for unit in units:
                one = torch.zeros_like(scores).index_fill_(1, torch.tensor([unit], device=x.device), 1)
                (slope,) = torch.autograd.grad(scores, leaf, one, retain_graph=True)
                found.append(slope.sum(1))
        return found

    return {
        "u1": lambda: maps([UNIT], images[:1]),
        "u16": lambda: maps(UNITS, images[:1]),
        "b8": lambda: maps([UNIT], images),
    }


def captum(network: Network, images: Tensor) -> Tasks:
    """Grad-CAM at the stage; its LRP refuses stock residual networks."""
    from captum.attr import LayerGradCam

    if not network.contrast:
        return {}
    net = network.copy()
    cam = LayerGradCam(net, net.get_submodule(network.stage))
    one = images[:1]
    return {
        "g1": lambda: cam.attribute(one, target=UNIT).detach(),
        "g16": lambda: [cam.attribute(one, target=u).detach() for u in UNITS],
    }


def grad_cam(network: Network, images: Tensor) -> Tasks:
    """pytorch-grad-cam's GradCAM."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if not network.contrast:
        return {}
    net = network.copy().requires_grad_(True)
    cam = GradCAM(model=net, target_layers=[net.get_submodule(network.stage)])
    one = images[:1]

    def maps(unit: int) -> object:
        return cam(input_tensor=one, targets=[ClassifierOutputTarget(unit)])

    return {"g1": lambda: maps(UNIT), "g16": lambda: [maps(u) for u in UNITS]}


PEERS: dict[str, Callable[[Network, Tensor], Tasks]] = {
    "torchray": torchray,
    "zennit": zennit,
    "captum": captum,
    "grad_cam": grad_cam,
}
