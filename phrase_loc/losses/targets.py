"""The interface of a loss and what it knows about the labels."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Weak labels of N images for k words.

    Attributes:
        positive: (N,k) strength in [0,1] with which a word belongs to an image; 0 where it was not said.
        ignored: (N,k) bool: words that are neither true nor false of the image; never where positive > 0.
        balance: (k,) weight of each word, larger for rare ones.
        correction: (k,) how many words of the vocabulary each stands for as a negative; 1 unless sampled.
        weights: (N,) 1, or 0 for images that do not count.
        captions: (k,M) share of each word in caption m, columns sum to 1 or 0; the first N are the images' own,
            the others hard negatives; None where no loss asks for it.
        hard_owner: (M - N,) image against which each hard negative stands.
    """

    positive: Tensor
    ignored: Tensor
    balance: Tensor
    correction: Tensor
    weights: Tensor
    captions: Tensor | None = None
    hard_owner: Tensor | None = None


class Loss(Protocol):
    """What a module of this package offers."""

    COUPLED: bool

    def terms(self, scores: Tensor, targets: Targets) -> Tensor:
        """(N,k) scores -> (N,m)."""

    def close(self, terms: Tensor) -> Tensor:
        """(c,N,m) terms of all chunks -> (N,)."""


def shares(positive: Tensor, dim: int) -> Tensor:
    """Strengths divided by their sum along `dim`, 0 where there are none: the paper's 1/k targets."""
    total = positive.sum(dim, keepdim=True)
    return positive / total.clamp_min(torch.finfo(positive.dtype).tiny)


def rivals(scores: Tensor, targets: Targets) -> Tensor:
    """Scores as they enter a softmax over words: ignored words out, sampled negatives standing for several."""
    standing = scores + targets.correction.log() * (targets.positive == 0)
    return standing.masked_fill(targets.ignored, -torch.inf)
