"""Which parameters move, how fast, and their average: groups, schedule, EMA, all plain functions of the step."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from phrase_loc.errors import ConfigError


def parameter_groups(
    trunk: nn.Sequential,
    rest: Iterable[nn.Module],
    stages: Sequence[str],
    lr: float,
    trunk_lr: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict]:
    """Groups for the optimizer, each with its own `base` learning rate.

    Args:
        trunk: of named stages.
        rest: the modules above it (head, word table); what of them is frozen stays so.
        stages: those of the trunk that are trained.
        lr: of the rest.
        trunk_lr: of the trunk's last stage, as a share of lr.
        layer_decay: factor from a stage to the one below it.
        weight_decay: of matrices; biases, norms and scales have none.
    """
    groups: list[dict] = []
    for name, stage in trunk.named_children():
        stage.requires_grad_(name in stages)
    _add(groups, [p for module in rest for p in module.parameters() if p.requires_grad], lr, weight_decay)
    for depth, name in enumerate(reversed(stages)):
        parameters = list(trunk.get_submodule(name).parameters())
        _add(groups, parameters, lr * trunk_lr * layer_decay**depth, weight_decay)
    if not groups:
        raise ConfigError("this phase trains nothing; set train_from, or vectors.tuned, or unfreeze the head")
    return groups


def _add(groups: list[dict], parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
    for matrix in (True, False):
        chosen = [p for p in parameters if (p.ndim > 1) == matrix]
        if chosen:
            decay = weight_decay if matrix else 0.0
            groups.append({"params": chosen, "lr": lr, "base": lr, "weight_decay": decay})


def optimizer(kind: str, groups: list[dict], momentum: float) -> torch.optim.Optimizer:
    """AdamW or SGD over the groups."""
    if kind == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, 0.999))
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=momentum, nesterov=momentum > 0)
    raise ConfigError(f"optimizer must be adamw or sgd, got {kind!r}")


def schedule(kind: str, step: int, total: int, warmup: int) -> float:
    """Share of the base learning rate at a step: linear warm-up, then 'cosine' to 0 or 'constant'."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    if kind != "cosine":
        raise ConfigError(f"schedule must be cosine or constant, got {kind!r}")
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Average:
    """Exponential moving average of the parameters that are trained (EMA).

    The decay starts low, min(decay, (1 + t) / (10 + t)), or the random start would weigh for thousands of steps.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.held = {name: p.detach().clone() for name, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average a little towards the present values."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in _trained(model):
            self.held[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's values and the average; twice is as before."""
        for name, parameter in _trained(model):
            present = parameter.detach().clone()
            parameter.copy_(self.held[name])
            self.held[name].copy_(present)

    def state(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"updates": self.updates, **{f"value.{name}": value for name, value in self.held.items()}}

    def load(self, state: dict) -> None:
        """From a checkpoint."""
        self.updates = int(state["updates"])
        for name, value in self.held.items():
            value.copy_(state[f"value.{name}"])


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
