"""Other libraries at the tasks of `attention.py`, called as their own pages show it.

A library gets a copy of the network, since TorchRay and grad-cam leave traces on it. None offers many units of
one image from one forward pass: 16 units are 16 calls. Each function raises ImportError when its library is
absent and gives {} for a network it cannot do.
"""

import copy
import sys
from collections.abc import Callable
from types import MethodType
from unittest.mock import MagicMock, patch

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

    if not (network.contrast or network.tokens):
        return {}
    net = network.copy().requires_grad_(True)

    def plane(tokens: Tensor) -> Tensor:  # as its page for ViTs has it
        return tokens[:, 1:].mT.unflatten(2, (14, 14))

    more = {"reshape_transform": plane} if network.tokens else {}
    cam = GradCAM(model=net, target_layers=[net.get_submodule(network.stage)], **more)
    one = images[:1]

    def maps(unit: int) -> object:
        return cam(input_tensor=one, targets=[ClassifierOutputTarget(unit)])

    return {"g1": lambda: maps(UNIT), "g16": lambda: [maps(u) for u in UNITS]}


def lxt(network: Network, images: Tensor) -> Tasks:
    """CP-LRP of AttnLRP's library on torchvision's ViT, gradient times input, on the modules of a copy alone.

    Its own `monkey_patch` changes the classes of the whole process. Its BERT needs transformers 4 and is left out.
    """
    if not network.tokens:
        return {}
    bert = MagicMock(modeling_bert=None)
    with patch.dict(sys.modules, {"lxt.efficient.models.bert": bert}):
        from lxt.efficient.models.vit_torch import cp_LRP
    net, one = network.copy(), images[:1]
    for module in net.modules():
        if patched := cp_LRP.get(type(module)):
            module.original_forward = module.forward
            module.forward = MethodType(patched.args[0], module)

    def maps(unit: int) -> Tensor:
        leaf = one.clone().requires_grad_()
        return (one * torch.autograd.grad(net(leaf)[0, unit], leaf)[0]).sum(1)

    return {"u1": lambda: maps(UNIT), "u16": lambda: [maps(u) for u in UNITS]}


def chefer(network: Network, images: Tensor) -> Tasks:
    """Relevance of attention by its gradient (Chefer et al., arXiv 2103.15679), over the blocks above the map.

    The authors patch a copy of each model; this is their update rule around torch's own attention, written out.
    """
    from torch.overrides import TorchFunctionMode

    from phrase_loc.attention.tape import BODIES

    if not network.tokens:
        return {}

    class Matrices(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def __torch_function__(
            self, func: object, types: object, args: tuple = (), kwargs: object = None
        ) -> object:
            if func in BODIES:
                with self:
                    return BODIES[func](*args, **(kwargs or {}))
            if func is not torch.nn.functional.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            q, k, v = args[:3]
            self.seen.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
            return self.seen[-1] @ v

    def maps(units: list[int]) -> list[Tensor]:
        with torch.no_grad():
            tokens = network.below(images[:1])
        leaf, found = tokens.requires_grad_(), []
        with Matrices() as matrices:
            scores = network.above(leaf) @ network.units.T
        for unit in units:
            slopes = torch.autograd.grad(scores[0, unit], matrices.seen, retain_graph=True)
            relevance = torch.eye(leaf.shape[2], device=leaf.device)
            for matrix, slope in zip(matrices.seen, slopes, strict=True):
                relevance = relevance + (matrix.detach() * slope).clamp(min=0).mean(1)[0] @ relevance
            found.append(relevance[0, 1:])
        return found

    return {"u1": lambda: maps([UNIT]), "u16": lambda: maps(UNITS)}


def autograd(network: Network, images: Tensor) -> Tasks:
    """A forward pass with gradients and the gradient of one score by the image: what memory is compared with."""
    if not network.tokens:
        return {}
    whole = network.copy().requires_grad_(True)

    def gradient() -> Tensor:
        leaf = images[:1].clone().requires_grad_()
        return torch.autograd.grad(whole(leaf)[0, UNIT], leaf)[0]

    return {"u1": gradient}


PEERS: dict[str, Callable[[Network, Tensor], Tasks]] = {
    "torchray": torchray,
    "zennit": zennit,
    "captum": captum,
    "grad_cam": grad_cam,
    "lxt": lxt,
    "chefer": chefer,
    "autograd": autograd,
}
