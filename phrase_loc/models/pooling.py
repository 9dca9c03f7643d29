"""From the scores of a word at every location to its score for the image, and back.

A pool says two things: how strong the word is in the whole image, and, once it has won, which location it won
at (`posterior`). The second is the prior with which a top-down pass enters the feature map. Letters: N
images, K words, h w grid.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Pool(nn.Module):
    """What a pool offers besides `forward`, (N,K,h,w) -> (N,K)."""

    def posterior(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (K,N,h,w) >= 0, each map sums to 1."""
        raise NotImplementedError


class Average(Pool):
    """The mean: locations win in proportion to their positive scores, as in excitation backprop."""

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        return scores.mean((2, 3))

    def posterior(self, scores: Tensor) -> Tensor:
        """Positive scores divided by their sum; even where no score is positive."""
        flat = scores.flatten(2).clamp(min=0)
        total = flat.sum(-1, keepdim=True)
        even = torch.full_like(flat, 1 / flat.shape[-1])
        return _to_maps(
            torch.where(total > 0, flat / total.clamp_min(torch.finfo(flat.dtype).tiny), even), scores
        )


class LogSumExp(Pool):
    """A soft maximum, (1/r) log mean exp(r s), between mean (r -> 0) and maximum (Pinheiro & Collobert 2015).

    Its derivative, softmax(r s) over locations, is its posterior.
    """

    def __init__(self, sharpness: float = 4.0, learned: bool = False):
        super().__init__()
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)), requires_grad=learned)

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        r, flat = self.log_sharpness.exp(), scores.flatten(2)
        return (torch.logsumexp(r * flat, -1) - math.log(flat.shape[-1])) / r

    def posterior(self, scores: Tensor) -> Tensor:
        """softmax(r s)."""
        return _to_maps((self.log_sharpness.exp() * scores.flatten(2)).softmax(-1), scores)


class Attention(LogSumExp):
    """Each word attends over locations, weights softmax(r s), and scores their weighted mean."""

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        flat = scores.flatten(2)
        return ((self.log_sharpness.exp() * flat).softmax(-1) * flat).sum(-1)


class Top(Pool):
    """The mean over the best tenth of the locations, at least one, which share the win evenly."""

    share = 0.1

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        return self._best(scores).values.mean(-1)

    def posterior(self, scores: Tensor) -> Tensor:
        """Even over the best locations, 0 elsewhere."""
        best = self._best(scores).indices
        won = torch.zeros_like(scores.flatten(2)).scatter(-1, best, 1 / best.shape[-1])
        return _to_maps(won, scores)

    def _best(self, scores: Tensor) -> torch.return_types.topk:
        flat = scores.flatten(2)
        return flat.topk(max(1, round(self.share * flat.shape[-1])), dim=-1)


class Max(Top):
    """The best location alone."""

    share = 0.0


#: Name -> pool, given a sharpness and whether it is learned (what has none ignores both).
POOLS: dict[str, Callable[[float, bool], Pool]] = {
    "average": lambda sharpness, learned: Average(),
    "log_sum_exp": LogSumExp,
    "attention": Attention,
    "top": lambda sharpness, learned: Top(),
    "max": lambda sharpness, learned: Max(),
}


def _to_maps(flat: Tensor, like: Tensor) -> Tensor:
    return flat.unflatten(2, like.shape[2:]).transpose(0, 1)
