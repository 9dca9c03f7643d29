"""What training minimises: functions of word scores and weak labels.

Every loss has two steps, so that 100,000 words need not be scored at once:

    terms(scores (N,k), targets) -> (N,m)      what k of the words contribute
    close(terms of all chunks (c,N,m)) -> (N,) loss of each image

A new loss is a pair of such functions and an entry in LOSSES.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.errors import ConfigError


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


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        terms: (N,k) scores and their targets -> (N,m).
        close: (c,N,m) terms of all chunks -> (N,).
        coupled: whether images of a batch compete with one another: such a loss gets the scores of all processes
            and all words in one chunk.
    """

    terms: Callable[[Tensor, Targets], Tensor]
    close: Callable[[Tensor], Tensor]
    coupled: bool = False


def _sigmoid_terms(scores: Tensor, targets: Targets) -> Tensor:
    """Multi-label logistic loss: each word alone is there or not, softly labelled by its strength.

        loss(n) = sum_k b_k c_nk [ softplus(s_nk) - y_nk s_nk ]

    b balances rare words, c counts a sampled negative for the words it stands for, ignored words are left out.

    (N,k) -> (N,1): the sum over these words.
    """
    said = targets.positive > 0
    count = targets.balance * (said + ~said * targets.correction)
    each = count * (F.softplus(scores) - targets.positive * scores)
    return each.masked_fill(targets.ignored, 0.0).sum(1, keepdim=True)


def _sigmoid_close(terms: Tensor) -> Tensor:
    """(c,N,1) -> (N,)."""
    return terms.sum(0)[:, 0]


def _softmax_terms(scores: Tensor, targets: Targets) -> Tensor:
    """Softmax over tags: the words of an image share probability 1 between them (targets 1/k where all are equal).

        t_n = b y_n / sum_k b_k y_nk,     loss(n) = -sum_k t_nk log softmax(s_n)_k

    In chunks: (logsumexp of the rivals, sum b y s, sum b y) of each add up to the same loss.

    (N,k) -> (N,3): log-sum-exp over these words, weighted sum of the true scores, sum of their weights.
    """
    weight = targets.balance * targets.positive
    return torch.stack([rivals(scores, targets).logsumexp(1), (weight * scores).sum(1), weight.sum(1)], dim=1)


def _softmax_close(terms: Tensor) -> Tensor:
    """(c,N,3) -> (N,); 0 for an image without words."""
    all_words = terms[..., 0].logsumexp(0)
    scored, weight = terms[..., 1].sum(0), terms[..., 2].sum(0)
    loss = all_words - scored / weight.clamp_min(torch.finfo(terms.dtype).tiny)
    return torch.where(weight > 0, loss, 0.0)


def _image_word_terms(scores: Tensor, targets: Targets) -> Tensor:
    """Contrast between images and words, both ways (InfoNCE with several positives).

        which word belongs to the image:   -sum_k t_nk log softmax over words   (other true words do not compete)
        which image belongs to the word:   -sum_k t_nk log softmax over images  (other images with the word do not)

    loss(n) is the mean of both. Images that do not count (weight 0) are nobody's rivals. Needs all words in
    one chunk.

    (N,k) scores of all images -> (N,2): word side and image side.
    """
    said = targets.positive > 0
    share = shares(targets.balance * targets.positive, 1)
    among_words = rivals(scores, targets)
    absent = targets.ignored | (targets.weights == 0)[:, None]
    among_images = scores.masked_fill(absent, -torch.inf)
    return torch.stack(
        [_against(among_words, scores, said, share, 1), _against(among_images, scores, said, share, 0)], 1
    )


def _mean(terms: Tensor) -> Tensor:
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


def _image_caption_terms(scores: Tensor, targets: Targets) -> Tensor:
    """Contrast between images and whole captions (InfoNCE), a caption scored by its words' mean score.

        S_nm = sum_k s_nk P_km,    P the share of word k in caption m
        loss(n) = 1/2 [ -log softmax over captions of S_nn  - log softmax over images of S_nn ]

    Rivals of the first are the batch's captions and hard negatives made for image n alone (its caption with one
    word replaced). A caption whose words are all true of another image is not held against that image.

    (N,k) scores of all images -> (N,2): caption side and image side.
    """
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


def _foreign(targets: Targets, count: int, texts: int) -> Tensor:
    """(N,M) bool: hard negatives that were made for another image."""
    out = torch.zeros(count, texts, dtype=torch.bool, device=targets.positive.device)
    if targets.hard_owner is not None and texts > count:
        images = torch.arange(count, device=out.device)[:, None]
        out[:, count:] = targets.hard_owner[None, :] != images
    return out


def shares(positive: Tensor, dim: int) -> Tensor:
    """Strengths divided by their sum along `dim`, 0 where there are none: the paper's 1/k targets."""
    total = positive.sum(dim, keepdim=True)
    return positive / total.clamp_min(torch.finfo(positive.dtype).tiny)


def rivals(scores: Tensor, targets: Targets) -> Tensor:
    """Scores as they enter a softmax over words: ignored words out, sampled negatives standing for several."""
    standing = scores + targets.correction.log() * (targets.positive == 0)
    return standing.masked_fill(targets.ignored, -torch.inf)


#: Name -> loss.
LOSSES = {
    "sigmoid": Loss(_sigmoid_terms, _sigmoid_close),
    "softmax": Loss(_softmax_terms, _softmax_close),
    "image_word": Loss(_image_word_terms, _mean, coupled=True),
    "image_caption": Loss(_image_caption_terms, _mean, coupled=True),
}
