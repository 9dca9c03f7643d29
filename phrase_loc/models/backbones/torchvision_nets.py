"""Torchvision's classifiers cut into chains of named stages.

torchvision takes seconds to import, so it is imported when one of these is built and never before.

    resnet*, resnext*, wide_resnet*   stem, layer1 ... layer4
    vgg*                              pool1 ... pool4, conv5, pool5       (pool4 = features.23 of vgg16)
    alexnet                           pool1, pool2, conv5, pool5
    googlenet                         pool1 ... pool4, inception5         (pool2, pool3 = maxpool2, maxpool3)
    squeezenet1_1                     pool1, pool2, pool3, fire9
    densenet121                       stem, block1 ... block4
    efficientnet_b0                   stem, stage1 ... stage7, top
    mobilenet_v2, _v3_large, _v3_small  stem, stage1 ... stage4, top
    mnasnet1_0                        stem, stage1 ... stage6, top
    shufflenet_v2_x1_0                stem, stage2 ... stage4, top
    regnet_y_400mf                    stem, block1 ... block4
    convnext_tiny                     stem, stage1 ... stage4             (signed outputs)
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast
from urllib.error import URLError

from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError

#: Name -> letter of its layers in the paper's table, as torchvision keeps them.
VGG_LAYERS = {
    f"vgg{depth}{norm}": letter
    for depth, letter in (("11", "A"), ("13", "B"), ("16", "D"), ("19", "E"))
    for norm in ("", "_bn")
}

Stages = OrderedDict[str, nn.Module]


def classifier(name: str, pretrained: bool) -> nn.Module:
    """A torchvision classifier, with random weights or the ImageNet weights that torchvision downloads.

    A VGG with random weights comes without its fully connected layers, 120 million numbers that no trunk has.
    """
    models = _torchvision_models()
    if name in VGG_LAYERS and not pretrained:
        return _VGGFeatures(models.vgg, name)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" and not pretrained else {}
    try:
        net = models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None, **options)
    except (URLError, OSError) as error:
        raise DataError(
            f"the ImageNet weights of {name} could not be downloaded ({error}); "
            "fetch the file by hand and name it"
        ) from None
    if name == "googlenet":
        net.transform_input = False  # `Preprocessing` of backbones.py already says what the weights expect
    return net


class _VGGFeatures(nn.Module):
    def __init__(self, vgg: Any, name: str):
        super().__init__()
        layers = vgg.cfgs[VGG_LAYERS[name]]
        self.features = vgg.make_layers(layers, batch_norm=name.endswith("_bn"))
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.constant_(cast(Tensor, module.bias), 0.0)


def stages(name: str, net: nn.Module) -> nn.Sequential:
    """The stages of a classifier, in order, without its pool and classifier; they share its weights."""
    family = next(cut for prefix, cut in CUTS.items() if name.startswith(prefix))
    return nn.Sequential(family(net))


def published_name(name: str, key: str) -> str:
    """The name of a weight in the file that torchvision publishes: DenseNet's is older than its module."""
    return re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key) if name.startswith("densenet") else key


def _torchvision_models() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            "this backbone needs a torchvision that fits the installed torch "
            f"({' '.join(str(error).split())}); install the matching pair, or take efficientnet_lite0"
        ) from None
    return models


def _resnet(net: Any) -> Stages:
    stem = nn.Sequential(OrderedDict(conv1=net.conv1, bn1=net.bn1, relu=net.relu, maxpool=net.maxpool))
    return OrderedDict(stem=stem, layer1=net.layer1, layer2=net.layer2, layer3=net.layer3, layer4=net.layer4)


def _ending_in_pools(last: str) -> Callable[[Any], Stages]:
    """A plain chain of layers: a stage ends after each max pool; a closing pool is a stage of its own."""

    def cut(net: Any) -> Stages:
        layers = list(net.features)
        ends = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        closing = ends[-1] == len(layers)  # the chain ends in a pool: its input is a stage as well
        bounds = [0, *ends[:-1], len(layers) - 1, len(layers)] if closing else [0, *ends, len(layers)]
        names = [f"pool{i}" for i in range(1, len(bounds) - (2 if closing else 1))] + [last]
        names += ["pool5"] if closing else []
        return _slices(net.features, dict(zip(names, pairwise(bounds))))

    return cut


def _googlenet(net: Any) -> Stages:
    parts = {
        "pool1": ("conv1", "maxpool1"),
        "pool2": ("conv2", "conv3", "maxpool2"),
        "pool3": ("inception3a", "inception3b", "maxpool3"),
        "pool4": ("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
        "inception5": ("inception5a", "inception5b"),
    }
    return OrderedDict(
        (stage, nn.Sequential(OrderedDict((part, getattr(net, part)) for part in names)))
        for stage, names in parts.items()
    )


def _densenet(net: Any) -> Stages:
    f = net.features
    cut = {
        "stem": ("conv0", "norm0", "relu0", "pool0"),
        "block1": ("denseblock1", "transition1"),
        "block2": ("denseblock2", "transition2"),
        "block3": ("denseblock3", "transition3"),
        "block4": ("denseblock4", "norm5"),
    }
    found: Stages = OrderedDict(
        (stage, nn.Sequential(OrderedDict((part, getattr(f, part)) for part in names)))
        for stage, names in cut.items()
    )
    found["block4"].add_module("relu5", nn.ReLU())  # a function in torchvision's forward
    return found


def _shufflenet(net: Any) -> Stages:
    stem = nn.Sequential(OrderedDict(conv1=net.conv1, maxpool=net.maxpool))
    return OrderedDict(stem=stem, stage2=net.stage2, stage3=net.stage3, stage4=net.stage4, top=net.conv5)


def _regnet(net: Any) -> Stages:
    return OrderedDict(stem=net.stem, **dict(net.trunk_output.named_children()))


def _table(attribute: str, **bounds: tuple[int, int]) -> Callable[[Any], Stages]:
    """Stages as slices of the chain `net.<attribute>`."""
    return lambda net: _slices(getattr(net, attribute), bounds)


def _slices(chain: nn.Sequential, bounds: dict[str, tuple[int, int]]) -> Stages:
    return OrderedDict((name, chain[first:last]) for name, (first, last) in bounds.items())


#: Beginning of a torchvision name -> how it is cut.
CUTS: dict[str, Callable[[Any], Stages]] = {
    "alexnet": _ending_in_pools("conv5"),
    "vgg": _ending_in_pools("conv5"),
    "squeezenet": _ending_in_pools("fire9"),
    "googlenet": _googlenet,
    "resnet": _resnet,
    "resnext": _resnet,
    "wide_resnet": _resnet,
    "densenet": _densenet,
    "mobilenet_v2": _table(
        "features", stem=(0, 1), stage1=(1, 4), stage2=(4, 7), stage3=(7, 14), stage4=(14, 18), top=(18, 19)
    ),
    "mobilenet_v3_large": _table(
        "features", stem=(0, 1), stage1=(1, 4), stage2=(4, 7), stage3=(7, 13), stage4=(13, 16), top=(16, 17)
    ),
    "mobilenet_v3_small": _table(
        "features", stem=(0, 1), stage1=(1, 2), stage2=(2, 4), stage3=(4, 9), stage4=(9, 12), top=(12, 13)
    ),
    "efficientnet_b0": _table(
        "features",
        stem=(0, 1),
        **{f"stage{i}": (i, i + 1) for i in range(1, 8)},
        top=(8, 9),
    ),
    "mnasnet": _table(
        "layers", stem=(0, 8), **{f"stage{i}": (i + 7, i + 8) for i in range(1, 7)}, top=(14, 17)
    ),
    "shufflenet": _shufflenet,
    "regnet": _regnet,
    "convnext": _table("features", stem=(0, 1), stage1=(1, 2), stage2=(2, 4), stage3=(4, 6), stage4=(6, 8)),
}
