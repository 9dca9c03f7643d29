"""class_lrp on transformers made on the spot, against what its formulas say."""

from functools import reduce

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from phrase_loc.attention import attn_lrp, class_lrp
from phrase_loc.attention import class_token as module
from phrase_loc.attention.baselines import Gates, derivative
from tests.attention.test_transformers import randn, ways_of_attention


class Block(nn.Module):
    """Pre-norm block over tokens (N, T, 8); attention by `nn.MultiheadAttention` or spelt out, perhaps scaled."""

    def __init__(self, spelt: bool, scale: bool, biases: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norms, self.spelt = nn.ModuleList(nn.LayerNorm(8) for _ in range(2)), spelt
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8)) if scale else 1.0
        for name, value in self.named_parameters():
            if "bias" in name:
                nn.init.normal_(value) if biases else nn.init.zeros_(value)

    def forward(self, x):
        q = self.norms[0](x)
        if self.spelt:
            weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
            heads = F.linear(q, weight, bias).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            mixed = self.attention.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        else:
            mixed = self.attention(q, q, q, need_weights=False)[0]
        a = x + mixed * self.scale
        return a + self.down(F.gelu(self.up(self.norms[1](a))))


def made(number=3, *, spelt=False, scale=False, biases=True, read=lambda x: x[:, 0]):
    """Some blocks from (N, 8, T), and what is read of the last one's tokens."""
    torch.manual_seed(0)
    blocks = [Block(spelt, scale, biases).double().eval().requires_grad_(False) for _ in range(number)]
    return lambda x: read(reduce(lambda h, block: block(h), blocks, x.flatten(2).mT)), blocks


def signed(net, x, units, **how):
    """The map before it is clamped: it is linear in the unit."""
    return class_lrp(net, x, units, **how) - class_lrp(net, x, -units, **how)


X, UNITS = randn(2, 8, 7), randn(3, 8, seed=1)


def alone(monkeypatch):
    """Refuses to ask every token."""
    monkeypatch.setattr(module, "attn_lrp", lambda *args, **kwargs: pytest.fail("asked every token"))


@pytest.mark.parametrize("spelt", [False, True])
def test_through_one_block_it_is_attn_lrp(spelt, monkeypatch):
    alone(monkeypatch)
    net, _ = made(1, spelt=spelt, scale=True, biases=False)
    expected = attn_lrp(net, X, UNITS)
    assert torch.allclose(class_lrp(net, X, UNITS), expected, atol=1e-12)
    assert torch.allclose(class_lrp(net, X[..., None], UNITS), expected[..., None], atol=1e-12)


@pytest.mark.parametrize("scale", [False, True])
def test_without_biases_all_relevance_is_the_score(scale, monkeypatch):
    alone(monkeypatch)
    net, _ = made(scale=scale, biases=False)
    scores = torch.einsum("nd,kd->kn", net(X), UNITS)
    assert torch.allclose(signed(net, X, UNITS).sum(2), scores, atol=1e-12)


@pytest.mark.parametrize("scale", [False, True])
def test_two_blocks_spelt_out(scale, monkeypatch):
    alone(monkeypatch)
    net, (first, second) = made(2, scale=scale)
    one = X[:1]
    x = first(one.mT).mT
    through = [lambda h, block=block: block(h.mT)[:, 0] for block in (first, second)]
    above = signed(through[1], x, UNITS)  # (K, 1, T) at the second block's input
    above[..., 0] = 0
    own = derivative(through[1], x, UNITS, mode=Gates())[:, 0, :, 0]  # the class token's signal goes on
    q = first.norms[0](one.mT)
    added, weights = first.attention(q, q, q, average_attn_weights=False)
    _, _, wv = first.attention.in_proj_weight.chunk(3)
    v = (q @ wv.T + first.attention.in_proj_bias[16:]).unflatten(2, (2, 4))
    to = (first.attention.out_proj.weight.T * first.scale).T.unflatten(1, (2, 4))
    sums = one.mT + added * first.scale
    given = torch.einsum("nhij,njhd,chd,nic->nij", weights, v, to, sums) / sums.square().sum(2)[..., None]
    shares = given - torch.diag_embed(given.diagonal(dim1=1, dim2=2))
    shares = shares + torch.diag_embed(1 - shares.sum(2))
    expected = torch.einsum("knt,nts->kns", above, shares) + signed(through[0], one, own)
    assert torch.allclose(signed(net, one, UNITS), expected, atol=1e-12)


def test_units_and_images_are_as_one_by_one_and_weights_mix_them():
    net, _ = made()
    found = class_lrp(net, X, UNITS)
    single = [torch.cat([class_lrp(net, x[None], u[None]) for x in X], 1) for u in UNITS]
    assert torch.allclose(found, torch.cat(single), atol=1e-12)
    weights = randn(2, 3, seed=4)
    assert torch.allclose(class_lrp(net, X, UNITS, weights=weights), class_lrp(net, X, weights @ UNITS))
    mixed = torch.tensordot(weights, signed(net, X, UNITS), 1)
    assert torch.allclose(signed(net, X, UNITS, weights=weights), mixed, atol=1e-12)
    assert class_lrp(net, X, UNITS[:0]).shape == (0, 2, 7)


@pytest.mark.parametrize("way", ["mean", "probe", "matmul", "plane", "normed", "scaled"])
def test_what_it_cannot_follow_is_attn_lrp(way):
    torch.manual_seed(0)
    x = randn(2, 8, 5)
    net, _ = made(1, read=lambda x: x.mean(1))
    if way == "probe":
        pool, probe = nn.MultiheadAttention(8, 2, batch_first=True).double().eval(), randn(1, 1, 8, seed=2)
        net, _ = made(1, read=lambda x: pool(probe.expand(len(x), 1, 8), x, x)[0][:, 0])
    if way == "matmul":
        attention = ways_of_attention()[way]
        net = lambda x: attention(x.mT)[:, 0]  # noqa: E731
    if way in ("normed", "scaled"):  # what attention gives, before it is added: the norm is not of a sum
        net, (block,) = made(1, spelt=True)
        between = nn.LayerNorm(8).double() if way == "normed" else lambda mixed: 3 * mixed
        block.attention.out_proj.register_forward_hook(lambda module, given, out: between(out))
    if way == "plane":
        x, layer = randn(2, 8, 3, 3), nn.Conv2d(8, 8, 3).double()
        net = lambda x: layer(x).mean((2, 3))  # noqa: E731
    assert torch.equal(class_lrp(net, x, UNITS), attn_lrp(net, x, UNITS))
