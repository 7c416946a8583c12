"""The adapter: one connection for publishing, one for everything short, and one for each reader."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from atleastonce import parts
from atleastonce.adapters.redis_streams import faults, inspecting, topology
from atleastonce.adapters.redis_streams.config import Config
from atleastonce.adapters.redis_streams.entries import EntryDelivery, Layout
from atleastonce.adapters.redis_streams.faults import FAILURES
from atleastonce.adapters.redis_streams.keys import Keys, later
from atleastonce.adapters.redis_streams.link import Line, Link
from atleastonce.adapters.redis_streams.publisher import Publisher
from atleastonce.adapters.redis_streams.replies import StreamInbox, is_inbox
from atleastonce.adapters.redis_streams.scripts import BACKLOG, PURGE, READERS, WAITING
from atleastonce.adapters.redis_streams.server import Server, look_at
from atleastonce.adapters.redis_streams.subscription import RedisSubscription
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import NONE as NOT_AT_ALL
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
from atleastonce.errors import AtLeastOnceError, ConfigurationError, NotFound
from atleastonce.urls import BrokerUrl

T = TypeVar("T")

_PAGE = 200
"""Entries that a scan has in memory at a time."""


class RedisAdapter(Adapter):
    """Redis 7 and later, Valkey. Made by `atleastonce.adapters.open_adapter`; options are those of `Config`."""

    scheme = "redis"

    def __init__(self, config: Config) -> None:
        self.capabilities = Capabilities(
            delay=Ability(Level.NATIVE),
            publish_delay=Ability(Level.EMULATED),
            delivery_count=Counting.EXACT,
            lease=Leasing.EXTENDABLE,
            lease_seconds=config.lease,
            order=Ordering.STREAM,
            single_active=True,
            parts=True,
            dedupe=Ability(Level.EMULATED, config.dedupe) if config.dedupe else NOT_AT_ALL,
            max_message_bytes=config.max_message_bytes,
            binary_headers=True,
        )
        self._config = config
        self._layout = Layout(config.body_field)
        self._control = Line(config, "control")
        self._publishing = Line(config, "publisher")
        self._publisher = Publisher(config, self._publishing, self._layout)
        self._subscriptions: set[RedisSubscription] = set()
        self._server = Server()
        self._looked_at: Link | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> RedisAdapter:
        """The adapter for ``url``, not connected yet.

        Raises:
            ConfigurationError: an option that does not exist, or a bad value.
        """
        return cls(Config.build(url, options))

    # -------------------------------------------------------------------------------------------------------- lifecycle

    async def open(self) -> None:
        await self._call("opening", self._nothing)

    @staticmethod
    async def _nothing(_link: Link) -> None: ...

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._publisher.close()
        for subscription in list(self._subscriptions):
            await subscription.close()
        self._publishing.close()
        self._control.close()

    async def _call(self, what: str, work: Callable[[Link], Awaitable[T]]) -> T:
        """``work`` with the control link; its abilities are asked for at each new one, for it may lead to another server.

        Raises:
            AtLeastOnceError: it does not answer, or refuses.
        """
        try:
            link = await self._control.get()
            if link is not self._looked_at:
                self._server = await look_at(link)
                if self._server.unfit:
                    raise ConfigurationError(f"Redis at {self._config.address}: {self._server.unfit}")
                self._looked_at = link
            return await work(link)
        except FAILURES as error:
            raise faults.as_error(error, f"{what} on Redis at {self._config.address}") from error

    # ------------------------------------------------------------------------------------------------------------ calls

    async def declare(self, topology_: Topology, *, create: bool = True) -> Sequence[Drift]:
        """As `Adapter.declare`. A group begins with what its stream still keeps."""
        drifts = [*await parts.declare(topology_, self._declare, create=create)]
        if self._server.evicts:
            # Whole streams would vanish: nothing that was confirmed is safe. It may be right where memory never gets short.
            drifts.append(Drift(self._config.address, "maxmemory-policy", "noeviction", self._server.evicts))
        return drifts

    async def _declare(self, topology_: Topology, /, *, create: bool) -> Sequence[Drift]:
        return await self._call("declaring", lambda link: topology.declare(link, topology_, create))

    def describe(self, topology_: Topology) -> Sequence[Resource]:
        """See `Describes`."""
        return topology.describe(parts.in_parts(topology_))

    def waiting_in(self, source: Source) -> Mapping[str, str]:
        """See `Describes`."""
        there = Keys(source)
        return {"stream": there.stream, "group": there.group}

    def server(self) -> Mapping[str, Any]:
        """See `Describes`."""
        config = self._config
        servers = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in config.hosts]
        return {
            "servers": servers,
            "database": config.db,
            "tls": config.secure,
            "user": config.user is not None,
            "password": config.password is not None,
        }

    async def inspect(self, topology_: Topology) -> Sequence[Fact]:
        """See `Inspects`."""
        address = self._config.address
        return await self._call("looking at settings", lambda link: inspecting.inspect(link, address))

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._publisher.send(parts.routed(batch))

    async def open_inbox(self, arrived: Arrived) -> StreamInbox:
        """See `Replies`: a stream that its owner keeps alive, and nobody else."""
        inbox = StreamInbox(self._config, self._layout, arrived, self._ask)
        try:
            await inbox.open()
        except FAILURES as error:
            raise faults.as_error(error, "making a stream for replies") from error
        return inbox

    async def _ask(self, *command: Any) -> Any:
        return await self._call(str(command[0]), lambda link: link.ask(*command))

    def is_address(self, address: str) -> bool:
        return is_inbox(address)

    def asked_by(self, delivery: Delivery) -> tuple[str, str]:
        """Redis has no fields of its own for it."""
        return "", ""

    async def reply(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._publisher.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        return await parts.subscribe(source, window, listener, self._subscribe, self._readers)

    async def _readers(self, source: Source, me: str, *, here: bool) -> int | None:
        """See `parts.Readers`: each notes in a sorted set when it was last there, and is forgotten after four looks."""
        key = Keys(source).readers

        async def note(link: Link) -> Any:
            (reply,) = await link.run(READERS, [[key, me, int(here), round(4000 * parts.EVERY)]])
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            return int(await self._call(f"counting the readers of {source.name}", note))
        except AtLeastOnceError:
            return None

    async def _subscribe(self, source: Source, window: Window, listener: Listener) -> RedisSubscription:
        await self._call(f"reading {source.name}", self._nothing)
        subscription = RedisSubscription(
            self._config, source, window, listener, self._layout, self._control, self._server
        )
        try:
            await subscription.begin()
        except BaseException:
            await subscription.close()
            raise
        self._subscriptions.add(subscription)
        subscription.on_end = self._subscriptions.discard
        return subscription

    async def backlog(self, source: Source) -> Backlog:
        """Counts of the group's own; the lag is unknown where much was deleted out of the part that is unread."""
        return await parts.backlog(source, self._backlog)

    async def _backlog(self, source: Source) -> Backlog:
        there = Keys(source)

        async def look(link: Link) -> Any:
            call: list[Any] = [there.stream, there.parked, there.due, there.about]
            call += (there.group, round(self._config.lease * 1000), int(isinstance(source.channel, Queue)))
            (reply,) = await link.run(BACKLOG, [call])
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            reply = await self._call(f"the backlog of {source.name}", look)
        except AtLeastOnceError as error:
            return Backlog(detail=str(error))
        if reply is None:
            return Backlog(detail=f"{source.name}: no such stream or group")
        lag, pending, parked, ready, delayed, over, age = reply
        return Backlog(
            waiting=None if lag < 0 else lag + ready + over,
            in_flight=max(0, pending - parked - over),
            delayed=parked - ready + delayed,
            oldest_age=None if age < 0 else age / 1000,
            detail="" if lag >= 0 else "the lag is unknown: entries were deleted that the group had not read",
        )

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    # -------------------------------------------------------------------------------------------------------- abilities

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove what nobody holds: what is unread, what waits for a retry, and delayed publishes."""
        return sum([await self._purge(one) for one in parts.pieces(channel)])

    async def _purge(self, channel: Queue[Any]) -> int:
        there = Keys(Source(channel))

        async def empty(link: Link) -> int:
            (reply,) = await link.run(PURGE, [[there.stream, there.parked, *later(channel), there.group]], 60.0)
            if isinstance(reply, Exception):
                raise reply
            if reply is None:
                raise NotFound(f"{channel.name}: no such stream or group")
            return int(reply)

        return await self._call(f"purging {channel.name}", empty)

    async def delete(self, topology_: Topology) -> None:
        """Remove what `declare` made, with all messages; what is not there is fine."""
        await self._call("deleting", lambda link: topology.delete(link, parts.in_parts(topology_)))

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        """Up to ``limit`` entries of the stream, oldest first, whether or not some group has read them; for a ``group`` what is
        pending in it, waits for a retry of its or was not read yet."""

        async def look(one: Channel[Any]) -> Sequence[Delivery]:
            if group is None:
                return await self._page(one, b"-", b"+", limit)
            return await self._waiting(Source(one, group), limit)

        return await parts.browse(channel, limit, look)

    async def _waiting(self, source: Source, limit: int) -> list[EntryDelivery]:
        there = Keys(source)

        async def look(link: Link) -> Any:
            (reply,) = await link.run(WAITING, [[there.stream, there.group, limit]])
            if isinstance(reply, Exception):
                raise reply
            if reply is None:
                raise NotFound(f"{source.name}: no such stream or group")
            return reply

        found = await self._call(f"looking at {source.name}", look)
        return [self._shown(source, id, fields) for id, fields in found]

    def _shown(self, source: Source, id: bytes, fields: Sequence[bytes]) -> EntryDelivery:
        return EntryDelivery(self._layout, source, source.channel.name, 0, id, fields, 0, 0.0)

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """See `Scans`. Nothing is handed out for it: entries that somebody holds are among them."""
        tail = await self._call(f"looking at {queue.name}", lambda link: _tail(link, queue.name))
        start = b"-"
        while tail and (found := await self._page(queue, start, tail, _PAGE)):
            start = b"(" + found[-1].token
            yield found

    async def _page(self, channel: Channel[Any], start: bytes, end: bytes, count: int) -> list[EntryDelivery]:
        async def look(link: Link) -> Any:
            if await link.ask("EXISTS", channel.name) == 0:
                raise NotFound(f"{channel.name}: no such stream")
            return await link.ask("XRANGE", channel.name, start, end, "COUNT", count)

        source = Source(Queue(channel.name))
        found = await self._call(f"looking at {channel.name}", look)
        return [self._shown(source, id, fields) for id, fields in found]


async def _tail(link: Link, stream: str) -> bytes:
    """The id of the last entry; empty where there is none."""
    if await link.ask("EXISTS", stream) == 0:
        raise NotFound(f"{stream}: no such stream")
    found = await link.ask("XREVRANGE", stream, "+", "-", "COUNT", 1)
    return bytes(found[0][0]) if found else b""
