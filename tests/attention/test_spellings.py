"""Networks spelt otherwise: the map of the plain spelling, or one sentence; never another map."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention import METHODS, contrastive_mwp, mwp
from phrase_loc.errors import ConfigError, RuleError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, GATE, HALF = (
    randn(8, 8, 3, 3),
    randn(8, 8, 3, 3, seed=1),
    randn(8, 8, seed=2),
    randn(4, 8, 3, 3, seed=3),
)
X, UNITS = randn(2, 8, 6, 6, seed=4).clamp(min=0), randn(3, 8, seed=5)


def a(x):
    return F.relu(F.conv2d(x, A, padding=1))


def b(x):
    return F.relu(F.conv2d(x, B, padding=1))


def gate(y):
    return torch.sigmoid(y.mean((2, 3)) @ GATE)[:, :, None, None]


def pool(y):
    return y.mean((2, 3))


def summed_in_place(x):
    total = torch.zeros_like(x)
    total.add_(a(x))
    total.add_(b(x))
    return pool(total)


def summed_by_results(x):
    total = torch.zeros_like(x)
    for part in (a(x), b(x)):
        total += part
    return pool(total)


MASK = (randn(2, 8, 6, 6, seed=6) > 0).double()
SAME = {
    "a constant summed into, by name": (summed_in_place, lambda x: pool(a(x) + b(x))),
    "a constant summed into, by result": (summed_by_results, lambda x: pool(a(x) + b(x))),
    "stacked twice": (lambda x: pool((y := a(x), torch.stack([y, y]).sum(0))[1]), lambda x: pool(a(x))),
    "the larger of itself": (lambda x: pool((y := a(x), torch.maximum(y, y))[1]), lambda x: pool(a(x))),
    "where of itself": (lambda x: pool((y := a(x), torch.where(y > 1, y, y))[1]), lambda x: pool(a(x))),
    "expand_as": (
        lambda x: pool((y := a(x), y * gate(y).expand_as(y))[1]),
        lambda x: pool((y := a(x), y * gate(y))[1]),
    ),
    "an expanded gate first": (
        lambda x: pool((y := a(x), gate(y).expand(y.shape) * y)[1]),
        lambda x: pool((y := a(x), y * gate(y))[1]),
    ),
    "a gate with 1 added, first": (
        lambda x: pool((y := a(x), (1 + gate(y) * gate(b(x))).expand_as(y) * y)[1]),
        lambda x: pool((y := a(x), y * (1 + gate(y) * gate(b(x))))[1]),
    ),
    "1 less a gate, first": (
        lambda x: pool((y := a(x), (1 - gate(y).expand_as(y)) * y)[1]),
        lambda x: pool((y := a(x), y * (1 - gate(y)))[1]),
    ),
    "a gate of a plane of one place, first": (
        lambda x: (y := a(x).mean((2, 3), True), (gate(y) * y).flatten(1))[1],
        lambda x: (y := a(x).mean((2, 3), True), (y * gate(y)).flatten(1))[1],
    ),
    "a constant in the dtype of an activation, first": (
        lambda x: pool((y := a(x), MASK.float().type_as(y) * y)[1]),
        lambda x: pool(a(x) * MASK),
    ),
    "a constant in the shape of an activation": (
        lambda x: pool((y := a(x), MASK.flatten().view_as(y) * y)[1]),
        lambda x: pool(a(x) * MASK),
    ),
    "one picture at a time": (
        lambda x: torch.stack([F.max_pool2d(F.conv2d(one, A), 4).flatten() for one in x]),
        lambda x: F.max_pool2d(F.conv2d(x, A), 4).flatten(1),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_another_spelling_has_the_map_of_the_plain_one(name):
    odd, plain = SAME[name]
    for method in (mwp, contrastive_mwp):
        torch.testing.assert_close(method(odd, X, UNITS), method(plain, X, UNITS))


def part_of_a_sum(x):
    y = a(x)
    y[:, :4].add_(F.relu(F.conv2d(x, HALF, padding=1)))
    return pool(y)


def halves_summed(x):
    y = a(x)
    first, second = y.chunk(2, 1)
    first += second
    return pool(y)


def seen_before_the_sum(x):
    y = a(x)
    tokens = y.flatten(2)
    y.add_(b(x))
    return tokens.mean(2)


def negated_in_part(x):
    y = F.conv2d(x, A)
    y[:, :4].neg_()
    return pool(F.relu(y))


def summed_into_parts(x):
    total = torch.zeros_like(x)
    total[:, :4].add_(F.conv2d(x, HALF, padding=1))
    return pool(total + x)


def summed_to_out(x):
    out = torch.empty_like(x)
    torch.add(a(x), b(x), out=out)
    return pool(out + x)


@pytest.mark.parametrize(
    "net",
    [part_of_a_sum, halves_summed, seen_before_the_sum, negated_in_part, summed_into_parts, summed_to_out],
)
def test_what_is_written_into_another_tensors_memory_is_refused(net):
    with pytest.raises(RuleError, match="write to a new tensor, as y = y \\+ z"):
        mwp(net, X, UNITS)


def test_parts_of_a_tensor_may_be_written_to_where_the_whole_is_not_read():
    def net(x):
        first, second = a(x).chunk(2, 1)
        first += second
        return pool(torch.cat([F.relu_(first), second], 1))

    def plain(x):
        first, second = a(x).chunk(2, 1)
        return pool(torch.cat([first + second, second], 1))

    torch.testing.assert_close(mwp(net, X, UNITS), mwp(plain, X, UNITS))


def test_a_tensor_that_was_written_to_is_an_ordinary_one_afterwards():
    kept = torch.zeros_like(X)

    def net(x):
        kept.zero_()
        kept.add_(a(x))
        return pool(kept)

    mwp(net, X, UNITS)
    assert type(kept) is Tensor
    assert not vars(kept)
    torch.testing.assert_close(kept, a(X))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (lambda x: pool(F.interpolate(a(x), scale_factor=2, mode="bicubic")), "another mode than bicubic"),
        (lambda x: pool(torch.div(MASK, a(x) + 1)), "rule for torch.Tensor.div|rule for torch.div"),
        (lambda x: (pool(a(x)),), r"must give one tensor \(N, D, ...\), got a tuple"),
        (torch.compile(lambda x: pool(a(x)), backend="eager"), "give it without torch.compile"),
    ],
)
def test_networks_that_have_no_such_map_are_one_sentence(net, said):
    with pytest.raises(ConfigError, match=said):
        mwp(net, X, UNITS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": X.where(X < 1, torch.nan)}, "activations hold NaN"),
        ({"x": X.where(X < 1, torch.inf)}, "activations hold NaN"),
        ({"x": X.numpy()}, "floating tensor .*got a ndarray"),
        ({"x": X.long()}, "floating tensor .*got torch.int64"),
        ({"units": UNITS.numpy()}, "units must be a tensor of finite numbers, got a ndarray"),
        ({"units": UNITS * torch.nan}, "units must be .*got NaN"),
        ({"weights": [[1, 1, 1]]}, "weights must be .*got a list"),
    ],
)
def test_what_no_method_can_ask_of_is_one_sentence(name, changes, said):
    given = {"x": X, "units": UNITS, "weights": None, **changes}
    with pytest.raises(ConfigError, match=said):
        METHODS[name](lambda x: pool(a(x)), given["x"], given["units"], weights=given["weights"])


@pytest.mark.parametrize("name", ["grad_cam", "gradient", "attn_lrp", "class_lrp", "deconvnet"])
def test_derivatives_of_no_image_and_of_a_constant(name):
    assert METHODS[name](lambda x: pool(a(x)), X[:0], UNITS).shape == (3, 0, 6, 6)
    with pytest.raises(ConfigError, match="a tensor that depends on the activations"):
        METHODS[name](lambda x: torch.ones(2, 8, dtype=x.dtype), X, UNITS)


def test_a_script_is_refused_where_its_operations_must_be_seen():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.jit.trace(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), X)
    METHODS["gradient"](net, X, UNITS)
    for name in ("guided_backprop", "deconvnet", "attn_lrp"):
        with pytest.raises(ConfigError, match="the network before"):
            METHODS[name](net, X, UNITS)


@pytest.mark.parametrize("rules", [[F.relu], {F.relu: "passed"}])
def test_rules_are_functions_of_functions(rules):
    with pytest.raises(ConfigError, match="functions and no names"):
        mwp(lambda x: pool(a(x)), X, UNITS, rules=rules)
