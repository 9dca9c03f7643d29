"""Contrast between images and words, both ways (InfoNCE with several positives).

    which word belongs to the image:   -sum_k t_nk log softmax over words   (other true words do not compete)
    which image belongs to the word:   -sum_k t_nk log softmax over images  (other images with the word do not)

loss(n) is the mean of both. Images that do not count (weight 0) are nobody's rivals. Needs all words in one chunk.
"""

import torch
from torch import Tensor

from phrase_loc.losses.targets import Targets, rivals, shares

COUPLED = True


def terms(scores: Tensor, targets: Targets) -> Tensor:
    """(N,k) scores of all images -> (N,2): word side and image side."""
    said = targets.positive > 0
    share = shares(targets.balance * targets.positive, 1)
    among_words = rivals(scores, targets)
    absent = targets.ignored | (targets.weights == 0)[:, None]
    among_images = scores.masked_fill(absent, -torch.inf)
    return torch.stack(
        [_against(among_words, scores, said, share, 1), _against(among_images, scores, said, share, 0)], 1
    )


def close(terms: Tensor) -> Tensor:
    """(1,N,2) -> (N,)."""
    return terms[0].mean(1)


def _against(rival: Tensor, scores: Tensor, said: Tensor, share: Tensor, dim: int) -> Tensor:
    """(N,): sum over true words of share * [log(exp(s) + sum of exp over the negatives along `dim`) - s]."""
    negatives = rival.masked_fill(said, -torch.inf)
    floor = (
        torch.finfo(scores.dtype).min / 4
    )  # without negatives nothing is lost; -inf would give NaN gradients
    total = negatives.clamp_min(floor).logsumexp(dim, keepdim=True)
    return (share * (torch.logaddexp(total, scores) - scores)).sum(1)
