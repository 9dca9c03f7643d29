"""Requests of several people through one model: a bounded queue, one worker thread, small batches.

A job is either a photograph to look at or a question to a scene. The worker takes what is waiting, looks at
up to `batch` photographs in one pass of the trunk, then answers the questions. Who waits holds a Future; a
full queue raises `Busy` at once instead of letting people wait for ever.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from phrase_loc.localizer import PhraseLocalizer, Prepared
from phrase_loc.structures import Scene


class Busy(Exception):
    """The queue is full."""


@dataclass(frozen=True, slots=True)
class _Look:
    prepared: Prepared
    future: Future


@dataclass(frozen=True, slots=True)
class _Ask:
    action: Callable[[], Any]
    future: Future


class Batcher:
    """One thread that owns the model while the server runs.

    Args:
        localizer: what looks and answers.
        capacity: jobs that may wait.
        batch: photographs looked at in one pass.
    """

    def __init__(self, localizer: PhraseLocalizer, capacity: int, batch: int):
        self.localizer, self.batch = localizer, batch
        self._jobs: queue.Queue[_Look | _Ask | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="phrase-loc-model", daemon=True)
        self._thread.start()

    def look(self, prepared: Prepared) -> Future:
        """A Future of the Scene of a photograph."""
        return self._put(_Look(prepared, Future()))

    def ask(self, action: Callable[[], Any]) -> Future:
        """A Future of what `action` returns, run on the model's thread."""
        return self._put(_Ask(action, Future()))

    def waiting(self) -> int:
        """How many jobs wait."""
        return self._jobs.qsize()

    def close(self) -> None:
        """Finish what runs, give up what waits, then stop."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.future.cancel()
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _put(self, job: "_Look | _Ask") -> Future:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{self._jobs.maxsize} requests are waiting already; try again in a moment") from None
        return job.future

    def _work(self) -> None:
        open_ = True
        while open_:
            jobs = [self._jobs.get()]
            while len(jobs) < self.batch and not self._jobs.empty():
                jobs.append(self._jobs.get())
            open_ = None not in jobs
            self._look([j for j in jobs if isinstance(j, _Look)])
            for question in (j for j in jobs if isinstance(j, _Ask)):
                _settle(question.future, question.action)

    def _look(self, jobs: Sequence[_Look]) -> None:
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            scenes: list[Scene] = self.localizer.look_at([job.prepared for job in jobs])
            if len(scenes) != len(jobs):
                raise RuntimeError(f"{len(jobs)} photographs gave {len(scenes)} scenes")
        except Exception as error:  # the waiting request reports it; the worker must live on
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, scene in zip(jobs, scenes, strict=True):
            job.future.set_result(scene)


def _settle(future: Future, action: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(action())
    except Exception as error:
        future.set_exception(error)
