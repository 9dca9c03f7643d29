"""Every sample once an epoch, the same global batches, at any number of processes; any step can be gone back to."""

import numpy as np
import pytest

from phrase_loc.pairs.dataset import FILLER, Order, StepSampler, share

GROUPS = np.repeat([0, 1, 2, 3], [30, 7, 20, 1])


def steps(
    size: int, batch: int = 12, pieces: int = 1, first: int = 0, last: int = 10, window: int = 0
) -> list:
    """Per step the micro-batches as sets of (epoch, number) over all ranks."""
    samplers = [
        StepSampler(Order(GROUPS, 5, window), batch, pieces, first, last, r, size) for r in range(size)
    ]
    parts = list(zip(*samplers, strict=True))
    return [{item for rank in part for item in rank if item[1] != FILLER} for part in parts]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("window", [0, 2])
def test_every_sample_once_an_epoch(size: int, window: int):
    for epoch in (0, 1):
        first = epoch * -(-len(GROUPS) // 12)
        seen = [item for step in steps(size, first=first, last=first + 5, window=window) for item in step]
        assert len(seen) == len(set(seen)) == len(GROUPS)
        assert {e for e, _, _ in seen} == {epoch}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("pieces", [1, 2])
def test_distributed_ranks_share_the_batches_of_one_process(size: int, pieces: int):
    assert steps(size, pieces=pieces) == steps(1, pieces=pieces)


def test_distributed_micro_batches_of_all_ranks_are_equally_long():
    for size in (2, 3, 5):
        for count in range(1, 13):
            lengths = {tuple(map(len, share(np.arange(count), 2, rank, size))) for rank in range(size)}
            assert len(lengths) == 1


@pytest.mark.parametrize("first", [0, 1, 4, 5, 9])
def test_resume_at_any_step_gives_the_rest(first: int):
    assert steps(2, first=first) == steps(2)[first:]


def test_distributed_ranks_draw_the_same_input_size_for_a_step():
    samplers = [StepSampler(Order(GROUPS, 5), 12, 2, 0, 30, rank, 3, choices=3) for rank in range(3)]
    drawn = [[{choice for _, _, choice in part} for part in sampler] for sampler in samplers]
    assert drawn[0] == drawn[1] == drawn[2]
    assert all(len(part) == 1 for part in drawn[0])
    assert set().union(*drawn[0]) == {0, 1, 2}


def test_epochs_differ_and_seeds_differ():
    order = Order(GROUPS, 5)
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), Order(GROUPS, 6).epoch(0))
    assert np.array_equal(order.epoch(3), Order(GROUPS, 5).epoch(3))


def test_a_window_reads_few_shards_at_a_time():
    numbers = Order(GROUPS, 5, window=2).epoch(0)
    first_window = set(GROUPS[numbers[: np.isin(GROUPS, GROUPS[numbers[:1]]).sum()]])
    assert len(first_window) <= 2
    halves = [set(GROUPS[numbers[:i]]) for i in range(1, len(numbers))]
    assert {len(shards) for shards in halves} >= {1, 2, 4}
    assert not np.array_equal(np.sort(numbers[:10]), numbers[:10])
