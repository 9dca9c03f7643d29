"""Running a part of the trunk: from the image or a cached stage, to a stage or the top."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phrase_loc.errors import ConfigError
from phrase_loc.models.text_to_region import TextToRegion


def trainable_stages(trunk: nn.Sequential, train_from: str) -> list[str]:
    """Names of the stages that a phase trains, lowest first: 'none', 'all', or from the named one upwards."""
    names = [name for name, _ in trunk.named_children()]
    if train_from == "none":
        return []
    if train_from == "all":
        return names
    if train_from not in names:
        raise ConfigError(f"train_from must be none, all or a stage ({', '.join(names)}), got {train_from!r}")
    return names[names.index(train_from) :]


def last_frozen(trunk: nn.Sequential, train_from: str) -> str:
    """The stage below the trained ones, whose output can be cached.

    Raises:
        ConfigError: all stages are trained.
    """
    names = [name for name, _ in trunk.named_children()]
    frozen = names[: len(names) - len(trainable_stages(trunk, train_from))]
    if not frozen:
        raise ConfigError(
            "cache: true needs frozen stages; set train_from to none or to a stage above the first"
        )
    return frozen[-1]


def run_stages(
    model: TextToRegion,
    x: Tensor,
    after: str | None,
    until: str | None,
    again: bool = False,
) -> Tensor:
    """The output of one of the trunk's stages.

    Args:
        model: whose trunk runs.
        x: images (N,3,H,W) RGB 0..255, or what this function returned for `until=after`.
        after: the stage whose output `x` is; None for images.
        until: the last stage to run; None for all.
        again: compute activations again in the backward pass instead of keeping them.
    """
    names = [name for name, _ in model.trunk.named_children()]
    first = 0 if after is None else names.index(after) + 1
    last = len(names) if until is None else names.index(until) + 1
    x = model.normalize(x) if after is None else x
    x = x.contiguous(memory_format=torch.channels_last)
    for stage in model.trunk[first:last]:
        x = checkpoint(stage, x, use_reentrant=False) if again and torch.is_grad_enabled() else stage(x)
    return x
