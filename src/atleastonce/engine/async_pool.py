"""Runs ``async def`` handlers: long-lived tasks, each awaiting one handler at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from atleastonce.contract import Delivery
from atleastonce.engine.cancel import forgive, loop_ends, shed
from atleastonce.engine.decision import DONE, GIVE_BACK, AsyncProcess, Decision, cut_off
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.places import Places
from atleastonce.engine.pools import CANCEL_SECONDS, Ended, Failed, Fatal, judged, self_cancelled
from atleastonce.errors import HandlerTimeout

log = logging.getLogger("atleastonce.engine")

# A lane gives the loop back after this long without suspending. Smaller costs a loop iteration each time; larger delays
# settlements, leases and the other lanes behind handlers that never wait for anything.
_TURN_SECONDS = 0.005
# It does so earlier after so many runs with something to publish, as an answer: that leaves when the loop has it back. Smaller:
# smaller lists, and a loop iteration for each. Larger: whoever waits for an answer waits for the runs of all who asked with them.
_PUBLISHING_RUNS = 32
# The same for runs that failed, whose copies nobody waits for. Smaller: as above. Larger: the copies wait for the runs, and the
# settlements for them.
_MOVING_RUNS = 256


class AsyncPool:
    """``concurrency`` tasks, each awaiting one handler at a time; with ``places``, only while it has one of them."""

    def __init__(
        self,
        process: AsyncProcess,
        lanes: Lanes,
        concurrency: int,
        *,
        ended: Ended,
        failed: Failed,
        fatal: Fatal,
        timeout: float | None = None,
        places: Places | None = None,
    ) -> None:
        self._process = process
        self._lanes = lanes
        self._ended = ended
        self._failed = failed
        self._fatal = fatal
        self._timeout = timeout
        self._places = places
        self.ticks = timeout is not None
        self._concurrency = concurrency
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._woken: asyncio.Future[None] | None = None  # of the one lane that is about to look for work
        self._started = [0.0] * concurrency  # when the lane's current run began; 0.0 while it has none
        self._late = [False] * concurrency
        self._placed = [False] * concurrency  # whether the lane has one of the ``places``
        self._stopping = False

    @property
    def busy(self) -> bool:
        """See `Pool.busy`."""
        waiting = sum(not waiter.done() for waiter in self._idle) + (self._woken is not None)
        return waiting < sum(not task.done() for task in self._tasks)

    @property
    def vacant(self) -> bool:
        """See `Pool.vacant`."""
        return bool(self._idle) and (self._places is None or self._places.vacant(self))

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._lane(slot)) for slot in range(self._concurrency)]

    def wake(self) -> None:
        # One at a time: each lane that starts something wakes the next. A queue that one lane empties without ever
        # waiting wakes one lane, not all of them.
        while self._idle and self._woken is None:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._woken = waiter

    def cancel_late(self, now: float) -> None:
        if self._timeout is None:
            return
        for slot, started in enumerate(self._started):
            if started and now - started > self._timeout and not self._late[slot]:
                self._late[slot] = True
                self._tasks[slot].cancel()

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        return []

    async def stop(self) -> None:
        self._stopping = True
        if self._places is not None:
            self._places.forget(self)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, stubborn = await asyncio.wait(self._tasks, timeout=CANCEL_SECONDS)
            self._give_up_places()
            if stubborn:
                log.error(
                    "left behind: %d cancelled handlers that do not end; their messages come again", len(stubborn)
                )

    def _give_up_places(self) -> None:
        for slot, task in enumerate(self._tasks):
            if task.done():
                self._give_up_place(slot)

    def _give_up_place(self, slot: int) -> None:
        if self._places is not None and self._placed[slot]:
            self._placed[slot] = False
            self._places.leave()

    async def _lane(self, slot: int) -> None:
        lanes, process, ended = self._lanes, self._process, self._ended
        places, placed = self._places, self._placed
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a task's coroutine
        timed = self._timeout is not None
        turn, publishing = time.monotonic(), 0.0
        while True:
            if places is not None and not placed[slot]:
                if not places.enter(self):
                    await self._work(task)
                    turn = time.monotonic()
                    continue
                placed[slot] = True
            delivery = lanes.take()
            if delivery is None:
                self._give_up_place(slot)
                await self._work(task)
                turn, publishing = time.monotonic(), 0.0
                continue
            if self._woken is None and self._idle and lanes.ready:
                self.wake()
            if timed:
                self._started[slot] = time.monotonic()
            try:
                decision = await process(delivery)
            except asyncio.CancelledError as cancelled:
                if self._stopping or loop_ends(task):
                    ended(delivery, GIVE_BACK)
                    raise
                if self._late[slot]:
                    decision = self._too_late(delivery)
                else:
                    decision = self_cancelled(delivery, cancelled, self._failed, self._fatal)
            except (SystemExit, KeyboardInterrupt) as stop:
                decision = cut_off(stop)
                self._fatal(stop)
            except GeneratorExit:  # nobody will ever resume this task: the loop is gone
                raise
            except BaseException as error:  # each delivery settles: what the policy let through is given back
                log.exception(
                    "the handler or policy of %s ended the service; the message is given back", delivery.source
                )
                self._fatal(error)
                decision = cut_off(error)
            if timed:
                self._started[slot] = 0.0
                self._late[slot] = False
            ended(delivery, decision)
            if (
                places is not None and places.waiting
            ):  # else it keeps its place: to give it up and take it again costs more
                self._give_up_place(slot)
            if task.cancelling():
                if self._stopping:
                    return
                await shed(task, self._is_stopping)
            if decision is not DONE and (decision.draft is not None or decision.copies):
                publishing += 1 if decision.name == "done" else _PUBLISHING_RUNS / _MOVING_RUNS
            if time.monotonic() - turn > _TURN_SECONDS or publishing >= _PUBLISHING_RUNS:
                if self._woken is None:
                    await shed(task, self._is_stopping)
                else:  # which goes on: if all that have begun did, each would make the loop's iterations longer
                    self._give_up_place(slot)
                    await self._work(task)
                turn, publishing = time.monotonic(), 0.0

    async def _work(self, task: asyncio.Task[None]) -> None:
        """Until there may be something to take."""
        waiter = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if self._stopping or loop_ends(task):
                raise
            forgive(task)
        finally:
            if self._woken is waiter:
                self._woken = None

    def _is_stopping(self) -> bool:
        return self._stopping

    def _too_late(self, delivery: Delivery) -> Decision:
        error = HandlerTimeout(f"the handler ran longer than its timeout of {self._timeout:g} s")
        return judged(delivery, error, self._failed, self._fatal)
