"""An adapter that does as the test says, for what stands above the engine."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from atleastonce.channels import Queue, Source
from atleastonce.contract import (
    NONE,
    OK,
    Adapter,
    Backlog,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Drift,
    Fault,
    Leasing,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Settlement,
    Subscription,
    Topology,
    Window,
)
from atleastonce.message import Message

Answer = Sequence[Outcome] | BaseException


async def until(condition: Callable[[], Any], within: float = 10.0, what: str = "") -> None:
    """Return once ``condition`` holds; fail after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what or f"not within {within} s"
        await asyncio.sleep(0.001)


def outgoing(name: str = "m", size: int = 1) -> Outgoing:
    return Outgoing(Queue("q"), Message(name, b"x" * size))


class Sender:
    """`Adapter.send`: notes what it gets, waits while the gate is shut, answers by script and else OK."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.answers: deque[Callable[[Sequence[Outgoing]], Answer]] = deque()
        self.gate = asyncio.Event()
        self.gate.set()
        self.out = 0
        self.most = (0, 0)  # messages and bytes in one call

    async def __call__(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        assert batch
        self.calls.append([item.message.id for item in batch])
        size = sum(item.message.size for item in batch)
        self.most = (max(self.most[0], len(batch)), max(self.most[1], size))
        self.out += 1
        try:
            await self.gate.wait()
        finally:
            self.out -= 1
        answer: Answer = self.answers.popleft()(batch) if self.answers else [OK] * len(batch)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class QuietSubscription(Subscription):
    """Nothing ever comes."""

    def __init__(self) -> None:
        self.closed = 0

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        await asyncio.sleep(max_wait)
        return ()

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        return [OK] * len(batch)

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1


class FakeAdapter(Adapter):
    """All succeeds, unless ``opens``, ``declares`` or ``subscribes`` has something to raise next."""

    scheme = "fake"
    capabilities = Capabilities(
        delay=NONE, delivery_count=Counting.NONE, lease=Leasing.SESSION, order=Ordering.NONE, max_batch=100
    )

    def __init__(self) -> None:
        self.sender = Sender()
        self.opens: deque[BaseException] = deque()
        self.opening = asyncio.Event()
        self.opening.set()
        self.declares: deque[BaseException | None] = deque()
        self.subscribes: deque[BaseException | None] = deque()
        self.opened = 0
        self.closed = 0
        self.declared: list[tuple[Topology, bool]] = []
        self.declaring = asyncio.Event()
        self.declaring.set()
        self.drifts: list[Drift] = []
        self.subscriptions: list[QuietSubscription] = []

    async def open(self) -> None:
        self.opened += 1
        await self.opening.wait()
        if self.opens:
            raise self.opens.popleft()

    async def close(self) -> None:
        self.closed += 1

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        self.declared.append((topology, create))
        await self.declaring.wait()
        if self.declares and (error := self.declares.popleft()) is not None:
            raise error
        return self.drifts

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self.sender(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        if self.subscribes and (error := self.subscribes.popleft()) is not None:
            raise error
        self.subscriptions.append(QuietSubscription())
        return self.subscriptions[-1]

    async def backlog(self, source: Source) -> Backlog:
        return Backlog(waiting=0, in_flight=0, delayed=0)

    def classify(self, error: BaseException) -> Fault:
        return Fault(Code.INTERNAL, detail=str(error))
