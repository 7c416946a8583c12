"""One reader of a source: its window, and its waiting without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from atleastonce.adapters.memory.broker import MemoryBroker
from atleastonce.adapters.memory.source import Lease
from atleastonce.channels import Source
from atleastonce.contract import OK, STALE, Code, Delivery, Outcome, Settlement, Status, Subscription, Window
from atleastonce.errors import Closed, NotFound


class MemorySubscription(Subscription):
    """From `MemoryAdapter.subscribe`."""

    def __init__(self, broker: MemoryBroker, source: Source, window: Window, lease: float) -> None:
        self._broker = broker
        self._source = source
        self._state = broker.state(source)
        self._window = window
        self._lease = lease
        self._out: dict[int, Lease] = {}
        self._out_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._paused = False
        self._closed = False
        self._state.watchers.add(self._wake)

    def _wake(self) -> None:
        """Called by whoever made a message ready, in its thread."""
        try:
            if asyncio.get_running_loop() is self._loop:
                self._changed.set()
                return
        except RuntimeError:
            pass
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        deadline = self._loop.time() + max_wait
        await asyncio.sleep(0)  # competing readers on one loop take turns
        while True:
            self._check()
            self._changed.clear()
            found, pause = self._take(max_messages)
            if found:
                return found
            pause = min(pause, deadline - self._loop.time())
            if deadline <= self._loop.time():
                return ()
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"the subscription to {self._source.name} is closed")
        if self._state.deleted:
            raise NotFound(f"{self._source.name} was deleted")

    def _take(self, max_messages: int) -> tuple[list[Delivery], float]:
        if self._paused:
            return [], float("inf")
        limit = min(max_messages, self._window.messages - len(self._out))
        room = self._window.bytes - self._out_bytes
        if limit <= 0 or room <= 0:
            self._forget_expired()
            limit = min(max_messages, self._window.messages - len(self._out))
            room = self._window.bytes - self._out_bytes
        leases, pause = self._broker.claim(self._state, limit, room, self._lease)
        found: list[Delivery] = []
        for lease in leases:
            entry = lease.entry
            if entry.seq not in self._out:  # else it came back to us after an ended lease
                self._out_bytes += entry.message.size
            self._out[entry.seq] = lease
            found.append(
                Delivery(entry.message, self._source, self._state.name, entry.seq, 0, lease, entry.count, entry.visible)
            )
        return found, pause

    def _forget_expired(self) -> None:
        """Deliveries whose lease is over count against no window: they may be with someone else."""
        leases = list(self._out.values())
        for lease, held in zip(leases, self._broker.held(self._state, leases), strict=True):
            if not held:
                self._drop(lease)

    def _drop(self, lease: Lease) -> None:
        if self._out.get(lease.entry.seq) is lease:
            del self._out[lease.entry.seq]
            self._out_bytes -= lease.entry.message.size

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(batch)
        outcomes = self._broker.settle(self._state, batch)
        for (delivery, _), outcome in zip(batch, outcomes, strict=True):
            if outcome.fault is None or outcome.fault.code is Code.STALE:
                self._drop(delivery.token)
                delivery.lost = delivery.lost or outcome.status is not Status.OK
        self._changed.set()
        return outcomes

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(deliveries)
        outcomes = self._broker.extend(self._state, [delivery.token for delivery in deliveries], seconds)
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if outcome.ok:
                delivery.lease_until = delivery.token.entry.visible
            elif delivery.token.outcome is not OK:
                delivery.lost = True
        return outcomes

    async def pause(self) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._paused = False
        self._changed.set()

    async def close(self) -> None:
        self._closed = True
        self._state.watchers.discard(self._wake)
        self._changed.set()
