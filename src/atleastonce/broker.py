"""A connection to a broker, as publishers and tools use it: `connect`, publish, declare, backlog."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from atleastonce.adapters import open_adapter
from atleastonce.asking import Asks
from atleastonce.channels import Channel, Queue, Source
from atleastonce.compose import compose, compose_many
from atleastonce.contract import Backlog, Code, Drift, Outcome, Outgoing, Topology, Window
from atleastonce.durations import Duration, Rate, Size, per_second, seconds, size_in_bytes, whole
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.publisher import Publisher
from atleastonce.engine.rate import TokenBucket
from atleastonce.errors import BrokerUnavailable, ConfigurationError
from atleastonce.lag import backlog
from atleastonce.message import HeaderValue
from atleastonce.parts import may_have_parts
from atleastonce.patterns.redrive import DeadLetters
from atleastonce.patterns.shedding import DepthLimit
from atleastonce.unpublished import publish_error
from atleastonce.urls import mask_url

log = logging.getLogger("atleastonce")

_CONNECT = Backoff("200ms", factor=2, maximum="5s")

# What the last try gets, which begins when the time to wait is over. Shorter: a broker that has just come is missed.
_LAST_SECONDS = 0.5


class Broker(Asks):
    """One connection. Made by `connect`, or by a `Service` for itself.

    Args:
        url: ``scheme://user:password@host:port/path?option=value``.
        options: the client's own options, as they are.
        create: whether channels are created when they are first published to.
        wait: seconds to wait for a broker that is not there yet; 0 fails at once, None waits for ever.
        max_pending: how many publishes may be unconfirmed; a full window makes `publish` wait.
        max_pending_bytes: the same in bytes.
        publish_timeout: how long `publish` waits for a full window before it raises `Overloaded`, and `close` for what
            the rate holds.
        rate_limit: how fast messages may leave, like ``"1000/s"``; what waits for it counts as pending.
        max_requests: how many requests may wait for their answers; one more raises `Overloaded`. Each costs about 2 KB.
        waiting: told why it waits, each time it tries again; for a person's eyes.

    Raises:
        ConfigurationError, MissingExtra: for the URL and options.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        *,
        create: bool = True,
        wait: Duration | None = "30s",
        max_pending: int = 10_000,
        max_pending_bytes: Size = "64MiB",
        publish_timeout: Duration = "30s",
        rate_limit: Rate | None = None,
        max_requests: int = 10_000,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        adapter = open_adapter(url, options)
        rate = None if rate_limit is None else TokenBucket(per_second(rate_limit, name="rate_limit"))
        window = Window(
            whole(max_pending, name="max_pending"), size_in_bytes(max_pending_bytes, name="max_pending_bytes")
        )
        able = adapter.capabilities
        publisher = Publisher(adapter.send, window, max_batch=able.max_send or able.max_batch, rate=rate)
        super().__init__(adapter, publisher, max_requests)
        self.url = mask_url(url)
        self._create = create
        self._wait = None if wait is None else seconds(wait, name="wait")
        self._within = seconds(publish_timeout, name="publish_timeout")
        self.trouble = ""
        """Why `open` has not succeeded yet."""
        self._waiting = waiting or (lambda reason: log.warning("%s", reason))
        self._declared: set[tuple[type, str]] = set()
        self._declaring = asyncio.Lock()
        self._depths: dict[Channel[Any], DepthLimit] = {}

    # ------------------------------------------------------------------------------------------- life

    async def open(self) -> None:
        """Connect, waiting for the broker as long as ``wait`` says.

        Raises:
            BrokerUnavailable: it did not answer in time.
            PermissionDenied: it refuses the credentials; not waited for.
        """
        loop = asyncio.get_running_loop()
        begin, attempt = loop.time(), 0
        end = begin + self._wait if self._wait else None
        while True:
            attempt += 1
            # A try is not longer than what is left; the last one begins when the time is over.
            limit = asyncio.timeout_at(None if end is None else max(end, loop.time() + _LAST_SECONDS))
            try:
                async with limit:
                    await self.adapter.open()
                self.trouble = ""
                return
            except (BrokerUnavailable, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    if not limit.expired():
                        raise
                    error = BrokerUnavailable(self.trouble or f"{self.url} does not answer")
                if self._wait == 0:
                    raise error from None
                pause = _CONNECT.wait(attempt) or 0.0
                if end is not None:
                    left = end - loop.time()
                    if left <= 0:
                        raise BrokerUnavailable(
                            f"{error}; waited {loop.time() - begin:.0f} s for it (wait=None waits for ever)"
                        ) from None
                    pause = min(pause, left)
                self.trouble = str(error)
                self._waiting(f"{error}; trying again in {pause:.1f} s")
                await asyncio.sleep(pause)

    async def close(self) -> None:
        """Wait for pending publishes, then disconnect; requests that wait for answers raise `Closed`. Idempotent.

        What ``rate_limit`` still holds leaves at that rate for ``publish_timeout``; what has not left by then is not sent: its
        `publish` raises `Closed`, and `publish_many` answers ``unknown`` with `Code.CLOSED` for it, or raises if nothing was sent.
        """
        for depth in self._depths.values():
            depth.close()
        try:
            await self._close_inbox()
            await self._publisher.close(self._within)
        finally:
            await self.adapter.close()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ----------------------------------------------------------------------------------------- publish

    def compose(self, channel: Channel[Any], payload: Any, **options: Any) -> Outgoing:
        """What `publish` would send, and `send` sends; see `atleastonce.compose.compose`."""
        return compose(channel, payload, capabilities=self.adapter.capabilities, scheme=self.adapter.scheme, **options)

    async def publish(
        self,
        channel: Channel[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        id: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: Duration | None = None,
    ) -> str:
        """Publish one message; return its id once the broker has confirmed it.

        Args:
            channel: a `Queue` or `Topic`.
            payload: bytes, or what its codec encodes.
            key: orders and partitions it.
            id: its identity; give the same one to publish the same message again. Default: a new one.
            headers: text by name. Names beginning with ``alo-`` are ours.
            delay: not to be received before this has passed, where the broker can.

        Raises:
            Rejected: it is certainly not in the broker: too large (`MessageTooLarge`), no such channel, no permission.
            Unconfirmed: the confirmation did not come. Publishing the same ``id`` again is safe for an idempotent
            consumer.
            Overloaded: too many publishes are pending, and this one was not sent; or the broker has no room for more: its memory,
            a quota, a full queue.
            EncodeError, InvalidMessage, ConfigurationError: before anything was sent.
        """
        item = self.compose(channel, payload, key=key, id=id, headers=headers, delay=delay)
        self._ensure_room((channel,))
        await self._ensure((channel,))
        outcome = await self._publisher.publish(item, within=self._within)
        if not outcome.ok:
            self._forget_missing((item,), (outcome,))
            raise publish_error(item, outcome)
        return item.message.id

    async def publish_many(
        self,
        channel: Channel[Any],
        payloads: Iterable[Any],
        *,
        key: Callable[[Any], str | bytes | None] | None = None,
        id: Callable[[Any], str] | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> list[Outcome]:
        """Publish a list, in order; one outcome each: ok, rejected or unknown. The fastest way to publish.

        Args:
            channel: a `Queue` or `Topic`.
            payloads: encoded all before the first is sent.
            key, id: from a payload to its key and id.
            headers: the same for all.

        Raises:
            EncodeError, InvalidMessage, ConfigurationError: for one of the payloads; nothing was sent.
            Overloaded: too many publishes are pending; those without an outcome were not sent.
        """
        return await self.send(compose_many(channel, payloads, key=key, id=id, headers=headers))

    async def send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        """Publish what `compose` made: for lists in which each message has a key, headers or a delay of its own.

        In order; one outcome each.

        Raises:
            Overloaded: as `publish_many`.
        """
        items = tuple(items)  # the caller may go on filling its list, and what is accounted for must be what is sent
        # By identity first: to ask an equal channel for its hash costs as much as the rest of this, for each message.
        distinct = {id(item.destination): item.destination for item in items}.values()
        channels = tuple({each for each in distinct if isinstance(each, Channel)})
        self._ensure_room(channels)
        await self._ensure(channels)
        outcomes = await self._publisher.publish_many(items, within=self._within)
        self._forget_missing(items, outcomes)
        return outcomes

    def limit_depth(
        self, channel: Channel[Any], group: str | None = None, *, above: int | None, every: Duration = "1s"
    ) -> None:
        """Publish nothing to ``channel`` while more than ``above`` messages wait there: `Overloaded`, and nothing is sent.

        Args:
            channel, group: the source whose backlog counts, its first retry excluded.
            above: so many are too many; None takes the limit back. Too small: bursts that a consumer would have caught up with are
                refused; too large: what waits is late anyway.
            every: how often it is looked, while something is published.

        Raises:
            ConfigurationError: a value out of range.
        """
        old = self._depths.pop(channel, None)
        if old is not None:
            old.close()
        if above is not None:
            whole(above, name="limit_depth above")
            wait = seconds(every, name="limit_depth every", minimum=0.01)
            self._depths[channel] = DepthLimit(Source(channel, group), above, wait, self.adapter.backlog)

    def _ensure_room(self, channels: Iterable[Channel[Any]]) -> None:
        if self._depths:
            for channel in channels:
                if (depth := self._depths.get(channel)) is not None:
                    depth.ensure_room()

    def _forget_missing(self, items: Sequence[Outgoing], outcomes: Sequence[Outcome]) -> None:
        """A channel that was deleted on the broker is declared again by the next publish to it."""
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome.fault is not None and outcome.fault.code in (Code.NOT_FOUND, Code.UNROUTABLE):
                self._declared.discard(_declared_as(item.destination))

    # -------------------------------------------------------------------------------------------- rest

    async def declare(self, *items: Channel[Any] | Source | Topology, create: bool = True) -> Sequence[Drift]:
        """Make channels, sources or whole topologies exist (or only compare, with ``create=False``); return what
        differs."""
        channels = tuple(item for item in items if isinstance(item, Channel))
        sources = [item for item in items if isinstance(item, Source)]
        topology = Topology(channels=channels, sources=tuple(dict.fromkeys(sources + _own_sources(channels))))
        drifts: list[Drift] = []
        if topology.channels or topology.sources:
            drifts += await self.adapter.declare(topology, create=create)
        for item in items:
            if isinstance(item, Topology):
                drifts += await self.adapter.declare(item, create=create)
        if create:
            self._declared.update(map(_declared_as, channels))
        return list(dict.fromkeys(drifts))

    async def backlog(self, channel: Channel[Any], group: str | None = None) -> Backlog:
        """What waits in ``channel`` for ``group``; None in a field means unknown, never 0."""
        return await backlog(self.adapter, Source(channel, group))

    def dead_letters(
        self, channel: Channel[Any], group: str | None = None, *, queue: Queue[Any] | None = None
    ) -> DeadLetters:
        """What ``group`` of ``channel`` has given up: to look at, group, redrive, purge::

            dead = broker.dead_letters(orders, "billing")
            await dead.redrive(Selection(error_type=["PaymentTimeout"]), rate="100/s")

        Args:
            channel, group: the consumer's source, to which they go back.
            queue: where they are, if not in ``<channel>.<group>.dlq``: another library's dead-letter queue, for example.
        """
        return DeadLetters(self.adapter, Source(channel, group), queue)

    async def _ensure(self, channels: tuple[Channel[Any], ...]) -> None:
        if not self._create or all(_declared_as(channel) in self._declared for channel in channels):
            return
        async with self._declaring:  # once, however many publish at once; a failed or cancelled one is made up for
            missing = tuple(channel for channel in channels if _declared_as(channel) not in self._declared)
            if missing:
                topology = Topology(channels=missing, sources=tuple(_own_sources(missing)))
                await self._ensure_same_parts(topology)
                await self.adapter.declare(topology)
                self._declared.update(map(_declared_as, missing))

    async def _ensure_same_parts(self, topology: Topology) -> None:
        """Who publishes to other parts than are read publishes to nobody, or past what waits of a key. Looked at before any are
        made."""
        if not self.adapter.capabilities.parts or not any(map(may_have_parts, topology.channels)):
            return
        for drift in await self.adapter.declare(topology, create=False):
            if drift.setting == "partitions":
                raise ConfigurationError(
                    f"{drift.name}: partitions is {drift.found}, wanted {drift.wanted}; declare it as those do who read it"
                )

    def __repr__(self) -> str:
        return f"<Broker {self.url}>"


def connect(url: str, options: Mapping[str, Any] | None = None, **settings: Any) -> Broker:
    """A `Broker` for ``async with``; see there for the arguments::

    async with connect("nats://localhost:4222") as broker:
        await broker.publish(Topic("orders.created"), {"order_id": 7}, key="c-1")
    """
    return Broker(url, options, **settings)


def _declared_as(channel: Channel[Any] | Source) -> tuple[type, str]:
    return type(channel), channel.name


def _own_sources(channels: Iterable[Channel[Any]]) -> list[Source]:
    """A queue is its own source: without one, brokers that route (RabbitMQ) have nothing to keep a message in."""
    return [Source(channel) for channel in channels if isinstance(channel, Queue)]
