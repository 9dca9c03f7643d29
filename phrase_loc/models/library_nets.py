"""Networks of torchvision and transformers cut into chains of named stages.

Both libraries take seconds to import, so each is imported when one of its networks is built and never before.

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
    transformers                      stem, stage1 ...                    (without the pooler)
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import reason

Stages = OrderedDict[str, nn.Module]

#: VGG with or without batch norm -> letter of its layers in the paper's table, as torchvision keeps them.
VGG = {f"vgg{depth}{norm}": letter for depth, letter in zip((11, 13, 16, 19), "ABDE") for norm in ("", "_bn")}
TORCHVISION = (
    *("alexnet", *VGG, "googlenet", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"),
    *("wide_resnet50_2", "densenet121", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large"),
    *("mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x1_0", "regnet_y_400mf", "efficientnet_b0"),
    "convnext_tiny",
)
#: `model_type` of a transformers config -> (attribute of the stem, attribute path of the list of stages).
TRANSFORMERS = {
    "resnet": ("embedder", "encoder.stages"),
    "convnext": ("embeddings", "encoder.stages"),
    "convnextv2": ("embeddings", "encoder.stages"),
    "regnet": ("embedder", "encoder.stages"),
}
DEEPEST = 1000


def from_torchvision(name: str, pretrained: bool) -> tuple[nn.Sequential, dict[str, str]]:
    """A classifier without pool and head, its weights random or downloaded, and their names there -> here."""
    net = _torchvision_net(name, pretrained)
    cut = next(cut for prefix, cut in CUTS.items() if name.startswith(prefix))
    trunk = nn.Sequential(cut(net))
    names = _renamed(net, trunk)
    if name.startswith("densenet"):  # the published file is older than the module
        names |= {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key): ours for key, ours in names.items()}
    return trunk, names


def from_transformers(source: str, pretrained: bool) -> tuple[nn.Sequential, dict[str, str]]:
    """The same of a folder with config.json and model.safetensors, or a hub id."""
    config = architecture(source)
    if not pretrained:
        net = from_architecture(config)
    else:
        from transformers import AutoModel

        with _reading(source):
            net = AutoModel.from_pretrained(source)
    trunk = transformers_stages(net)
    return trunk, _renamed(net, trunk)


def _renamed(net: nn.Module, trunk: nn.Module) -> dict[str, str]:
    """Name in a whole network -> name in the trunk cut from it, by the identity of the shared tensors."""
    ours = {id(tensor): name for name, tensor in trunk.state_dict(keep_vars=True).items()}
    theirs = net.state_dict(keep_vars=True)
    return {name: ours[id(tensor)] for name, tensor in theirs.items() if id(tensor) in ours}


def _torchvision_net(name: str, pretrained: bool) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            "this backbone needs a torchvision that fits the installed torch "
            f"({reason(error)}); install the matching pair, or take efficientnet_lite0"
        ) from None
    if name in VGG and not pretrained:
        return _vgg_features(models.vgg, name)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" and not pretrained else {}
    try:
        net = models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None, **options)
    except (URLError, OSError) as error:
        raise DataError(
            f"the ImageNet weights of {name} could not be downloaded ({error}); "
            "fetch the file by hand and name it"
        ) from None
    if name == "googlenet":
        net.transform_input = False  # `Preprocessing` already says what the weights expect
    return net


def _vgg_features(vgg: Any, name: str) -> nn.Module:
    """A VGG without its fully connected layers, 120 million numbers that no trunk has."""
    features = vgg.make_layers(vgg.cfgs[VGG[name]], batch_norm=name.endswith("_bn"))
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(cast(Tensor, module.bias), 0.0)
    return nn.ModuleDict({"features": features})


def _parts(net: nn.Module, /, **stages: str) -> Stages:
    """Stages as named parts of a network, or chains of several of them."""
    found = Stages()
    for stage, names in stages.items():
        parts = OrderedDict((name.rpartition(".")[2], net.get_submodule(name)) for name in names.split())
        found[stage] = nn.Sequential(parts) if len(parts) > 1 else next(iter(parts.values()))
    return found


def _slices(attribute: str, names: str, *ends: int) -> Callable[[Any], Stages]:
    """Stages as consecutive slices of the chain `net.<attribute>`."""

    def cut(net: Any) -> Stages:
        chain, bounds = net.get_submodule(attribute), pairwise((0, *ends))
        return OrderedDict((name, chain[i:j]) for name, (i, j) in zip(names.split(), bounds, strict=True))

    return cut


def _ending_in_pools(last: str) -> Callable[[Any], Stages]:
    """A plain chain of layers: a stage ends after each max pool; a closing pool is a stage of its own, pool5."""

    def cut(net: Any) -> Stages:
        features = net.get_submodule("features")
        count = len(features)
        ends = [i + 1 for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        pools = [f"pool{i + 1}" for i in range(len(ends))]
        if ends[-1] == count:  # the chain ends in a pool: its input is a stage as well
            names, ends = [*pools[:-1], last, "pool5"], [*ends[:-1], count - 1, count]
        else:
            names, ends = [*pools, last], [*ends, count]
        return _slices("features", " ".join(names), *ends)(net)

    return cut


def _densenet(net: Any) -> Stages:
    blocks = {f"block{i}": f"denseblock{i} transition{i}" for i in range(1, 4)}
    found = _parts(net.features, stem="conv0 norm0 relu0 pool0", **blocks, block4="denseblock4 norm5")
    cast(nn.Sequential, found["block4"]).add_module("relu5", nn.ReLU())  # a function in torchvision's forward
    return found


_resnet = partial(_parts, stem="conv1 bn1 relu maxpool", **{f"layer{i}": f"layer{i}" for i in range(1, 5)})
_FOUR, _SIX = "stem stage1 stage2 stage3 stage4 top", "stage1 stage2 stage3 stage4 stage5 stage6"
#: Beginning of a torchvision name -> how it is cut.
CUTS: dict[str, Callable[[Any], Stages]] = {
    "alexnet": _ending_in_pools("conv5"),
    "vgg": _ending_in_pools("conv5"),
    "squeezenet": _ending_in_pools("fire9"),
    "googlenet": partial(
        _parts,
        pool1="conv1 maxpool1",
        pool2="conv2 conv3 maxpool2",
        pool3="inception3a inception3b maxpool3",
        pool4="inception4a inception4b inception4c inception4d inception4e maxpool4",
        inception5="inception5a inception5b",
    ),
    "resnet": _resnet,
    "resnext": _resnet,
    "wide_resnet": _resnet,
    "densenet": _densenet,
    "mobilenet_v2": _slices("features", _FOUR, 1, 4, 7, 14, 18, 19),
    "mobilenet_v3_large": _slices("features", _FOUR, 1, 4, 7, 13, 16, 17),
    "mobilenet_v3_small": _slices("features", _FOUR, 1, 2, 4, 9, 12, 13),
    "efficientnet_b0": _slices("features", f"stem {_SIX} stage7 top", *range(1, 10)),
    "mnasnet": _slices("layers", f"stem {_SIX} top", *range(8, 15), 17),
    "shufflenet": partial(
        _parts, stem="conv1 maxpool", stage2="stage2", stage3="stage3", stage4="stage4", top="conv5"
    ),
    "regnet": partial(_parts, stem="stem", **{f"block{i}": f"trunk_output.block{i}" for i in range(1, 5)}),
    "convnext": _slices("features", "stem stage1 stage2 stage3 stage4", 1, 2, 4, 6, 8),
}


class Plain(nn.Module):
    """A part of a transformers network that takes and gives one tensor."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,C',h,w)."""
        out = self.part(x)
        return out[0] if isinstance(out, tuple) else out


def architecture(source: str) -> dict[str, Any]:
    """The config.json of a folder or hub id, kept in a saved model so that it needs neither again."""
    from transformers import AutoConfig

    with _reading(source):
        config = AutoConfig.from_pretrained(source)
    found: dict[str, Any] = config.to_dict()
    _family(found)
    return found


def preprocessor(source: str) -> dict[str, Any]:
    """Mean, std and size in the preprocessor_config.json of a folder or hub id, as far as it has them."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:  # there is none
        return {}
    size = facts.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    found = {"mean": facts.get("image_mean"), "std": facts.get("image_std"), "size": size}
    return {key: tuple(value) if key != "size" else value for key, value in found.items() if value}


def from_architecture(config: dict[str, Any]) -> nn.Module:
    """The network that a config.json describes, with random weights."""
    from transformers import AutoConfig, AutoModel

    _family(config)
    depths = config.get("depths")
    if isinstance(depths, list) and not all(isinstance(n, int) and 0 <= n <= DEEPEST for n in depths):
        raise DataError(f"the architecture has stages of at most {DEEPEST} blocks, got depths {depths!r:.80}")
    options = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **options))
    except Exception as error:  # of settings that are anything, transformers raises anything
        raise DataError(
            f"the architecture is none that transformers can build ({type(error).__name__}: "
            f"{reason(error)}); copy the model again"
        ) from None


def transformers_stages(net: nn.Module) -> nn.Sequential:
    """Stem and stages of such a network; they share its weights."""
    config: Any = net.config
    stem, chain = _family(config.to_dict())
    parts = [("stem", Plain(net.get_submodule(stem)))]
    parts += [(f"stage{i}", Plain(stage)) for i, stage in enumerate(net.get_submodule(chain).children(), 1)]
    return nn.Sequential(OrderedDict(parts))


def _family(config: dict[str, Any]) -> tuple[str, str]:
    kind = config.get("model_type", "none")
    if not isinstance(kind, str) or kind not in TRANSFORMERS:
        raise ConfigError(
            f"a transformers backbone must be one of {', '.join(TRANSFORMERS)}, got model_type {kind!r:.80}; "
            "take a convolutional network"
        )
    return TRANSFORMERS[kind]


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a broken folder, transformers and safetensors raise anything
        what = "the folder" if Path(source).is_dir() else "neither a folder here nor a hub id within reach:"
        raise DataError(
            f"transformers backbone {source!r}: {what} cannot be loaded ({reason(error)}); "
            "give a folder with config.json and model.safetensors"
        ) from None
