"""The adapter: two connections that come back by themselves, one for publishing and questions, one for reading."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any

from pika import exceptions as amqp

from atleastonce import parts
from atleastonce.adapters.rabbitmq import describing, faults, inspecting, topology
from atleastonce.adapters.rabbitmq.backlog import measure, ready
from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.adapters.rabbitmq.connection import Connection, Link
from atleastonce.adapters.rabbitmq.properties import MAX_HEADER_BYTES
from atleastonce.adapters.rabbitmq.publisher import Publisher
from atleastonce.adapters.rabbitmq.readers import QueueReaders
from atleastonce.adapters.rabbitmq.replies import ExclusiveInbox, asked_by, is_inbox
from atleastonce.adapters.rabbitmq.routes import Routes
from atleastonce.adapters.rabbitmq.scan import scan
from atleastonce.adapters.rabbitmq.strays import Strays
from atleastonce.adapters.rabbitmq.subscription import RabbitMQSubscription, read_delivery
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import (
    Ability,
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
    Level,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Resource,
    Subscription,
    Topology,
    Window,
)
from atleastonce.errors import AtLeastOnceError, Closed
from atleastonce.urls import BrokerUrl

_CONSUMER_TIMEOUT = 1800.0
"""Seconds that RabbitMQ leaves a delivery unsettled (``consumer_timeout``) before it closes the channel."""


class RabbitMQAdapter(Adapter):
    """RabbitMQ 3.10 and later. Made by `atleastonce.adapters.open_adapter`; options are those of `Config`."""

    scheme = "rabbitmq"

    def __init__(self, config: Config) -> None:
        self.capabilities = Capabilities(
            delay=Ability(Level.EMULATED, topology.MAX_TTL),
            publish_delay=Ability(Level.EMULATED, topology.MAX_TTL),
            delivery_count=Counting.EXACT,
            counts_releases=True,
            lease=Leasing.SESSION,
            lease_limit=_CONSUMER_TIMEOUT,
            order=Ordering.STREAM,
            single_active=True,
            parts=True,
            dead_letter=Level.NATIVE,
            addresses_groups=True,
            max_message_bytes=config.max_message_bytes,
            max_header_bytes=MAX_HEADER_BYTES,
            binary_headers=True,
        )
        self._config = config
        self._control = Link(config, "publisher")
        self._reading = Link(config, "consumer")
        self._routes = Routes()
        self._publisher = Publisher(config, self._control, self._routes)
        self._subscriptions: set[RabbitMQSubscription] = set()
        self._readers = QueueReaders(partial(self._connect, self._reading))
        self._strays = Strays()
        self._rooms: dict[str, set[str]] = {}
        self._closed = False
        self._control.on_blocked = self._blocked

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> RabbitMQAdapter:
        """The adapter for ``url``, not connected yet.

        Raises:
            ConfigurationError: an option that does not exist, or a bad value.
        """
        return cls(Config.build(url, options))

    async def open(self) -> None:
        await self._connect(self._control)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._publisher.close()
        for subscription in list(self._subscriptions):
            await subscription.close()
        await self._reading.close()
        await self._control.close()

    async def declare(self, topology_: Topology, *, create: bool = True) -> Sequence[Drift]:
        return await parts.declare(topology_, self._declare, create=create)

    async def _declare(self, topology_: Topology, /, *, create: bool) -> Sequence[Drift]:
        wanted = describing.queues(topology_, self._config)
        connection = await self._connect(self._control)
        maker = topology.Maker(connection, create)
        try:
            for name, arguments in describing.exchanges(topology_).items():
                if await maker.exchange(name, arguments):
                    self._routes.learn(name)
            there = {name: await maker.queue(name, arguments) for name, arguments in wanted.items()}
            for queue, exchange in describing.bindings(topology_):
                if there[queue]:
                    await maker.bind(queue, exchange)
        except (amqp.AMQPError, TimeoutError) as error:
            raise faults.as_error(error, f"declaring on {self._config.address}") from error
        for delay in topology_.delays:
            self._rooms.setdefault(delay.back_to.name, set()).add(delay.channel.name)
        return maker.drifts

    def describe(self, topology_: Topology) -> Sequence[Resource]:
        """See `Describes`."""
        return describing.describe(parts.in_parts(topology_), self._config)

    def waiting_in(self, source: Source) -> Mapping[str, str]:
        """See `Describes`."""
        return {"queue": source.name}

    def server(self) -> Mapping[str, Any]:
        """See `Describes`."""
        return describing.server(self._config)

    async def inspect(self, topology_: Topology) -> Sequence[Fact]:
        """See `Inspects`. AMQP tells no settings: only with ``management``. Whether failures can be moved, it does."""
        connection = await self._connect(self._control)
        try:
            denied = await inspecting.denied(connection, topology_)
        except (amqp.AMQPError, TimeoutError) as error:
            raise faults.as_error(error, "looking at rights") from error
        queues = list(describing.queues(parts.in_parts(topology_), self._config))
        return denied + await inspecting.inspect(self._config, queues)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._publisher.send(parts.routed(batch))

    async def open_inbox(self, arrived: Arrived) -> ExclusiveInbox:
        """See `Replies`: an exclusive queue, which the broker removes when its connection ends."""
        inbox = ExclusiveInbox(partial(self._connect, self._reading), arrived)
        try:
            await inbox.open()
        except (amqp.AMQPError, TimeoutError) as error:
            raise faults.as_error(error, "making a queue for replies") from error
        return inbox

    def is_address(self, address: str) -> bool:
        return is_inbox(address)

    def asked_by(self, delivery: Delivery) -> tuple[str, str]:
        return asked_by(delivery.raw)

    async def reply(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._publisher.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return await parts.subscribe(source, window, listener, self._subscribe, self._readers)

    async def _subscribe(self, source: Source, window: Window, listener: Listener) -> RabbitMQSubscription:
        connection = await self._connect(self._reading)
        try:
            channel = await connection.channel()
            subscription = RabbitMQSubscription(source, window, listener, connection, channel, self._strays)
            try:
                await subscription.begin()
            except BaseException:
                await subscription.close()
                raise
        except (amqp.AMQPError, TimeoutError) as error:
            raise faults.as_error(error, f"reading {source.name}") from error
        self._subscriptions.add(subscription)
        subscription.on_end = self._subscriptions.discard
        listener.condition("connected", self._config.address)
        return subscription

    async def backlog(self, source: Source) -> Backlog:
        return await parts.backlog(source, self._backlog)

    async def _backlog(self, source: Source) -> Backlog:
        try:
            connection = await self._connect(self._control)
        except AtLeastOnceError as error:
            return Backlog(detail=str(error))
        return await measure(self._config, connection, source.name, sorted(self._rooms.get(source.name, ())))

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that waits in ``channel``; return how many."""
        return sum([await self._purge(one) for one in parts.pieces(channel)])

    async def _purge(self, channel: Queue[Any]) -> int:
        connection = await self._connect(self._control)
        try:
            async with connection.scratch() as scratch:
                answer = await scratch.call("queue_purge", queue=channel.name)
                return int(answer.message_count)
        except (amqp.AMQPError, TimeoutError) as error:
            raise faults.as_error(error, f"purging {channel.name}") from error

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """As `Scans.scan`; everything is out until the end, for which brokers before 4.3 count a delivery."""
        source = Source(Queue(queue.name))
        connection = await self._connect(self._reading)
        try:
            waiting = await ready(connection, queue.name)
            read = partial(read_delivery, source=source, strays=self._strays, epoch=0, rooms=f"{source.name}.retry.")
            unlimited = await topology.is_unlimited(connection, queue.name)
            lists = scan(connection, queue.name, waiting, read, None if unlimited else self._put_back)
            async with contextlib.aclosing(lists):
                async for found in lists:
                    yield found
        except (amqp.AMQPError, TimeoutError) as error:
            raise faults.as_error(error, f"reading {queue.name}") from error

    async def _put_back(self, deliveries: list[Delivery]) -> list[Delivery]:
        copies = [Outgoing(delivery.source.channel, delivery.message) for delivery in deliveries]
        outcomes = await self._publisher.send(copies)
        return [delivery for delivery, outcome in zip(deliveries, outcomes, strict=True) if outcome.ok]

    async def delete(self, topology_: Topology) -> None:
        """Remove what `declare` made, with all messages; what is not there is fine."""
        topology_ = parts.in_parts(topology_)
        connection = await self._connect(self._control)
        for name in describing.queues(topology_, self._config):
            with contextlib.suppress(amqp.ChannelClosedByBroker):
                async with connection.scratch() as scratch:
                    await scratch.call("queue_delete", queue=name)
        for topic in topology_.channels:  # not those of its sources alone: other groups read them too
            if isinstance(topic, Topic):
                with contextlib.suppress(amqp.ChannelClosedByBroker):
                    async with connection.scratch() as scratch:
                        await scratch.call("exchange_delete", exchange=topic.name)
        self._routes.forget()

    async def _connect(self, link: Link) -> Connection:
        if self._closed:
            raise Closed("the adapter is closed")
        try:
            return await link.get()
        except Exception as error:  # whatever pika makes of a failing network
            raise faults.as_error(error, f"RabbitMQ at {self._config.address}") from error

    def _blocked(self, reason: str | None) -> None:
        self._publisher.look_again()
        for subscription in list(self._subscriptions):
            state, detail = ("unblocked", "") if reason is None else ("blocked", f"publishing: {reason}")
            subscription.listener.condition(state, detail)
