"""What runs handlers: long-lived lane tasks for ``async def``, our own worker threads for ``def``.

Which of the two is decided once, at registration. Nothing is created for a message.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from atleastonce.contract import Delivery
from atleastonce.engine.cancel import forgive, loop_ends
from atleastonce.engine.decision import GIVE_BACK, AsyncProcess, Decision, SyncProcess
from atleastonce.engine.lanes import Lanes
from atleastonce.errors import HandlerTimeout

log = logging.getLogger("atleastonce.engine")

Ended = Callable[[Delivery, Decision], None]
Failed = Callable[[Delivery, BaseException], Decision]
Fatal = Callable[[BaseException], None]

# A lane gives the loop back after this long without suspending. Smaller costs a loop iteration each time; larger delays
# settlements, leases and the other lanes behind handlers that never wait for anything.
_TURN_SECONDS = 0.005
# A handler that cancels itself is not failed and not finished: it runs again after this, without burning an attempt.
SELF_CANCELLED = Decision(again=1.0, name="released")
# How much work, in seconds, one hand-over to a thread should carry. Smaller shows the hop (about 10 us); larger makes
# messages
# wait behind a slow one while other threads idle.
_CHUNK_SECONDS = 0.002
_CHUNK_MAX = 256
# A run this long holds up the rest of its chunk.
_SLOW_SECONDS = 10 * _CHUNK_SECONDS
# The least that a run is taken to last: coarse clocks measure nothing at all.
_LEAST_SECONDS = 1e-6
# How long a stop waits for handlers to let go after they were cancelled. Smaller cuts off their clean-up; larger lets one
# that ignores its cancellation delay the end of the process.
CANCEL_SECONDS = 5.0


class Pool(Protocol):
    """Runs the handlers of one worker."""

    ticks: bool
    """Whether `cancel_late` is to be called about 20 times a second while anything is out."""

    @property
    def busy(self) -> bool:
        """Whether a handler runs, or may start although the lanes are closed."""

    @property
    def vacant(self) -> bool:
        """Whether another handler could start."""

    def start(self) -> None:
        """Begin, on the running loop."""

    def wake(self) -> None:
        """Something was offered to the lanes, or finished in them."""

    def cancel_late(self, now: float) -> None:
        """Stop the runs that are past their timeout, where they can be stopped."""

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take back what was handed to a thread, has not started, and is ``unwanted``."""

    async def stop(self) -> None:
        """Cancel what can be cancelled; what was running is given back."""


class AsyncPool:
    """``concurrency`` tasks, each awaiting one handler at a time."""

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
    ) -> None:
        self._process = process
        self._lanes = lanes
        self._ended = ended
        self._failed = failed
        self._fatal = fatal
        self._timeout = timeout
        self.ticks = timeout is not None
        self._concurrency = concurrency
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._woken: asyncio.Future[None] | None = None  # of the one lane that is about to look for work
        self._started = [0.0] * concurrency  # when the lane's current run began; 0.0 while it has none
        self._late = [False] * concurrency
        self._stopping = False

    @property
    def busy(self) -> bool:
        """See `Pool.busy`."""
        waiting = sum(not waiter.done() for waiter in self._idle) + (self._woken is not None)
        return waiting < sum(not task.done() for task in self._tasks)

    @property
    def vacant(self) -> bool:
        """See `Pool.vacant`."""
        return bool(self._idle)

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
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, stubborn = await asyncio.wait(self._tasks, timeout=CANCEL_SECONDS)
            if stubborn:
                log.error(
                    "left behind: %d cancelled handlers that do not end; their messages come again", len(stubborn)
                )

    async def _lane(self, slot: int) -> None:
        lanes, process, ended = self._lanes, self._process, self._ended
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a task's coroutine
        timed = self._timeout is not None
        turn = time.monotonic()
        while True:
            delivery = lanes.take()
            if delivery is None:
                await self._work(task)
                turn = time.monotonic()
                continue
            if self._woken is None and self._idle and lanes.ready:
                self.wake()
            if timed:
                self._started[slot] = time.monotonic()
            try:
                decision = await process(delivery)
            except asyncio.CancelledError:
                if self._stopping or loop_ends(task):
                    ended(delivery, GIVE_BACK)
                    raise
                decision = self._too_late(delivery) if self._late[slot] else SELF_CANCELLED
            except (SystemExit, KeyboardInterrupt) as stop:
                decision = GIVE_BACK
                self._fatal(stop)
            except GeneratorExit:  # nobody will ever resume this task: the loop is gone
                raise
            except BaseException as error:  # each delivery settles: what the policy let through is given back
                log.exception(
                    "the handler or policy of %s ended the service; the message is given back", delivery.source
                )
                self._fatal(error)
                decision = GIVE_BACK
            if timed:
                self._started[slot] = 0.0
                self._late[slot] = False
            ended(delivery, decision)
            if task.cancelling():
                if self._stopping:
                    return
                await self._shed(task)
            if time.monotonic() - turn > _TURN_SECONDS:
                await self._shed(task)
                turn = time.monotonic()

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

    async def _shed(self, task: asyncio.Task[None]) -> None:
        """Give the loop back once. A handler that was cancelled (by its timeout, or by itself) and did not let the
        cancellation out leaves it hanging in the air; here it ends, instead of in the next message's handler."""
        forgive(task)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self._stopping or loop_ends(task):
                raise
            forgive(task)

    def _too_late(self, delivery: Delivery) -> Decision:
        error = HandlerTimeout(f"the handler ran longer than its timeout of {self._timeout:g} s")
        try:
            return self._failed(delivery, error)
        except Exception as bug:  # as with any error of the policy: given back, and the service is told
            log.exception("the handler or policy of %s ended the service; the message is given back", delivery.source)
            self._fatal(bug)
            return GIVE_BACK


class ThreadPool:
    """``concurrency`` daemon threads, each fed small lists sized so that one hand-over carries about two milliseconds
    of work.

    A ``def`` handler cannot be stopped from outside: past its timeout it is reported, and its result still counts,
    since its
    effect happened.
    """

    def __init__(
        self,
        process: SyncProcess,
        lanes: Lanes,
        concurrency: int,
        *,
        ended: Ended,
        fatal: Fatal,
        timeout: float | None = None,
    ) -> None:
        self._process = process
        self._lanes = lanes
        self._ended = ended
        self._fatal = fatal
        self._timeout = timeout
        self.ticks = True  # also to spread what a slow run holds up
        self._concurrency = concurrency
        self._inbox: queue.SimpleQueue[deque[Delivery] | None] = queue.SimpleQueue()
        # What was handed out, by id: a thread pops from the left, the loop takes back from the right.
        self._chunks: dict[int, deque[Delivery]] = {}
        self._taken_back: deque[Delivery] = deque()
        self._results: deque[tuple[Delivery, Decision]] = deque()
        self._signalled = False
        self._free = concurrency
        self._mean = _CHUNK_SECONDS  # running mean of one run's seconds
        # What each thread runs, since when, of which chunk: a list, since a dict must not change while it is looked through.
        self._runs: list[tuple[float, Delivery, deque[Delivery]] | None] = [None] * concurrency
        self._reported: list[Delivery | None] = [None] * concurrency
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    @property
    def busy(self) -> bool:
        """See `Pool.busy`."""
        return self._free < self._concurrency

    @property
    def vacant(self) -> bool:
        """See `Pool.vacant`."""
        return self._free > 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for n in range(self._concurrency):
            thread = threading.Thread(target=self._work, args=(n,), name=f"atleastonce-handler-{n}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self) -> None:
        while self._free and not self._stopping and not self._lanes.closed:
            # What is queued, spread over the idle threads.
            share = -(-(len(self._lanes) + len(self._taken_back)) // self._free)
            most = min(share, int(_CHUNK_SECONDS / max(self._mean, _LEAST_SECONDS)), _CHUNK_MAX)
            chunk: deque[Delivery] = deque()
            for _ in range(max(1, most)):
                delivery = self._taken_back.popleft() if self._taken_back else self._lanes.take()
                if delivery is None:
                    break
                chunk.append(delivery)
            if not chunk:
                return
            self._free -= 1
            self._chunks[id(chunk)] = chunk
            self._inbox.put(chunk)

    def cancel_late(self, now: float) -> None:
        for slot, run in enumerate(self._runs):
            if run is None:
                continue
            started, delivery, chunk = run
            if self._timeout is not None and now - started > self._timeout and self._reported[slot] is not delivery:
                self._reported[slot] = delivery
                log.warning("%s runs longer than %g s on thread %d", delivery.message.id, self._timeout, slot)
            # One slow message must not hold up the rest of its chunk while other threads have nothing to do.
            if self._free and now - started > _SLOW_SECONDS:
                self._take_back(chunk)
        if self._taken_back:
            self.wake()

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        for chunk in self._chunks.values():
            self._take_back(chunk)
        back = [delivery for delivery in self._taken_back if unwanted(delivery)]
        if back:
            self._taken_back = deque(delivery for delivery in self._taken_back if not unwanted(delivery))
        self.wake()
        return back

    def _take_back(self, chunk: deque[Delivery]) -> None:
        while True:
            try:
                self._taken_back.appendleft(chunk.pop())  # atomic against the thread's popleft: one of the two gets it
            except IndexError:
                return

    async def stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        for _ in self._threads:
            self._inbox.put(None)
        for delivery in self.reclaim(lambda _: True):
            self._ended(delivery, GIVE_BACK)
        self._collect()  # what has ended meanwhile counts

    def _work(self, slot: int) -> None:
        while True:
            chunk = self._inbox.get()
            if chunk is None:
                return
            while True:
                try:
                    delivery = chunk.popleft()
                except IndexError:
                    break
                begin = time.monotonic()
                self._runs[slot] = (begin, delivery, chunk)
                try:
                    decision = self._process(delivery)
                except asyncio.CancelledError:  # from an event loop of the handler's own
                    decision = SELF_CANCELLED
                except BaseException as stop:  # noqa: BLE001 - also SystemExit: given back, the service ends
                    decision = GIVE_BACK
                    self._call(self._fatal, stop)
                self._runs[slot] = None
                # Capped, so that one long run does not make chunks tiny for a long while after it.
                self._mean += 0.2 * (min(time.monotonic() - begin, _SLOW_SECONDS) - self._mean)
                self._results.append((delivery, decision))
                self._signal()
            self._call(self._returned, id(chunk))

    def _signal(self) -> None:
        if not self._signalled:
            self._signalled = True
            self._call(self._collect)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            assert self._loop is not None  # noqa: S101 - threads start after it is set
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed: the process is ending, and what was not settled comes again

    def _collect(self) -> None:
        self._signalled = False
        while self._results:
            delivery, decision = self._results.popleft()
            self._ended(delivery, decision)
        self.wake()

    def _returned(self, chunk: int) -> None:
        self._chunks.pop(chunk, None)
        self._free += 1
        self._collect()
