"""The thread that owns the connection: runs jobs in order, those that wait together in one transaction, and notices what
other processes commit.

A job is one call of the contract, so a whole list of messages. Calls that pend at the same time share a transaction and
its fsync (group commit). If one of them fails, the transaction is undone and each is run on its own: a failure stays with
its call.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from atleastonce.adapters.sqlite.job import Job
from atleastonce.adapters.sqlite.schema import open_database, patiently
from atleastonce.adapters.sqlite.store import Store
from atleastonce.errors import BrokerUnavailable, Closed

T = TypeVar("T")

_MOST_JOBS = 64  # calls in one transaction: more would let other processes wait too long for the write lock
_SHORTEST_POLL = 0.001

_siblings: weakref.WeakSet[Worker] = weakref.WeakSet()
"""The workers of this process: those on one file wake each other without polling."""


class Worker(threading.Thread):
    """Owns one connection.

    Args:
        path: the database file.
        make_store: builds the `Store` on an open connection.
        patience: seconds to wait for the write lock.
        poll: the longest wait between two looks for other processes' commits, while somebody waits for messages.
        on_change: called on the event loop with the sources that changed; None when another process changed some.
        create: whether the file is made where there is none.
    """

    def __init__(
        self,
        path: Path,
        synchronous: str,
        make_store: Callable[[sqlite3.Connection], Store],
        patience: float,
        poll: float,
        on_change: Callable[[set[int] | None], None],
        *,
        create: bool = True,
    ) -> None:
        super().__init__(name=f"sqlite {path.name}", daemon=True)
        self.path = path
        self._synchronous = synchronous
        self._make_store = make_store
        self._patience = patience
        self._poll = poll
        self._on_change = on_change
        self._create = create
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._jobs: deque[Job[Any]] = deque()
        self._wake = threading.Event()
        self._poked = False
        self._stopping = False
        self._waiting = 0
        self._done: deque[Job[Any]] = deque()
        self._changed: set[int] | None = set()
        self._reporting = False
        self._lock = threading.Lock()
        self.identity: tuple[int, int] | None = None

    # ---------------------------------------------------------------------------------------------- on the event loop

    async def open(self) -> None:
        """Start, and return once the file is open; raises what `open_database` raises."""
        self.start()
        await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Finish what was submitted and close the file."""
        self._stopping = True
        self._wake.set()
        await asyncio.shield(self._closed)

    def submit(
        self,
        run: Callable[[Store], T],
        *,
        writes: bool = True,
        durable: bool = True,
        unless: Callable[[Store], T | None] | None = None,
    ) -> asyncio.Future[T]:
        """Have ``run`` called in the thread. Cancelling the future does not undo it."""
        if self._stopping:
            raise Closed("this sqlite adapter is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.append(Job(run, future, writes, durable, unless))
        self._wake.set()
        return future

    def wait_begins(self) -> None:
        """A reader waits: other processes' commits are looked for."""
        self._waiting += 1
        if self._waiting == 1:
            self._wake.set()

    def wait_ends(self) -> None:
        self._waiting -= 1

    def _report(self) -> None:
        """Hand over all that is finished, in one go."""
        with self._lock:
            done, self._done = self._done, deque()
            changed, self._changed = self._changed, set()
            self._reporting = False
        for job in done:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
        if changed is None or changed:
            self._on_change(changed)

    # -------------------------------------------------------------------------------------------------- in the thread

    def run(self) -> None:
        try:
            db = open_database(self.path, self._patience, create=self._create)
        except Exception as error:  # noqa: BLE001 - it belongs to who opens
            self._call(_fail, self._opened, error)
            return
        stat = self.path.stat()
        self.identity = (stat.st_dev, stat.st_ino)
        _siblings.add(self)
        store = self._make_store(db)
        self._call(_succeed, self._opened)
        try:
            self._serve(store)
        finally:
            _siblings.discard(self)
            db.close()
            self._call(_succeed, self._closed)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under us; nobody is left to be told
            self._loop.call_soon_threadsafe(function, *args)

    def _serve(self, store: Store) -> None:
        version = -1
        poll = _SHORTEST_POLL
        while self._jobs or not self._stopping:
            woken = bool(self._jobs) or self._wake.wait(poll if self._waiting else None)
            self._wake.clear()
            if self._waiting:
                known, version = version, self._data_version(store, version)
                if version != known or self._poked:
                    self._poked = False
                    poll = _SHORTEST_POLL
                    self._finish([], None)
                elif not woken:
                    poll = min(self._poll, poll * 2)
            batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), _MOST_JOBS))]
            if batch:
                self._finish(batch, self._run_batch(store, batch))

    def _data_version(self, store: Store, known: int) -> int:
        """SQLite's counter of other connections' commits. Where it cannot be read now, as if nothing had changed."""
        try:
            return int(store.db.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return known

    def _run_batch(self, store: Store, batch: list[Job[Any]]) -> set[int]:
        """Run all; returns the sources that changed."""
        if (gone := self._gone()) is not None:
            for job in batch:
                job.error = gone
            return set()
        writing = [job for job in batch if not self._run_without_lock(store, job)]
        if not writing or self._transact(store, writing):
            return set(store.touched) if writing else set()
        changed: set[int] = set()
        for job in writing:
            job.error = None
            self._transact(store, [job])
            changed |= store.touched
        return changed

    def _gone(self) -> BrokerUnavailable | None:
        """Whoever removes the file takes the broker away: writing on into the unlinked file would lose messages."""
        try:
            stat = self.path.stat()
            if (stat.st_dev, stat.st_ino) == self.identity:
                return None
        except OSError:
            pass
        return BrokerUnavailable(f'sqlite file "{self.path}" was removed or replaced while in use; connect again')

    def _run_without_lock(self, store: Store, job: Job[Any]) -> bool:
        """Whether ``job`` is finished without writing."""
        try:
            if not job.writes:
                job.result = patiently(lambda: job.run(store), self._patience)
                return True
            if job.unless is not None:
                unless = job.unless
                job.result = patiently(lambda: unless(store), self._patience)
                return job.result is not None
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            job.error = error
            return True
        return False

    def _transact(self, store: Store, jobs: list[Job[Any]]) -> bool:
        """Run ``jobs`` in one transaction; False where it was undone. One alone keeps its error."""
        job = jobs[0]
        try:
            store.synchronise(self._synchronous if any(job.durable for job in jobs) else "normal")
            patiently(store.begin, self._patience)
            for job in jobs:
                job.result = job.run(store)
            if store.commit():
                self._poke_siblings()
            return True
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            store.rollback()
            job.error = error
            return False

    def _poke_siblings(self) -> None:
        for other in tuple(_siblings):
            if other is not self and other.identity == self.identity:
                other.poke()

    def poke(self) -> None:
        """Another worker of this process has committed."""
        if self._waiting:
            self._poked = True
            self._wake.set()

    def _finish(self, batch: list[Job[Any]], changed: set[int] | None) -> None:
        with self._lock:
            self._done.extend(batch)
            self._changed = None if changed is None or self._changed is None else self._changed | changed
            if self._reporting:
                return
            self._reporting = True
        self._call(self._report)


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
