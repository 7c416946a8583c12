"""What every contender shares: the job, the payload, the work per message, and the clock.

Nothing here imports atleastonce: peers run in an environment of their own, without it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import repeat
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")

ID_HEADER = "alo-id"
"""The header that every loop must read: without it a consumer cannot tell a duplicate."""


@functools.cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """As ``asyncio.run``, with one loop for all that a process runs: gRPC goes on using the first one that it saw."""
    return _runner().run(work)


class Order(msgspec.Struct):
    """The payload: 100 bytes as JSON."""

    order_id: int
    customer: str
    amount: int
    currency: str
    note: str


def body(number: int) -> bytes:
    """The payload of message ``number``, padded to 100 bytes."""
    order = Order(number, f"customer-{number % 1000:04}", number % 5000, "EUR", "")
    order.note = "x" * (100 - len(msgspec.json.encode(order)))
    return msgspec.json.encode(order)


def stamped(number: int) -> bytes:
    """A payload that says when it was published, in ``order_id``."""
    order = Order(time.time_ns(), f"customer-{number % 1000:04}", number % 5000, "EUR", "x" * 20)
    return msgspec.json.encode(order)


def headers(number: int) -> list[tuple[str, str]]:
    """Three headers, ours among them, as a producer of this library would write them."""
    return [("content-type", "application/json"), (ID_HEADER, f"{number:032x}"), ("tenant", "blue")]


class Job(msgspec.Struct, kw_only=True):
    """One measurement.

    Attributes:
        scenario: consume, batch, sync, publish_many, publish_each, latency.
        contender: ours, adapter, raw, naive, or a peer's name.
        broker: kafka, rabbitmq, sqlite, memory.
        url: for atleastonce; other clients take what they need from it.
        address: for other clients: ``host:port``, an AMQP URL, a file.
        channel: what is read or published to.
        group: who reads, where there are groups.
        messages: how many.
        spin: iterations of an empty loop that each message costs; calibrated by the parent.
        concurrency: callers at once, in publish_each.
        rate: messages per second, in latency.
    """

    scenario: str
    contender: str
    broker: str
    url: str = ""
    address: str = ""
    channel: str = ""
    group: str = "bench"
    messages: int = 0
    spin: int = 0
    concurrency: int = 200
    rate: float = 500.0


class Result(msgspec.Struct, kw_only=True):
    """What one measurement gave.

    Attributes:
        seconds: from the first message handled to the last one settled; or from the first publish to the last
            confirmation.
        cpu: seconds of this process's CPU in that time, all threads: what noise from other processes hardly touches.
        delays: seconds each: from publish to handled, or from the call to its confirmation. Empty where not taken.
        rss: the most resident memory that the process ever had, in MiB: interpreter, client and all. 0 where nothing tells it.
    """

    messages: int
    seconds: float
    cpu: float
    delays: list[float] = []
    rss: float = 0.0


_consume = deque[None](maxlen=0).extend
"""Runs through an iterator in C, holding the interpreter: so many steps take about the same time in any process. A loop in Python
took a third more in one than in another, in the same run."""


class Meter:
    """Counts handled messages and takes the time. ``handled`` is what every consumer calls, once for each message."""

    __slots__ = ("_began", "_cpu", "_first", "_taken", "delays", "done", "handled", "left", "on_done", "spin", "total")

    def __init__(self, job: Job, on_done: Callable[[], None] | None = None) -> None:
        self.total = self.left = job.messages
        self.spin = job.spin
        self.delays: list[float] = []
        self.done = False
        self.on_done = on_done
        self._began = 0.0
        self._cpu = 0.0
        self._first = 0
        self._taken: tuple[float, float] | None = None
        self.handled: Callable[[Any], None] = self._timed if job.scenario == "latency" else self._counted
        if job.spin:
            self.handled = self._worked

    def begin(self) -> None:
        """Start the clock. Called with the first message, or before the first publish."""
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    def _counted(self, order: Any) -> None:
        if self.left == self.total:
            self.begin()
        self.left -= 1
        if not self.left:
            self._finish()

    def _worked(self, order: Any) -> None:
        if self.left == self.total:
            self.begin()
        _consume(repeat(None, self.spin))
        self.left -= 1
        if not self.left:
            self._finish()

    def _timed(self, order: Any) -> None:
        now = time.time_ns()
        if self.left == self.total:
            self.begin()
            self._first = now
        if (
            order.order_id >= self._first
        ):  # an earlier one waited for this process to start: that is not the way's length
            self.delays.append((now - order.order_id) / 1e9)
        self.left -= 1
        if not self.left:
            self._finish()

    def _finish(self) -> None:
        self.done = True
        if self.on_done is not None:
            self.on_done()

    def stop(self) -> None:
        """Stop the clock: everything is settled or confirmed."""
        self._taken = (time.perf_counter() - self._began, time.process_time() - self._cpu)

    def result(self) -> Result:
        """What was measured; stops the clock unless it was stopped."""
        if self._taken is None:
            self.stop()
        assert self._taken is not None
        return Result(messages=self.total, seconds=self._taken[0], cpu=self._taken[1], delays=self.delays)


def calibrate(microseconds: float) -> int:
    """How many iterations of an empty loop take ``microseconds``: work that costs CPU, so that what a client does in
    another thread is not hidden behind it, as it would be behind a wait."""
    if microseconds <= 0:
        return 0
    took: list[float] = []
    until = time.perf_counter() + 0.5  # a core that was idle takes a while to run at its speed
    while (begin := time.perf_counter()) < until:
        _consume(repeat(None, 20_000))
        took.append(time.perf_counter() - begin)
    warm = sorted(took[len(took) // 2 :])
    return max(1, round(microseconds / 1e6 / (warm[len(warm) // 2] / 20_000)))
