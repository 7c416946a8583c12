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
_SELF_CANCELLED = Decision(again=1.0, name="released")
# How much work, in seconds, one hand-over to a thread should carry. Smaller shows the hop (about 10 us); larger makes
# messages
# wait behind a slow one while other threads idle.
_CHUNK_SECONDS = 0.002
_CHUNK_MAX = 64


class Pool(Protocol):
    """Runs the handlers of one worker."""

    ticks: bool
    """Whether `cancel_late` is to be called about 20 times a second while anything is out."""

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
        self._started = [0.0] * concurrency  # when the lane's current run began; 0.0 while it has none
        self._late = [False] * concurrency
        self._stopping = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._lane(slot)) for slot in range(self._concurrency)]

    def wake(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

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
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _lane(self, slot: int) -> None:
        lanes, process, ended = self._lanes, self._process, self._ended
        timed = self._timeout is not None
        turn = time.monotonic()
        count = 0
        while True:
            delivery = lanes.take()
            if delivery is None:
                waiter = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
                turn = time.monotonic()
                continue
            if self._idle and len(lanes):
                self.wake()  # each lane that starts wakes the next: none is woken for a queue that one lane empties alone
            if timed:
                self._started[slot] = time.monotonic()
            try:
                decision = await process(delivery)
            except asyncio.CancelledError:
                if self._stopping:
                    ended(delivery, GIVE_BACK)
                    raise
                decision = self._too_late(slot, delivery) if self._late[slot] else _SELF_CANCELLED
            except (SystemExit, KeyboardInterrupt) as stop:
                decision = GIVE_BACK
                self._fatal(stop)
            except BaseException as error:  # each delivery settles: what the policy let through is given back
                log.exception("the policy of %s raised; the message is given back", delivery.source)
                self._fatal(error)
                decision = GIVE_BACK
            if timed:
                self._started[slot] = 0.0
                if self._late[slot]:  # the handler was cancelled, whether or not it let the cancellation out
                    self._late[slot] = False
                    task = asyncio.current_task()
                    if task is not None:
                        task.uncancel()
            ended(delivery, decision)
            count += 1
            if count & 15 == 0 and time.monotonic() - turn > _TURN_SECONDS:
                await asyncio.sleep(0)
                turn = time.monotonic()

    def _too_late(self, slot: int, delivery: Delivery) -> Decision:
        return self._failed(delivery, HandlerTimeout(f"the handler ran longer than its timeout of {self._timeout:g} s"))


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
        self._chunks: dict[
            int, deque[Delivery]
        ] = {}  # handed out, by id; a thread pops from the left, reclaim from the right
        self._taken_back: deque[Delivery] = deque()
        self._results: deque[tuple[Delivery, Decision]] = deque()
        self._signalled = False
        self._free = concurrency
        self._mean = _CHUNK_SECONDS  # running mean of one run's seconds
        self._started: dict[int, tuple[float, Delivery]] = {}
        self._reported: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for n in range(self._concurrency):
            thread = threading.Thread(target=self._work, name=f"atleastonce-handler-{n}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self) -> None:
        while self._free:
            share = -(-len(self._lanes) // self._free)  # what is queued, spread over the idle threads
            chunk: deque[Delivery] = deque()
            for _ in range(max(1, min(share, int(_CHUNK_SECONDS / self._mean) or 1, _CHUNK_MAX))):
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
        for thread, (started, delivery) in list(self._started.items()):
            if self._timeout is not None and now - started > self._timeout and id(delivery) not in self._reported:
                self._reported.add(id(delivery))
                log.warning("%s runs longer than %g s on thread %d", delivery.message.id, self._timeout, thread)
        # One slow message must not hold up the rest of its chunk while other threads have nothing to do.
        slowest = max((now - started for started, _ in list(self._started.values())), default=0.0)
        if self._free and slowest > 10 * _CHUNK_SECONDS:
            self._mean = max(self._mean, slowest)
            self._take_back()
            self.wake()

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        self._take_back()
        back = [delivery for delivery in self._taken_back if unwanted(delivery)]
        self._taken_back = deque(delivery for delivery in self._taken_back if not unwanted(delivery))
        self.wake()
        return back

    def _take_back(self) -> None:
        for chunk in list(self._chunks.values()):
            while True:
                try:
                    self._taken_back.append(chunk.pop())  # atomic against the thread's popleft: one of the two gets it
                except IndexError:
                    break

    async def stop(self) -> None:
        for _ in self._threads:
            self._inbox.put(None)
        self._take_back()
        while self._taken_back:
            self._ended(self._taken_back.popleft(), GIVE_BACK)

    def _work(self) -> None:
        ident = threading.get_ident()
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
                self._started[ident] = (begin, delivery)
                try:
                    decision = self._process(delivery)
                except BaseException as stop:  # noqa: BLE001 - also SystemExit: given back, the service ends
                    decision = GIVE_BACK
                    self._call(self._fatal, stop)
                del self._started[ident]
                self._mean += 0.2 * (time.monotonic() - begin - self._mean)
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
            self._reported.discard(id(delivery))
            self._ended(delivery, decision)
        self.wake()

    def _returned(self, chunk: int) -> None:
        self._chunks.pop(chunk, None)
        self._free += 1
        self._collect()
