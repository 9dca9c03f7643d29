"""What a run tells: metrics.jsonl, TensorBoard, a progress bar with images/s and the time that is left."""

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import append_text, read_bytes, write_text

log = logging.getLogger(__name__)


class Journal:
    """The main process's voice; the others get a silent one.

    Args:
        folder: of the run, or None to be silent.
        steps: of the whole run.
        done: steps that an earlier process did; what its file says beyond them is dropped.
        tensorboard: write event files too (the import takes seconds).

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, steps: int, done: int = 0, tensorboard: bool = False):
        self.folder, self.images, self.since = folder, 0, time.perf_counter()
        self.steps, self.done, self.begin = steps, done, time.perf_counter()
        self._events: Any = None
        if folder is None:
            return
        self.path = folder / "metrics.jsonl"
        _keep_until(self.path, done)
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not sys.stderr.isatty(), leave=False)
        if tensorboard:
            self._events = _event_writer(folder / "tensorboard", done)

    def step(self, images: int) -> None:
        """One more step is done, with so many images over all processes."""
        self.images += images
        if self.folder is not None:
            self._bar.update()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """A line of figures; `step` counts over all phases. Raises DataError when the disk is full."""
        if self.folder is None:
            return
        values = {"step": step, **values, "images_per_s": round(self._rate(), 2)}
        # the gradient of a step that fp16's scaler leaves out is not finite, and JSON has no word for that
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        append_text(self.path, json.dumps(values) + "\n", "free space there; the same command then goes on")
        self._bar.set_postfix(
            {k: v for k, v in values.items() if k in {"loss", "images_per_s"}}, refresh=False
        )
        self._to_events(step, values)
        if self._bar.disable:
            took = time.perf_counter() - self.begin
            left = (self.steps - step) * took / max(1, step - self.done)
            shown = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
            )
            log.info("%s  left %s", shown, tqdm.format_interval(left))

    def _to_events(self, step: int, values: dict[str, Any]) -> None:
        if self._events is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(key, value, step)

    def _rate(self) -> float:
        now = time.perf_counter()
        rate = self.images / max(now - self.since, 1e-9)
        self.images, self.since = 0, now
        return rate

    def close(self) -> None:
        """Ends the bar and the event files."""
        if self.folder is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=done)
    except ImportError:
        raise ConfigError(
            "tensorboard=true needs the package tensorboard: pip install tensorboard, or tensorboard=false"
        ) from None
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); free space there") from None


def _keep_until(path: Path, done: int) -> None:
    """Drops the lines of steps that will be done again, and half a line at the end; says what else is unreadable."""
    if not path.exists():
        return
    lines = read_bytes(path, "the figures").decode("utf-8", "replace").splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    broken = sum(step is None for step, line in zip(steps, lines, strict=True) if line.endswith("\n"))
    if broken:
        log.warning("%s: %d lines are no figures of a step and are dropped", path, broken)
    kept = [line for step, line in zip(steps, lines, strict=True) if step is not None and step <= done]
    write_text(path, "".join(kept), "free space there or give another out=")


def _step_of(line: str) -> int | None:
    """The step that a whole line tells of; None for anything else."""
    try:
        step = json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
