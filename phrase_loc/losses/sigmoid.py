"""Multi-label logistic loss: each word alone is there or not, softly labelled by its strength.

    loss(n) = sum_k b_k c_nk [ softplus(s_nk) - y_nk s_nk ]

b balances rare words, c counts a sampled negative for the words it stands for, ignored words are left out.
"""

import torch.nn.functional as F
from torch import Tensor

from phrase_loc.losses.targets import Targets

COUPLED = False


def terms(scores: Tensor, targets: Targets) -> Tensor:
    """(N,k) -> (N,1): the sum over these words."""
    said = targets.positive > 0
    count = targets.balance * (said + ~said * targets.correction)
    each = count * (F.softplus(scores) - targets.positive * scores)
    return each.masked_fill(targets.ignored, 0.0).sum(1, keepdim=True)


def close(terms: Tensor) -> Tensor:
    """(c,N,1) -> (N,)."""
    return terms.sum(0)[:, 0]
