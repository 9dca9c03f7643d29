"""Losses on where words are, not on whether: scores at locations against a map, and captions against each other.

    loss(word) = KL( q || softmax over locations of s ),     q = map / sum of the map

The softmax is that of a log-sum-exp pool with r = 1: a mild one, since the map that counts, excitation backprop's,
is linear in the features and not exponential in the score.

    loss(image) = JS( p_1, p_2 ),     p_c = mean over the words of caption c of softmax over locations of s

Two captions of one photograph tell of the same things in other words, so their words should win at the same places.
"""

import torch
from torch import Tensor


def at_locations(scores: Tensor, maps: Tensor) -> Tensor:
    """(T,h,w) scores of words in their images, (T,g,g) maps >= 0 -> (T,); 0 where the map is empty."""
    height, width = scores.shape[-2:]
    target = torch.nn.functional.adaptive_avg_pool2d(maps[:, None], (height, width)).flatten(1)
    total = target.sum(1, keepdim=True)
    target = target / total.clamp_min(torch.finfo(target.dtype).tiny)
    entropy = torch.special.entr(target).sum(1)
    crossed = -(target * scores.flatten(1).log_softmax(1)).sum(1)
    return torch.where(total[:, 0] > 0, crossed - entropy, 0.0)


def captions_apart(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats: two (N,h,w), each map sums to 1 or is 0 throughout -> (N,); 0 beside a 0."""
    both = torch.stack([first.flatten(1), second.flatten(1)])
    told = (both.sum(2) > 0).all(0)
    apart = torch.special.entr(both.mean(0)).sum(1) - torch.special.entr(both).sum(2).mean(0)
    return torch.where(told, apart, 0.0)
