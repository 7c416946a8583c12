"""Runs batch handlers: lists of deliveries, closed by size or by time, each member with a decision of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import Delivery
from atleastonce.engine.cancel import forgive, loop_ends, shed
from atleastonce.engine.decision import GIVE_BACK, Decision, cut_off
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.places import Places
from atleastonce.engine.pools import CANCEL_SECONDS, Failed, Fatal, self_cancelled

log = logging.getLogger("atleastonce.engine")

BatchProcess = Callable[[Sequence[Delivery]], Awaitable[Sequence[Decision]]]
EndedAll = Callable[[Sequence[Delivery], Sequence[Decision]], None]


class BatchPool:
    """``concurrency`` tasks, each collecting a batch and awaiting its handler.

    Args:
        process: one decision for each delivery, in order.
        max_messages: a batch never has more. Of lanes that keep an order it has one message of each key: what one decides about
            a message must be known before the next of its key runs.
        max_wait: seconds from a batch's first message until it runs with what it has. Too small: small batches; too large: latency.
        places: shared with other pools: each batch that is collected or runs has one. None: nobody else has any.
    """

    ticks = False

    def __init__(
        self,
        process: BatchProcess,
        lanes: Lanes,
        concurrency: int,
        *,
        max_messages: int,
        max_wait: float,
        ended: EndedAll,
        failed: Failed,
        fatal: Fatal,
        places: Places | None = None,
    ) -> None:
        self._process = process
        self._lanes = lanes
        self._concurrency = concurrency
        self._max_messages = max_messages
        self._max_wait = max_wait
        self._places = places
        self._ended = ended
        self._failed = failed
        self._fatal = fatal
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._collecting: dict[int, list[Delivery]] = {}
        self._placed: set[int] = set()  # lanes that have a place
        self._stopping = False

    @property
    def busy(self) -> bool:
        """See `Pool.busy`. A batch that is being collected will run."""
        return len(self._collecting) < len(self._tasks) or any(self._collecting.values())

    @property
    def vacant(self) -> bool:
        """See `Pool.vacant`."""
        return bool(self._idle or self._collecting) and (self._places is None or self._places.vacant(self))

    def start(self) -> None:
        """Begin, on the running loop."""
        self._tasks = [asyncio.create_task(self._lane(slot)) for slot in range(self._concurrency)]

    def wake(self) -> None:
        """See `Pool.wake`. Whoever is collecting already comes first, so that batches fill one after the other."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def cancel_late(self, now: float) -> None:
        """Batches have no timeout."""

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take ``unwanted`` members out of the batches that are still being collected."""
        back: list[Delivery] = []
        for batch in self._collecting.values():
            gone = [delivery for delivery in batch if unwanted(delivery)]
            batch[:] = [delivery for delivery in batch if not unwanted(delivery)]
            back += gone
        return back

    async def stop(self) -> None:
        """Cancel; what was collected or running is given back."""
        self._stopping = True
        if self._places is not None:
            self._places.forget(self)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, stubborn = await asyncio.wait(self._tasks, timeout=CANCEL_SECONDS)
            if stubborn:
                log.error(
                    "left behind: %d cancelled batch handlers that do not end; their messages come again", len(stubborn)
                )

    async def _lane(self, slot: int) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a task's coroutine
        while True:
            batch = self._collecting[slot] = []
            try:
                try:
                    await self._collect(batch, slot)
                except asyncio.CancelledError:
                    if self._stopping or loop_ends(task):
                        self._ended(batch, [GIVE_BACK] * len(batch))
                        raise
                finally:
                    del self._collecting[slot]
                if self._idle and self._lanes.ready:
                    self.wake()  # what this batch leaves is for the next lane
                if batch:
                    await self._run(batch, task)
            finally:
                self._leave(slot)
            if self._stopping:
                return
            forgive(task)

    def _enter(self, slot: int) -> bool:
        """Whether lane ``slot`` has a place: it is collecting, or runs."""
        if self._places is None or slot in self._placed:
            return True
        if self._places.enter(self):
            self._placed.add(slot)
            return True
        return False

    def _leave(self, slot: int) -> None:
        if self._places is not None and slot in self._placed:
            self._placed.discard(slot)
            self._places.leave()

    async def _collect(self, batch: list[Delivery], slot: int) -> None:
        deadline: float | None = None
        while (room := self._max_messages - len(batch)) > 0:
            if not self._enter(slot):
                await self._more(None)
                continue
            if some := self._lanes.take_some(room):
                batch += some
                if deadline is None:
                    deadline = time.monotonic() + self._max_wait
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and (left <= 0 or self._holds_up()):
                return
            if left is None:
                self._leave(slot)  # nothing is there
            await self._more(left)

    def _holds_up(self) -> bool:
        """Whether what is queued waits for what was collected, as later messages of its keys do."""
        return self._lanes.ordered and not self._lanes.closed and len(self._lanes) > 0

    async def _more(self, within: float | None) -> None:
        waiter = asyncio.get_running_loop().create_future()
        if within is None:
            self._idle.append(waiter)
        else:
            self._idle.appendleft(waiter)
        try:
            async with asyncio.timeout(within):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._idle:
                self._idle.remove(waiter)

    async def _run(self, batch: list[Delivery], task: asyncio.Task[None]) -> None:
        decisions: Sequence[Decision] = [GIVE_BACK] * len(batch)
        try:
            answered = await self._process(batch)
            if len(answered) != len(batch):
                raise ValueError(f"{len(answered)} decisions for a batch of {len(batch)}")
            decisions = answered
        except asyncio.CancelledError as cancelled:
            if self._stopping or loop_ends(task):
                self._ended(batch, decisions)
                raise
            if len(batch) > 1:
                await self._run_singly(batch, task)
                return
            decisions = [self_cancelled(batch[0], cancelled, self._failed, self._fatal)]
        except (SystemExit, KeyboardInterrupt) as stop:
            decisions = [cut_off(stop, len(batch))] * len(batch)
            self._fatal(stop)
        except GeneratorExit:  # nobody will ever resume this task: the loop is gone
            raise
        except BaseException as error:  # each delivery settles: what the policy let through is given back
            log.exception("the policy of %s raised; its batch is given back", batch[0].source)
            decisions = [cut_off(error, len(batch))] * len(batch)
            self._fatal(error)
        self._ended(batch, decisions)

    async def _run_singly(self, batch: list[Delivery], task: asyncio.Task[None]) -> None:
        """Each member alone after a run of ``batch`` has cancelled itself, so that only the one that does it is held."""
        log.warning("a batch of %d of %s cancelled itself; running them one by one", len(batch), batch[0].source)
        left = deque(batch)
        try:
            while left and not self._stopping:
                await shed(task, lambda: self._stopping)
                await self._run([left.popleft()], task)
        except asyncio.CancelledError:
            self._ended(list(left), [GIVE_BACK] * len(left))
            raise
        self._ended(list(left), [GIVE_BACK] * len(left))
