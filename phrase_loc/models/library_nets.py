"""Networks of torchvision and transformers cut into chains of named stages.

Both libraries take seconds to import, so each is imported when one of its networks is built.

    resnet*, resnext*, wide_resnet*   stem, layer1 ... layer4
    vgg*                              pool1 ... pool4, conv5, pool5       (pool4 = features.23 of vgg16)
    alexnet                           pool1, pool2, conv5, pool5
    googlenet                         pool1 ... pool4, inception5         (pool2, pool3 = maxpool2, maxpool3)
    squeezenet1_1                     pool1, pool2, pool3, fire9
    densenet121, regnet_y_400mf       stem, block1 ... block4
    efficientnet_b0, mnasnet1_0       stem, stage1 ... stage7, or 6, top
    mobilenet_*, shufflenet_v2_x1_0   stem, stage1, or 2, ... stage4, top
    convnext_tiny                     stem, stage1 ... stage4             (signed outputs)
    transformers                      stem, stage1 ...                    (without the pooler)
    vision transformers               stem, block1 ..., top               (top: the closing norm, as a plane)

Tokens travel as a plane one wide, (N,C,T,1), channels first as all else; those of the class and the registers come
first, and the stem's `prefix` counts them. Position embeddings are interpolated for other input sizes.
"""

import copy
import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast
from urllib.error import URLError

import torch
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import reason

Stages = OrderedDict[str, nn.Module]
Run = Callable[[Any, Tensor], Tensor]  # what a part of a network does

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
#: `model_type` of a vision transformer, and of a pair of one with a text tower.
VISION = (
    *("vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "metaclip_2_vision_model"),
    *("siglip_vision_model", "siglip2_vision_model"),
)
PAIRS = ("clip", "metaclip_2", "siglip", "siglip2")
DEEPEST = 1000
UNTRUSTED: dict[str, Any] = {"trust_remote_code": False}  # else transformers asks on the terminal


def from_torchvision(name: str, pretrained: bool) -> tuple[nn.Sequential, dict[str, str]]:
    """A classifier without pool and head, its weights random or downloaded, and their names there -> here."""
    net = torchvision_net(name, pretrained)
    cut = next(cut for prefix, cut in CUTS.items() if name.startswith(prefix))
    trunk = nn.Sequential(cut(net))
    names = renamed(net, trunk)
    if name.startswith("densenet"):  # the published file is older than the module
        names |= {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key): ours for key, ours in names.items()}
    return trunk, names


def transformers_network(source: str) -> Any:
    """A network with its weights, all of them: transformers would fill what is missing with random numbers."""
    from transformers import AutoModel
    from transformers.utils import logging

    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        options = {"dtype": torch.float32, "output_loading_info": True, **UNTRUSTED}
        net, told = cast(Any, AutoModel.from_pretrained(source, **options))
    finally:
        logging.set_verbosity(shown)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    # a pooler that nobody trained, as in the files of DINO and ViT, is no part of ours
    lacking = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise DataError(f"{source} lacks {len(lacking)} of its weights (first: {lacking[0]}); copy it again")
    chains = {name for name, module in net.named_modules() if isinstance(module, nn.ModuleList)}
    if further := sorted(key for key in told["unexpected_keys"] if re.split(r"\.\d+\.", key)[0] in chains):
        raise DataError(
            f"{source} has weights of layers that its config.json lacks ({further[0]}); copy it again"
        )
    return net.eval()


def renamed(net: nn.Module, trunk: nn.Module) -> dict[str, str]:
    """Name in a whole network -> name in the trunk cut from it, by the identity of the shared tensors."""
    ours = {id(tensor): name for name, tensor in trunk.state_dict(keep_vars=True).items()}
    theirs = net.state_dict(keep_vars=True)
    return {name: ours[id(tensor)] for name, tensor in theirs.items() if id(tensor) in ours}


def torchvision_net(name: str, pretrained: bool, whole: bool = False) -> nn.Module:
    """A classifier of torchvision; a VGG that is neither `pretrained` nor `whole` has its features alone."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            "this backbone needs a torchvision that fits the installed torch "
            f"({reason(error)}); install the matching pair, or take efficientnet_lite0"
        ) from None
    if name in VGG and not (pretrained or whole):
        return _vgg_features(models.vgg, name)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" and not pretrained else {}
    try:
        net = models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None, **options)
    except (URLError, OSError) as error:
        raise DataError(
            f"the ImageNet weights of {name} could not be downloaded ({error}); fetch the file, name it"
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


def parts(net: nn.Module, /, **stages: str) -> Stages:
    """Stages as named parts of a network, or chains of several of them."""
    found = Stages()
    for stage, names in stages.items():
        own = OrderedDict((name.rpartition(".")[2], net.get_submodule(name)) for name in names.split())
        found[stage] = nn.Sequential(own) if len(own) > 1 else next(iter(own.values()))
    return found


def _slices(attribute: str, names: str, *ends: int) -> Callable[[Any], Stages]:
    """Stages as consecutive slices of the chain `net.<attribute>`."""
    return lambda net: _sliced(net.get_submodule(attribute), names.split(), ends)


def _sliced(chain: Any, names: Sequence[str], ends: Sequence[int]) -> Stages:
    return Stages((name, chain[i:j]) for name, (i, j) in zip(names, pairwise((0, *ends)), strict=True))


def _ending_in_pools(net: Any, last: str) -> Stages:
    """A plain chain of layers: a stage ends after each max pool; a closing pool is a stage of its own, pool5."""
    features = net.get_submodule("features")
    count = len(features)
    ends = [i + 1 for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    pools = [f"pool{i + 1}" for i in range(len(ends))]
    if ends[-1] == count:  # the chain ends in a pool: its input is a stage as well
        return _sliced(features, [*pools[:-1], last, "pool5"], [*ends[:-1], count - 1, count])
    return _sliced(features, [*pools, last], [*ends, count])


def _densenet(net: Any) -> Stages:
    blocks = {f"block{i}": f"denseblock{i} transition{i}" for i in range(1, 4)}
    found = parts(net.features, stem="conv0 norm0 relu0 pool0", **blocks, block4="denseblock4 norm5")
    cast(nn.Sequential, found["block4"]).add_module("relu5", nn.ReLU())  # a function in torchvision's forward
    return found


LAYERS = {f"layer{i}": f"layer{i}" for i in range(1, 5)}
_resnet = partial(parts, stem="conv1 bn1 relu maxpool", **LAYERS)
_FOUR, _SIX = "stem stage1 stage2 stage3 stage4 top", "stage1 stage2 stage3 stage4 stage5 stage6"
#: Beginning of a torchvision name -> how it is cut.
CUTS: dict[str, Callable[[Any], Stages]] = {
    "alexnet": partial(_ending_in_pools, last="conv5"),
    "vgg": partial(_ending_in_pools, last="conv5"),
    "squeezenet": partial(_ending_in_pools, last="fire9"),
    "googlenet": partial(
        parts,
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
        parts, stem="conv1 maxpool", stage2="stage2", stage3="stage3", stage4="stage4", top="conv5"
    ),
    "regnet": partial(parts, stem="stem", **{f"block{i}": f"trunk_output.block{i}" for i in range(1, 5)}),
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

    found: dict[str, Any] = AutoConfig.from_pretrained(source, **UNTRUSTED).to_dict()
    if found.get("model_type") in PAIRS:  # of which a trunk is the image tower
        found = found["vision_config"]
    _family(found)
    return found


def from_architecture(config: dict[str, Any]) -> nn.Module:
    """The network that a config.json describes, with random weights."""
    from transformers import AutoConfig, AutoModel

    _family(config)
    depths = config.get("depths")
    if isinstance(depths, list) and not all(isinstance(n, int) and 0 <= n <= DEEPEST for n in depths):
        raise DataError(f"the architecture has stages of at most {DEEPEST} blocks, got depths {depths!r:.80}")
    options = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **options))


def transformers_stages(net: nn.Module) -> nn.Sequential:
    """Stem and stages of such a network; they share its weights."""
    net = getattr(net, "vision_model", net)
    config: Any = net.config
    if config.model_type in VISION:
        return vision_transformer(net).trunk
    stem, chain = _family(config.to_dict())
    stages = Stages(stem=Plain(net.get_submodule(stem)))
    stages |= {f"stage{i}": Plain(stage) for i, stage in enumerate(net.get_submodule(chain).children(), 1)}
    return nn.Sequential(stages)


def _family(config: dict[str, Any]) -> tuple[str, str]:
    kind = config.get("model_type", "none")
    if not isinstance(kind, str) or kind not in (*TRANSFORMERS, *VISION):
        raise ConfigError(
            f"a transformers backbone must be one of {', '.join((*TRANSFORMERS, *VISION, *PAIRS))}, got model_type "
            f"{kind!r:.80}; take a network of another kind"
        )
    return TRANSFORMERS.get(kind, ("", ""))


@dataclass(frozen=True)
class Vision:
    """An image network: named stages, what closes a trunk (None: nothing), and what pools the last into (N,D)."""

    stages: Stages
    top: nn.Module | None
    pool: nn.Module

    @property
    def trunk(self) -> nn.Sequential:
        """The stages and, where there is one, what closes them."""
        return nn.Sequential(self.stages if self.top is None else Stages(**self.stages, top=self.top))


class Part(nn.Module):
    """Some modules and parameters of a network, shared with it, under a function of them and x."""

    def __init__(self, net: nn.Module, keep: Sequence[str], run: Run, prefix: int | None = None):
        super().__init__()
        self.net, self.run = copy.copy(net), run
        self.net._modules = {name: module for name, module in net._modules.items() if name in keep}
        self.net._parameters = {name: value for name, value in net._parameters.items() if name in keep}
        self.prefix = prefix  # tokens before those of the patches; None: it gives planes

    def forward(self, x: Tensor) -> Tensor:
        """What the function gives."""
        try:
            return self.run(self.net, x)
        except (AssertionError, RuntimeError) as error:
            if self.prefix is None or isinstance(error, NotImplementedError):
                raise
            raise ConfigError(
                f"images of {x.shape[-1]} pixels do not fit the network ({reason(error)})"
            ) from None


class Block(nn.Module):
    """A block of a transformer over tokens as planes one wide: (N,C,T,1) -> (N,C,T,1)."""

    def __init__(self, block: nn.Module, rope: nn.Module | None = None, prefix: int = 0, patch: int = 1):
        super().__init__()
        self.block, self.rope, self.prefix, self.patch = block, rope, prefix, patch
        masked = "attention_mask" in inspect.signature(block.forward).parameters
        self.given: dict[str, Any] = {"attention_mask": None} if masked else {}

    def forward(self, x: Tensor) -> Tensor:
        """The block's own values."""
        given = dict(self.given)
        if self.rope is not None:  # rotary embeddings ask an image for its size
            side = self.patch * math.isqrt(x.shape[2] - self.prefix)
            given["position_embeddings"] = self.rope(torch.empty(1, 3, side, side, device=x.device))
        out = self.block(tokens_of(x), **given)
        return column(out[0] if isinstance(out, tuple) else out)


def tokens_of(x: Tensor) -> Tensor:
    """(N,C,T,1) or a plane (N,C,h,w) -> (N,T,C)."""
    return x.flatten(2).transpose(1, 2)


def column(tokens: Tensor) -> Tensor:
    """(N,T,C) -> (N,C,T,1)."""
    return tokens.transpose(1, 2).unsqueeze(-1)


def patches_of(x: Tensor, prefix: int) -> Tensor:
    """The square plane of the patches, whose tokens stand after `prefix` others: (..., T, 1) -> (..., h, w)."""
    side = math.isqrt(x.shape[-2] - prefix)
    return x[..., prefix:, 0].unflatten(-1, (side, side))


def closed(net: Any, x: Tensor, norm: str, prefix: int) -> Tensor:
    """The closing norm of tokens (N,C,T,1), as a plane of the patches (N,C,h,w)."""
    return patches_of(column(getattr(net, norm)(tokens_of(x))), prefix)


def vision_transformer(net: Any) -> Vision:
    """A vision transformer of transformers (VISION); the parts share its weights."""
    norm = next(name for name in ("post_layernorm", "layernorm", "norm") if hasattr(net, name))
    first = any(hasattr(net.embeddings, name) for name in ("class_embedding", "cls_token"))
    prefix = int(first) + getattr(net.config, "num_register_tokens", 0)
    wide = "interpolate_pos_encoding" in inspect.signature(net.embeddings.forward).parameters
    stages = Stages(stem=Part(net, ("embeddings", "pre_layrnorm"), partial(_embedded, wide=wide), prefix))
    rope = (getattr(net, "rope_embeddings", None), prefix, net.config.patch_size)
    blocks = next(module for module in net.modules() if isinstance(module, nn.ModuleList))
    stages |= {f"block{i}": Block(block, *rope) for i, block in enumerate(blocks, 1)}
    pool = Part(net, (norm, "head"), partial(_pooled, norm=norm))
    return Vision(stages, Part(net, (norm,), partial(closed, norm=norm, prefix=prefix)), pool)


def _embedded(net: Any, images: Tensor, wide: bool) -> Tensor:
    if "siglip2" in net.config.model_type:  # it takes patches and the shape of their grid
        patch = net.config.patch_size
        cut = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (N,3,h,w,patch,patch)
        shapes = torch.tensor([cut.shape[2:4]] * len(images), device=images.device)
        tokens = net.embeddings(cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2), shapes)
    else:
        tokens = net.embeddings(images, **({"interpolate_pos_encoding": True} if wide else {}))
    return column(net.pre_layrnorm(tokens) if hasattr(net, "pre_layrnorm") else tokens)


def _pooled(net: Any, x: Tensor, norm: str) -> Tensor:
    closing = getattr(net, norm)
    return net.head(closing(tokens_of(x))) if hasattr(net, "head") else closing(x[:, :, 0, 0])
