"""Our own methods at the tasks of `attention.py`, beside those of the peers (`attention_peers.py`)."""

from collections.abc import Callable

import torch
from attention_networks import Network
from attention_peers import PEERS, UNIT, Tasks
from torch import Tensor

from phrase_loc.attention import KeptPositive, attn_lrp, class_lrp, contrastive_mwp, grad_cam, mwp
from phrase_loc.errors import choose

OURS: dict[str, dict[str, object]] = {
    "phrase_loc": {},
    "phrase_loc, by contributions": {"signed": "contributions"},
    "phrase_loc, attn_lrp": {"relevance": attn_lrp},
    "phrase_loc, class_lrp": {"relevance": class_lrp},
    "phrase_loc, trunk in bf16": {"dtype": torch.bfloat16},
    "phrase_loc, trunk compiled": {"compiled": True},
    "phrase_loc, trunk channels last": {"channels_last": True},
}

TRUNK_TASKS = ("u1", "c1", "u16", "c16")  # enough to tell one trunk from another


def contestant(network: Network, images: Tensor, method: str) -> Tasks:
    """The tasks that a method of OURS or PEERS can do on a network; none if it cannot.

    Raises:
        ImportError: the library is not installed.
    """
    if method in OURS:
        if "channels_last" in OURS[method] and not isinstance(network.below, torch.nn.Module):
            return {}  # the shipped model is loaded that way
        if {"signed", "relevance"} & OURS[method].keys() and not network.tokens:
            return {}  # the same where activations are >= 0, and for transformers
        tasks = ours(network, images, **OURS[method])  # type: ignore[arg-type]
        return {t: run for t, run in tasks.items() if "trunk" not in method or t in TRUNK_TASKS}
    return choose(PEERS, method, "library")(network, images)


def ours(
    network: Network,
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    channels_last: bool = False,
    signed: str = "clamp",
    relevance: Callable[..., Tensor] | None = None,
) -> Tasks:
    """The whole call for each task, image to maps: the trunk below the map, then the top-down pass in float32."""
    trunk = network.below
    if channels_last:
        trunk = network.copy_below().to(memory_format=torch.channels_last)
    below = torch.compile(trunk) if compiled else trunk
    above = KeptPositive(network.above) if network.above is not None else lambda x: x
    first = images[:1]

    def activations(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return below(x).float()

    if relevance:
        return {
            f"u{n}": lambda n=n: relevance(above, activations(first), network.units[:n]) for n in (1, 16, 64)
        }

    def task(method: Callable[..., Tensor], units: int, x: Tensor = first) -> Callable[[], Tensor]:
        how = {} if method is grad_cam else {"signed": signed}
        return lambda: method(above, activations(x), network.units[:units], **how)

    return {
        "u1": task(mwp, 1), "c1": task(contrastive_mwp, 1), "u16": task(mwp, 16),
        "c16": task(contrastive_mwp, 16), "u64": task(mwp, 64), "c64": task(contrastive_mwp, 64),
        "b8": task(mwp, 1, images), "g1": task(grad_cam, 1), "g16": task(grad_cam, 16),
    }  # fmt: skip


def _check(method: Callable[..., Tensor], **options: object) -> Callable[[Network, Tensor], Tensor]:
    def maps(network: Network, image: Tensor) -> Tensor:
        above = network.above if network.above is not None else lambda x: x
        with torch.inference_mode():
            seen = network.below(image)
        return method(above, seen, network.units[UNIT : UNIT + 1], **options)

    return maps


#: task -> the map that a peer gives for UNIT, by our own core under the peers' rule for residual sums
CHECKS: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "u1": _check(mwp, residual="proportional"),
    "c1": _check(contrastive_mwp, residual="proportional"),
    "g1": _check(grad_cam),
}
