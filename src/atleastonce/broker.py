"""A connection to a broker, as publishers and tools use it: `connect`, publish, declare, backlog."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from atleastonce import wire
from atleastonce.adapters import open_adapter
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.codecs import JSON, Decoder, decoder_for
from atleastonce.compose import compose, compose_many
from atleastonce.contract import Adapter, Backlog, Code, Drift, Outcome, Outgoing, Status, Topology, Window
from atleastonce.durations import Duration, Rate, Size, per_second, seconds, size_in_bytes, whole
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.publisher import Publisher
from atleastonce.engine.rate import TokenBucket
from atleastonce.errors import (
    BrokerUnavailable,
    ConfigurationError,
    MessageTooLarge,
    QuorumMissed,
    Rejected,
    Unconfirmed,
)
from atleastonce.lag import backlog
from atleastonce.message import HeaderValue, Message
from atleastonce.options import RequestOptions, ensure_request_options
from atleastonce.patterns.redrive import DeadLetters
from atleastonce.patterns.replies import Asker, Gathered, RequestStatus, replies_of
from atleastonce.patterns.shedding import DepthLimit
from atleastonce.urls import mask_url

log = logging.getLogger("atleastonce")

T = TypeVar("T")

_ANY = decoder_for(Any)
_MOST_ASKED = 1000
_CONNECT = Backoff("200ms", factor=2, maximum="5s")


class Broker:
    """One connection. Made by `connect`, or by a `Service` for itself.

    Args:
        url: ``scheme://user:password@host:port/path?option=value``.
        options: the client's own options, as they are.
        create: whether channels are created when they are first published to.
        wait: seconds to wait for a broker that is not there yet; 0 fails at once, None waits for ever.
        max_pending: how many publishes may be unconfirmed; a full window makes `publish` wait.
        max_pending_bytes: the same in bytes.
        publish_timeout: how long `publish` waits for a full window before it raises `Overloaded`.
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
        self.adapter: Adapter = open_adapter(url, options)
        self.url = mask_url(url)
        self._create = create
        self._wait = None if wait is None else seconds(wait, name="wait")
        self._within = seconds(publish_timeout, name="publish_timeout")
        self._waiting = waiting or (lambda reason: log.warning("%s", reason))
        self._declared: set[tuple[type, str]] = set()
        self._declaring = asyncio.Lock()
        window = Window(
            whole(max_pending, name="max_pending"), size_in_bytes(max_pending_bytes, name="max_pending_bytes")
        )
        rate = None if rate_limit is None else TokenBucket(per_second(rate_limit, name="rate_limit"))
        most = self.adapter.capabilities.max_batch
        self._publisher = Publisher(self.adapter.send, window, max_batch=most, rate=rate)
        self._depths: dict[Channel[Any], DepthLimit] = {}
        self._max_requests = whole(max_requests, name="max_requests")
        self._asker: Asker | None = None
        self._asked: dict[Channel[Any], Channel[Any]] = {}

    # ------------------------------------------------------------------------------------------- life

    async def open(self) -> None:
        """Connect, waiting for the broker as long as ``wait`` says.

        Raises:
            BrokerUnavailable: it did not answer in time.
            PermissionDenied: it refuses the credentials; not waited for.
        """
        loop = asyncio.get_running_loop()
        begin, attempt = loop.time(), 0
        while True:
            attempt += 1
            try:
                await self.adapter.open()
                return
            except BrokerUnavailable as error:
                pause = _CONNECT.wait(attempt) or 0.0
                left = None if self._wait is None else begin + self._wait - loop.time()
                if left is not None:
                    if left <= 0:
                        raise
                    pause = min(pause, left)  # the last try is when the time is over
                self._waiting(f"{error}; trying again in {pause:.1f} s")
                await asyncio.sleep(pause)

    async def close(self) -> None:
        """Wait for pending publishes, then disconnect; requests that wait for answers raise `Closed`. Idempotent."""
        for depth in self._depths.values():
            depth.close()
        try:
            if self._asker is not None:
                await self._asker.close()
            await self._publisher.close()
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
            Overloaded: too many publishes are pending; this one was not sent.
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

    # -------------------------------------------------------------------------------------------- request

    @overload
    async def request(
        self, channel: Channel[Any], payload: Any, *, returns: type[T], **options: Unpack[RequestOptions]
    ) -> T: ...

    @overload
    async def request(self, channel: Channel[Any], payload: Any, **options: Unpack[RequestOptions]) -> Any: ...

    async def request(
        self,
        channel: Channel[Any],
        payload: Any,
        *,
        returns: Any = None,
        **options: Unpack[RequestOptions],
    ) -> Any:
        """Ask, and return the answer::

            price = await broker.request(quotes, QuoteRequest("sku-1"), timeout="2s", returns=Quote)

        Nothing is created: whoever answers (`Service.responder`) makes the channel. Requests are sent at least once and may be
        handled more than once; a responder with a `Lease` answers a second time what it answered first.

        Args:
            channel: what is asked; of a topic the first answer counts (see `gather`).
            payload: as in `publish`.
            returns: what the answer decodes to. Default: JSON as it is, or bytes where it is none.
            options: see `RequestOptions`.

        Raises:
            RequestTimeout: no answer in time. The request may have been handled, or may be yet.
            RemoteError: the responder could not answer, and why.
            NoResponder: nobody reads the channel, where the broker can tell.
            Overloaded: not sent: too many requests or publishes are pending.
            Rejected: not sent: too large, no permission.
            DecodeError: the answer does not decode to ``returns``.
            EncodeError, InvalidMessage, ConfigurationError: before anything was sent.
        """
        decode = _reader(returns)
        item, timeout = self._question(channel, payload, options)
        return decode(await self._asking().ask(item, timeout))

    async def gather(
        self,
        channel: Channel[Any],
        payload: Any,
        *,
        at_least: int | None = None,
        returns: Any = None,
        **options: Unpack[RequestOptions],
    ) -> Gathered[Any]:
        """Ask all who read a topic, and return the answers in the order in which they came::

            prices = await broker.gather(quotes, QuoteRequest("sku-1"), timeout="2s", at_least=2, returns=Quote)

        One answer of each group counts, however often it was asked. Errors do not: they are in ``errors`` of what is returned.

        Args:
            at_least: return as soon as there are so many. None: wait for the whole time and return what came.

        The others are as in `request`.

        Raises:
            QuorumMissed: fewer than ``at_least`` came in time; what came is in it.
            NoResponder, Overloaded, Rejected, DecodeError: as `request`.
        """
        decode = _reader(returns)
        item, timeout = self._question(channel, payload, options)
        wanted = None if at_least is None else whole(at_least, name="at_least", high=self._max_requests)
        try:
            replies, errors = await self._asking().gather(item, timeout, wanted)
        except QuorumMissed as missed:
            read = [decode(reply) for reply in missed.replies]  # type: ignore[arg-type]
            raise QuorumMissed(str(missed), read, missed.errors) from None
        return Gathered(map(decode, replies), errors)

    @property
    def requests(self) -> RequestStatus:
        """What has become of requests so far."""
        counts: Mapping[str, int] = self._asker.table.counts if self._asker is not None else {}
        waiting = len(self._asker.table) if self._asker is not None else 0
        return RequestStatus(
            waiting=waiting, **{name: counts.get(name, 0) for name in RequestStatus.__struct_fields__[1:]}
        )

    def _asking(self) -> Asker:
        if self._asker is None:
            replies = replies_of(self.adapter)
            self._asker = Asker(replies, self._publisher.post, publish_error, self._max_requests)
        return self._asker

    def _question(self, channel: Channel[Any], payload: Any, options: RequestOptions) -> tuple[Outgoing, float]:
        ensure_request_options(options)
        timeout = _timeout(options.get("timeout", "5s"))
        asked = self._asked.get(channel)
        if asked is None:
            if not isinstance(channel, Queue | Topic):
                raise ConfigurationError(f'request from a Queue or Topic, not from {channel!r}; write Queue("name")')
            if len(self._asked) >= _MOST_ASKED:  # names made up for each request must not fill the memory
                self._asked.clear()
            asked = self._asked[channel] = replace(channel, requests=True)
        item = self.compose(
            asked, payload, key=options.get("key"), id=options.get("id"), headers=options.get("headers")
        )
        return item, timeout

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
                await self.adapter.declare(Topology(channels=missing, sources=tuple(_own_sources(missing))))
                self._declared.update(map(_declared_as, missing))

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


def _reader(returns: Any) -> Callable[[Message], Any]:
    """From an answer to what the caller gets."""
    if returns is None:
        return lambda message: _plain(message)
    try:
        decode = _decoder(returns)
    except TypeError:  # metadata of an annotation may be anything
        decode = decoder_for(returns)
    return lambda message: decode(message.body)


@lru_cache(1000)
def _timeout(given: Duration) -> float:
    """Text is read once: programs use few."""
    return seconds(given, name="timeout", minimum=0.001)


@lru_cache(1000)
def _decoder(returns: Any) -> Decoder:
    """Made once for each type: that takes longer than a request."""
    return decoder_for(returns)


def _plain(message: Message) -> Any:
    kind = message.headers.get(wire.CONTENT_TYPE) or ""
    return _ANY(message.body) if kind.partition(";")[0].strip() == JSON else message.body


def publish_error(item: Outgoing, outcome: Outcome) -> Rejected | Unconfirmed:
    """The exception for an outcome that is not ok."""
    text = f"{item.message.id} to {_name(item)}: {outcome.fault}"
    if outcome.status is Status.UNKNOWN:
        return Unconfirmed(f"{text}; publishing the same id again is safe for an idempotent consumer")
    if outcome.fault is not None and outcome.fault.code is Code.TOO_LARGE:
        return MessageTooLarge(f"{text}; send a reference to it instead, or raise the broker's limit")
    return Rejected(text)


def _name(item: Outgoing) -> str:
    kind = "topic" if isinstance(item.destination, Topic) else "queue"
    return f"{kind} {item.destination.name}"
