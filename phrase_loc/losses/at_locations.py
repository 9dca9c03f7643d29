"""Where a word is, as far as somebody says it: the scores at locations against a map, for self-training.

    loss(word) = KL( q || softmax over locations of s ),     q = map / sum of the map

The softmax is that of a log-sum-exp pool with r = 1: a mild one, since the map that counts, excitation backprop's,
is linear in the features and not exponential in the score.
"""

import torch
from torch import Tensor


def at_locations(scores: Tensor, maps: Tensor) -> Tensor:
    """(T,h,w) scores of words in their images, (T,g,g) maps >= 0 -> (T,); 0 where the map is empty."""
    target = torch.nn.functional.adaptive_avg_pool2d(maps[:, None], tuple(scores.shape[-2:])).flatten(1)
    total = target.sum(1, keepdim=True)
    target = target / total.clamp_min(torch.finfo(target.dtype).tiny)
    entropy = torch.special.entr(target).sum(1)
    crossed = -(target * scores.flatten(1).log_softmax(1)).sum(1)
    return torch.where(total[:, 0] > 0, crossed - entropy, 0.0)
