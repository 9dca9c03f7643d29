"""Layer-wise relevance propagation on the signature of excitation backprop (Bach et al., PLOS ONE 2015).

The usual composite for convolutional networks (Montavon et al. 2019, zennit's EpsilonPlus): the score of a
unit is split over the features it weighs, sign and all; linear layers hand it down by the epsilon rule,
convolutions by the z+ rule, which is the rule of excitation backprop. So it is the same recorded chain with
another rule for linear layers and another seed: unlike c-MWP's, support and opposition are not brought to
equal mass before they are set against each other.

Not zennit or Captum: both work by hooks on modules, hand a residual sum's relevance to both branches in full
unless a canonizer knows the block, and refuse a plain callable. The tests hold this against zennit.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention import seeds
from phrase_loc.attention.chain import ExcitatoryChain
from phrase_loc.attention.excitation import attended_pass
from phrase_loc.attention.rules import Move, Rule
from phrase_loc.attention.transpose import transpose

EPSILON = 1e-6  # zennit's default


def lrp(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    units: Tensor,
    *,
    prior: seeds.Prior | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Relevance of each location for the units' scores, opposition taken off, clamped at 0: (K, N, h, w).

    Args:
        net: the network above `x`, giving (N, D) or (N, D, h', w').
        x: (N, C, h, w) activations.
        units: (K, D) rows of the linear layer over net's output.
        prior: weights of the locations from the units' scores there, for a net that does not pool.
        weights: (P, K) averages the words' scores into phrases; the result is then (P, N, h, w).

    Raises:
        ConfigError: shapes that do not fit.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    with attended_pass(net, x, rules={F.linear: epsilon}) as (chain, h):
        units, weights, at_location = seeds.asked(h, units, prior, weights)
        relevance = seeds.mixed(seeds.scores(h, units, at_location) * h, weights)
        return chain.hand_down(h, relevance, channels=False).clamp_(min=0)


def epsilon(
    chain: ExcitatoryChain, func: Rule, input: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any
) -> Tensor:
    """Inputs inherit in proportion to x_j w_ij of either sign; the bias takes its share and a little is lost."""
    value = func(input, weight, bias)
    seen = input.clone()
    per_unit = (value + EPSILON * value.sign() + EPSILON * (value == 0)).reciprocal()
    return chain.record(
        func, value, [Move(input, lambda p: seen * transpose(func, seen, weight)(p * per_unit))]
    )
