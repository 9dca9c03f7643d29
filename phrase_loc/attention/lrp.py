"""Layer-wise relevance propagation on the signature of excitation backprop (Bach et al., PLOS ONE 2015).

The usual composite for convolutional networks (Montavon et al. 2019, zennit's EpsilonPlus): the score of a
unit is split over the features it weighs, sign and all; linear layers propagate it by the epsilon rule,
convolutions by the z+ rule, which is the rule of excitation backprop. So it is the same tape with
another rule for linear layers and another seed: unlike c-MWP's, support and opposition are not brought to
equal mass before they are set against each other.

Not zennit or Captum: both work by hooks on modules, give a residual sum's relevance to both branches in full
unless a canonizer knows the block, and refuse a plain callable. The tests hold this against zennit.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention.excitation import attended_pass, checked, mixed, plain
from phrase_loc.attention.gradients import score_signal
from phrase_loc.attention.tape import Move, Rule, Tape
from phrase_loc.attention.transposes import transpose

EPSILON = 1e-6  # zennit's default


def lrp(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    units: Tensor,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Relevance of each location for the units' scores, opposition taken off, clamped at 0: (K, N, h, w).

    Args:
        net: the network above `x`, giving (N, D) or (N, D, h', w').
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over net's output.
        weights: (P, K) averages the words' scores into phrases; the result is then (P, N, h, w).

    Raises:
        ConfigError: shapes that do not fit.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    with attended_pass(net, x, rules={F.linear: epsilon}) as (tape, top):
        h = plain(top)
        units, weights = checked(h, units, weights)
        relevance = mixed(score_signal(h, units) * h, weights)
        return tape.maps(top, relevance)[0].clamp_(min=0)


def epsilon(
    tape: Tape, func: Rule, input: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any
) -> Tensor:
    """Inputs inherit in proportion to x_j w_ij of either sign; the bias takes its share and a little is lost."""
    value = func(input, weight, bias)
    seen = input.clone()
    per_unit = (value + EPSILON * value.sign() + EPSILON * (value == 0)).reciprocal()
    return tape.record(
        func, value, [Move(input, lambda p: seen * transpose(func, seen, weight)(p * per_unit))]
    )
