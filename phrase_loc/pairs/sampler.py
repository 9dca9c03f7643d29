"""Which sample comes when: a pure function of seed, epoch and step, so that any step can be gone back to.

    step t of an epoch = order[t * batch : (t + 1) * batch];  micro-batch j of it = the j-th of its equal runs
    process r of R     = every R-th sample of each micro-batch from the r-th on

So every sample is seen once an epoch at any number of processes and workers, and R processes see the global batches
of one. The last batch of an epoch is smaller.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

#: (epoch, number of the sample, which of the input sizes).
Item = tuple[int, int, int]
#: The number of an empty sample of weight 0: every rank must run forward and backward as often as the others.
FILLER = -1


@dataclass(frozen=True)
class Order:
    """The order of samples in each epoch: a permutation, or one within windows of shuffled shards.

    A window of all shards is best for learning and right for a local SSD; a smaller one keeps the reads of a network
    disk inside a few files at a time.

    Attributes:
        groups: (n,) shard of each sample, ascending.
        seed: of the run.
        window: shards that are mixed at a time; 0 mixes all.
        held_out: numbers of samples that never come.
    """

    groups: np.ndarray
    seed: int
    window: int = 0
    held_out: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.groups) - len(self.held_out)

    def epoch(self, number: int) -> np.ndarray:
        """(n,) int64: each sample that is not held out once."""
        numbers = self._all(number)
        return numbers[~np.isin(numbers, self.held_out)] if self.held_out else numbers

    def _all(self, number: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, number])
        shards = int(self.groups[-1]) + 1 if len(self.groups) else 0
        if self.window <= 0 or self.window >= shards:
            return random.permutation(len(self.groups))
        bounds = np.searchsorted(self.groups, np.arange(shards + 1))
        shuffled = random.permutation(shards)
        parts = []
        for start in range(0, shards, self.window):
            chosen = shuffled[start : start + self.window]
            numbers = np.concatenate([np.arange(bounds[s], bounds[s + 1]) for s in chosen])
            parts.append(random.permutation(numbers))
        return np.concatenate(parts)


def steps_per_epoch(samples: int, batch: int) -> int:
    """Steps that see every sample once."""
    return -(-samples // batch)


def share(batch: np.ndarray, pieces: int, rank: int, size: int) -> list[list[int]]:
    """A process's part of a global batch (b,), as `pieces` micro-batches, those of all ranks equally long."""
    parts = []
    for piece in np.array_split(batch, pieces):
        length = max(1, -(-len(piece) // size))
        mine = [int(i) for i in piece[rank::size]]
        parts.append(mine + [FILLER] * (length - len(mine)))
    return parts


@dataclass(eq=False)
class StepSampler(Sampler[list[Item]]):
    """Micro-batches of one process from step `first` up to, not including, step `last`.

    Attributes:
        order: of the samples.
        batch: images of a global batch, over all ranks and micro-batches.
        pieces: micro-batches of a step.
        first, last: steps, counted from the begin of the phase over all its epochs.
        rank, size: this process, and how many there are.
        choices: input sizes, one of which is drawn for each step.
    """

    order: Order
    batch: int
    pieces: int
    first: int
    last: int
    rank: int
    size: int
    choices: int = 1

    def __len__(self) -> int:
        return (self.last - self.first) * self.pieces

    def __iter__(self) -> Iterator[list[Item]]:
        a_epoch = steps_per_epoch(len(self.order), self.batch)
        current, numbers = -1, np.empty(0, np.int64)
        for step in range(self.first, self.last):
            epoch, place = divmod(step, a_epoch)
            if epoch != current:
                current, numbers = epoch, self.order.epoch(epoch)
            batch = numbers[place * self.batch : (place + 1) * self.batch]
            choice = int(np.random.default_rng([self.order.seed, step, 1]).integers(self.choices))
            for part in share(batch, self.pieces, self.rank, self.size):
                yield [(epoch, i, choice) for i in part]
