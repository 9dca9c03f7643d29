"""One phase of a run: its loader, its optimizer, and the loop over its steps.

Every random choice of a step is seeded by (seed, phase, step), and the loader's order by (seed, epoch), so a phase
can be entered at any step and goes on as if it had never stopped.
"""

import math
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.model import TextToRegion, trainable_stages
from phrase_loc.pairs.dataset import Batch, Order, StepSampler, collate, in_order
from phrase_loc.pairs.sources import Note
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.features import BATCH, samples
from phrase_loc.training.new_words import looked_at, start_rows
from phrase_loc.training.objective import Objective
from phrase_loc.training.setup import Setup


class Step(NamedTuple):
    """What a step says of itself, over all processes."""

    number: int  # steps of the phase that are done
    loss: Tensor  # mean over the images, on the device: reading it waits for the GPU
    images: int
    lr: float
    norm: Tensor  # of the gradient before clipping


class Phase:
    """A phase ready to run; `steps` yields after each step, and each fault of the data goes to `on_fault`."""

    def __init__(self, config: TrainConfig, number: int, setup: Setup, world: World, on_fault: Note):
        self.config, self.number, self.settings = config, number, config.run_phases[number]
        self.setup, self.world, self.on_fault = setup, world, on_fault
        model, settings = setup.model, self.settings
        groups = parameter_groups(model, settings)
        self.optimizer = torch.optim.AdamW(groups)
        self.parameters = [p for group in groups for p in group["params"]]
        self.average = Average(model, config.ema) if config.ema else None
        fp16 = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=fp16)  # type: ignore[attr-defined]
        self.total = phase_steps(settings, len(setup.trained))
        first = setup.new.start if settings.new_words_only else 0
        self.kept = model.words.vectors.detach()[:first].clone()  # rows that weight decay must not touch
        self.objective = Objective(model, settings, world, config.memory_mb, config.recompute, first)
        if config.compile and settings.train_from != "none":
            for stage in model.trunk.children():
                stage.compile()
        self._module = world.wrap(self.objective)

    def start_words(self) -> None:
        """Gives the new words of a model that is gone on from their first rows, from what this phase reads."""
        config, world = self.config, self.world
        mine = looked_at(self.setup.trained)[world.rank :: world.size]
        self._module.eval()
        read = samples(config, self.settings, self.setup, world)
        batches = (batch.to(world.device) for batch in in_order(read, mine, BATCH, config.data.workers))
        seen = ((self.objective.features(batch), batch) for batch in batches)
        start_rows(self.setup.model, seen, self.setup.new.start, world)

    def steps(self, done: int) -> Iterator[Step]:
        """Runs from step `done` to the end; kept features that are missing are computed before it returns."""
        batches = iter(self._loader(done))

        def run() -> Iterator[Step]:
            self.set_mode()
            for step in range(done, self.total):
                yield self._step(step, [next(batches) for _ in range(self.settings.accumulate)])

        return run()

    def _step(self, step: int, parts: list[Batch]) -> Step:
        for part in parts:
            for fault in part.faults:
                self.on_fault(fault)
        world, device = self.world, self.world.device
        draws = np.random.SeedSequence([self.config.seed, self.number, step]).generate_state(1, np.uint64)
        seed = int(draws[0] >> np.uint64(2))  # 62 bits, others in each step of a run
        torch.manual_seed(seed + world.rank)
        count = world.sum(torch.stack([part.weights.sum() for part in parts]).sum().to(device)).item()
        rate = schedule(self.settings, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        summed = torch.zeros((), device=device)
        for i, part in enumerate(parts):
            summed = summed + self._backward(part.to(device), seed + i, count, last=i + 1 == len(parts))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.setup.model.words.vectors.data[: len(self.kept)] = self.kept
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.setup.model)
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
        module: Any = self._module
        with nullcontext() if last or self.world.size == 1 else module.no_sync():
            with torch.autocast(self.world.device.type, half or torch.bfloat16, enabled=half is not None):
                summed: Tensor = module(batch, seed)
            # averaged over processes by DDP, so times their number; over images by the count of all
            self.scaler.scale(summed * (self.world.size / max(count, 1))).backward()
        return summed.detach()

    def state(self) -> tuple[dict, dict, dict]:
        """The optimizer, scaler and average of a checkpoint in the middle of this phase."""
        average = self.average.state_dict() if self.average else {}
        return self.optimizer.state_dict(), self.scaler.state_dict(), average

    def load(self, held: Checkpoint) -> None:
        """Takes up what `state` gave."""
        self.optimizer.load_state_dict(held.optimizer)
        self.scaler.load_state_dict(held.scaler)
        if self.average:
            self.average.load(held.average)

    def swap_average(self) -> None:
        """Exchanges the weights and their average, where there is one; twice is as before."""
        if self.average:
            self.average.swap(self.setup.model)

    def set_mode(self) -> None:
        """Train mode, batch norms frozen: their statistics are the pretrained ones at any number of processes."""
        self._module.train()
        if self.settings.train_from == "none":
            self.setup.model.trunk.eval()
        for module in self.setup.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _loader(self, done: int) -> DataLoader:
        config, phase, world = self.config, self.settings, self.world
        order = Order(self.setup.source.groups, config.seed, config.data.window, self.setup.held_out)
        ranks, sizes = (world.rank, world.size), len(phase.sizes) or 1
        return DataLoader(
            samples(config, phase, self.setup, world),
            batch_sampler=StepSampler(order, phase.batch, phase.accumulate, done, self.total, *ranks, sizes),
            collate_fn=collate,
            num_workers=config.data.workers,
            pin_memory=world.device.type == "cuda",
            worker_init_fn=_uninterrupted,
        )


def phase_steps(settings: PhaseConfig, samples: int) -> int:
    """Steps of a phase over so many samples."""
    return settings.steps or max(1, math.ceil(settings.epochs * math.ceil(samples / settings.batch)))


def _uninterrupted(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its step


def parameter_groups(model: TextToRegion, phase: PhaseConfig) -> list[dict]:
    """Groups for the optimizer, each with its own `base` rate; of the trunk the phase's stages are unfrozen.

    Head and word vectors have lr, what of them is frozen stays so; the trunk's last stage has trunk_lr * lr, each
    stage below layer_decay of that. Matrices have weight_decay; biases, norms and scales none.
    """
    stages = trainable_stages(model.trunk, phase.train_from)
    for name, stage in model.trunk.named_children():
        stage.requires_grad_(name in stages)
    parts = [(phase.lr, [*model.head.parameters(), *model.words.parameters()])]
    for depth, name in enumerate(reversed(stages)):
        rate = phase.lr * phase.trunk_lr * phase.layer_decay**depth
        parts.append((rate, list(model.trunk.get_submodule(name).parameters())))
    groups = []
    for lr, parameters in parts:
        for decay, is_matrix in ((phase.weight_decay, True), (0.0, False)):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim > 1) == is_matrix]
            if chosen:
                groups.append({"params": chosen, "lr": lr, "base": lr, "weight_decay": decay})
    if not groups:
        raise ConfigError("this phase trains nothing; set train_from, or vectors.tuned, or unfreeze the head")
    return groups


def schedule(phase: PhaseConfig, step: int, total: int) -> float:
    """Share of the base learning rate at a step: linear warm-up, then cosine to 0."""
    if step < phase.warmup:
        return (step + 1) / (phase.warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - phase.warmup) / max(1, total - phase.warmup)))


class Average(AveragedModel):
    """Exponential moving average of the parameters (EMA).

    The decay starts low, min(decay, (1 + t) / (10 + t)), or the random start would weigh for thousands of steps.
    """

    def __init__(self, model: nn.Module, decay: float):
        def moved(held: Any, present: Any, t: Any) -> None:
            get_ema_multi_avg_fn(min(decay, (1 + int(t)) / (10 + int(t))))(held, present, t)

        super().__init__(model, multi_avg_fn=moved)
        self.n_averaged += 1  # the weights as they are now

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's values and the average; twice is as before."""
        for held, parameter in zip(self.module.parameters(), model.parameters(), strict=True):
            present = parameter.detach().clone()
            parameter.copy_(held)
            held.copy_(present)

    def load(self, state: dict) -> None:
        """From a checkpoint; older ones have the trained parameters alone, and count updates."""
        if "updates" in state:
            held = {name.replace("value.", "module.", 1): value for name, value in state.items()}
            held["n_averaged"] = torch.tensor(held.pop("updates") + 1)
            state = self.state_dict() | held
        self.load_state_dict(state)
