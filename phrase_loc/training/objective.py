"""From a batch to the number that is differentiated: word scores in chunks, and their losses.

The scores of words at locations, (N, k, h, w), are the largest thing in a step. They are made for as many words
at a time as `memory_mb` allows and, when that is not all of them, made again in the backward pass instead of being
kept. With `words` set, a step scores the words said in its batch and a seeded sample of the others, each standing
for its share of the vocabulary. What one process returns is its share of a sum over all images of all processes: R
processes and one with the same global batch have the same gradient.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phrase_loc.distributed import World
from phrase_loc.errors import choose
from phrase_loc.models.model import TextToRegion, last_frozen, run_stages
from phrase_loc.pairs.dataset import Batch, Ragged
from phrase_loc.training.config import PhaseConfig
from phrase_loc.training.losses import LOSSES, Targets


class Objective(nn.Module):
    """The module that DistributedDataParallel wraps: forward(batch) -> this process's share of the summed loss.

    The trunk runs from images, or from its kept stage where the phase has a cache. `memory_mb` bounds the scores at
    locations; `recompute` makes activations of the trunk again in the backward pass; words below row `first` are kept
    as they are and no step scores them.
    """

    def __init__(
        self,
        model: TextToRegion,
        phase: PhaseConfig,
        world: World,
        memory_mb: int = 1024,
        recompute: bool = False,
        first: int = 0,
    ):
        super().__init__()
        self.model, self.phase, self.world = model, phase, world
        self.memory_mb, self.recompute, self.first = memory_mb, recompute, first
        self.cached = last_frozen(model.trunk, phase.train_from) if phase.cache else None
        self.losses = {name: choose(LOSSES, name, "loss") for name in phase.losses}

    def forward(self, batch: Batch, seed: int) -> Tensor:
        """The sum over this process's images of weight * loss; `seed` is of the sampled words, the same in all."""
        features = self.features(batch)
        words, stands = self._words(batch, seed)
        # words at a time: their scores at locations, the gradient of these and one intermediate must fit
        cells = features.shape[0] * features.shape[2] * features.shape[3]
        size = max(1, int(self.memory_mb * 2**20 / (3 * cells * features.element_size())))
        chunks = list(zip(words.split(size), stands.split(size), strict=True))

        def summed(features: Tensor, words: Tensor, stands: Tensor) -> Tensor:
            scores = self.model.location_scores(features, words)
            # half precision ends before the pool, which exponentiates and sums
            half = scores.dtype in (torch.float16, torch.bfloat16)
            scores = self.model.head.pool(scores.float() if half else scores)
            positive, ignored = (
                table(of, words, len(scores), scores.dtype) for of in (batch.words, batch.ignored)
            )
            without = (ignored > 0) & (positive == 0)
            targets = Targets(positive, without, stands.to(scores), batch.weights.to(scores))
            parts = [
                weight * self.losses[name](scores, targets) for name, weight in self.phase.losses.items()
            ]
            return (targets.weights * torch.stack(parts).sum(0)).sum()

        if len(chunks) == 1:
            return summed(features, words, stands)
        # of several chunks none is kept for the backward pass, but made again
        each = [checkpoint(summed, features, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(each).sum()

    def features(self, batch: Batch) -> Tensor:
        """(N,D,h,w) of a batch's images, or of what is kept of them."""
        model, dropout = self.model, self.phase.dropout
        x = batch.images if self.cached is None else batch.images.to(model.head.log_scale.dtype)
        features = model.head.features(run_stages(model, x, self.cached, None, self.recompute))
        return F.dropout(features, dropout, self.training) if dropout else features

    def _words(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """(K,) rows of the words that a step scores, ascending; how many words each stands for as a negative."""
        size, like = len(self.model.vocabulary), self.model.words.vectors
        if self.first or not self.phase.words or self.phase.words >= size:
            rows = torch.arange(self.first, size, device=like.device)
            return rows, like.new_ones(len(rows))
        said = sorted({i for rank in self.world.gather(batch.words.ids.unique().tolist()) for i in rank})
        rows, stands = sampled_words(said, size, self.phase.words, seed)
        return rows.to(like.device), stands.to(like)


def table(labels: Ragged, words: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Flat labels -> (count, k) values for these words (ascending), 0 where nothing is said."""
    place = torch.searchsorted(words, labels.ids).clamp(max=len(words) - 1)
    here = words[place] == labels.ids
    result = torch.zeros(count, len(words), dtype=dtype, device=words.device)
    result[labels.owner[here], place[here]] = labels.values[here].to(dtype)
    return result


def sampled_words(said: list[int], size: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The words of a batch (ascending) and random others of V = `size`, `count` in all unless more are said.

    Returns:
        (K,) ascending words; (K,) how many words of the vocabulary each stands for: 1 for those said.
    """
    others = np.setdiff1d(np.arange(size), said, assume_unique=True)
    wanted = min(max(0, count - len(said)), len(others))
    drawn = np.random.default_rng(seed).choice(others, wanted, replace=False)
    words = np.concatenate([np.asarray(said, np.int64), drawn.astype(np.int64)])
    stands = np.ones(len(words))
    stands[len(said) :] = len(others) / max(1, len(drawn))
    order = np.argsort(words)
    return torch.from_numpy(words[order]), torch.from_numpy(stands[order])
