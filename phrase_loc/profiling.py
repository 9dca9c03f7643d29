"""Where the time goes, from the file to the box: named laps that cost nothing unless somebody watches.

Whoever wants to know calls `watching`; `Stopwatch.table` tells.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopwatch:
    """Adds up the seconds spent in each named stage.

    >>> watch = Stopwatch()
    >>> with watch("decode"):
    ...     pass
    >>> list(watch.seconds)
    ['decode']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()
        self._running = False

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a `with` block as (another lap of) `stage`; a lap within a lap counts to the outer one."""
        if self._running:
            yield
            return
        start, self._running = time.perf_counter(), True
        try:
            yield
        finally:
            self._running = False
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def table(self) -> str:
        """One line a stage: name, milliseconds, share of all the time since the watch was made."""
        total = time.perf_counter() - self.started
        rest = max(total - sum(self.seconds.values()), 0.0)
        stages = [*self.seconds.items(), ("everything else", rest)]
        rows = [f"{name:<18}{s * 1e3:9.1f} ms {s / total:6.1%}" for name, s in stages]
        return "\n".join([*rows, f"{'total':<18}{total * 1e3:9.1f} ms"])


_watch: ContextVar[Stopwatch | None] = ContextVar("watch", default=None)


@contextmanager
def watching() -> Iterator[Stopwatch]:
    """A stopwatch for all laps of this thread within the block; work of other threads and processes is not seen."""
    watch = Stopwatch()
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


@contextmanager
def lap(stage: str) -> Iterator[None]:
    """A lap on the watch of this thread, if there is one; also a decorator of functions."""
    watch = _watch.get()
    if watch is None:
        yield
        return
    with watch(stage):
        yield
