"""Runs ``def`` handlers, on threads of our own."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from atleastonce.contract import Delivery
from atleastonce.engine.decision import GIVE_BACK, Decision, SyncProcess, cut_off
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.places import Places
from atleastonce.engine.pools import Ended, Failed, Fatal, self_cancelled

log = logging.getLogger("atleastonce.engine")

# How much work, in seconds, one hand-over to a thread should carry. Smaller shows the hop (about 10 us); larger makes messages
# wait behind a slow one while other threads idle.
_CHUNK_SECONDS = 0.002
_CHUNK_MAX = 256
# A run this long holds up the rest of its chunk.
_SLOW_SECONDS = 10 * _CHUNK_SECONDS
# The least that a run is taken to last: coarse clocks measure nothing at all.
_LEAST_SECONDS = 1e-6


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
        return self._free > 0 and (self._places is None or self._places.vacant(self))

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for n in range(self._concurrency):
            thread = threading.Thread(target=self._work, args=(n,), name=f"atleastonce-handler-{n}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self) -> None:
        places = self._places
        while self._free and not self._stopping and not self._lanes.closed:
            if places is not None and not places.enter(self):
                return
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
                if places is not None:
                    places.leave()
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
        if self._places is not None:
            self._places.forget(self)
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
                except asyncio.CancelledError as cancelled:  # from an event loop of the handler's own
                    decision = self_cancelled(delivery, cancelled, self._failed, partial(self._call, self._fatal))
                except BaseException as stop:  # noqa: BLE001 - also SystemExit: given back, the service ends
                    decision = cut_off(stop)
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
        if self._places is not None:
            self._places.leave()
        self._collect()
