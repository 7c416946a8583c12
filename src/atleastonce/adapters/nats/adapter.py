"""The adapter: one connection that comes back by itself, for publishing, reading and questions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from atleastonce import parts
from atleastonce.adapters.nats import core, describing, faults, inspecting, looking
from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.core import CoreInbox, CorePublisher
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import durable_of, is_core, stream_of, subject_of
from atleastonce.adapters.nats.publisher import Publisher
from atleastonce.adapters.nats.questions import CoreSubscription
from atleastonce.adapters.nats.replies import Replies
from atleastonce.adapters.nats.subscription import NatsSubscription
from atleastonce.adapters.nats.topology import Maker, read_durable, stream_for
from atleastonce.channels import Channel, Queue, Source
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
from atleastonce.errors import BrokerUnavailable, Closed, PermissionDenied
from atleastonce.urls import BrokerUrl

_RESERVE: Final = 4096
"""Bytes of the server's ``max_payload``, which counts header blocks, that a message leaves for what they are made of."""

_RETENTION_SHARE: Final = 4
"""A retry that waits in a topic's stream may take this part of the time that the stream keeps it; longer ones move out of it."""


class NatsAdapter(Adapter):
    """NATS JetStream 2.10 and later. Made by `atleastonce.adapters.open_adapter`; options are those of `Config`."""

    scheme = "nats"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._link = Link(config)
        self._publisher = Publisher(config, self._link, 1024 * 1024 - _RESERVE)
        self._questions = CorePublisher(config, self._link)
        self._subscriptions: set[NatsSubscription | CoreSubscription] = set()
        self._closed = False
        self._link.guests.add(self)
        self.capabilities = self._capabilities()

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> NatsAdapter:
        """The adapter for ``url``, not connected yet.

        Raises:
            ConfigurationError: an option that does not exist, or a bad value.
        """
        return cls(Config.build(url, options))

    def _capabilities(self) -> Capabilities:
        config = self._config
        return Capabilities(
            delay=Ability(Level.NATIVE, config.topic_max_age / _RETENTION_SHARE if config.topic_max_age else None),
            delivery_count=Counting.EXACT,
            counts_releases=True,
            lease=Leasing.EXTENDABLE,
            lease_seconds=config.ack_wait,
            order=Ordering.STREAM,
            single_active=True,
            single_file=True,
            parts=True,
            dedupe=Ability(Level.NATIVE, config.duplicate_window),
            addresses_groups=True,
            keeps_requests=False,
            max_message_bytes=self._publisher.largest,
            binary_headers=True,
        )

    async def open(self) -> None:
        await self._link.open()
        if self._link.replies is not None:
            self._publisher.largest = max(1, self._link.replies.wire.largest - _RESERVE)
            self.capabilities = self._capabilities()
        try:
            await self._link.ask("INFO")
        except PermissionDenied:
            pass  # who may not ask that may still publish and read
        except faults.NoResponders:
            text = "the server has no JetStream for this account; enable it (jetstream {} in its configuration)"
            raise BrokerUnavailable(f"NATS at {self._config.address}: {text}") from None
        except Exception as error:
            raise faults.as_error(error, f"NATS at {self._config.address}") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._publisher.close()
        for subscription in list(self._subscriptions):
            await subscription.close()
        await self._link.close()

    async def declare(self, wanted: Topology, *, create: bool = True) -> Sequence[Drift]:
        self._check()
        return await parts.declare(wanted, self._declare, create=create)

    async def _declare(self, wanted: Topology, /, *, create: bool) -> Sequence[Drift]:
        maker = Maker(self._link, create, wanted)
        try:
            await _all(maker.stream(channel) for channel in describing.channels(wanted))
            await _all(maker.durable(source) for source in describing.sources(wanted))
        except Exception as error:
            raise faults.as_error(error, f"declaring on {self._config.address}") from error
        return maker.drifts

    def describe(self, wanted: Topology) -> Sequence[Resource]:
        """See `Describes`."""
        return describing.describe(parts.in_parts(wanted), self._config)

    def waiting_in(self, source: Source) -> Mapping[str, str] | None:
        """See `Describes`."""
        if is_core(source.channel):
            return None
        return {"stream": stream_of(source.channel), "consumer": durable_of(source)}

    def server(self) -> Mapping[str, Any]:
        """See `Describes`."""
        return describing.server(self._config)

    async def inspect(self, wanted: Topology) -> Sequence[Fact]:
        """See `Inspects`."""
        self._check()
        wanted = parts.in_parts(wanted)
        try:
            return await inspecting.inspect(self._link, describing.channels(wanted), describing.sources(wanted))
        except Exception as error:
            raise faults.as_error(error, f"looking at streams on {self._config.address}") from error

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        # By identity: of a list most go to one destination.
        destinations = {id(item.destination): item.destination for item in batch}
        core = {number for number, each in destinations.items() if isinstance(each, Channel) and is_core(each)}
        if not core:
            return await self._publisher.send(parts.routed(batch))
        if len(core) == len(destinations):
            return await self._questions.send(batch)
        which = [id(item.destination) in core for item in batch]
        asked = iter(await self._questions.send([*itertools.compress(batch, which)]))
        others = [item for item, is_question in zip(batch, which, strict=True) if not is_question]
        sent = iter(await self._publisher.send(parts.routed(others)))
        return [next(asked) if is_question else next(sent) for is_question in which]

    async def open_inbox(self, arrived: Arrived) -> CoreInbox:
        """See `Replies`: a subject of core NATS, which vanishes with the connection and comes back with the next."""
        self._check()
        try:
            return await CoreInbox.open(self._link, arrived)
        except Exception as error:
            raise faults.as_error(error, "listening for replies") from error

    def is_address(self, address: str) -> bool:
        return core.is_inbox(address, self._config.inbox_prefix)

    def asked_by(self, delivery: Delivery) -> tuple[str, str]:
        """See `Replies`. The subject is good for one answer, and so says which one it is."""
        return (delivery.raw, "") if isinstance(delivery.raw, str) else ("", "")

    async def reply(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """See `Replies`. Best effort, as core NATS is: nobody says whether it was taken."""
        return await self._questions.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        # Whoever asks gets the next message of a part, one at a time: there is nothing to share out.
        return await parts.subscribe(source, window, listener, self._subscribe)

    async def _subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        self._check()
        if is_core(source.channel):
            return await self._listen(source, window, listener)
        try:
            replies = await self._link.get(self._config.connect_timeout)
            reader = await read_durable(self._link, source)
        except Exception as error:
            raise faults.as_error(error, f"reading {source.name}") from error
        if replies.wire.lost is not None:
            raise BrokerUnavailable(f"reading {source.name}: {self._link.trouble}")
        subscription = NatsSubscription(source, window, listener, self._link, reader)
        self._subscriptions.add(subscription)
        self._link.guests.add(subscription)
        subscription.on_end = self._forget
        subscription.begin(replies)
        listener.condition("connected", self._config.address)
        return subscription

    async def _listen(self, source: Source, window: Window, listener: Listener) -> CoreSubscription:
        questions = CoreSubscription(source, window, listener, self._link)
        try:
            await questions.begin(await self._link.get(self._config.connect_timeout))
        except Exception as error:
            await questions.close()
            raise faults.as_error(error, f"reading {source.name}") from error
        self._subscriptions.add(questions)
        questions.on_end = self._forget
        listener.condition("connected", self._config.address)
        return questions

    def _forget(self, subscription: NatsSubscription | CoreSubscription) -> None:
        self._subscriptions.discard(subscription)
        self._link.guests.discard(subscription)

    async def backlog(self, source: Source) -> Backlog:
        return await parts.backlog(source, self._backlog)

    async def _backlog(self, source: Source) -> Backlog:
        try:
            self._check()
            return await looking.measure(self._link, source)
        except Exception as error:  # noqa: BLE001 - what cannot be found out is unknown
            return Backlog(detail=faults.classify(error).detail)

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that waits in ``channel``, and what is being handled; return how many."""
        return sum([await self._purge(one) for one in parts.pieces(channel)])

    async def _purge(self, channel: Queue[Any]) -> int:
        self._check()
        try:
            stream = await stream_for(self._link, channel)
            found = await self._link.ask(f"STREAM.PURGE.{stream}", {"filter": subject_of(channel)})
        except Exception as error:
            raise faults.as_error(error, f"purging {channel.name}") from error
        return int(found.get("purged", -1))

    async def delete(self, wanted: Topology) -> None:
        """Remove the streams and consumers that `declare` makes for ``wanted``; what is not there is fine."""
        self._check()
        wanted = parts.in_parts(wanted)
        # A topic is not its group's to delete: others read it too.
        gone = msgspec.structs.replace(wanted, sources=tuple(each for each in wanted.sources if each.group is None))
        subjects = [
            f"CONSUMER.DELETE.{stream_of(each.channel)}.{durable_of(each)}" for each in describing.sources(wanted)
        ]
        subjects += [f"STREAM.DELETE.{stream_of(channel)}" for channel in describing.channels(gone)]
        try:
            for subject in subjects:
                try:
                    await self._link.ask(subject)
                except faults.ApiFailure as failure:
                    if failure.error.code != 404:
                        raise
        except Exception as error:
            raise faults.as_error(error, "deleting") from error

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        """Up to ``limit`` messages of ``channel``, oldest first; of a topic, without a ``group``, also those that groups are done
        with. For a group, see `looking.waiting`."""
        self._check()

        async def look(one: Channel[Any]) -> Sequence[Delivery]:
            if group is None:
                return await looking.browse(self._link, one, limit)
            return await looking.waiting(self._link, Source(one, group), limit)

        try:
            return await parts.browse(channel, limit, look)
        except Exception as error:
            raise faults.as_error(error, f"browsing {channel.name}") from error

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """All that lies in ``queue``, in lists; JetStream shows it without handing it out."""
        self._check()
        try:
            async with aclosing(looking.scan(self._link, queue)) as lists:
                async for each in lists:
                    yield each
        except Exception as error:
            raise faults.as_error(error, f"looking through {queue.name}") from error

    def _check(self) -> None:
        if self._closed:
            raise Closed("the adapter is closed")

    # ----------------------------------------------------------------------------------------------- told by the link

    def connected(self, replies: Replies) -> None:
        """Another server may take less."""
        self._publisher.largest = max(1, replies.wire.largest - _RESERVE)

    def disconnected(self, reason: Exception) -> None:
        """What waited for room looks for another connection."""
        self._publisher.look_again()

    def denied(self, subject: str, said: str) -> None:
        """The server dropped something that may be a publish."""
        self._publisher.denied(subject, said)

    def after_read(self) -> None:
        """There may be room for more publishes."""
        self._publisher.look_again()


async def _all(work: Any) -> None:
    """All of it, at once; the first failure is raised when everything has ended."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
