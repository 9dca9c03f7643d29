"""Excitation backprop: where in the image does the evidence for a word come from?

Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 / IJCV 2018
(https://arxiv.org/abs/1608.00507).

    maps = contrastive_mwp(above, activations, units)      # (N, C, h, w), (K, D) -> (K, N, h, w)

`above` is the part of a network over the activations to attend to; a unit is a row of the linear layer over
its output. A winner is drawn at each unit and handed down operation by operation (`rules`); the map is the
probability that it arrives at a location. All K units share one forward pass and one top-down pass, since
what is handed down is linear in the seed (`chain`). The contrast against the dual unit is taken where the
authors take it, in the seed, and clamped once, at the map.

The pass runs in float32 (float64 for float64 activations) whatever the network's dtype, under autocast and
inference mode as well; it leaves modules, weights and gradients as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from phrase_loc.attention import closed_form, seeds
from phrase_loc.attention.chain import ExcitatoryChain, layout, positive_part
from phrase_loc.attention.kept import KeptPositive
from phrase_loc.attention.rules import Rule
from phrase_loc.errors import ConfigError

Net = Callable[[Tensor], Tensor]
Rules = Mapping[Callable[..., Any], Rule]
BATCH = 64  # winners handed down at once: bounds the memory of a query with hundreds of words


def mwp(
    net: Net, x: Tensor, units: Tensor, *, prior: seeds.Prior | None = None, weights: Tensor | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Marginal winning probability of K units.

    Args:
        net: the network above `x`, a callable or what `keep_positive` made of it; gives (N, D) features, or
            (N, D, h', w') when locations are scored before pooling.
        x: (N, C, h, w) activations, >= 0 (of signed ones the positive part competes).
        units: (K, D) rows of the linear layer over net's output.
        prior: weights of the locations (K, N, h', w') from the units' scores there; None: all alike.
        weights: (P, K) averages the words' seeds into phrases before the pass.
        residual: how branches of a sum compete: 'positive' (a Markov chain) or 'proportional' (signed).
        rules: rules for torch functions that have none, or others for those that have.

    Returns:
        (K, N, h, w), or (P, N, h, w) with weights: >= 0, each map's sum at most 1 and below it only by what
        `lost_mass` tells (under 'proportional' it may be signed).

    Raises:
        ConfigError: shapes that do not fit.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    with attended_pass(net, x, residual, rules) as (chain, h):
        return _maps(chain, h, units, (seeds.wins, closed_form.winning_map), prior, weights)


def contrastive_mwp(
    net: Net, x: Tensor, units: Tensor, *, prior: seeds.Prior | None = None, weights: Tensor | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Each unit against its dual, the unit with negated weights: (K, N, h, w) >= 0. Arguments as for `mwp`.

    The two seeds are subtracted before the pass and the map is clamped at 0 after it. It lights up something
    even for a word the image does not show: whether the word is there is the score's business.
    """
    with attended_pass(net, x, residual, rules) as (chain, h):
        signed = _maps(chain, h, units, (seeds.contrasts, closed_form.contrastive_map), prior, weights)
        return signed.clamp_(min=0)


def excitation_backprop(
    net: Net,
    x: Tensor,
    seed: Callable[[Tensor], Tensor],
    *,
    residual: str = "positive",
    rules: Rules | None = None,
) -> Tensor:
    """Winner probability at every activation, for seeds of any kind.

    Args:
        net: the network above `x`.
        x: (N, C, ...) activations.
        seed: from net's output h to K signals over it, (K, *h.shape); distributions for probabilities,
            signed ones for contrasts.
        residual: as for `mwp`.
        rules: as for `mwp`.

    Returns:
        (K, N, C, ...), signed if the seed is.

    Raises:
        ConfigError: a seed of another shape.
        NotImplementedError: an operation without a rule, named, with the ways out.
    """
    with attended_pass(net, x, residual, rules) as (chain, h):
        won = seed(h).to(h)
        if won.shape[1:] != h.shape:
            raise ConfigError(
                f"a seed must be (K, *{tuple(h.shape)}), as the output is, got {tuple(won.shape)}"
            )
        return chain.hand_down(h, won)


def lost_mass(
    net: Net, x: Tensor, units: Tensor, *, prior: seeds.Prior | None = None, weights: Tensor | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> Tensor:  # fmt: skip
    """Share of each unit's winners that never reaches `x`: (K, N) in [0, 1], or (P, N) with weights.

    Mass is lost only at units that fire without excitation: driven by a bias alone, or over a signed
    bottleneck. A unit that no feature supports has no winner and loses none. Arguments as for `mwp`.
    """
    with attended_pass(net, x, residual, rules) as (chain, h):
        at_top = _maps(ExcitatoryChain(h), h, units, (seeds.wins, closed_form.winning_map), prior, weights)
        maps = _maps(chain, h, units, (seeds.wins, closed_form.winning_map), prior, weights)
        whole = at_top.unsqueeze(-1).flatten(2).sum(2)
        return (whole - maps.flatten(2).sum(2)).clamp_(min=0)


def lost_where(
    net: Net, x: Tensor, units: Tensor, *, prior: seeds.Prior | None = None,
    residual: str = "positive", rules: Rules | None = None,
) -> list[tuple[str, float]]:  # fmt: skip
    """Operations from the top down, with the share of all winners that end there. Arguments as `mwp`."""
    with attended_pass(net, x, residual, rules) as (chain, h):
        units, _, at_location = seeds.asked(h, units, prior, None)
        won = seeds.wins(h, units, at_location)
        whole = won.sum().clamp(min=1e-30)
        return [(name, float(share.sum() / whole)) for name, share in chain.losses(h, won)]


@contextmanager
def attended_pass(
    net: Net, x: Tensor, residual: str = "positive", rules: Rules | None = None
) -> Iterator[tuple[ExcitatoryChain, Tensor]]:
    """The chain recorded over a copy of `x` and net's output h, within the context of the core.

    That context: float32 or float64, no autograd, no autocast, no inference mode.

    Raises:
        ConfigError: activations or an output that cannot be attended.
    """
    if not x.is_floating_point() or x.dim() < 2:
        raise ConfigError(f"activations must be floating (N, C, h, w), got {x.dtype} {tuple(x.shape)}")
    positive = net.get if isinstance(net, KeptPositive) else positive_part
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        core = x.detach().to(dtype, copy=True, memory_format=layout(x))
        chain = ExcitatoryChain(core, residual, rules or {}, positive)
        with chain:
            h = net(core)
        if not chain.is_live(h):
            raise ConfigError("the network's output does not depend on the activations it is asked about")
        yield chain, h


def _maps(
    chain: ExcitatoryChain,
    h: Tensor,
    units: Tensor,
    ways: tuple[Callable[..., Tensor], Callable[..., Tensor]],
    prior: seeds.Prior | None,
    weights: Tensor | None,
) -> Tensor:
    """Signed maps (P, N, h, w): by the matrix product if h itself is attended, else by the top-down pass."""
    units, weights, at_location = seeds.asked(h, units, prior, weights)
    seed, closed = ways
    if h is chain.attended:
        return seeds.mixed(closed(h, units, at_location), weights)
    won = seeds.mixed(seed(h, units, at_location), weights)
    if len(won) <= BATCH:
        return chain.hand_down(h, won, channels=False)
    return torch.cat([chain.hand_down(h, part, channels=False) for part in won.split(BATCH)])
