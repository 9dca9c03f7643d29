"""One phase of a run: its loader, its optimizer, and the loop over its steps.

Every random choice of a step is seeded by (seed, phase, step), and the loader's order by (seed, epoch), so a phase
can be entered at any step and goes on as if it had never stopped.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.models.model import last_frozen, trainable_stages
from phrase_loc.pairs.dataset import Batch, Order, StepSampler, collate, steps_per_epoch
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.features import PhaseData
from phrase_loc.training.objective import Objective
from phrase_loc.training.optim import Average, optimizer, parameter_groups, schedule
from phrase_loc.training.setup import Materials

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What a step says of itself, over all processes."""

    number: int  # steps of the phase that are done
    loss: Tensor  # mean over the images, on the device: reading it waits for the GPU
    images: int
    lr: float
    norm: Tensor  # of the gradient before clipping


class Phase:
    """A phase ready to run; `steps` yields after each step.

    Args:
        config: of the run.
        number: which of its phases.
        materials: of the run.
        world: the processes.
        on_fault: called with each fault of the data.
    """

    def __init__(
        self, config: TrainConfig, number: int, materials: Materials, world: World, on_fault: Callable
    ):
        self.config, self.settings, self.number = config, config.run_phases[number], number
        self.materials, self.world, self.on_fault = materials, world, on_fault
        model = materials.model
        stages = trainable_stages(model.trunk, self.settings.train_from)
        self.data = PhaseData(config, self.settings, materials, world)
        self.cached = last_frozen(model.trunk, self.settings.train_from) if self.settings.cache else None
        groups = parameter_groups(
            model.trunk,
            [model.head, model.words],
            stages,
            self.settings.lr,
            self.settings.trunk_lr,
            self.settings.layer_decay,
            self.settings.weight_decay,
        )
        self.optimizer = optimizer(self.settings.optimizer, groups, self.settings.momentum)
        self.parameters = [p for group in groups for p in group["params"]]
        self.average = Average(model, config.ema) if config.ema else None
        fp16 = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=fp16)  # type: ignore[attr-defined]
        self.total = phase_steps(self.settings, len(materials.source))
        self._module = self._wrapped()

    def _wrapped(self) -> nn.Module:
        settings, config = self.settings, self.config
        objective = Objective(
            self.materials.model,
            self.materials.balance.to(self.world.device),
            settings,
            self.world,
            cached=self.cached,
            memory_mb=config.memory_mb,
            recompute=config.recompute,
        )
        if config.compile and settings.train_from != "none":
            for stage in self.materials.model.trunk.children():
                stage.compile()
        return self.world.wrap(objective)

    def steps(self, done: int) -> Iterator[Step]:
        """Runs from step `done` to the end."""
        batches = iter(self._loader(done))
        self.set_mode()
        for step in range(done, self.total):
            seed = step_seed(self.config.seed, self.number, step)
            torch.manual_seed(seed + self.world.rank)
            parts = [next(batches) for _ in range(self.settings.accumulate)]
            yield self._step(step, seed, parts)

    def _step(self, step: int, seed: int, parts: list[Batch]) -> Step:
        for part in parts:
            for fault in part.faults:
                self.on_fault(fault)
        world, device = self.world, self.world.device
        count = world.sum(torch.stack([part.weights.sum() for part in parts]).sum().to(device)).item()
        rate = schedule(self.settings.schedule, step, self.total, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        summed = torch.zeros((), device=device)
        for i, part in enumerate(parts):
            summed = summed + self._backward(part.to(device), seed + i, count, last=i + 1 == len(parts))
        norm = self._update()
        loss = world.sum(summed) / max(count, 1)
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss became {loss.item()} at step {step} of phase {self.settings.name}; lower lr, raise "
                "warmup, or train in bf16 or float32"
            )
        return Step(step + 1, loss, int(count), self.settings.lr * rate, norm)

    def _backward(self, batch: Batch, seed: int, count: float, last: bool) -> Tensor:
        """This process's share of the summed loss; gradients are averaged over processes after the last part."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        unsynced = getattr(self._module, "no_sync", None) if not last else None
        with unsynced() if unsynced else nullcontext():
            with torch.autocast(self.world.device.type, half or torch.bfloat16, enabled=half is not None):
                summed = self._module(batch, seed)
            # averaged over processes by DDP, so times their number; over images by the count of all
            self.scaler.scale(summed * (self.world.size / max(count, 1))).backward()
        return summed.detach().float() if summed.dtype != torch.float64 else summed.detach()

    def _update(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.materials.model)
        return norm

    def load(self, optimizer: dict, scaler: dict, average: dict) -> None:
        """The states of a checkpoint in the middle of this phase."""
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(scaler)
        if self.average:
            self.average.load(average)

    def set_mode(self) -> None:
        """Train mode, batch norms frozen: their statistics are the pretrained ones at any number of processes."""
        self._module.train()
        if self.settings.train_from == "none":
            self.materials.model.trunk.eval()
        for module in self.materials.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _loader(self, done: int) -> DataLoader:
        data, settings, world = self.config.data, self.settings, self.world
        order = Order(self.materials.source.groups, self.config.seed, data.window)
        sampler = StepSampler(
            order,
            settings.batch,
            settings.accumulate,
            done,
            self.total,
            world.rank,
            world.size,
            len(self.data.sizes),
        )
        return DataLoader(
            self.data.dataset(),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=data.workers,
            pin_memory=world.device.type == "cuda",
            worker_init_fn=_one_thread,
        )


def phase_steps(settings: PhaseConfig, samples: int) -> int:
    """Steps of a phase over so many samples."""
    return max(1, math.ceil(settings.epochs * steps_per_epoch(samples, settings.batch)))


def step_seed(seed: int, phase: int, step: int) -> int:
    """A seed of 62 bits that differs between any two steps of a run."""
    return int(np.random.SeedSequence([seed, phase, step]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
