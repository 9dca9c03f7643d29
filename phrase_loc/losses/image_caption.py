"""Contrast between images and whole captions (InfoNCE), a caption scored by its words' mean score.

    S_nm = sum_k s_nk P_km,    P the share of word k in caption m
    loss(n) = 1/2 [ -log softmax over captions of S_nn  - log softmax over images of S_nn ]

Rivals of the first are the batch's captions and hard negatives made for image n alone (its caption with one
word replaced). A caption whose words are all true of another image is not held against that image.
"""

import torch
from torch import Tensor

from phrase_loc.errors import ConfigError
from phrase_loc.losses.targets import Targets

COUPLED = True


def terms(scores: Tensor, targets: Targets) -> Tensor:
    """(N,k) scores of all images -> (N,2): caption side and image side."""
    if targets.captions is None:
        raise ConfigError("the loss image_caption needs captions; this run was built without them")
    shares = targets.captions.to(scores.dtype)
    against = scores @ shares  # (N, M)
    count, texts = against.shape
    own = torch.arange(count, device=scores.device)
    truth = (targets.positive > 0).to(scores.dtype) @ shares > 1 - 1e-6  # all words of m are said of n
    out = truth | (shares.sum(0) == 0) | _foreign(targets, count, texts)
    out[:, :count] |= targets.weights == 0
    out[own, own] = False
    by_caption = against.masked_fill(out, -torch.inf).log_softmax(1)[own, own]
    out_images = out[:, :count] | (targets.weights == 0)[:, None]
    out_images[own, own] = False
    by_image = against[:, :count].masked_fill(out_images, -torch.inf).log_softmax(0)[own, own]
    told = shares.sum(0)[:count] > 0
    return torch.where(told[:, None], -torch.stack([by_caption, by_image], 1), 0.0)


def close(terms: Tensor) -> Tensor:
    """(1,N,2) -> (N,)."""
    return terms[0].mean(1)


def _foreign(targets: Targets, count: int, texts: int) -> Tensor:
    """(N,M) bool: hard negatives that were made for another image."""
    out = torch.zeros(count, texts, dtype=torch.bool, device=targets.positive.device)
    if targets.hard_owner is not None and texts > count:
        images = torch.arange(count, device=out.device)[:, None]
        out[:, count:] = targets.hard_owner[None, :] != images
    return out
