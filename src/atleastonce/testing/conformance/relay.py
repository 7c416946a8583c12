"""An adapter that passes everything on to another: the base of those that misbehave, or know less, on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from atleastonce.channels import Source
from atleastonce.contract import (
    Adapter,
    Backlog,
    Delivery,
    Drift,
    Fault,
    Listener,
    Outcome,
    Outgoing,
    Settlement,
    Subscription,
    Topology,
    Window,
)


class Relay(Adapter):
    """Passes everything on to ``inner``."""

    def __init__(self, inner: Adapter) -> None:
        self.inner = inner
        self.scheme = inner.scheme
        self.capabilities = inner.capabilities

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        return await self.inner.declare(topology, create=create)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self.inner.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return await self.inner.subscribe(source, window, listener)

    async def backlog(self, source: Source) -> Backlog:
        return await self.inner.backlog(source)

    def classify(self, error: BaseException) -> Fault:
        return self.inner.classify(error)


class RelayedSubscription(Subscription):
    """Passes everything on to ``inner``."""

    def __init__(self, inner: Subscription) -> None:
        self.inner = inner

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        return await self.inner.receive(max_messages, max_wait)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        return await self.inner.settle(batch)

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        return await self.inner.extend(deliveries, seconds)

    async def pause(self) -> None:
        await self.inner.pause()

    async def resume(self) -> None:
        await self.inner.resume()

    async def leave(self) -> None:
        await self.inner.leave()

    async def leave_with_rest(self) -> Sequence[Delivery]:
        return await self.inner.leave_with_rest()

    async def close(self) -> None:
        await self.inner.close()
