"""The word classifier on top of a trunk: features scored against word vectors, at every location.

    h(x, y) = relu( conv1x1(trunk) )                    (N,D,h,w) >= 0: excitation backprop needs that
    unit(w) = project(vector of w)                      (K,D), for any word with a vector, trained or not
    score(w; x, y) = scale * unit(w) . h(x, y) + bias(w)
    score(w) = pool over locations                      (N,K)

Letters: N images, K words, D channels, h w grid.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, choose


class Average(nn.Module):
    """The mean."""

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        return scores.mean((2, 3))


class LogSumExp(nn.Module):
    """A soft maximum, (1/r) log mean exp(r s), between mean (r -> 0) and maximum (Pinheiro & Collobert 2015)."""

    log_sharpness: Tensor

    def __init__(self, sharpness: float = 4.0):
        super().__init__()
        self.register_buffer("log_sharpness", torch.tensor(math.log(sharpness)))

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        r, flat = self.log_sharpness.exp(), scores.flatten(2)
        return (torch.logsumexp(r * flat, -1) - math.log(flat.shape[-1])) / r


#: Name -> pool of scores at locations, given its sharpness r (the average has none).
POOLS: dict[str, Callable[[float], nn.Module]] = {
    "average": lambda sharpness: Average(),
    "log_sum_exp": LogSumExp,
}


def pool_named(name: str) -> Callable[[float], nn.Module]:
    """An entry of POOLS; raises ConfigError for an unknown name and for one that is no longer there."""
    if name in ("attention", "top", "max"):
        raise ConfigError(
            f"the pool {name!r} is no longer there: it was no better than log_sum_exp (docs/experiments.md); "
            "take pool log_sum_exp"
        )
    return choose(POOLS, name, "pool")


class TextHead(nn.Module):
    """Scores words at every location of a feature map.

    Args:
        channels: of the trunk's last stage.
        embedding: E, size of a word vector.
        hidden: D, channels of the 1x1 convolution; None reads the last stage as it is (D = channels).
        pool: a key of POOLS.
        sharpness: r of log_sum_exp.
        free: a word vector is the word's unit with its bias as last number, E = D + 1: no projection.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        hidden: int | None = 512,
        pool: str = "log_sum_exp",
        sharpness: float = 4.0,
        free: bool = False,
    ):
        super().__init__()
        dimensions = channels if hidden is None else hidden
        self.lift = nn.Identity() if hidden is None else nn.Conv2d(channels, hidden, 1)
        self.project, self.word_bias = (
            _free(embedding, dimensions) if free else _mapped(embedding, dimensions)
        )
        # free units find their own length; a common scale beside it only hastens over-fitting
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=not free)
        self.pool = pool_named(pool)(sharpness)

    def start_bias(self, value: float) -> None:
        """Lets every word begin with this bias; a free head's words bring their own and stay as they are."""
        if isinstance(self.word_bias, nn.Linear):
            nn.init.constant_(self.word_bias.bias, value)

    def features(self, x: Tensor) -> Tensor:
        """(N,C,h,w) of the last stage -> (N,D,h,w) >= 0."""
        return F.relu(self.lift(x))

    def unit_scores(self, features: Tensor, units: Tensor, bias: Tensor) -> Tensor:
        """(N,D,h,w), units (K,D), their biases (K,) -> scores at locations (N,K,h,w)."""
        scores = F.conv2d(features, units[:, :, None, None])
        return self.log_scale.exp() * scores + bias[:, None, None]


class Columns(nn.Module):
    """Some of the numbers of each vector."""

    def __init__(self, first: int, last: int):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, vectors: Tensor) -> Tensor:
        """(K,E) -> (K, last - first)."""
        return vectors[:, self.first : self.last]


def _mapped(embedding: int, dimensions: int) -> tuple[nn.Module, nn.Module]:
    project, bias = nn.Linear(embedding, dimensions, bias=False), nn.Linear(embedding, 1)
    nn.init.normal_(project.weight, std=dimensions**-0.5)  # for vectors of length 1: both learn at one rate
    nn.init.zeros_(bias.weight)
    nn.init.zeros_(bias.bias)
    return project, bias


def _free(embedding: int, dimensions: int) -> tuple[nn.Module, nn.Module]:
    if embedding != dimensions + 1:
        raise ConfigError(
            f"a free head of {dimensions} channels needs word vectors of {dimensions + 1} numbers, got {embedding}"
        )
    return Columns(0, dimensions), Columns(dimensions, dimensions + 1)
