"""The methods beside excitation backprop, against the libraries that have them for plain module nets."""

import pytest
import torch
from torch import Tensor, nn

from phrase_loc.attention import (
    METHODS,
    cam,
    deconvnet,
    excitation_backprop,
    grad_cam,
    gradient,
    guided_backprop,
    lrp,
    occlusion,
    rise,
)
from phrase_loc.attention.baselines import ReluRule, derivative, epsilon
from phrase_loc.errors import ConfigError


class Sequential(nn.Module):
    """Conv, ReLU, pool, conv, ReLU, mean, dense, ReLU, classifier; made so that Captum and zennit can hook it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.above = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.ReLU(),
        ).double()  # fmt: skip
        self.top = nn.Linear(5, 4, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.above(x))


@pytest.fixture
def net() -> Sequential:
    return Sequential().eval()


X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_gradient_is_autograds(net):
    leaf = X.clone().requires_grad_()
    maps = gradient(net.above, X, net.top.weight)
    for k in range(4):
        (slope,) = torch.autograd.grad(net(leaf)[:, k].sum(), leaf)
        assert torch.allclose(maps[k], slope.abs().amax(1), atol=1e-14)


def test_gradients_that_libraries_have_are_theirs(net):
    attr = pytest.importorskip("captum.attr")
    for k in range(4):
        for ours, theirs in ((True, attr.GuidedBackprop), (False, attr.Deconvolution)):
            with pytest.warns(UserWarning, match="backward hooks"):
                expected = theirs(net).attribute(X.clone().requires_grad_(), target=k)
            got = derivative(net.above, X, net.top.weight[k : k + 1], mode=ReluRule(gated=ours))[0]
            assert torch.allclose(got, expected, atol=1e-12), (k, theirs)
        expected = attr.LayerGradCam(net, net.above[4]).attribute(X, target=k, relu_attributions=True)
        features = net.above[:5](X).detach()
        assert torch.allclose(
            grad_cam(net.above[5:], features, net.top.weight)[k], expected[:, 0], atol=1e-12
        )


def test_functional_relus_count_as_much_as_modules(net):
    def functional(x: Tensor) -> Tensor:
        x = torch.relu(net.above[0](x))
        x = net.above[3](torch.max_pool2d(x, 2)).relu_()
        return nn.functional.relu(net.above[7](x.mean((2, 3))))

    for method in (guided_backprop, deconvnet):
        expected = method(net.above, X, net.top.weight)
        assert torch.allclose(method(functional, X, net.top.weight), expected, atol=1e-14)
        assert not torch.allclose(gradient(net.above, X, net.top.weight), expected)


def test_relevance_is_zennits(net):
    zennit = pytest.importorskip("zennit.composites")
    rules = pytest.importorskip("zennit.rules")
    types = pytest.importorskip("zennit.types")
    composite = zennit.LayerMapComposite([
        (types.Activation, rules.Pass()),
        (types.Convolution, rules.ZPlus(stabilizer=1e-30, zero_params="bias")),
        (types.AvgPool, rules.Norm(stabilizer=1e-30)),
        (types.Linear, rules.Epsilon(epsilon=1e-6)),
    ])  # fmt: skip
    maps = lrp(net.above, X, net.top.weight)
    for k in range(4):
        leaf = X.clone().requires_grad_()
        with composite.context(net) as hooked:
            out = hooked(leaf)
            (relevance,) = torch.autograd.grad(
                out, leaf, torch.eye(4).double()[k].expand(2, 4) * out.detach()
            )
        assert torch.allclose(
            maps[k], relevance.sum(1).clamp(min=0), rtol=1e-4, atol=1e-5 * float(maps.max())
        ), k


def test_epsilon_rule_shares_out_by_signed_contribution():
    x, weight, bias = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([2.0])
    net = lambda x: nn.functional.linear(x, weight, bias)  # noqa: E731  # 3 - 1 + 2 = 4
    shares = excitation_backprop(net, x, lambda h: torch.ones(1, 1, 1), rules={nn.functional.linear: epsilon})
    assert torch.allclose(shares, torch.tensor([[[3 / 4, -1 / 4]]]), atol=1e-5)


def test_class_activation_map_is_the_weighted_sum_of_the_last_features(net):
    features = net.above[:5](X).detach()
    units = torch.randn(3, 6, dtype=torch.float64)
    expected = torch.einsum("nchw,kc->knhw", features, units).clamp(min=0)
    assert torch.allclose(cam(lambda x: x.mean((2, 3)), features, units), expected)
    assert torch.allclose(cam(lambda x: x, features, units), expected)
    resized = nn.functional.interpolate(expected, (8, 8), mode="bilinear")
    assert torch.allclose(cam(net.above[:7], X, units), resized)
    with pytest.raises(ConfigError, match="ends in an average"):
        cam(net.above, X, net.top.weight)


def test_occlusion_is_the_fall_of_the_score():
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    maps = occlusion(lambda x: x.mean((2, 3)), x, torch.tensor([[9.0], [-9.0]]), window=1)
    assert torch.allclose(maps[0, 0], x[0, 0])  # covering a cell takes its own value off the sum
    assert torch.equal(maps[1], torch.zeros(1, 3, 3))
    wide = occlusion(lambda x: x.mean((2, 3)), x, torch.tensor([[9.0]]), window=3)
    falls = [1, 1 + 2, 1 + 2 + 3, 1 + 4, 1 + 2 + 4 + 5, 21, 1 + 4 + 7, 1 + 2 + 4 + 5 + 7 + 8, 45]
    assert wide[0, 0, 0, 0] == pytest.approx(sum(falls) / 9)  # the nine windows over the corner
    with pytest.raises(ConfigError, match="odd"):
        occlusion(lambda x: x.mean((2, 3)), x, torch.ones(1, 1), window=2)


@pytest.mark.parametrize("method", [occlusion, rise])
def test_methods_that_only_ask_find_where_the_evidence_is(method):
    x = torch.full((2, 2, 7, 9), 0.1)
    x[0, 0, 1, 2] = x[1, 1, 5, 6] = 8
    units = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    maps = method(lambda x: x.relu().mean((2, 3)), x, units)
    assert maps.shape == (2, 2, 7, 9)
    row, column = divmod(int(maps[0, 0].argmax()), 9)
    assert abs(row - 1) <= 1
    assert abs(column - 2) <= 1
    row, column = divmod(int(maps[1, 1].argmax()), 9)
    assert abs(row - 5) <= 1
    assert abs(column - 6) <= 1


def test_rise_is_the_same_each_time_and_another_seed_is_another_draw():
    x, units = X.float(), torch.ones(1, 3)
    ask = lambda seed: rise(lambda x: x.mean((2, 3)), x, units, masks=40, seed=seed)  # noqa: E731
    assert torch.equal(ask(0), ask(0))
    assert not torch.equal(ask(0), ask(1))


def test_the_names_that_others_call():
    names = {"mwp", "contrastive_mwp", "cam", "grad_cam", "gradient", "guided_backprop", "deconvnet", "lrp"}
    assert names | {"attn_lrp", "class_lrp", "occlusion", "rise"} == set(METHODS)
