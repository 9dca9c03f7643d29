"""train(config): data and model in, a model folder out, able to stop at any instant and go on the same.

OUT/checkpoint.pt     everything of the run (checkpoint.py)       OUT/metrics.jsonl   figures by step
OUT/index/            offset indices of the shards                OUT/vocabulary.tsv  the counted words (.key: whence)
OUT/features-*/       output of a frozen trunk                    OUT/model/, best/   what `query` reads
OUT/source.key        digest of the texts                         OUT/after-PHASE.pt  weights for average_of
OUT/held_out.json     what held-out photographs say of the words
OUT/.lock             held by the run at work

Every file is written by files.py, whole or not at all (metrics.jsonl grows by lines), so a run that is killed at any
moment goes on to the same weights.
"""

import json
import logging
import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from phrase_loc.config import to_dict
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError, PhraseLocError
from phrase_loc.files import lock, make_folder, refusing, remove_leftovers, write_text, writing
from phrase_loc.models.build import folded
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import load_model, save_model
from phrase_loc.skipped import Skipped
from phrase_loc.training.checkpoint import Checkpoint, check_same_run
from phrase_loc.training.checks import Measure, check, held_out_score, measure_of, told_of_held_out
from phrase_loc.training.class_words import LEARNED
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.logger import Logger
from phrase_loc.training.new_words import resolve_start
from phrase_loc.training.phase import Phase, Step
from phrase_loc.training.setup import Setup, add_further_words, open_data, prepare

log = logging.getLogger(__name__)

#: Settings that may differ when a run goes on: they do not change its result.
FREE = {
    *("data.workers", "data.index", "data.features", "data.max_faults", "save_every", "log_every"),
    *("tensorboard", "device", "threads", "out", "card", "inference", "further"),
}


def train(config: TrainConfig, world: World, measure: Measure | None = None) -> Path:
    """Runs or goes on with a training run, and returns the folder of the trained model.

    `measure` gives figures on annotated images; those that `config.validation` asks for when None.

    Raises:
        ConfigError: settings that do not fit one another or the run in the folder.
        DataError: unusable data, a folder that cannot be written, a full disk.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    check(config, world)
    with claimed(config.out) if world.is_main else nullcontext():
        world.barrier()
        source = open_data(config, world)
        config, held = read_checkpoint(config, len(source), world)
        if config.averaged != config.average_of:
            log.info("average_of: of its phases %s is run", ", ".join(config.averaged) or "none")
        setup = prepare(config, world, source, held.data if held else None)
        run = Run(config, setup, world, measure or measure_of(config), held.done if held else 0)
        try:
            run.restore(held)
            for number in range(run.state.phase, len(run.phases)):
                run.phase(number)
            run.release()
        except KeyboardInterrupt:
            log.warning("stopped; the same command goes on after step %d", run.saved)
            raise
        finally:
            run.logger.close()
    return config.out / "model"


def read_checkpoint(
    config: TrainConfig, photographs: int, world: World
) -> tuple[TrainConfig, Checkpoint | None]:
    """The config with model.start decided, and where an earlier start of the run has come to; None at its begin.

    Raises ConfigError where the folder holds a run with other settings, DataError where a checkpoint is damaged.
    """
    path = config.out / "checkpoint.pt"
    if not world.from_main(path.exists):
        named = ["source.key", "model", "metrics.jsonl"]  # each run writes the first at its begin
        named += [] if config.vocabulary.file else ["vocabulary.tsv"]
        there = world.from_main(lambda: [name for name in named if (config.out / name).exists()])
        if there and there[0] != "source.key":
            raise ConfigError(
                f"{config.out} holds a {there[0]} and no run it would be of; give another out folder"
            )
        return resolve_start(config, photographs, None), None
    held = Checkpoint.load(path)
    config = resolve_start(config, photographs, held.config.get("model", {}).get("start", ""))
    known = {"data.shards"} if held.data else set()  # data that are known by their content may lie elsewhere
    check_same_run(held.config, to_dict(config), config.out, FREE | known)
    for phase in config.run_phases[: held.phase]:
        if phase.name in config.averaged and world.is_main:
            Checkpoint.load(kept_weights(config, phase.name))
    return config, held


def kept_weights(config: TrainConfig, phase: str) -> Path:
    """The file of the last weights of a phase in average_of."""
    return config.out / f"after-{phase}.pt"


class Run:
    """The state between steps, and who writes what when."""

    def __init__(self, config: TrainConfig, setup: Setup, world: World, measure: Measure | None, saved: int):
        self.config, self.model, self.setup = config, setup.model, setup
        self.world, self.measure, self.saved = world, measure, saved
        self.state = Checkpoint(to_dict(config), data=setup.identity.facts)
        samples = len(setup.source)
        self.phases = config.run_phases
        if config.new_words_only and not setup.new:
            log.warning("the model knows every word that the texts say often enough: nothing is trained")
            self.phases = ()
        self.faults = Skipped(math.ceil(config.data.max_faults * samples))
        for fault in setup.source.faults:
            self.faults.add(fault)
        self.images = len(setup.trained)
        self.logger = Logger(config.out if world.is_main else None, saved, config.tensorboard)

    def restore(self, held: Checkpoint | None) -> None:
        """The checkpoint's weights and position, or a first checkpoint, which shows that one can be written."""
        if held is None:
            if self.world.is_main:
                check_space(self.config.out, self.model)
            self._save(None)
            return
        held.config, held.data = self.state.config, self.state.data
        self.state = held
        try:
            self.model.load_state_dict(held.model)
        except RuntimeError:
            raise DataError(
                f"the checkpoint in {self.config.out} holds another network than the settings describe; give another "
                "out folder, or delete that one"
            ) from None
        self.faults.restore((kind, name) for kind, name in held.faults)
        log.info("going on after step %d (phase %d, step %d)", held.done, held.phase, held.step)

    def phase(self, number: int) -> None:
        """Runs a phase from where the state stands to its end."""
        settings, state = self.config.run_phases[number], self.state
        phase = Phase(self.config, number, self.setup, self.world, self.faults.add)
        if state.step:
            phase.load(state)
        if number == 0 and not state.step and self.config.model.start and self.setup.new:
            phase.start_words()
        log.info("phase %s: %d steps from %d", settings.name, phase.total, state.step)
        steps = phase.steps(state.step)
        self.logger.phase(settings.name, state.done, phase.total - state.step)
        with interrupts_noted(self.world) as interrupts:
            for step in steps:
                state.step, state.done = step.number, state.done + 1
                self.logger.step(step.images)
                self._after(phase, step)
                if interrupts and step.number < phase.total:
                    self._save(phase)
                    raise KeyboardInterrupt
        phase.swap_average()
        if settings.name in self.config.averaged and self.world.is_main:
            weights = self.model.state_dict()
            Checkpoint(state.config, model=weights).save(kept_weights(self.config, settings.name))
        state.phase, state.step = number + 1, 0
        self._save(None)
        if interrupts:
            raise KeyboardInterrupt

    def _after(self, phase: Phase, step: Step) -> None:
        config, done, last = self.config, self.state.done, step.number == phase.total
        if done % config.log_every == 0 or last:
            values = {"phase": phase.settings.name, "loss": float(step.loss), "lr": step.lr}
            self.logger.write(done, {**values, "gradient": float(step.norm), "faults": self._all_faults()})
        steps = config.validation.every * phase.total / phase.settings.epochs  # between two measurements
        due = steps > 0 and int(step.number / steps) > int((step.number - 1) / steps)
        if self.measure and (last or due):
            self._measure(phase, self.measure)
        if done % config.save_every == 0 and not last:
            self._save(phase)

    def _measure(self, phase: Phase, measure: Measure) -> None:
        """Figures of the weights that would be released now; the best ones are kept as a model."""
        phase.swap_average()
        self.model.eval()
        figures = measure(self.model, self.world)
        score = figures.get(self.config.validation.metric, float("-inf"))
        if score > self.state.best.get("score", float("-inf")):
            self.state.best = {"score": score, "step": self.state.done}
            if self.world.is_main:
                save_whole(self.model, self.config, self.config.out / "best", figures, self.setup.card)
        self.logger.write(self.state.done, {"phase": phase.settings.name, **figures})
        phase.swap_average()
        self.world.barrier()
        phase.set_mode()

    def _all_faults(self) -> int:
        """Of all processes, as far as this one knows; `_save` makes it exact."""
        return max(len(self.faults.seen), len(self.state.faults))

    def _save(self, phase: Phase | None) -> None:
        """Writes the checkpoint, and stops all processes where their faults together are too many."""
        seen = self.world.gather(sorted(self.faults.seen))
        state = self.state
        state.faults = [list(fault) for fault in sorted({fault for rank in seen for fault in rank})]
        if self.world.is_main:
            state.model = self.model.state_dict()
            state.optimizer, state.scaler, state.average = phase.state() if phase else ({}, {}, {})
            state.save(self.config.out / "checkpoint.pt")
        self.world.barrier()
        self.saved = state.done
        self.faults.check(state.faults)
        if sum(kind == "words" for kind, _ in state.faults) >= self.images:
            raise DataError("no photograph's text has a word of the vocabulary; give other texts or words")

    def release(self) -> None:
        """Writes the model folder, unless it is there, and says what was skipped."""
        if self.world.is_main:
            kept = [Checkpoint.load(kept_weights(self.config, name)).model for name in self.config.averaged]
            if kept:
                self.model.load_state_dict(mean_weights(kept))
        if self.world.is_main and not is_released(self.model, self.config):
            found = {"faults": self._all_faults(), **self.state.best}
            told, figures = self._score()
            card = {**self.setup.card}
            if told:
                card["words"] = " ".join([card.get("words", ""), told]).strip()
            save_whole(self.model, self.config, self.config.out / "model", {**found, **figures}, card)
            log.info("done: %d steps; skipped: %s", self.state.done, self.faults.summary() or "none")
        self.world.barrier()

    def _score(self) -> tuple[str, dict[str, float]]:
        """What the held-out photographs say of the words: a sentence, and figures, which also go to files."""
        self.model.eval()
        found = held_out_score(self.config, self.model, self.setup)
        if not found:
            return "", {}
        path = self.config.out / "held_out.json"
        content = json.dumps(found, indent=1) + "\n"
        figures = {f"held_out/{key}": value for key, value in found.items() if key != "words"}
        if not path.is_file() or path.read_text("utf-8") != content:  # else a finished run was started again
            self.logger.write(self.state.done, figures)
            write_text(path, content, "free space there; the same command then goes on")
        return told_of_held_out(found, path), figures


def is_released(model: TextToRegion, config: TrainConfig) -> bool:
    """Whether a finished run was started again: its model stays, with what `calibrate` and others added to it."""
    with suppress(PhraseLocError):
        if (folder := config.out / "model").is_dir():
            held = load_model(folder)
            told, now, theirs = held.config.card.get("training", {}), to_dict(config), held.state_dict()
            # another run's model has other parameters
            parts = dict(folded(deepcopy(model).cpu().float()).named_parameters())
            if LEARNED in str(held.config.card.get("words")):
                del parts["words.vectors"]
            same = (
                torch.equal(theirs.get(name, torch.empty(0)), part.half().float())
                for name, part in parts.items()
            )
            return all(told.get(key) == now[key] for key in ("card", "inference", "further")) and all(same)
    return False


def save_whole(
    model: TextToRegion, config: TrainConfig, folder: Path, figures: dict[str, float], facts: dict[str, str]
) -> None:
    """Writes a model folder whole or not at all (DataError), with facts, config and figures in its card."""
    released = deepcopy(model).cpu().float().eval().requires_grad_(False)
    if config.further.words:
        add_further_words(released, config.further, config.seed)
    training = to_dict(config)
    training.pop("out")
    measured = {key: value if math.isfinite(value) else None for key, value in figures.items()}
    card = {**released.config.card, **facts, **config.card, "training": training, "measured": measured}
    # without what UTF-8 cannot hold, such as the bytes of a path that is not UTF-8
    card = json.loads(json.dumps(card, ensure_ascii=False).encode("utf-8", "replace"))
    inference = {**released.config.inference, **config.inference}
    released.config = replace(released.config, card=card, inference=inference)
    with writing(folder, "free space there; the same command then goes on") as fresh:
        save_model(released, fresh)


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several state dictionaries of one model; whole numbers are those of the last."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


@contextmanager
def interrupts_noted(world: World) -> Iterator[list[int]]:
    """Within it a first Ctrl-C is only noted, so that a step can end and be saved; a second one is raised.

    Several processes would end at different steps: there each is raised.
    """
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted or world.size > 1:
            raise KeyboardInterrupt
        noted.append(number)
        log.warning("stopping after this step; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield noted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the run's folder, made if need be, as this run's own, and clears it of what a killed run left.

    Raises DataError when it cannot be written, or another run is at work there.
    """
    if "\0" in str(folder):
        raise DataError(
            "the out folder cannot be written: its name holds a null character; give another out="
        )
    make_folder(folder, "give another out=", f"the out folder {folder}")
    busy = f"another training is at work in {folder}; wait for it, or give another out="
    with lock(folder / ".lock", busy):
        with refusing(f"the out folder {folder}", "give another out="):
            for place in filter(Path.is_dir, (folder, folder / "index")):
                remove_leftovers(place)
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
