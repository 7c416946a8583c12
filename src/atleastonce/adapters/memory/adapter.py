"""The memory broker behind the adapter contract: URLs, windows and waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atleastonce.adapters.memory.broker import MemoryBroker, named
from atleastonce.adapters.memory.source import Lease
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import (
    OK,
    Ability,
    Adapter,
    Backlog,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Drift,
    Fault,
    Leasing,
    Level,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Settlement,
    Status,
    Subscription,
    Topology,
    Window,
)
from atleastonce.durations import Duration, Size, seconds, size_in_bytes
from atleastonce.errors import Closed, ConfigurationError, ConnectionLost, NotFound
from atleastonce.urls import BrokerUrl

_OPTIONS = ("clock", "lease", "max_message_bytes")


class MemoryAdapter(Adapter):
    """A broker in this process: ``memory://`` for one of one's own, ``memory://name`` for one shared under that name.

    Args:
        name: shared by all adapters of the process that name it; None for a private broker.
        lease: how long a delivery stays with its reader, at least 1 ms. Too short repeats messages whose renewal comes
            late; too long makes a crashed reader's messages wait.
        max_message_bytes: body, key and headers together; larger ones are refused.
        clock: for tests, instead of ``time.monotonic``; private brokers only.
    """

    scheme = "memory"

    def __init__(
        self,
        name: str | None = None,
        *,
        lease: Duration = 30.0,
        max_message_bytes: Size = 16 * 2**20,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if name is not None and clock is not None:
            raise ConfigurationError(f"memory://{name}: a shared broker keeps real time; leave its name or clock away")
        self.broker = named(name) if name is not None else MemoryBroker(clock) if clock else MemoryBroker()
        self.lease = seconds(lease, name="memory lease", minimum=0.001)
        self.max_message_bytes = size_in_bytes(max_message_bytes, name="memory max_message_bytes")
        self.capabilities = Capabilities(
            delay=Ability(Level.NATIVE),
            publish_delay=Ability(Level.NATIVE),
            delivery_count=Counting.EXACT,
            lease=Leasing.EXTENDABLE,
            lease_seconds=self.lease,
            order=Ordering.GROUP,
            addresses_groups=True,
            max_message_bytes=self.max_message_bytes,
            binary_headers=True,
        )
        self._open = False

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> MemoryAdapter:
        """The adapter for ``memory://[name][?lease=30s&max_message_bytes=16MiB]``.

        Raises:
            ConfigurationError: an unknown option, or a URL with a port, path, user or several names.
        """
        if len(url.hosts) > 1 or url.path or url.user is not None or any(port for _, port in url.hosts):
            raise ConfigurationError(f'broker URL "{url}": write memory:// or memory://name')
        given = {**url.query, **options}
        if unknown := [option for option in given if option not in _OPTIONS]:
            raise ConfigurationError(
                f'broker URL "{url}": unknown option "{unknown[0]}"; memory has {", ".join(_OPTIONS)}'
            )
        return cls(url.hosts[0][0] if url.hosts else None, **given)

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False

    def _check(self) -> None:
        if not self._open:
            raise Closed("this memory adapter is not open")

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        """As `Adapter.declare`. Delay channels are not made: a source delays by itself (`Retry`)."""
        self._check()
        return self.broker.declare(topology, create)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        self._check()
        return self.broker.publish(batch, self.max_message_bytes)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        self._check()
        return MemorySubscription(self.broker, source, window, self.lease)

    async def backlog(self, source: Source) -> Backlog:
        self._check()
        try:
            return self.broker.backlog(source)
        except NotFound as error:
            return Backlog(detail=str(error))

    def classify(self, error: BaseException) -> Fault:
        if isinstance(error, NotFound):
            return Fault(Code.NOT_FOUND, detail=str(error))
        if isinstance(error, Closed | ConnectionLost):
            return Fault(Code.CLOSED, detail=str(error))
        return Fault(Code.INTERNAL, detail=f"{type(error).__name__}: {error}")

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that nobody holds, delayed messages too.

        Raises:
            NotFound: no such queue.
        """
        self._check()
        return self.broker.purge(Source(channel))

    async def delete(self, topology: Topology) -> None:
        """Remove the channels and sources of ``topology`` with their messages; their readers get `NotFound`."""
        self._check()
        self.broker.delete(topology)

    async def browse(self, channel: Channel[Any], limit: int) -> Sequence[Delivery]:
        """Up to ``limit`` messages that wait in any group, each once, oldest first.

        Raises:
            NotFound: no such channel.
        """
        self._check()
        return [
            Delivery(entry.message, source, source.name, entry.seq, 0, None, entry.count)
            for source, entry in self.broker.browse(channel, limit)
        ]


class MemorySubscription(Subscription):
    """One reader of a source."""

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
            raise Closed(f"the subscription to {self._source.name} is closed")
        outcomes = self._broker.settle(self._state, batch)
        for (delivery, _), outcome in zip(batch, outcomes, strict=True):
            if outcome.fault is None or outcome.fault.code is Code.STALE:
                self._drop(delivery.token)
                delivery.lost = delivery.lost or outcome.status is not Status.OK
        self._changed.set()
        return outcomes

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if self._closed:
            raise Closed(f"the subscription to {self._source.name} is closed")
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
