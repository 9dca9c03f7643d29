"""Pools against their definitions."""

import math

import pytest
import torch

from phrase_loc.errors import ConfigError
from phrase_loc.models.model import POOLS, pool_named

SCORES = torch.tensor([[[[0.0, 1.0], [2.0, -3.0]]]])  # (N=1, K=1, 2, 2)


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_of_equal_scores_is_that_score(name):
    assert POOLS[name](4.0)(torch.full((1, 1, 5, 5), 1.5)).item() == pytest.approx(1.5, abs=1e-5)


def test_values_by_hand():
    exponentials = [math.exp(2 * s) for s in (0, 1, 2, -3)]
    soft = math.log(sum(exponentials) / 4) / 2
    assert POOLS["average"](2.0)(SCORES).item() == pytest.approx(0.0)
    assert POOLS["log_sum_exp"](2.0)(SCORES).item() == pytest.approx(soft, rel=1e-5)


def test_unknown_pool_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="average"):
        pool_named("mean")
