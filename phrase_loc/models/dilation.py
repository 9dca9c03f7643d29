"""Finer maps from the same weights: the last strides of a trunk become dilations (the "a trous" algorithm).

Every output of the strided network is kept at its own place, and new ones appear between.
"""

import math

from torch import nn

from phrase_loc.errors import ConfigError

USUAL_STRIDE = 32


def set_output_stride(trunk: nn.Sequential, output_stride: int) -> None:
    """Changes a trunk of output stride 32 in place so that its maps have `output_stride` pixels to a cell.

    Args:
        trunk: a chain of named stages, fresh from its builder.
        output_stride: 32 (nothing changes), 16 or 8.

    Raises:
        ConfigError: another stride, or a trunk whose stages shrink by pooling.
    """
    if output_stride not in (32, 16, 8):
        raise ConfigError(f"output_stride must be 32, 16 or 8, got {output_stride!r}")
    strided = [name for name, stage in trunk.named_children() if any(map(_strides, stage.modules()))]
    times = int(math.log2(USUAL_STRIDE // output_stride))
    if len(strided) < times:
        raise ConfigError(
            f"output_stride {output_stride} needs stages that shrink by convolution, and this backbone has "
            "none; take a ResNet, RegNet, MobileNet or EfficientNet"
        )
    for stage in reversed(strided[len(strided) - times :] if times else []):
        _dilate_from(trunk, stage)


def _dilate_from(trunk: nn.Sequential, first: str) -> None:
    names = [name for name, _ in trunk.named_children()]
    before = True  # convolutions up to the strided one see the grid as it was
    for name in names[names.index(first) :]:
        for module in trunk.get_submodule(name).modules():
            if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and _pair(module.stride) != (1, 1):
                raise ConfigError(
                    f"output_stride below 32 needs stages that shrink by convolution, but {name} pools; "
                    "take a ResNet, RegNet, MobileNet or EfficientNet"
                )
            if not isinstance(module, nn.Conv2d):
                continue
            if _strides(module) and name == first:
                _require_odd(module, name)
                module.stride, before = (1, 1), False
            elif not before:
                _widen(module)


def _widen(conv: nn.Conv2d) -> None:
    for axis in (0, 1):
        if conv.kernel_size[axis] > 1:
            conv.dilation = tuple(d * 2 if i == axis else d for i, d in enumerate(conv.dilation))
            if not isinstance(conv.padding, str):
                conv.padding = tuple(p * 2 if i == axis else p for i, p in enumerate(conv.padding))


def _strides(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(_pair(module.stride)) > 1


def _require_odd(conv: nn.Conv2d, stage: str) -> None:
    if any(size % 2 == 0 for size in conv.kernel_size):
        raise ConfigError(
            f"output_stride below 32 needs odd kernels, but {stage} shrinks by one of {conv.kernel_size}; "
            "take a ResNet, RegNet, MobileNet or EfficientNet"
        )


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
