"""A vision transformer made by hand, whose right answer is known exactly: a wrong rule for signed activations fails.

Sixteen patches and a class token; the class token attends to all alike and copies what they say. One thing says its
word by a positive channel, another by a negative one (its unit is negative there), and a patch opposes the second.
"""

import pytest
import torch
import torch.nn.functional as F

from phrase_loc.attention import contrastive_mwp, mwp

WIDTH, PATCHES = 8, 16
UP, DOWN, FILL = (
    0,
    1,
    2,
)  # channel of the first word, of the second, and one that keeps each patch's mean at 0
THING, OTHER, OPPOSED = 5, 10, 3  # patches
CLASS = PATCHES  # the last token


def tokens() -> torch.Tensor:
    """(1, WIDTH, PATCHES + 1), the input of the first block."""
    x = torch.zeros(PATCHES + 1, WIDTH, dtype=torch.float64)
    x[:, 4], x[:, 5] = 1.0, -1.0  # what every token says
    for patch, channel, value in ((THING, UP, 3.0), (OTHER, DOWN, -3.0), (OPPOSED, DOWN, 1.0)):
        x[patch, channel] += value
        x[patch, FILL] -= value
    return x.T[None]


def block(x: torch.Tensor) -> torch.Tensor:
    """Pre-norm attention with one head, then an MLP that strengthens each channel: (1, C, T) -> (1, C, T)."""
    x = x.mT
    value = F.layer_norm(x, (WIDTH,))
    query = torch.zeros_like(value)  # all attend alike
    x = x + F.linear(F.scaled_dot_product_attention(query, query, value), torch.eye(WIDTH).double())
    seen = F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), torch.eye(WIDTH).double()))
    return (x + F.linear(seen, 0.5 * torch.eye(WIDTH).double())).mT


def net(x: torch.Tensor) -> torch.Tensor:
    """The class token's features (1, C)."""
    return F.layer_norm(block(x).mT, (WIDTH,))[:, CLASS]


def units() -> torch.Tensor:
    """The two words, and their patches."""
    u = torch.zeros(2, WIDTH, dtype=torch.float64)
    u[0, UP], u[1, DOWN] = 1.0, -1.0
    return u


def patch(number: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(number), PATCHES + 1).double()


@pytest.mark.parametrize("method", [mwp, contrastive_mwp])
def test_by_contributions_each_word_finds_its_patch_and_nothing_else(method):
    maps = method(net, tokens(), units(), signed="contributions")[:, 0]
    assert torch.allclose(maps, torch.stack([patch(THING), patch(OTHER)]), atol=1e-12)


@pytest.mark.parametrize("method", [mwp, contrastive_mwp])
def test_by_clamp_a_word_said_by_a_negative_channel_is_not_found(method):
    maps = method(net, tokens(), units(), signed="clamp")[:, 0]
    assert torch.allclose(maps[0], patch(THING), atol=1e-12)
    assert maps[1].sum() == 0


def test_what_opposes_a_word_wins_nothing():
    maps = mwp(net, tokens(), -units(), signed="contributions")
    assert maps.abs().sum() == 0  # both features stand on the words' own side: nothing excites the duals
