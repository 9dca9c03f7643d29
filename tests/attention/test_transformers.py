"""Excitation backprop on transformers: attention, norms, gates and tokens, on networks made on the spot."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention import contrastive_mwp, excitation_backprop, mwp


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ways_of_attention() -> dict:
    """One attention, (N, L, D) of four heads, in every spelling."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, batch_first=True).double().eval()
    weight, bias = module.in_proj_weight, module.in_proj_bias
    mask = torch.rand(5, 5) > 0.3
    mask.fill_diagonal_(True)

    def heads(x: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, weight, bias).unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4).unbind(0)

    def joined(o: Tensor) -> Tensor:
        return module.out_proj(o.transpose(1, 2).flatten(2))

    def by_matmul(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        scores = (q @ k.transpose(-2, -1) * 2**-0.5).masked_fill(~mask, float("-inf"))
        return joined(F.dropout(scores.softmax(-1), 0.5, False) @ v)

    def by_einsum(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        scores = torch.einsum("nhld,nhsd->nhls", q, k) / 2**0.5
        return joined(torch.einsum("nhls,nhsd->nhld", (scores + mask.double().log()).softmax(-1), v))

    return {
        "fused": lambda x: joined(F.scaled_dot_product_attention(*heads(x), attn_mask=mask)),
        "float mask": lambda x: joined(F.scaled_dot_product_attention(*heads(x), mask.double().log())),
        "matmul": by_matmul,
        "einsum": by_einsum,
        "module": lambda x: module(x, x, x, attn_mask=~mask, need_weights=False)[0],
        "module with weights": lambda x: module(x, x, x, attn_mask=~mask)[0],
    }


@pytest.mark.parametrize("signed", ["clamp", "contributions"])
def test_every_spelling_of_attention_has_the_same_winners(signed):
    x, units = randn(2, 5, 8), randn(3, 8, seed=1)
    found = {
        name: mwp(lambda x, net=net: net(x.mT).mean(1), x.mT, units, signed=signed)
        for name, net in ways_of_attention().items()
    }
    for name, maps in found.items():
        assert maps.shape == (3, 2, 5)
        assert torch.allclose(maps, found["fused"], atol=1e-12), name


def test_an_operation_on_the_way_of_winners_is_named_and_one_in_a_gate_needs_no_rule():
    x, units = randn(1, 4, 3), randn(1, 4)
    assert mwp(lambda x: (x * torch.cumsum(x, 1)).mean(2), x, units).isfinite().all()
    with pytest.raises(NotImplementedError, match=r"cumsum.*rules="):
        mwp(lambda x: torch.cumsum(x, 1).mean(2), x, units)
    with pytest.raises(NotImplementedError, match="softmax"):
        contrastive_mwp(lambda x: x.mean(2).softmax(1), x, units)


def test_by_contributions_what_made_a_unit_negative_explains_it():
    x, weight = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1.0, 1.0, -1.0]])  # y = 1 - 2 - 3
    ones = lambda h: torch.ones(1, *h.shape)  # noqa: E731
    p = excitation_backprop(lambda x: F.linear(x, weight), x, ones, signed="contributions")
    assert torch.allclose(p[0, 0], torch.tensor([0, 0.4, 0.6]))
    p = excitation_backprop(lambda x: F.linear(x, -weight), x, ones, signed="contributions")
    assert torch.allclose(p[0, 0], torch.tensor([0, 0.4, 0.6]))
    p = excitation_backprop(lambda x: F.linear(x, weight), x, ones)
    assert torch.allclose(p[0, 0], torch.tensor([1.0, 0, 0]))
