"""What training minimises: functions of word scores and weak labels.

A loss is a function of scores (N,k) and targets that gives (N,): what k of the words contribute to the loss of each
image. 100,000 words need not be scored at once: it is summed over chunks of them. A new loss is an entry in LOSSES.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Weak labels of N images for k words."""

    positive: Tensor  # (N,k) strength in [0,1] with which a word belongs to an image; 0 where it was not said
    ignored: Tensor  # (N,k) bool: words that are neither true nor false of the image, none of them positive
    correction: Tensor  # (k,) how many words each stands for as a negative; 1 unless sampled
    weights: Tensor  # (N,) 1, or 0 for images that do not count


def _sigmoid(scores: Tensor, targets: Targets) -> Tensor:
    """Multi-label logistic loss: each word alone is there or not, softly labelled by its strength.

        loss(n) = sum_k c_nk [ softplus(s_nk) - y_nk s_nk ]

    c counts a sampled negative for the words it stands for, ignored words are left out.
    """
    said = targets.positive > 0
    count = said + ~said * targets.correction
    each = count * (F.softplus(scores) - targets.positive * scores)
    return each.masked_fill(targets.ignored, 0.0).sum(1)


#: Name -> loss: (N,k) scores and their labels -> (N,).
LOSSES: dict[str, Callable[[Tensor, Targets], Tensor]] = {"sigmoid": _sigmoid}
