"""What training minimises: functions of word scores and weak labels.

A loss is a function of scores (N,k) and targets that gives (N,): what k of the words contribute to the loss of each
image. 100,000 words need not be scored at once: it is summed over chunks of them. A new loss is an entry in LOSSES.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Weak labels of N images for k words."""

    positive: Tensor  # (N,k) strength in [0,1] with which a word belongs to an image; 0 where it was not said
    ignored: Tensor  # (N,k) bool: words that are neither true nor false of the image, none of them positive
    balance: Tensor  # (k,) weight of each word, larger for rare ones
    correction: Tensor  # (k,) how many words each stands for as a negative; 1 unless sampled
    weights: Tensor  # (N,) 1, or 0 for images that do not count
    #: (k,N) share of each word in the images' captions, where a loss asks for it
    captions: Tensor | None = None


class Loss(NamedTuple):
    """A loss; where images of a batch compete it is `coupled`: it gets the scores of all processes in one chunk."""

    of: Callable[[Tensor, Targets], Tensor]
    coupled: bool = False


def _sigmoid(scores: Tensor, targets: Targets) -> Tensor:
    """Multi-label logistic loss: each word alone is there or not, softly labelled by its strength.

        loss(n) = sum_k b_k c_nk [ softplus(s_nk) - y_nk s_nk ]

    b balances rare words, c counts a sampled negative for the words it stands for, ignored words are left out.
    """
    said = targets.positive > 0
    count = targets.balance * (said + ~said * targets.correction)
    each = count * (F.softplus(scores) - targets.positive * scores)
    return each.masked_fill(targets.ignored, 0.0).sum(1)


def _image_word(scores: Tensor, targets: Targets) -> Tensor:
    """Contrast between images and words, both ways (InfoNCE with several positives).

        which word belongs to the image:   -sum_k t_nk log softmax over words   (other true words do not compete)
        which image belongs to the word:   -sum_k t_nk log softmax over images  (other images with the word do not)

    Images that do not count (weight 0) are nobody's rivals.
    """
    said = targets.positive > 0
    weight = targets.balance * targets.positive
    share = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    absent = targets.ignored | (targets.weights == 0)[:, None]
    sides = []
    for dim, rivals in ((1, _rivals(scores, targets)), (0, scores.masked_fill(absent, -torch.inf))):
        # without negatives nothing is lost; -inf would give NaN gradients
        negatives = rivals.masked_fill(said, -torch.inf).clamp_min(torch.finfo(scores.dtype).min / 4)
        total = negatives.logsumexp(dim, keepdim=True)
        sides.append((share * (torch.logaddexp(total, scores) - scores)).sum(1))
    return torch.stack(sides, 1).mean(1)


def _image_caption(scores: Tensor, targets: Targets) -> Tensor:
    """Contrast between images and whole captions (InfoNCE), a caption scored by its words' mean score.

        S_nm = sum_k s_nk P_km,    P the share of word k in caption m
        loss(n) = 1/2 [ -log softmax over captions of S_nn  - log softmax over images of S_nn ]

    A caption whose words are all true of another image is not held against that image.
    """
    assert targets.captions is not None
    shares = targets.captions.to(scores.dtype)
    against, told = scores @ shares, shares.sum(0) > 0  # (N, N), (N,)
    own = torch.arange(len(against), device=scores.device)
    idle = targets.weights == 0
    truth = (targets.positive > 0).to(scores.dtype) @ shares > 1 - 1e-6  # all words of m are said of n
    out = truth | ~told | idle
    out[own, own] = False
    by_caption = against.masked_fill(out, -torch.inf).log_softmax(1)[own, own]
    out = out | idle[:, None]
    out[own, own] = False
    by_image = against.masked_fill(out, -torch.inf).log_softmax(0)[own, own]
    return torch.where(told[:, None], -torch.stack([by_caption, by_image], 1), 0.0).mean(1)


def _rivals(scores: Tensor, targets: Targets) -> Tensor:
    """Scores as they enter a softmax over words: ignored words out, sampled negatives standing for several."""
    standing = scores + targets.correction.log() * (targets.positive == 0)
    return standing.masked_fill(targets.ignored, -torch.inf)


def balance(counts: Sequence[int], power: float = 0.5, most: float = 10.0) -> Tensor:
    """(V,) class weights that let rare words count: (median count / count) ** power, within 1/most..most.

    The mean over the occurrences (not over the words) is 1, so the size of the loss does not change. A count of 0 is
    read as 1. Power 0 leaves all words alike, 1 gives each word the same total.
    """
    seen = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    weights = (seen.median() / seen).pow(power).clamp(1 / most, most)
    return (weights * seen.sum() / (weights * seen).sum()).float()


#: Name -> loss.
LOSSES = {
    "sigmoid": Loss(_sigmoid),
    "image_word": Loss(_image_word, coupled=True),
    "image_caption": Loss(_image_caption, coupled=True),
}
