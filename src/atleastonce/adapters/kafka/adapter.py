"""`KafkaAdapter`: the parts of this package behind the one contract."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from atleastonce.adapters.kafka import browse, lag, topology
from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.config import Settings, settings
from atleastonce.adapters.kafka.faults import classify
from atleastonce.adapters.kafka.publisher import Publisher
from atleastonce.adapters.kafka.subscription import KafkaSubscription
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import (
    NONE,
    Adapter,
    Backlog,
    Capabilities,
    Counting,
    Delivery,
    Drift,
    Fault,
    Leasing,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Subscription,
    Topology,
    Window,
)
from atleastonce.errors import BrokerUnavailable, Closed, NotFound, PermissionDenied
from atleastonce.offsets import decode
from atleastonce.urls import BrokerUrl


class KafkaAdapter(Adapter):
    """Kafka. A queue is a topic read by the group of its own name; retries and delays are topics that the engine reads.

    Also `Purges`, `Deletes` and `Browses`.
    """

    scheme = "kafka"

    def __init__(self, url: BrokerUrl, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.capabilities = Capabilities(
            delay=NONE,
            delivery_count=Counting.NONE,
            lease=Leasing.SESSION,
            order=Ordering.STREAM,
            max_message_bytes=settings.max_message_bytes,
            binary_headers=True,
            null_body=True,
        )
        self._admin: Admin | None = None
        self._publisher: Publisher | None = None
        self._subscriptions: weakref.WeakSet[KafkaSubscription] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any] | None = None) -> KafkaAdapter:
        """The adapter for ``url``, not yet connected.

        Raises:
            ConfigurationError: an option is unknown, dangerous in a URL, ours to set, or has a bad value.
        """
        return cls(url, settings(url, options or {}))

    def __repr__(self) -> str:
        return f"<KafkaAdapter {self.url}>"

    async def open(self) -> None:
        """See `Adapter.open`."""
        admin = Admin(self.settings)
        try:
            await admin.ping()
        except PermissionDenied:
            admin.close()
            raise
        except BrokerUnavailable as error:
            admin.close()
            raise BrokerUnavailable(f"Kafka at {self.settings.servers} does not answer ({error})") from None
        self._admin = admin
        self._publisher = Publisher(self.settings, admin.partitions)

    async def close(self) -> None:
        """See `Adapter.close`."""
        await asyncio.gather(*(subscription.close() for subscription in list(self._subscriptions)))
        publisher, self._publisher = self._publisher, None
        admin, self._admin = self._admin, None
        if publisher is not None:
            await publisher.close()
        if admin is not None:
            admin.close()

    async def declare(self, topology_: Topology, *, create: bool = True) -> Sequence[Drift]:
        """See `Adapter.declare`."""
        drifts = await topology.declare(self._open_admin(), self.settings, topology_, create=create)
        if self._publisher is not None:
            self._publisher.roomy.update(delay.channel.name for delay in topology_.delays)
            self._publisher.roomy.update(queue.name for queue in topology_.dead_letters)
        return drifts

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """See `Adapter.send`."""
        if self._publisher is None:
            raise Closed("the Kafka adapter is not open")
        return await self._publisher.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        """See `Adapter.subscribe`."""
        if not await self._exists(source.channel.name):
            raise NotFound(f"Kafka: topic {source.channel.name} does not exist; declare it first")
        subscription = KafkaSubscription(source, window, listener, self.settings, self._exists)
        self._subscriptions.add(subscription)
        return subscription

    async def backlog(self, source: Source) -> Backlog:
        """See `Adapter.backlog`."""
        if self._admin is None:
            return Backlog(detail="the Kafka adapter is not open")
        return await lag.backlog(self._admin, self.settings, source)

    def classify(self, error: BaseException) -> Fault:
        """See `Adapter.classify`."""
        return classify(error)

    # -------------------------------------------------------------------------- optional abilities

    async def purge(self, channel: Queue[Any]) -> int:
        """See `Purges.purge`."""
        admin = self._open_admin()
        bounds = await admin.bounds(channel.name, await self._partitions(channel))
        await admin.truncate(channel.name, {number: end for number, (_, end) in bounds.items()})
        return sum(end - start for start, end in bounds.values())

    async def delete(self, topology: Topology) -> None:
        """See `Deletes.delete`."""
        channels: list[Channel[Any]] = [*topology.channels, *topology.dead_letters]
        channels += [delay.channel for delay in topology.delays]
        channels += [source.channel for source in topology.sources]
        groups = {source.group_name for source in topology.sources}
        groups |= {channel.name for channel in channels if isinstance(channel, Queue)}
        await self._open_admin().delete(list({channel.name for channel in channels}), list(groups))

    async def browse(self, channel: Channel[Any], limit: int) -> Sequence[Delivery]:
        """See `Browses.browse`. Of a queue, what its group has not completed; of a topic, all that it keeps."""
        admin = self._open_admin()
        partitions = await self._partitions(channel)
        bounds = await admin.bounds(channel.name, partitions)
        spans: dict[int, browse.Span] = {number: (start, end, ()) for number, (start, end) in bounds.items()}
        if isinstance(channel, Queue):
            for number, stored in (await admin.committed(channel.name, channel.name, partitions)).items():
                start, end = bounds[number]
                if stored.offset >= start:
                    spans[number] = (stored.offset, end, decode(stored.metadata, stored.offset) or ())
        source = Source(channel, "browse" if isinstance(channel, Topic) else None)
        return await asyncio.to_thread(browse.browse, self.settings, source, spans, limit)

    # ------------------------------------------------------------------------------------- inside

    def _open_admin(self) -> Admin:
        if self._admin is None:
            raise Closed("the Kafka adapter is not open")
        return self._admin

    async def _exists(self, topic: str) -> bool:
        return (await self._open_admin().partitions([topic]))[topic] is not None

    async def _partitions(self, channel: Channel[Any]) -> int:
        found = (await self._open_admin().partitions([channel.name]))[channel.name]
        if found is None:
            raise NotFound(f"Kafka: topic {channel.name} does not exist")
        return found
