"""train(config): data and model in, a model folder out, able to stop at any instant and go on the same.

OUT/checkpoint.pt     everything of the run (checkpoint.py)       OUT/metrics.jsonl   figures by step
OUT/index/            offset indices of the shards                OUT/vocabulary.tsv  the counted words (.key: whence)
OUT/features-*/       output of a frozen trunk                    OUT/model/, best/   what `query` reads
OUT/source.key        digest of the texts                         OUT/after-PHASE.pt  weights for average_of
OUT/.lock             held by the run at work

Every file is written by files.py, whole or not at all (metrics.jsonl grows by lines), so a run that is killed at any
moment goes on to the same weights.
"""

import logging
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from phrase_loc.config import to_dict
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.files import lock, remove_leftovers
from phrase_loc.models.model import TextToRegion
from phrase_loc.skipped import Skipped
from phrase_loc.training.checkpoint import Checkpoint, check_same_run, mean_weights, save_whole
from phrase_loc.training.checks import Measure, check, measure_of
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.logger import Journal
from phrase_loc.training.phase import Phase, Step, phase_steps
from phrase_loc.training.setup import Materials, prepare

if TYPE_CHECKING:
    pass


log = logging.getLogger(__name__)

#: Settings that may differ when a run goes on: they do not change its result.
FREE = frozenset(
    {
        "data.workers",
        "data.index",
        "data.features",
        "data.max_faults",
        "save_every",
        "log_every",
        "tensorboard",
        "device",
        "threads",
        "out",
        "card",
        "inference",
        "further",
    }
)

#: What versions before 0.2 left behind when they were killed.
_OLD_LEFTOVER = re.compile(r"\.\d+\.part$")


def train(config: TrainConfig, world: World, measure: Measure | None = None) -> Path:
    """Runs or goes on with a training run.

    Args:
        config: the whole of it.
        world: this process among its fellows.
        measure: figures on annotated images; that of `config.validation` when None.

    Returns:
        The folder of the trained model.

    Raises:
        ConfigError: settings that do not fit one another or the run in the folder.
        DataError: unusable data, a folder that cannot be written, a full disk.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    check(config, world)
    with claimed(config.out) if world.is_main else nullcontext():
        world.barrier()
        held = read_checkpoint(config, world)
        materials = prepare(config, world, held.data if held else None)
        run = Run(config, materials, world, measure or measure_of(config), held)
        try:
            run.restore()
            for number in range(run.state.phase, len(config.run_phases)):
                run.phase(number)
            run.release()
        except KeyboardInterrupt:
            log.warning("stopped; the same command goes on after step %d", run.saved)
            raise
        finally:
            run.journal.close()
    return config.out / "model"


def read_checkpoint(config: TrainConfig, world: World) -> Checkpoint | None:
    """Where an earlier start of the run has come to; None at its begin.

    Raises:
        ConfigError: the folder holds a run with other settings.
        DataError: the checkpoint is damaged, or one of a phase whose weights are to be averaged.
    """
    path = config.out / "checkpoint.pt"
    if not world.from_main(path.exists):
        return None
    held = Checkpoint.load(path)
    # data that are known by their content may lie elsewhere
    free = FREE | {"data.shards"} if held.data else FREE
    check_same_run(held.config, to_dict(config), config.out, free)
    for phase in config.run_phases[: held.phase]:
        if phase.name in config.average_of and world.is_main:
            Checkpoint.load(kept_weights(config, phase.name))
    return held


def kept_weights(config: TrainConfig, phase: str) -> Path:
    """The file of a phase's last weights."""
    return config.out / f"after-{phase}.pt"


class Run:
    """The state between steps, and who writes what when."""

    def __init__(
        self,
        config: TrainConfig,
        materials: Materials,
        world: World,
        measure: Measure | None,
        held: Checkpoint | None,
    ):
        self.config, self.materials, self.world = config, materials, world
        self.measure, self.held = measure, held
        self.state = Checkpoint(to_dict(config), data=materials.identity.facts)
        limit = math.ceil(config.data.max_faults * len(materials.source))
        self.faults = Skipped(limit)
        for fault in materials.source.faults:
            self.faults.add(fault)
        samples = len(materials.source)
        self.lengths = [phase_steps(phase, samples) for phase in config.run_phases]
        self.saved = held.done if held else 0
        folder = config.out if world.is_main else None
        self.journal = Journal(folder, sum(self.lengths), self.saved, config.tensorboard)

    def restore(self) -> None:
        """The checkpoint's weights and position, or a first checkpoint, which shows that one can be written."""
        if self.held is None:
            if self.world.is_main:
                check_space(self.config.out, self.materials.model)
            self._save(None)
            return
        self.held.config, self.held.data = self.state.config, self.state.data
        self.state = self.held
        try:
            self.materials.model.load_state_dict(self.held.model)
        except RuntimeError:
            raise DataError(
                f"the checkpoint in {self.config.out} holds another network than the settings describe; give another "
                "out folder, or delete that one"
            ) from None
        self.faults.restore((kind, name) for kind, name in self.held.faults)
        log.info(
            "going on after step %d (phase %d, step %d)", self.held.done, self.held.phase, self.held.step
        )

    def phase(self, number: int) -> None:
        """Runs a phase from where the state stands to its end."""
        settings = self.config.run_phases[number]
        phase = Phase(self.config, number, self.materials, self.world, self.faults.add)
        if self.state.step:
            phase.load(self.state.optimizer, self.state.scaler, self.state.average)
        log.info("phase %s: %d steps from %d", settings.name, phase.total, self.state.step)
        for step in phase.steps(self.state.step):
            self.state.step, self.state.done = step.number, self.state.done + 1
            self.journal.step(step.images)
            self._after(phase, step)
        if phase.average:
            phase.average.swap(self.materials.model)
        if settings.name in self.config.average_of and self.world.is_main:
            weights = self.materials.model.state_dict()
            Checkpoint(self.state.config, model=weights).save(kept_weights(self.config, settings.name))
        self.state.phase, self.state.step = number + 1, 0
        self._save(None)

    def _after(self, phase: Phase, step: Step) -> None:
        config, done, last = self.config, self.state.done, step.number == phase.total
        if done % config.log_every == 0 or last:
            values = {"phase": phase.settings.name, "loss": float(step.loss), "lr": step.lr}
            self.journal.write(done, {**values, "gradient": float(step.norm), "faults": self._all_faults()})
        if self.measure and (last or self._measured_now(phase, step)):
            self._measure(phase, self.measure)
        if done % config.save_every == 0 and not last:
            self._save(phase)

    def _measured_now(self, phase: Phase, step: Step) -> bool:
        epochs = self.config.validation.every * phase.total / phase.settings.epochs
        return epochs > 0 and int(step.number / epochs) > int((step.number - 1) / epochs)

    def _measure(self, phase: Phase, measure: Measure) -> None:
        """Figures of the weights that would be released now; the best ones are kept as a model."""
        model = self.materials.model
        if phase.average:
            phase.average.swap(model)
        model.eval()
        figures = measure(model, self.world)
        score = figures.get(self.config.validation.metric, float("-inf"))
        if score > self.state.best.get("score", float("-inf")):
            self.state.best = {"score": score, "step": self.state.done}
            if self.world.is_main:
                save_whole(model, self.config, self.config.out / "best", figures)
        self.journal.write(self.state.done, {"phase": phase.settings.name, **figures})
        if phase.average:
            phase.average.swap(model)
        self.world.barrier()
        phase.set_mode()

    def _all_faults(self) -> int:
        """Faults of all processes, as far as this one knows; `_save` makes it exact."""
        return max(len(self.faults.seen), len(self.state.faults))

    def _save(self, phase: Phase | None) -> None:
        """Writes the checkpoint, and stops all processes where their faults together are too many."""
        seen = self.world.gather(sorted(self.faults.seen))
        state = self.state
        state.faults = [list(fault) for fault in sorted({fault for rank in seen for fault in rank})]
        if self.world.is_main:
            state.model = self.materials.model.state_dict()
            state.optimizer = phase.optimizer.state_dict() if phase else {}
            state.scaler = phase.scaler.state_dict() if phase else {}
            state.average = phase.average.state() if phase and phase.average else {}
            state.save(self.config.out / "checkpoint.pt")
        self.world.barrier()
        self.saved = state.done
        self.faults.check(len(state.faults))

    def release(self) -> None:
        """Writes the model folder and says what was skipped."""
        if self.world.is_main:
            found = {"faults": self._all_faults(), **self.state.best}
            kept = [Checkpoint.load(kept_weights(self.config, name)).model for name in self.config.average_of]
            if kept:
                self.materials.model.load_state_dict(mean_weights(kept))
            save_whole(self.materials.model, self.config, self.config.out / "model", found)
            log.info("done: %d steps; skipped: %s", self.state.done, self.faults.summary() or "none")
        self.world.barrier()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the run's folder, made if need be, as this run's own, shows that it can be written and clears it.

    Raises:
        DataError: it cannot be written, or another run is at work there.
    """
    full = f"the out folder {folder} cannot be written: %s; give another out="
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(full % (getattr(error, "strerror", None) or error)) from None
    with lock(
        folder / ".lock", f"another training is at work in {folder}; wait for it, or give another out="
    ):
        try:
            for place in (folder, folder / "index"):
                if place.is_dir():
                    remove_leftovers(place)
            for path in folder.iterdir():
                if _OLD_LEFTOVER.search(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise DataError(full % error.strerror) from None
        yield


def check_space(folder: Path, model: TextToRegion) -> None:
    """Raises DataError when the disk cannot hold the files of a run: two checkpoints at a time and two models."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    needed, free = weights * (2 * 4 + 2 * 2), shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the disk of {folder} has {free / 2**20:.0f} MB free, the run needs about {needed / 2**20:.0f} MB for "
            "checkpoints and models; free space or give another out="
        )


def log_to_stderr(world: World) -> None:
    """The main process's log, as a person reads it; the others only warn."""
    level = logging.INFO if world.is_main else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s")
