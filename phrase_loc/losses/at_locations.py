"""A loss on where words are, not on whether: captions against each other.

    loss(image) = JS( p_1, p_2 ),     p_c = mean over the words of caption c of softmax over locations of s

Two captions of one photograph tell of the same things in other words, so their words should win at the same places.
"""

import torch
from torch import Tensor


def captions_apart(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats: two (N,h,w), each map sums to 1 or is 0 throughout -> (N,); 0 beside a 0."""
    both = torch.stack([first.flatten(1), second.flatten(1)])
    told = (both.sum(2) > 0).all(0)
    apart = torch.special.entr(both.mean(0)).sum(1) - torch.special.entr(both).sum(2).mean(0)
    return torch.where(told, apart, 0.0)
