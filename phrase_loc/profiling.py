"""Where the time of a query goes: named laps on a stopwatch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a `with` block as (another lap of) `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def table(self) -> str:
        """One line a stage: name, milliseconds, share of the total."""
        total = sum(self.seconds.values()) or 1.0
        rows = [f"{name:<18}{s * 1e3:9.1f} ms {s / total:6.1%}" for name, s in self.seconds.items()]
        return "\n".join([*rows, f"{'total':<18}{total * 1e3:9.1f} ms"])
