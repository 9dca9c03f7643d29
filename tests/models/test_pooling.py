"""Pools against their definitions."""

import math

import pytest
import torch

from phrase_loc.errors import ConfigError
from phrase_loc.models.pooling import POOLS, LogSumExp
from phrase_loc.models.text_head import TextHead

SCORES = torch.tensor([[[[0.0, 1.0], [2.0, -3.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])  # (N=1, K=2, 2, 2)


@pytest.mark.parametrize("name", POOLS)
def test_posterior_is_a_distribution_over_locations(name):
    pool = POOLS[name](4.0, False)
    scores = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    won = pool.posterior(scores)
    assert won.shape == (5, 3, 4, 6)
    assert (won >= 0).all()
    assert torch.allclose(won.sum((2, 3)), torch.ones(5, 3))
    assert pool(scores).shape == (3, 5)


@pytest.mark.parametrize("name", ["log_sum_exp", "average", "top", "max"])
def test_a_pool_of_equal_scores_is_that_score(name):
    assert POOLS[name](4.0, False)(torch.full((1, 1, 5, 5), 1.5)).item() == pytest.approx(1.5, abs=1e-5)


def test_values_by_hand():
    def pooled(name):
        return POOLS[name](2.0, False)(SCORES)[0, 0].item()

    exponentials = [math.exp(2 * s) for s in (0, 1, 2, -3)]
    assert pooled("average") == pytest.approx(0.0)
    assert pooled("max") == pooled("top") == 2.0
    assert pooled("log_sum_exp") == pytest.approx(math.log(sum(exponentials) / 4) / 2, rel=1e-5)
    weights = [e / sum(exponentials) for e in exponentials]
    assert pooled("attention") == pytest.approx(
        sum(w * s for w, s in zip(weights, (0, 1, 2, -3), strict=True)), rel=1e-5
    )


def test_average_hands_down_in_proportion_to_positive_scores():
    won = POOLS["average"](1.0, False).posterior(SCORES)
    assert torch.allclose(won[0, 0], torch.tensor([[0.0, 1 / 3], [2 / 3, 0.0]]))
    assert torch.allclose(won[1, 0], torch.full((2, 2), 0.25))  # no positive score: even


@pytest.mark.parametrize("name", ["log_sum_exp", "max", "top"])
def test_posterior_is_the_derivative_of_the_pool(name):
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    pool = POOLS[name](3.0, False)
    (slope,) = torch.autograd.grad(pool(scores).sum(), scores)
    assert torch.allclose(slope, pool.posterior(scores).transpose(0, 1), atol=1e-6)


def test_sharpness_is_learned_only_when_asked():
    assert LogSumExp(4.0, learned=True).log_sharpness.requires_grad
    assert not LogSumExp(4.0).log_sharpness.requires_grad


def test_unknown_pool_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="average"):
        TextHead(4, 3, pool="mean")
