"""From a batch to the number that is differentiated: word scores in chunks, losses, other processes' images.

The scores of words at locations, (N, k, h, w), are the largest thing in a step. They are made for as many words
at a time as `memory_mb` allows and, when that is not all of them, made again in the backward pass
(torch.utils.checkpoint) instead of being kept. With `words` set, a step scores the words said in its batch and a
seeded sample of the others, each standing for its share of the vocabulary.

What one process returns is its share of a sum over all images of all processes; R processes and one with the same
global batch therefore have the same gradient (tests/training/test_distributed.py).
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phrase_loc.distributed import World
from phrase_loc.errors import choose
from phrase_loc.models.model import TextToRegion, run_stages
from phrase_loc.pairs.dataset import Batch, Ragged
from phrase_loc.training.config import PhaseConfig
from phrase_loc.training.losses import LOSSES, Targets


class Objective(nn.Module):
    """The module that DistributedDataParallel wraps: forward(batch) -> this process's share of the summed loss.

    Args:
        model: its trunk runs from the image, or from the cached stage that the batch holds.
        balance: (V,) weight of each word.
        settings: of the phase: losses, words, hard_negatives, dropout.
        world: the processes whose images a coupled loss contrasts.
        cached: the stage whose output the batch holds, None for images.
        memory_mb: most that scores at locations may take at a time, megabytes.
        recompute: compute activations of the trunk again in the backward pass.
    """

    balance: Tensor

    def __init__(
        self,
        model: TextToRegion,
        balance: Tensor,
        settings: PhaseConfig,
        world: World,
        *,
        cached: str | None = None,
        memory_mb: int = 1024,
        recompute: bool = False,
    ):
        super().__init__()
        self.cached, self.memory_mb, self.recompute = cached, memory_mb, recompute
        self.model, self.settings, self.world = model, settings, world
        self.losses = {name: choose(LOSSES, name, "loss") for name in settings.losses}
        self.coupled = any(loss.coupled for loss in self.losses.values())
        self.register_buffer("balance", balance, persistent=False)

    def forward(self, batch: Batch, seed: int) -> Tensor:
        """The sum over this process's images of weight * loss; coupled losses give 1/size of everybody's.

        Args:
            batch: a micro-batch of this process, on its device.
            seed: of the sampled words, the same in all processes.
        """
        features = self._features(batch)
        words, correction = self._candidates(batch, seed)
        alone = [name for name, loss in self.losses.items() if not loss.coupled]
        total = features.new_zeros(())
        chunk = self._chunk(features)
        chunks = list(zip(words.split(chunk), correction.split(chunk), strict=True))
        if alone:
            parts = [self._terms(features, *pair, batch, alone, len(chunks) > 1) for pair in chunks]
            for i, name in enumerate(alone):
                each = self.losses[name].close(torch.stack([part[i] for part in parts]))
                total = total + self.settings.losses[name] * (batch.weights.to(each.dtype) * each).sum()
        return (
            total + self._coupled(features, chunk, words, correction, batch, seed) if self.coupled else total
        )

    def _features(self, batch: Batch) -> Tensor:
        model, dropout = self.model, self.settings.dropout
        x = batch.images if self.cached is None else batch.images.to(model.head.log_scale.dtype)
        features = model.head.features(run_stages(model, x, self.cached, None, self.recompute))
        return F.dropout(features, dropout, self.training) if dropout else features

    def _candidates(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """(K,) words to score, ascending, and (K,) how many each stands for as a negative."""
        size, device = len(self.balance), self.balance.device
        if not self.settings.words or self.settings.words >= size:
            every = torch.arange(size, device=device)
            return every, torch.ones(size, dtype=self.balance.dtype, device=device)
        said = torch.cat([batch.words.ids, batch.captions.ids]).unique().tolist()
        said = sorted({i for rank in self.world.gather(said) for i in rank})
        words, correction = sampled_words(said, size, self.settings.words, seed)
        return words.to(device), correction.to(device, self.balance.dtype)

    def _chunk(self, features: Tensor) -> int:
        """Words at a time: scores, their gradient and one intermediate must fit."""
        cells = features.shape[0] * features.shape[2] * features.shape[3]
        return max(1, int(self.memory_mb * 2**20 / (3 * cells * features.element_size())))

    def _terms(
        self, features: Tensor, words: Tensor, correction: Tensor, batch: Batch, names: list[str], again: bool
    ) -> list[Tensor]:
        def compute(features: Tensor) -> list[Tensor]:
            scores = self._scores(features, words)
            targets = self._targets(batch, words, correction, scores)
            return [self.losses[name].terms(scores, targets) for name in names]

        return checkpoint(compute, features, use_reentrant=False) if again else compute(features)

    def _scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w), (K,) -> (N,K); half precision ends before the pool, which exponentiates."""
        return self.model.head.pool(_full(self.model.location_scores(features, words)))

    def _coupled(
        self, features: Tensor, chunk: int, words: Tensor, correction: Tensor, batch: Batch, seed: int
    ) -> Tensor:
        if len(words) > chunk:
            parts = words.split(chunk)
            scored = [checkpoint(self._scores, features, part, use_reentrant=False) for part in parts]
            scores = torch.cat(scored, 1)
        else:
            scores = self._scores(features, words)
        scores = _in_order(self.world.gather_rows(scores), self.world.size)
        everyone = gather_labels(batch, self.world)
        targets = self._targets(everyone, words, correction, scores)
        if "image_caption" in self.losses:
            targets = hard_captions(targets, everyone.captions, words, self.settings.hard_negatives, seed)
        total = scores.new_zeros(())
        for name, loss in self.losses.items():
            if loss.coupled:
                each = loss.close(loss.terms(scores, targets)[None])
                total = total + self.settings.losses[name] * (targets.weights * each).sum()
        return total / self.world.size

    def _targets(self, batch: Batch, words: Tensor, correction: Tensor, scores: Tensor) -> Targets:
        """Labels of the batch for some of the words."""
        positive = table(batch.words, words, len(scores), scores.dtype)
        ignored = (table(batch.ignored, words, len(scores), scores.dtype) > 0) & (positive == 0)
        return Targets(
            positive,
            ignored,
            self.balance[words].to(scores.dtype),
            correction.to(scores.dtype),
            batch.weights.to(scores.dtype),
        )


def table(labels: Ragged, words: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Flat labels -> (count, k) values for these words (ascending), 0 where nothing is said."""
    result = torch.zeros(count, len(words), dtype=dtype, device=words.device)
    place = torch.searchsorted(words, labels.ids).clamp(max=len(words) - 1)
    here = words[place] == labels.ids
    result[labels.owner[here], place[here]] = labels.values[here].to(dtype)
    return result


def gather_labels(batch: Batch, world: World) -> Batch:
    """The labels and weights of all processes' images, in the order of the global batch, without the images."""
    if world.size == 1:
        return batch
    device = batch.weights.device
    parts = (batch.words, batch.ignored, batch.captions)
    mine = [[t.cpu() for t in (part.owner, part.ids, part.values)] for part in parts]
    ranks = world.gather((batch.weights.cpu(), mine))
    weights = _in_order(torch.cat([weights for weights, _ in ranks]), world.size)
    joined = []
    for i in range(len(parts)):
        owner = torch.cat([fields[i][0] * world.size + rank for rank, (_, fields) in enumerate(ranks)])
        rest = [torch.cat([fields[i][j] for _, fields in ranks]) for j in (1, 2)]
        joined.append(Ragged(owner, *rest).to(device))
    words, ignored, captions = joined
    return Batch(weights.new_empty(0), weights.to(device), words, ignored, captions)


def _in_order(rows: Tensor, size: int) -> Tensor:
    """Rows by rank -> rows as one process would have them: the j-th of rank r is number j * size + r."""
    return rows.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)


def _full(scores: Tensor) -> Tensor:
    """Half precision ends here: sums over thousands of words are taken in float32."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


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
