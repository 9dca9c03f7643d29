"""A network of a few kilobytes for tests and continuous integration: it learns colours and blobs, fast."""

from collections import OrderedDict

from torch import nn


def tiny() -> nn.Sequential:
    """Stages stem, stage1 ... stage3 with random weights; (N,3,H,W) -> (N,32,H/8,W/8) >= 0."""
    return nn.Sequential(
        OrderedDict(
            stem=_unit(3, 8, 2), stage1=_unit(8, 16, 2), stage2=_unit(16, 24, 2), stage3=_unit(24, 32, 1)
        )
    )


def _unit(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(),
        )
    )
