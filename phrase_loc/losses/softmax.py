"""Softmax over tags: the words of an image share probability 1 between them (targets 1/k where all are equal).

    t_n = b y_n / sum_k b_k y_nk,     loss(n) = -sum_k t_nk log softmax(s_n)_k

In chunks: (logsumexp of the rivals, sum b y s, sum b y) of each add up to the same loss.
"""

import torch
from torch import Tensor

from phrase_loc.losses.targets import Targets, rivals

COUPLED = False


def terms(scores: Tensor, targets: Targets) -> Tensor:
    """(N,k) -> (N,3): log-sum-exp over these words, weighted sum of the true scores, sum of their weights."""
    weight = targets.balance * targets.positive
    return torch.stack([rivals(scores, targets).logsumexp(1), (weight * scores).sum(1), weight.sum(1)], dim=1)


def close(terms: Tensor) -> Tensor:
    """(c,N,3) -> (N,); 0 for an image without words."""
    all_words = terms[..., 0].logsumexp(0)
    scored, weight = terms[..., 1].sum(0), terms[..., 2].sum(0)
    loss = all_words - scored / weight.clamp_min(torch.finfo(terms.dtype).tiny)
    return torch.where(weight > 0, loss, 0.0)
