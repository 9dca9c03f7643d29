"""Where the time of a query or an evaluation goes (`--profile`): laps that cost nothing unless somebody watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopwatch:
    """The seconds of each lap since the watch was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()
        self.running = False

    def table(self) -> str:
        """One line a lap: name, milliseconds, share of all the time."""
        total = time.perf_counter() - self.started
        laps = [*self.seconds.items(), ("everything else", max(total - sum(self.seconds.values()), 0.0))]
        rows = [f"{name:<18}{s * 1e3:9.1f} ms {s / total:6.1%}" for name, s in laps]
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
    """A lap on this thread's watch, if there is one; within another lap it counts to that. Also a decorator."""
    watch = _watch.get()
    if watch is None or watch.running:
        yield
        return
    start, watch.running = time.perf_counter(), True
    try:
        yield
    finally:
        watch.running = False
        watch.seconds[stage] = watch.seconds.get(stage, 0.0) + time.perf_counter() - start
