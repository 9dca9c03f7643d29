"""Excitation backprop against the explicit Markov chain, and the properties that the method promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention import METHODS, contrastive_mwp, excitation_backprop, mwp
from phrase_loc.attention.competition import reciprocal
from phrase_loc.attention.excitation import RULES, contrasts, wins
from phrase_loc.attention.functions import passed
from phrase_loc.attention.tape import KeptPositive, attended_pass
from phrase_loc.errors import ConfigError
from tests.oracles import dense_of, hand_down, seed_of, transition


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Pooled(nn.Module):
    """A small conv net (N, 4, 8, 8) -> (N, 6) with one conv, ReLU and pooling of the kind asked for."""

    def __init__(self, bias: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, bias=bias),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=bias),
            nn.ReLU(),
        ).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.body(x), 1).flatten(1)


class Residual(nn.Module):
    """Bias-free residual net in the spelling of torchvision: `out += identity`, in-place ReLUs."""

    def __init__(self, channels: int = 4, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=bias)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv2(self.relu(self.conv1(x)))
        out += identity
        return self.relu(out).mean((2, 3))


# --- equal to the explicit chain ----------------------------------------------------------------------------


def test_mlp_equals_the_explicit_chain():
    first, second = randn(7, 5, seed=1), randn(6, 7, seed=2)
    bias, x, unit = randn(7, seed=3), rand(1, 5), randn(1, 6, seed=4)

    def net(x: Tensor) -> Tensor:
        return F.linear(F.linear(x, first, bias).relu(), second).relu()

    middle = F.linear(x, first, bias).relu()[0]
    top = net(x)[0]
    slow = hand_down(seed_of(top, unit[0]), transition(second, middle), transition(first, x[0]))
    fast = excitation_backprop(net, x, lambda h: wins(h, unit))
    assert torch.allclose(fast[0, 0], slow, atol=1e-12)


CASES = {
    "conv": (lambda w: lambda x: F.conv2d(x, w, None, 1, 1), (5, 4, 3, 3), (4, 5, 5)),
    "strided conv": (lambda w: lambda x: F.conv2d(x, w, None, (2, 1), (1, 0)), (5, 4, 3, 2), (4, 6, 5)),
    "dilated conv": (lambda w: lambda x: F.conv2d(x, w, padding=2, dilation=2), (3, 4, 3, 3), (4, 5, 5)),
    "grouped conv": (lambda w: lambda x: F.conv2d(x, w, None, groups=2), (6, 2, 3, 3), (4, 5, 4)),
    "depthwise conv": (lambda w: lambda x: F.conv2d(x, w, None, 1, 1, groups=4), (4, 1, 3, 3), (4, 4, 4)),
    "1x1 conv": (lambda w: lambda x: F.conv2d(x, w, None, 2), (5, 4, 1, 1), (4, 5, 5)),
    "same conv": (lambda w: lambda x: F.conv2d(x, w, padding="same"), (3, 4, 3, 5), (4, 5, 5)),
    "conv1d": (lambda w: lambda x: F.conv1d(x, w, None, 2, 1), (5, 4, 3), (4, 9)),
    "conv3d": (lambda w: lambda x: F.conv3d(x, w, None, 1, 1), (3, 2, 3, 2, 3), (2, 3, 4, 3)),
    "transposed conv": (lambda w: lambda x: F.conv_transpose2d(x, w, None, 2), (4, 3, 2, 2), (4, 3, 3)),
    "linear over places": (lambda w: lambda x: F.linear(x, w), (6, 5), (4, 3, 5)),
    "matmul": (lambda w: lambda x: x @ w, (5, 3), (2, 4, 5)),
    "average pool": (lambda w: lambda x: F.avg_pool2d(x, kernel_size=3, stride=2), (1,), (3, 5, 5)),
    "adaptive pool": (lambda w: lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (1,), (3, 5, 4)),
    "mean": (lambda w: lambda x: x.mean(dim=(2, 3), keepdim=True), (1,), (3, 5, 4)),
    "resize": (lambda w: lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (1,), (2, 3, 3)),
    "pad": (lambda w: lambda x: F.pad(x, (1, 1, 0, 2), mode="replicate"), (1,), (2, 3, 3)),
    "permute": (lambda w: lambda x: x.permute(0, 2, 3, 1), (1,), (2, 3, 3)),
    "slice": (lambda w: lambda x: x[:, 1:, ::2], (1,), (3, 4, 3)),
    "shuffle": (lambda w: lambda x: x.view(-1, 2, 2, 3).transpose(1, 2).flatten(1, 2), (1,), (4, 3)),
    "pixel shuffle": (lambda w: lambda x: F.pixel_shuffle(x, 2), (1,), (8, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_linear_operation_equals_its_explicit_transition(name):
    make, weight_shape, shape = CASES[name]
    weight = randn(*weight_shape, seed=5)
    op, positive = make(weight), make(weight.clamp(min=0))
    x = randn(1, *shape, seed=6) if weight.numel() > 1 else rand(1, *shape, seed=6)  # signed: x+ competes
    out = op(x)
    won = rand(2, *out.shape, seed=7)
    slow = won.flatten(1) @ transition(dense_of(positive, shape), x.flatten())
    fast = excitation_backprop(op, x, lambda h: won)
    assert torch.allclose(fast.flatten(1), slow, atol=1e-12)
    with attended_pass([op], x, RULES) as (tape, top):  # the sum over channels is made by another way
        assert torch.allclose(tape.propagate(top, won, channels=False)[0], fast.sum(2), atol=1e-12)


def test_max_pool_gives_all_to_the_first_maximum():
    x = torch.tensor([[[[1.0, 5.0], [5.0, 2.0]]]])
    p = excitation_backprop(lambda x: F.max_pool2d(x, 2), x, lambda h: torch.ones(1, *h.shape))
    assert p.tolist() == [[[[[0.0, 1.0], [0.0, 0.0]]]]]


def test_concatenation_gives_each_branch_its_own():
    x = rand(1, 2, 3, 3)
    won = rand(1, 1, 4, 3, 3, seed=1)
    p = excitation_backprop(lambda x: torch.cat([x.relu(), x * 2], dim=1), x, lambda h: won)
    assert torch.allclose(p, won[:, :, :2] + won[:, :, 2:])


def test_residual_rules_on_numbers():
    x = torch.tensor([[2.0, 1.0, 3.0]])

    def net(x: Tensor) -> Tensor:
        return x + F.linear(x, torch.diag(torch.tensor([1.0, 3.0, -0.5])))  # branches 2|2, 1|3, 3|-1.5

    ones = lambda h: torch.ones(1, *h.shape)  # noqa: E731
    positive = excitation_backprop(net, x, ones)
    assert positive[0, 0].tolist() == [1.0, 1.0, 1.0]  # each input feeds both of its branches
    p = excitation_backprop(net, x, ones, residual="proportional")
    # proportional: the third branch is negative, -1.5 of 1.5, and has no positive weight to hand it on
    assert torch.allclose(p[0, 0], torch.tensor([1.0, 1.0, 2.0]))


def test_squeeze_excitation_gate_never_wins():
    x = rand(2, 3, 4, 4)
    w = randn(3, 3, seed=1)

    def net(x: Tensor) -> Tensor:
        gate = torch.sigmoid(F.linear(x.mean((2, 3)), w))
        return gate[:, :, None, None] * x

    won = rand(1, 2, 3, 4, 4, seed=2)
    assert torch.equal(excitation_backprop(net, x, lambda h: won), won)


# --- promises -----------------------------------------------------------------------------------------------


def test_mass_is_kept_without_biases_and_never_grows():
    x, units = rand(2, 4, 8, 8, dtype=torch.float32), randn(5, 4, dtype=torch.float32)
    units[:, 0] = 1  # every unit has a feature for it
    net = Residual()
    maps = mwp(net, x, units)
    assert maps.shape == (5, 2, 8, 8)
    assert (maps >= 0).all()
    assert torch.allclose(maps.sum((2, 3)), torch.ones(5, 2), atol=1e-5)
    biased = Residual(bias=True)
    assert (mwp(biased, x, units).sum((2, 3)) <= 1 + 1e-5).all()


def test_mass_is_lost_where_a_bias_alone_fires():
    def net(x: Tensor) -> Tensor:  # the second feature fires by its bias alone
        return F.relu(F.conv2d(x, -torch.ones(2, 1, 1, 1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1),
                               torch.tensor([0.0, 9.0]))).mean((2, 3))  # fmt: skip

    x = torch.ones(1, 1, 2, 2)
    units = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert torch.allclose(
        mwp(net, x, units).sum((2, 3))[:, 0], torch.tensor([1.0, 0.0, 1 / 9, 0.0]), atol=1e-6
    )


def test_linear_in_the_seed_and_batched_equals_one_by_one():
    net, x = Pooled(), rand(2, 4, 8, 8)
    units = randn(5, 6, seed=3)
    together = excitation_backprop(net, x, lambda h: contrasts(h, units))
    for k in range(5):
        alone = excitation_backprop(net, x, lambda h, k=k: contrasts(h, units[k : k + 1]))
        assert torch.allclose(together[k], alone[0], atol=1e-14)
    mean = excitation_backprop(net, x, lambda h: contrasts(h, units).mean(0, keepdim=True))
    assert torch.allclose(together.mean(0), mean[0], atol=1e-14)
    for name, method in METHODS.items():
        maps = method(net, x, units)
        assert maps.shape == (5, 2, 8, 8), name
        assert torch.allclose(maps[3, 1], method(net, x[1:], units[3:4])[0, 0], atol=1e-12), name


def test_many_winners_go_down_in_batches(monkeypatch):
    net, x, units = Pooled(), rand(1, 4, 8, 8), randn(7, 6)
    whole = mwp(net, x, units)
    monkeypatch.setattr("phrase_loc.attention.excitation.BATCH", 3)
    assert torch.allclose(mwp(net, x, units), whole, atol=1e-14)


def test_scaling_a_layer_and_the_next_by_the_inverse_changes_nothing():
    x, units = rand(1, 4, 8, 8), randn(3, 6)
    a, b = Pooled(bias=False), Pooled(bias=False)
    with torch.no_grad():
        b.body[0].weight *= 7
        b.body[3].weight /= 7
    assert torch.allclose(contrastive_mwp(a, x, units), contrastive_mwp(b, x, units), atol=1e-14)


def test_contrast_is_the_map_less_the_dual_map():
    net, x, units = Pooled(), rand(2, 4, 8, 8), randn(4, 6)
    difference = mwp(net, x, units) - mwp(net, x, -units)
    assert torch.allclose(contrastive_mwp(net, x, units), difference.clamp(min=0), atol=1e-14)


def test_weights_average_signed_seeds_before_the_pass():
    net, x, units = Pooled(), rand(2, 4, 8, 8), randn(4, 6)
    weights = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75], [1.0, 0, 0, 0]])
    signed = excitation_backprop(net, x, lambda h: contrasts(h, units)).sum(2)
    expected = torch.einsum("pk,knhw->pnhw", weights.double(), signed).clamp(min=0)
    assert torch.allclose(contrastive_mwp(net, x, units, weights=weights), expected, atol=1e-14)


def test_randomised_top_layer_changes_the_contrast_more_than_the_plain_map():
    # Documented weakness (Sixt et al., ICML 2020): plain MWP hardly looks at the units it is asked for.
    torch.manual_seed(0)
    layers = [m for _ in range(6) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, units, others = torch.rand(1, 16, 8, 8), torch.randn(8, 16), torch.randn(8, 16)

    def change(method) -> float:
        a, b = (METHODS[method](net, x, u).flatten(2) for u in (units, others))
        return float(1 - F.cosine_similarity(a, b, dim=2).mean())

    assert change("contrastive_mwp") > 0.1 > 20 * change("mwp")


def test_top_features_may_be_signed():
    x, units = randn(2, 4, 5, 5), randn(3, 4, seed=1)
    maps = mwp(lambda x: x.mean((2, 3)), x, units)
    assert (maps >= 0).all()
    assert torch.isfinite(maps).all()


# --- refusals -----------------------------------------------------------------------------------------------


def test_an_operation_without_a_rule_is_named_with_the_ways_out():
    with pytest.raises(NotImplementedError, match=r"softmax.*rules="):
        mwp(lambda x: F.softmax(x, 1).mean((2, 3)), rand(1, 3, 2, 2), randn(1, 3))
    with pytest.raises(NotImplementedError, match="matmul"):
        mwp(lambda x: (x @ x).mean((2, 3)), rand(1, 3, 2, 2), randn(1, 3))

    def writes(x: Tensor) -> Tensor:
        x[:, 0] = x[:, 1] * 2
        return x.mean((2, 3))

    with pytest.raises(NotImplementedError, match="__setitem__"):
        mwp(writes, rand(1, 3, 2, 2), randn(1, 3))


def test_a_rule_can_be_given():
    net = lambda x: torch.sqrt(x).mean((2, 3))  # noqa: E731
    with pytest.raises(NotImplementedError, match="sqrt"):
        mwp(net, rand(1, 3, 2, 2), randn(1, 3))
    assert mwp(net, rand(1, 3, 2, 2), rand(1, 3), rules={torch.sqrt: passed}).sum() == pytest.approx(1.0)


def test_shapes_that_do_not_fit_are_refused():
    net, x = Pooled(), rand(1, 4, 8, 8)
    with pytest.raises(ConfigError, match="units must be"):
        mwp(net, x, randn(2, 5))
    with pytest.raises(ConfigError, match="weights must be"):
        mwp(net, x, randn(2, 6), weights=torch.ones(1, 3))
    with pytest.raises(ConfigError, match="residual rule"):
        mwp(net, x, randn(2, 6), residual="both")
    with pytest.raises(ConfigError, match="does not depend"):
        mwp(lambda x: torch.ones(1, 6), x, randn(2, 6))
    with pytest.raises(ConfigError, match="floating"):
        mwp(net, x.long(), randn(2, 6))


def test_no_units_give_no_maps():
    for name, method in METHODS.items():
        assert method(Pooled(), rand(1, 4, 8, 8), randn(0, 6)).shape == (0, 1, 8, 8), name


# --- kept weights -------------------------------------------------------------------------------------------


def test_kept_positive_weights_give_the_same_maps_and_follow_the_weights():
    net, x, units = Pooled(), rand(1, 4, 8, 8), randn(3, 6)
    kept = KeptPositive(net)
    assert torch.equal(contrastive_mwp(kept, x, units), contrastive_mwp(net, x, units))
    before = contrastive_mwp(kept, x, units)
    with torch.no_grad():
        net.body[0].weight.neg_()
    after = contrastive_mwp(kept, x, units)
    assert torch.equal(after, contrastive_mwp(net, x, units))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_reciprocal_is_finite_and_what_is_too_small_is_nothing(dtype):
    info = torch.finfo(dtype)
    least = 5e-324 if dtype == torch.float64 else info.smallest_normal * info.eps  # of all there are
    small = torch.tensor([0.0, -0.0, least, -least], dtype=dtype)
    assert torch.equal(reciprocal(small), torch.zeros(4, dtype=dtype))
    z = torch.tensor([2.0, -0.5, 1e-3, info.max, torch.inf, -torch.inf], dtype=dtype)
    assert torch.equal(reciprocal(z), 1 / z)
    assert reciprocal(torch.tensor(torch.nan, dtype=dtype)).isnan()
