"""`KafkaAdapter`: the parts of this package behind the one contract."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from atleastonce.adapters.kafka import browse, inspecting, lag, topology
from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.browse import Span
from atleastonce.adapters.kafka.config import Settings, settings
from atleastonce.adapters.kafka.faults import classify
from atleastonce.adapters.kafka.publisher import Publisher
from atleastonce.adapters.kafka.replies import PartitionInbox, place_of
from atleastonce.adapters.kafka.share import ShareSubscription, groups
from atleastonce.adapters.kafka.subscription import KafkaSubscription
from atleastonce.channels import Channel, Queue, Source, Topic, is_derived
from atleastonce.contract import (
    NONE,
    Adapter,
    Arrived,
    Backlog,
    Capabilities,
    Counting,
    Delivery,
    Drift,
    Fact,
    Fault,
    Leasing,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Resource,
    Subscription,
    Topology,
    Window,
)
from atleastonce.errors import BrokerUnavailable, Closed, ConfigurationError, NotFound
from atleastonce.offsets import decode
from atleastonce.urls import BrokerUrl

_UNCOUNTED = "Kafka's client for Python cannot ask what waits for a share group; kafka-share-groups.sh --describe can"


class KafkaAdapter(Adapter):
    """Kafka. A queue is a topic read by the group of its own name; retries and delays are topics that the engine reads.

    Also `Purges`, `Deletes`, `Browses`, `Scans` and `Dates`.
    """

    scheme = "kafka"

    def __init__(self, url: BrokerUrl, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.capabilities = Capabilities(
            delay=NONE,
            delivery_count=Counting.NONE,
            lease=Leasing.SESSION,
            settled_within=settings.commit_interval,
            order=Ordering.KEY,
            max_message_bytes=settings.max_message_bytes,
            binary_headers=True,
            null_body=True,
            transactions=True,
        )
        if settings.share:
            # Of what share groups read. Rooms of retries, suspects and dead letters are read by consumer groups, which keep more.
            self.capabilities = msgspec.structs.replace(
                self.capabilities,
                delivery_count=Counting.APPROXIMATE,  # the members of a dying process may be handed what another of them had
                counts_releases=True,
                lease=Leasing.FIXED,
                lease_seconds=settings.share_lock,
                lease_limit=settings.share_lock,
                order=Ordering.NONE,
                transactions=False,
            )
        self._admin: Admin | None = None
        self._publisher: Publisher | None = None
        self._subscriptions: weakref.WeakSet[KafkaSubscription | ShareSubscription] = weakref.WeakSet()

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
        except BaseException as error:
            admin.close()
            if isinstance(error, BrokerUnavailable):
                raise BrokerUnavailable(f"Kafka at {self.settings.servers} does not answer ({error})") from None
            raise
        self._admin = admin
        self._publisher = Publisher(self.settings, admin.writable)

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
        admin = self._open_admin()
        drifts = await topology.declare(admin, self.settings, topology_, create=create)
        shared = {source.group_name: source.name for source in topology_.sources if self._shares(source)}
        drifts += await groups.declare(admin, self.settings, shared, create=create)
        if self._publisher is not None:
            self._publisher.roomy.update(delay.channel.name for delay in topology_.delays)
            self._publisher.roomy.update(queue.name for queue in topology_.dead_letters)
        return drifts

    def describe(self, topology_: Topology) -> Sequence[Resource]:
        """See `Describes`."""
        return topology.describe(self.settings, topology_)

    def waiting_in(self, source: Source) -> Mapping[str, str] | None:
        """See `Describes`. What waits for a share group, nobody counts for other programs."""
        if self._shares(source):
            return None
        return {"topic": source.channel.name, "group": source.group_name}

    def server(self) -> Mapping[str, Any]:
        """See `Describes`."""
        return topology.server(self.settings)

    async def inspect(self, topology_: Topology) -> Sequence[Fact]:
        """See `Inspects`."""
        return await inspecting.inspect(self._open_admin(), topology_, self.settings.servers)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """See `Adapter.send`."""
        if self._publisher is None:
            raise Closed("the Kafka adapter is not open")
        return await self._publisher.send(batch)

    async def open_inbox(self, arrived: Arrived) -> PartitionInbox:
        """See `Replies`: a partition of one topic for all who ask."""
        inbox = PartitionInbox(self._open_admin(), self.settings, arrived)
        await inbox.open()
        return inbox

    def is_address(self, address: str) -> bool:
        """See `Replies.is_address`."""
        return place_of(address) is not None

    def asked_by(self, delivery: Delivery) -> tuple[str, str]:
        """Kafka has no fields of its own for it."""
        return "", ""

    async def reply(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """See `Replies.reply`. Nobody can tell whether an asker is still there."""
        return await self.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        """See `Adapter.subscribe`."""
        if self._publisher is None:
            raise Closed("the Kafka adapter is not open")
        if window.transactional and self.settings.reads_uncommitted:
            raise ConfigurationError(
                f"{source}: transactions begin with what is committed; leave isolation.level=read_uncommitted away"
            )
        if window.transactional and self._shares(source):
            raise ConfigurationError(f"{source}: share groups have no transactions; leave share.groups away")
        if not await self._exists(source.channel.name):
            raise NotFound(f"Kafka: topic {source.channel.name} does not exist; declare it first")
        subscription: KafkaSubscription | ShareSubscription
        if self._shares(source):
            terms = await groups.terms(self._open_admin(), self.settings, source.group_name)
            subscription = ShareSubscription(source, window, listener, self.settings, terms, self._exists)
        else:
            subscription = KafkaSubscription(source, window, listener, self.settings, self._exists, self._publisher)
        self._subscriptions.add(subscription)
        return subscription

    async def backlog(self, source: Source) -> Backlog:
        """See `Adapter.backlog`."""
        if self._admin is None:
            return Backlog(detail="the Kafka adapter is not open")
        if self._shares(source):
            return Backlog(detail=_UNCOUNTED)
        return await lag.backlog(self._admin, self.settings, source)

    async def dated_backlog(self, source: Source) -> Backlog:
        """See `Dates.dated_backlog`."""
        if self._admin is None:
            return Backlog(detail="the Kafka adapter is not open")
        if self._shares(source):
            return Backlog(detail=_UNCOUNTED)
        return await lag.dated_backlog(self._admin, self.settings, source)

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
        # A topic is not its group's to delete: others read it too.
        channels += [source.channel for source in topology.sources if isinstance(source.channel, Queue)]
        sources = [*topology.sources, *(Source(channel) for channel in channels if isinstance(channel, Queue))]
        admin, topics = self._open_admin(), {channel.name for channel in channels}
        await admin.delete_topics(list(topics))
        for group in {source.group_name for source in sources if self._shares(source) and source.group is None}:
            await admin.delete_group(group)  # of a topic's group nobody can tell what else it reads: it stays
        for group in {source.group_name for source in sources if not self._shares(source)}:
            # A group is one for all topics that it reads: to delete it here would send it back to the start of the others.
            if await admin.topics_of(group) <= topics | {each.channel.name for each in topology.sources}:
                await admin.delete_group(group)

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        """See `Browses.browse`. Of a queue or for a group, what is not completed; of a topic, all that it keeps. A group that has
        never committed begins where a new reader would."""
        source = Source(channel, group or ("browse" if isinstance(channel, Topic) else None))
        spans = await (self._spans(channel) if group is None else self._left(source))
        return await asyncio.to_thread(browse.browse, self.settings, source, spans, limit)

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """See `Scans.scan`. What its group has not completed."""
        async with contextlib.aclosing(browse.scan(self.settings, Source(queue), await self._spans(queue))) as lists:
            async for found in lists:
                yield found

    # ------------------------------------------------------------------------------------- inside

    def _shares(self, source: Source) -> bool:
        """Whether a share group reads ``source``."""
        return self.settings.share and not is_derived(source.channel)

    async def _spans(self, channel: Channel[Any]) -> dict[int, Span]:
        """What there is to look at: of a queue, what its group has not completed; of a topic, all that it keeps."""
        admin = self._open_admin()
        partitions = await self._partitions(channel)
        bounds = await admin.bounds(channel.name, partitions)
        spans: dict[int, Span] = {number: (start, end, ()) for number, (start, end) in bounds.items()}
        if isinstance(channel, Queue):
            self._refuse_shared(Source(channel))
            for number, stored in (await admin.committed(channel.name, channel.name, partitions)).items():
                start, end = bounds[number]
                if stored.offset >= start:
                    spans[number] = (stored.offset, end, decode(stored.metadata, stored.offset) or ())
        return spans

    async def _left(self, source: Source) -> dict[int, Span]:
        """What the group of ``source`` has not completed."""
        self._refuse_shared(source)
        return await lag.left(self._open_admin(), self.settings, source)

    def _refuse_shared(self, source: Source) -> None:
        if self._shares(source):
            raise ConfigurationError(
                f"{source} is read by share groups, and Kafka's client for Python cannot ask what they have done: dead "
                "letters can be looked at, this cannot"
            )

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
