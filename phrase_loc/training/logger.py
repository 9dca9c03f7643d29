"""What a run tells: metrics.jsonl, TensorBoard, a progress bar with images/s and the time left of the phase."""

import json
import logging
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from phrase_loc.files import append_text, read_bytes, refusing, write_text

log = logging.getLogger(__name__)


class Logger:
    """The main process's voice; that of the others, without a folder, is silent.

    What the files in the folder say beyond `done`, the steps that an earlier process did, is dropped.
    """

    def __init__(self, folder: Path | None, done: int = 0, tensorboard: bool = False):
        self.folder, self.done = folder, done
        self._bar = tqdm(disable=True)
        self.phase("", done, 0)
        if folder is not None:
            self.path = folder / "metrics.jsonl"
            _keep_until(self.path, done)
        self._events: Any = None
        if folder is not None and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with refusing(folder, "free space there"):
                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=done)

    def phase(self, name: str, done: int, steps: int) -> None:
        """A phase goes on after `done` steps of the run, with `steps` of its own to do."""
        self._bar.close()
        self.begin = self.since = time.perf_counter()
        self.images, self.done, self.steps = 0, done, steps
        hidden = self.folder is None or not steps or not sys.stderr.isatty()
        self._bar = tqdm(total=steps, desc=f"phase {name}", unit="step", disable=hidden, leave=False)

    def step(self, images: int) -> None:
        """One more step is done, with so many images over all processes."""
        self.images += images
        self._bar.update()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """A line of figures; `step` counts over all phases. Raises DataError when the disk is full."""
        if self.folder is None:
            return
        now = time.perf_counter()
        values = {"step": step, **values, "images_per_s": round(self.images / max(now - self.since, 1e-9), 2)}
        self.images, self.since = 0, now
        # the gradient of a step that fp16's scaler leaves out is not finite, and JSON has no word for that
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        append_text(self.path, json.dumps(values) + "\n", "free space there; the same command then goes on")
        if self._events is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(key, value, step)
        few = {key: values[key] for key in ("loss", "images_per_s") if key in values}
        self._bar.set_postfix(few, refresh=False)
        if self._bar.disable:
            left = (self.steps + self.done - step) * (now - self.begin) / max(1, step - self.done)
            shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
            log.info("%s  left of the phase %s", "  ".join(shown), tqdm.format_interval(left))

    def close(self) -> None:
        """Ends the bar and the event files."""
        self._bar.close()
        if self._events is not None:
            self._events.close()


def _keep_until(path: Path, done: int) -> None:
    """Drops the lines of steps that will be done again, and half a line at the end; says what else is unreadable."""
    if not path.exists():
        return
    kept, broken = [], 0
    for line in read_bytes(path, "the figures").decode("utf-8", "replace").splitlines(keepends=True):
        step = None
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            step = json.loads(line)["step"]
        broken += not isinstance(step, int) and line.endswith("\n")
        if isinstance(step, int) and step <= done and line.endswith("\n"):
            kept.append(line)
    if broken:
        log.warning("%s: %d lines are no figures of a step and are dropped", path, broken)
    write_text(path, "".join(kept), "free space there or give another out=")
