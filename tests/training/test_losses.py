"""Each loss against its definition in plain loops; chunks add up; what is ignored does not count."""

import math

import pytest
import torch
from torch import Tensor

from phrase_loc.training.losses import LOSSES, Targets

N, K = 5, 12


def targets(seed: int = 0, **changes: Tensor) -> Targets:
    draw = torch.Generator().manual_seed(seed)
    positive = (torch.rand(N, K, generator=draw) < 0.3) * torch.rand(
        N, K, generator=draw, dtype=torch.float64
    )
    positive[0, 0], positive[4] = 1.0, 0.0  # an image with a sure word, one without words
    ignored = (torch.rand(N, K, generator=draw) < 0.2) & (positive == 0)
    values = {
        "positive": positive,
        "ignored": ignored,
        "correction": torch.ones(K, dtype=torch.float64),
        "weights": torch.tensor([1.0, 1, 1, 0, 1], dtype=torch.float64),
    }
    return Targets(**{**values, **changes})


def scores(seed: int = 1) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(name: str, s: Tensor, t: Targets) -> Tensor:
    return LOSSES[name](s, t)


def plain_sigmoid(s: Tensor, t: Targets, n: int) -> float:
    total = 0.0
    for k in range(K):
        if t.ignored[n, k]:
            continue
        p, y = 1 / (1 + math.exp(-s[n, k])), t.positive[n, k].item()
        count = 1 if y > 0 else t.correction[k].item()
        total -= count * (y * math.log(p) + (1 - y) * math.log(1 - p))
    return total


@pytest.mark.parametrize("sampled", [False, True])
def test_the_logistic_loss_is_its_definition(sampled: bool):
    correction = (
        torch.linspace(1, 4, K, dtype=torch.float64) if sampled else torch.ones(K, dtype=torch.float64)
    )
    t, s = targets(correction=correction), scores()
    expected = [plain_sigmoid(s, t, n) for n in range(N)]
    assert whole("sigmoid", s, t).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [1, 5, 7])
def test_chunks_of_words_add_up(size: int):
    t, s = targets(), scores().requires_grad_()
    parts = []
    for place in torch.arange(K).split(size):
        part = Targets(t.positive[:, place], t.ignored[:, place], t.correction[place], t.weights)
        parts.append(whole("sigmoid", s[:, place], part))
    chunked, at_once = torch.stack(parts).sum(0), whole("sigmoid", s, t)
    assert torch.allclose(chunked, at_once, atol=1e-12)
    (a,) = torch.autograd.grad(chunked.sum(), s, retain_graph=True)
    (b,) = torch.autograd.grad(at_once.sum(), s)
    assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_for_extreme_scores_and_lone_images(name: str):
    t = targets()
    lonely = Targets(torch.ones_like(t.positive), t.ignored, t.correction, t.weights)
    for case in (t, lonely):
        for size in (0.0, 80.0, 1e4):
            s = (size * torch.randn(N, K, generator=torch.Generator().manual_seed(4))).requires_grad_()
            loss = whole(name, s, case)
            assert loss.isfinite().all()
            (gradient,) = torch.autograd.grad(loss.sum(), s)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_words_neither_count_nor_learn(name: str):
    t, s = targets(), scores().requires_grad_()
    (gradient,) = torch.autograd.grad(whole(name, s, t).sum(), s)
    assert gradient[t.ignored].abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_true_words_rise_and_others_fall(name: str):
    t, s = targets(), torch.zeros(N, K, dtype=torch.float64).requires_grad_()
    sure = Targets((t.positive > 0).double(), t.ignored, t.correction, t.weights)
    (gradient,) = torch.autograd.grad(whole(name, s, sure)[:3].sum(), s)
    assert (gradient[:3][sure.positive[:3] > 0] < 0).all()
    assert (gradient[:3][(sure.positive[:3] == 0) & ~t.ignored[:3]] >= 0).all()
