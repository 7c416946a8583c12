"""A store that is away: its consumer stops reading, what was received waits, and all goes on when the store answers again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

from atleastonce.contract import Delivery, Fault
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import Decision, again
from atleastonce.engine.worker import Worker
from atleastonce.stores.contract import LeaseStore
from atleastonce.stores.records import LOST, Lease, new_token

log = logging.getLogger("atleastonce")

REASON = "store unavailable"
# Quick at first, for most losses are one restarted server; ten seconds at most, since a person may watch the recovery.
_PROBES = Backoff("200ms", factor=2, maximum="10s")
# What waits for the end of an outage is woken by it. Should it be missed, it looks by itself after this.
_HELD = 5.0
# An outage this soon after the last one goes on with its pauses: the probe succeeds, and the handlers' work still does not.
_SAME = 30.0
# So often in a row may runs of one message lose their connection while the store answers all others; the next time is its
# handler's failure. Fewer: connections that a proxy or a person cuts cost attempts. More: a handler that is idle for longer than
# its transaction may be, or whose statement is too large, holds up its neighbours for longer.
_LOSSES = 4
# So often may a full disk undo runs of one message while those of others are committed; then it is what its handler writes. More
# than `_LOSSES`: a disk that is nearly full does take what is small.
_FULL = 20
_REMEMBERED = 1000  # messages with such runs; what is given back meanwhile is never heard of again


class Outage:
    """One consumer's view of its store. Made on the event loop.

    Args:
        name: of the consumer's source, for logs.
        probe: asks the store for next to nothing; the fault if it does not answer.
        patience: seconds after which an open transaction makes it ask: a statement of the handler's, or of a thread's, has no
            limit of its own and may be waiting for a server that is silent. None: nobody does.

    Attributes:
        detail: why nothing is read; "" while the store answers.
    """

    def __init__(
        self, name: str, probe: Callable[[], Awaitable[Fault | None]], *, patience: float | None = None
    ) -> None:
        self.detail = ""
        self._name = name
        self._probe = probe
        self._workers: list[Worker] = []
        self._listeners: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._held: set[Delivery] = set()
        self._runs: dict[object, float] = {}
        self._attendant: asyncio.Task[None] | None = None
        self._patience = patience
        self._closed = False
        self._ended = 0.0
        self._tried = 0
        self._lost: set[Delivery] = set()
        self._losses: dict[Delivery, int] = {}
        self._commits = 0
        self._full: dict[
            Delivery, tuple[int, int]
        ] = {}  # how often, while others were committed, and their number by then

    def add(self, worker: Worker) -> None:
        """One more reader to be paused."""
        self._workers.append(worker)
        if self._attendant is None and self._patience is not None:
            work = self._attending(self._patience)
            self._attendant = self._loop.create_task(work, name=f"atleastonce-attendant-{self._name}")

    def on_end(self, listener: Callable[[], None]) -> None:
        """Call ``listener``, on the loop, whenever an outage is over."""
        self._listeners.append(listener)

    @property
    def active(self) -> bool:
        """Whether the store is away, as far as is known."""
        return bool(self.detail)

    def begin(self, fault: Fault, lost: Iterable[Delivery] = ()) -> None:
        """The store did not do what it was asked, through no fault of a message as far as is known. From any thread.

        Args:
            fault: of the store.
            lost: what lost its connection after its handler had begun, which then may have done that itself.
        """
        self._lost.update(lost)
        if not self.detail:
            self.detail = f"{REASON}: {fault.detail or fault.code.value}"
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._watch)

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """A transaction of the store's is open, or waits for its connection. From any thread."""
        run = object()
        self._runs[run] = time.monotonic()
        try:
            yield
        finally:
            del self._runs[run]

    async def answers(self) -> bool:
        """Whether the store does, asked now."""
        return await self._probe() is None

    def hold(self, delivery: Delivery) -> Decision:
        """``delivery`` runs when the store is back. That is no try. From any thread."""
        self._held.add(delivery)
        return again(delivery, _HELD, "held")

    def is_its_own(self, delivery: Delivery) -> bool:
        """Whether ``delivery`` has lost so many connections of a store that was there, that one more is its handler's doing."""
        return self._losses.get(delivery, 0) >= _LOSSES

    def committed(self) -> None:
        """A run has had its effect. From any thread."""
        self._commits += 1

    def fills_the_disk(self, delivery: Delivery) -> bool:
        """The disk was full for a run of ``delivery``, once more: whether that is its handler's doing, since others' runs were
        committed between those times. From any thread."""
        times, commits = self._full.get(delivery, (0, self._commits))
        times += self._commits > commits
        if len(self._full) > _REMEMBERED:
            self._full.clear()
        self._full[delivery] = (times, self._commits)
        return times > _FULL

    def ended(self, delivery: Delivery) -> None:
        """``delivery`` runs no more here. From any thread."""
        if self._losses:
            self._losses.pop(delivery, None)
        if self._full:
            self._full.pop(delivery, None)

    def close(self) -> None:
        """The readers are stopping: leave them alone."""
        self._closed = True
        for task in (self._task, self._attendant):
            if task is not None:
                task.cancel()

    def _watch(self) -> None:
        if not self._closed and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._watching(), name=f"atleastonce-outage-{self._name}")

    async def _attending(self, patience: float) -> None:
        while True:
            await asyncio.sleep(patience / 2)
            oldest = min(list(self._runs.values()), default=None)
            if self.detail or oldest is None or time.monotonic() - oldest < patience:
                continue
            if (fault := await self._probe()) is not None:
                self.begin(fault)

    async def _watching(self) -> None:
        while self.detail:  # it may be away again before all readers have been told that it is back
            await self._outlast()

    async def _outlast(self) -> None:
        log.error("%s: paused: %s", self._name, self.detail)
        await self._tell(lambda worker: worker.pause(REASON))
        if time.monotonic() - self._ended > _SAME:
            self._tried = 0
        there = await self._probe() is None
        while True:
            self._tried += 1
            await asyncio.sleep(_PROBES.wait(self._tried) or 0.0)
            fault = await self._probe()
            if fault is None:
                break
            there = False
            self.detail = f"{REASON}: {fault.detail or fault.code.value}"
        self._count(there=there)
        self.detail = ""
        self._ended = time.monotonic()
        log.warning("%s: the store answers again", self._name)
        await self._tell(lambda worker: worker.resume(REASON))
        held, self._held = self._held, set()
        for worker in self._workers:
            worker.hasten(held.__contains__)
        for listener in self._listeners:
            listener()

    def _count(self, *, there: bool) -> None:
        """``there``: the store answered from the outage's beginning to its end."""
        lost, self._lost = self._lost, set()
        if len(self._losses) > _REMEMBERED:
            self._losses.clear()
        for delivery in lost if there else ():
            self._losses[delivery] = self._losses.get(delivery, 0) + 1

    async def _tell(self, call: Callable[[Worker], Awaitable[None]]) -> None:
        for worker in self._workers:
            try:
                await call(worker)
            except Exception as error:  # noqa: BLE001 - its subscription has ended; the next one is told how it is then
                log.debug("%s: its subscription was not told: %r", self._name, error)


def probe_of(store: LeaseStore, scope: str) -> Callable[[], Awaitable[Fault | None]]:
    """A question that costs one round trip and writes nothing: to extend a lease that nobody holds."""

    async def probe() -> Fault | None:
        try:
            (outcome,) = await store.extend([Lease(scope, "probe", new_token())], 1.0)
        except Exception as error:  # noqa: BLE001 - closed, or whatever a client library raises
            return store.classify(error)
        return None if outcome == LOST else outcome.fault

    return probe
