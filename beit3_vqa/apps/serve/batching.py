"""A queue of questions from many clients, answered together by the one thread that owns the model."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from beit3_vqa.apps.serve.limits import BATCH_SIZE, MAX_WAITING, REST_SECONDS, WINDOW_SECONDS
from beit3_vqa.errors import plural
from beit3_vqa.runtime.host import give_back_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class Overloaded(Exception):  # noqa: N818 - it reads as what happened
    """Too many items are waiting, or the server is being stopped."""


@dataclass(eq=False)
class _Job(Generic[Item, Result]):
    item: Item
    kind: Hashable
    future: "Future[Result]" = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """A queue before a function that answers several items at once, run in a thread of its own.

    The first item waits up to `window` seconds for others of its kind. In fp32, a result doesn't depend on the other
    items of its batch. Use it as a context manager: at its end, items that wait are still answered.

    Args:
        compute: up to `most` items of one kind -> a result for each.
        kind: an item's kind; items of different kinds can't share a batch.
        most: largest number of items in a batch.
        window: seconds.
        waiting: largest number of items that may wait; `submit` refuses more.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        kind: Callable[[Item], Hashable],
        most: int = BATCH_SIZE,
        window: float = WINDOW_SECONDS,
        waiting: int = MAX_WAITING,
    ):
        self.compute, self.kind = compute, kind
        self.most, self.window, self.waiting = most, window, waiting
        self._jobs: list[_Job[Item, Result]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._worked = False  # since memory was given back
        self._thread = threading.Thread(target=self._work, name="model")

    def __enter__(self) -> "Batcher[Item, Result]":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, item: Item) -> "Future[Result]":
        """Queue an item; return a future of its result, or of the error that `compute` raises for it.

        Raises:
            Overloaded: if too many items wait, or the server is being stopped.
        """
        with self._changed:
            if self._closed:
                raise Overloaded("the server is being stopped.")
            if len(self._jobs) >= self.waiting:
                are = "is" if self.waiting == 1 else "are"
                raise Overloaded(f"{plural(self.waiting, 'question')} {are} waiting already: ask again in a moment.")
            job: _Job[Item, Result] = _Job(item, self.kind(item))
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[_Job[Item, Result]]:
        """Wait for jobs and return the next batch, oldest first; empty once the queue is closed and empty."""
        with self._changed:
            while not self._jobs and not self._closed:
                woken = self._changed.wait(REST_SECONDS if self._worked else None)
                if not woken and not self._jobs and not self._closed:
                    self._worked = False
                    self._changed.release()  # whoever comes meanwhile needn't wait for it
                    try:
                        give_back_freed_memory()  # requests of all sizes leave gaps behind, which only fill up slowly
                    finally:
                        self._changed.acquire()
            if not self._jobs:
                return []
            kind, end = self._jobs[0].kind, time.monotonic() + self.window
            while not self._closed and len(self._of(kind)) < self.most and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = self._of(kind)[: self.most]
            self._worked = True
            self._jobs = [job for job in self._jobs if job not in batch]
            return batch

    def _of(self, kind: Hashable) -> list[_Job[Item, Result]]:
        return [job for job in self._jobs if job.kind == kind]

    def _answer(self, batch: list[_Job[Item, Result]]) -> None:
        """Fill the futures. If a batch fails, try each job alone: one must not spoil it for the others."""
        if not batch:
            return
        try:
            results = self.compute([job.item for job in batch])
        except Exception as error:  # the thread must live on
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:
                self._answer([job])
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)
