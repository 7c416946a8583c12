"""The memory broker behind the adapter contract: URLs, options and looking."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from atleastonce.adapters.memory.broker import MemoryBroker, named
from atleastonce.adapters.memory.subscription import MemorySubscription
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import (
    Ability,
    Adapter,
    Backlog,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Drift,
    Fact,
    Fault,
    Leasing,
    Level,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Subscription,
    Topology,
    Trait,
    Window,
)
from atleastonce.durations import Duration, Size, seconds, size_in_bytes
from atleastonce.errors import Closed, ConfigurationError, ConnectionLost, NotFound
from atleastonce.urls import BrokerUrl

_SCAN = 1000
"""Messages of one list of `MemoryAdapter.scan`."""

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

    async def inspect(self, topology: Topology) -> Sequence[Fact]:
        """As `Inspects.inspect`."""
        return [Fact("memory://", Trait.PROCESS, "memory", "this process")]

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        self._check()
        return self.broker.publish(batch, self.max_message_bytes)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        self._check()
        return MemorySubscription(self.broker, source, window, self.lease)

    async def backlog(self, source: Source) -> Backlog:
        try:
            self._check()
            return self.broker.backlog(source)
        except (Closed, NotFound) as error:
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

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        """Up to ``limit`` messages that wait in any group, or in ``group``, each once, oldest first; none that is held.

        Raises:
            NotFound: no such channel or group.
        """
        self._check()
        return [
            Delivery(entry.message, source, source.name, entry.seq, 0, None, entry.count)
            for source, entry in self.broker.browse(channel, limit, group)
        ]

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """As `Scans.scan`: what waits is in memory anyway."""
        found = await self.browse(queue, sys.maxsize)
        for start in range(0, len(found), _SCAN):
            yield found[start : start + _SCAN]
