"""What a pass holds and what it writes to: nothing that somebody else still needs."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention.excitation import RULES, mwp
from phrase_loc.attention.tape import attended_pass


class Branches(nn.Module):
    """Branches that meet by sum and by concatenation; one of them passes its winners on as they are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        y = F.max_pool2d(x + F.relu(self.two(x)) + x, 3, 1, 1)
        return torch.cat([x, y, self.one(y), y], 1).mean((2, 3))


def pass_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The seed, before and after, and the maps of two passes down the same tape."""
    with attended_pass([Branches()], x, RULES) as (tape, top):
        won = torch.rand(3, *top.shape)
        before = won.clone()
        return before, won, tape.propagate(top, won)[0], tape.propagate(top, won)[0]


def test_a_pass_down_writes_to_nothing_that_is_used_again():
    before, won, first, second = pass_of(torch.rand(2, 4, 5, 5))
    assert torch.equal(before, won)
    assert torch.equal(first, second)


def test_winners_of_a_batch_are_those_of_each_alone():
    x, units = torch.rand(1, 4, 5, 5), torch.rand(3, 16)
    together = mwp(Branches(), x, units)
    alone = torch.cat([mwp(Branches(), x, unit[None]) for unit in units])
    torch.testing.assert_close(together, alone)


def test_values_that_the_network_let_go_are_not_held():
    made = []

    class Watching(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            made.append(weakref.ref(out))
            return out

    net = nn.Sequential(*(Watching(4, 4, 1) for _ in range(6)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with attended_pass([net], torch.rand(1, 4, 5, 5), RULES) as (tape, top):
        assert sum(out() is not None for out in made) == 0
        assert len(tape.propagate(top, torch.rand(1, *top.shape))[0]) == 1


@pytest.mark.parametrize("parts", [1, 3])
def test_nothing_of_a_pass_waits_for_the_collector_of_cycles(parts):
    gc.collect()
    gc.disable()
    try:
        with attended_pass([nn.Conv2d(4, 4, 1) for _ in range(parts)], torch.rand(1, 4, 5, 5), RULES) as (
            tape,
            top,
        ):
            held = weakref.ref(tape)
        del tape, top
        assert held() is None
    finally:
        gc.enable()
