"""Threads of our own for calls that block: started when needed, and told to end together."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("atleastonce")
_LOOK = 0.02  # seconds between looks at threads that are waited for


class Threads:
    """Runs calls on up to ``limit`` daemon threads and hands their results to the loop in lists.

    Daemons, because a long poll that nobody waits for any more must not hold up a process that is told twice to end.

    Args:
        name: of the threads, for people.
        limit: the most at once; further calls wait for one.
        on_end: called by the last thread, after `close`; or by `close`, where none runs.
        linger: seconds that the end of the process waits for what runs.
    """

    def __init__(
        self, name: str, limit: int, on_end: Callable[[], None] = lambda: None, *, linger: float = 0.0
    ) -> None:
        self.limit = limit
        self._name = name
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._spare = 0  # threads that wait, less the jobs that wait for one
        self._count = 0
        self._closed = False
        self._results: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._told = False
        self.linger = linger
        if linger > 0:
            _lingering.add(self)

    @property
    def busy(self) -> bool:
        """Whether a thread is at work."""
        return self._spare < self._count

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``call``. Cancelling the future does not stop it."""
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                self._results.append((future, call(), None))
            except BaseException as error:  # noqa: BLE001 - told to whoever awaits it
                self._results.append((future, None, error))
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._tell)

        self.run(job)
        return future

    def run(self, job: Callable[[], None]) -> None:
        """Run ``job``, which reports by itself and does not raise."""
        with self._lock:
            late = self._closed
            begin = not late and self._spare <= 0 and self._count < self.limit
            if begin:
                self._count += 1
            elif not late:
                self._spare -= 1
        if late:  # whoever waits for it must hear, and those that were told to end take nothing more
            threading.Thread(target=job, name=self._name, daemon=True).start()
            return
        self._jobs.put(job)
        if begin:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def close(self) -> None:
        """Let every thread end with what it does now and what waits already."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            count = self._count
        for _ in range(count):
            self._jobs.put(None)
        if not count:
            self._on_end()

    def _tell(self) -> None:
        self._told = False
        while self._results:
            future, result, error = self._results.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:  # a future cannot hold a StopIteration
                future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # not held while waiting for the next one
            with self._lock:
                self._spare += 1
        with self._lock:
            self._count -= 1
            self._spare -= 1
            last = self._closed and not self._count
        if last:
            self._on_end()


_lingering: weakref.WeakSet[Threads] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # threads stay with the parent: a child would wait for nobody
    os.register_at_fork(after_in_child=_lingering.clear)


@atexit.register
def _wait() -> None:
    """Let what lingers end. A second Ctrl-C ends the process at once, and so does a second SIGTERM."""
    begun = time.monotonic()
    waiting = [pool for pool in _lingering if pool.busy]
    if waiting:
        most = max(pool.linger for pool in waiting)
        log.info("SQS: up to %.0f s for polls under way, to give back what they still bring", most)
    with contextlib.suppress(KeyboardInterrupt):
        while any(pool.busy and time.monotonic() - begun < pool.linger for pool in waiting):
            time.sleep(_LOOK)
