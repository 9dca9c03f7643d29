"""Words and captions that are false of an image, drawn with a seed: what contrastive and sampled losses need."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from phrase_loc.datasets.web import Ragged
from phrase_loc.losses import Targets


def sampled_words(said: list[int], size: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The words of a batch and random others.

    Args:
        said: words that must be among them, ascending.
        size: V.
        count: words wanted; as many as `said` if those are more.
        seed: of the draw.

    Returns:
        (K,) ascending words; (K,) how many words of the vocabulary each stands for: 1 for those said.
    """
    others = np.setdiff1d(np.arange(size), said, assume_unique=True)
    drawn = np.random.default_rng(seed).choice(
        others, min(max(0, count - len(said)), len(others)), replace=False
    )
    words = np.concatenate([np.asarray(said, np.int64), drawn.astype(np.int64)])
    stands = np.ones(len(words))
    stands[len(said) :] = len(others) / max(1, len(drawn))
    order = np.argsort(words)
    return torch.from_numpy(words[order]), torch.from_numpy(stands[order])


def hard_captions(targets: Targets, captions: Ragged, words: Tensor, each: int, seed: int) -> Targets:
    """Targets with the images' captions and, per image, `each` captions in which one word is replaced.

    The new word is drawn among the words scored, from those not said of the image.

    Args:
        targets: of N images for k words.
        captions: words of one text of each image.
        words: (k,) ascending.
        each: hard negatives per image.
        seed: of the draw, the same in all processes.
    """
    count, device = len(targets.weights), words.device
    place = torch.searchsorted(words, captions.ids).clamp(max=len(words) - 1)
    here = words[place] == captions.ids
    shares = torch.zeros(len(words), count * (1 + each), dtype=torch.float64)
    owner, place = captions.owner[here].cpu(), place[here].cpu()
    shares[place, owner] = 1.0
    owners = torch.arange(count).repeat_interleave(each)
    random = np.random.default_rng([seed, 1])
    said = ((targets.positive > 0) | targets.ignored).cpu().numpy()
    for j, image in enumerate(owners.tolist()):
        own = place[owner == image].numpy()
        false = np.flatnonzero(~said[image])
        if len(own) == 0 or len(false) == 0:
            continue
        column = count + j
        shares[:, column] = shares[:, image]
        shares[random.choice(own), column] = 0.0
        shares[random.choice(false), column] = 1.0
    shares = shares / shares.sum(0).clamp_min(1.0)
    return replace(targets, captions=shares.to(device, targets.positive.dtype), hard_owner=owners.to(device))
