"""What a run tells: metrics.jsonl, TensorBoard, a progress bar with images/s and the time that is left."""

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)


class Journal:
    """The main process's voice; the others get a silent one.

    Args:
        folder: of the run, or None to be silent.
        steps: of the whole run.
        done: steps that an earlier process did; what its file says beyond them is dropped.
        tensorboard: write event files too (the import takes seconds).
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
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=done)

    def step(self, images: int) -> None:
        """One more step is done, with so many images over all processes."""
        self.images += images
        if self.folder is not None:
            self._bar.update()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """A line of figures; `step` counts over all phases."""
        if self.folder is None:
            return
        values = {"step": step, **values, "images_per_s": round(self._rate(), 2)}
        # the gradient of a step that fp16's scaler leaves out is not finite, and JSON has no word for that
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
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


def _keep_until(path: Path, done: int) -> None:
    """Drops the lines of steps that will be done again, and half a line at the end."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
