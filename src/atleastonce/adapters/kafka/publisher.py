"""`Adapter.send`: what is refused before any IO, what goes out, and what becomes of a batch that was too large."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from confluent_kafka import KafkaError

from atleastonce.adapters.kafka.config import RECORD_OVERHEAD, Settings
from atleastonce.adapters.kafka.producer import CLOSE_SECONDS, Publish, Pump
from atleastonce.adapters.kafka.records import TOMBSTONE
from atleastonce.adapters.kafka.replies import TOPIC, place_of
from atleastonce.channels import Source
from atleastonce.contract import OK, Code, Fault, Outcome, Outgoing, ReplyTo, Status, rejected, unknown
from atleastonce.errors import AtLeastOnceError, PermissionDenied
from atleastonce.message import Added, Composed, Headers, HeaderValue, sizes

LOOK_AGAIN = (Code.NOT_FOUND, Code.TIMEOUT, Code.PERMISSION, Code.CLOSED)
"""What a record's topic may have to do with: it was deleted since, or a right was taken away. The client throws away (closed) all
that waits for it, if it may write nowhere, or not to one topic of a transaction."""

_TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE).name()


class Publisher:
    """Publishes lists through a `Pump`, and a second one for messages that must travel alone.

    Args:
        settings: of the adapter.
        writable: asks the broker why topics may not be published to.
    """

    def __init__(
        self, settings: Settings, writable: Callable[[Iterable[str]], Awaitable[dict[str, Fault | None]]]
    ) -> None:
        self._settings = settings
        self._writable = writable
        self._known: set[str] = set()
        self.roomy: set[str] = set()
        """Topics that keep copies, and take more than others: a copy is larger than its original."""
        self._running = 0
        self._idle = asyncio.Event()
        self._closed = False
        # Made at once: an idempotent producer needs half a second to get its id, and that need not be the first send's.
        self._pump: Pump | None = self._ready(None, {})
        self._lone: Pump | None = None
        self._retired: list[Pump] = []  # failed for good; ended by `close`

    async def send(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        """See `Adapter.send`."""
        self._running += 1
        try:
            return await self._send(batch)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _send(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        refused = await self._not_writable(batch)
        outcomes = [OK] * len(batch)
        if self._closed:
            for record in self._records(batch, refused, outcomes):
                outcomes[record.place] = unknown(Code.CLOSED, "the adapter was closed before it was sent")
            return outcomes
        self._pump = self._ready(self._pump, {})
        await self._pump.send(self._records(batch, refused, outcomes), outcomes)
        if outcomes.count(OK) != len(outcomes):  # nearly never: then something is asked of each
            await self._look_again([*self._records(batch, refused, [OK] * len(batch))], outcomes)
        return outcomes

    async def records(self, batch: Sequence[Outgoing]) -> tuple[list[Publish], list[Outcome]]:
        """What of ``batch`` may be sent, and why the rest may not: one outcome for each, `OK` for what may."""
        outcomes = [OK] * len(batch)
        return [*self._records(batch, await self._not_writable(batch), outcomes)], outcomes

    async def _not_writable(self, batch: Sequence[Outgoing]) -> dict[str, Outcome]:
        destinations = {id(each.destination): each.destination for each in batch}.values()  # of a list, as a rule one
        return await self._refused({each.name for each in destinations if not isinstance(each, (Source, ReplyTo))})

    def _records(
        self, batch: Sequence[Outgoing], refused: dict[str, Outcome], outcomes: list[Outcome]
    ) -> Iterator[Publish]:
        """As `records`, one after the other: a record that is handed on before the next is made is still in the processor's cache.

        Args:
            batch: to be sent.
            refused: topics that may not be published to.
            outcomes: one for each of ``batch``; of those that may not be sent it is written here.
        """
        most, most_copied = self._settings.max_message_bytes, self._settings.max_sent_bytes
        last: object = None
        limit, absent, plain, name = most, None, False, ""
        fields = _Fields()
        for index, (outgoing, size) in enumerate(
            zip(batch, sizes([outgoing.message for outgoing in batch]), strict=True)
        ):
            destination, message = outgoing.destination, outgoing.message
            if destination is not last:
                last, name, absent = destination, destination.name, refused.get(destination.name)
                limit = most_copied if name in self.roomy else most
                plain = absent is None and destination.__class__ not in (Source, ReplyTo)
            if plain and size <= limit and outgoing.delay <= 0:
                value: bytes | None = message.body
                if not value and message.native is TOMBSTONE:
                    value = None
                headers = message.headers
                # As nearly all of a list: a call for each would cost more than this.
                if headers.__class__ is Added and headers.base is fields.base and "\0" not in headers.value:
                    found = [*fields.made, (headers.name, headers.value)]
                else:
                    found = fields.of(headers)
                yield Publish(index, name, value, message.key, found)
            elif destination.__class__ is Source:
                outcomes[index] = rejected(Code.INVALID, f"Kafka cannot address one group of a topic ({destination})")
            elif outgoing.delay > 0:
                outcomes[index] = rejected(Code.INVALID, "Kafka cannot delay a message; publish to a delay channel")
            elif size > limit:
                outcomes[index] = rejected(
                    Code.TOO_LARGE, f"{size} bytes are more than {limit} (message.max.bytes less {RECORD_OVERHEAD})"
                )
            elif absent is not None:
                outcomes[index] = absent
            else:
                place = place_of(name)
                if place is None:
                    outcomes[index] = rejected(Code.INVALID, f"{name[:80]!r} is no inbox of Kafka's")
                else:
                    number, key = place
                    yield Publish(index, TOPIC, message.body, key, fields.of(message.headers), number)

    def missing(self, topics: Iterable[str]) -> None:
        """These may be gone, or not be ours any more: the broker is asked before the next one is sent there."""
        self._known.difference_update(topics)

    async def close(self) -> None:
        """Let what is being sent end, within `CLOSE_SECONDS`, then end the producers."""
        if self._running:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), CLOSE_SECONDS)
        self._closed = True
        pumps = [pump for pump in (self._pump, self._lone, *self._retired) if pump is not None]
        self._pump = self._lone = None
        self._retired = []
        for pump in pumps:
            await pump.close()

    async def _look_again(self, records: list[Publish], outcomes: list[Outcome]) -> None:
        """What becomes of ``records``, of which some were not taken."""
        alone: list[Publish] = []
        for record in records:
            outcome = outcomes[record.place]
            fault = outcome.fault
            if fault is None:
                continue
            if fault.code is Code.TOO_LARGE and len(records) > 1:
                alone.append(record)
            elif fault.code in LOOK_AGAIN:
                self.missing([record.topic])
        if alone:
            # The topic's limit is lower than the client's, and the broker measures whole batches: the neighbours of a
            # large record were refused with it. Each is tried in a batch of its own.
            self._lone = self._ready(self._lone, {"batch.num.messages": 1, "linger.ms": 0})
            await self._lone.send(alone, outcomes)

    def _ready(self, pump: Pump | None, extra: dict[str, int]) -> Pump:
        if pump is not None and pump.broken:
            self._retired.append(pump)
            pump = None
        return pump or Pump(self._settings, extra, "atleastonce-kafka-producer")

    async def _refused(self, topics: set[str]) -> dict[str, Outcome]:
        """Topics that cannot be published to. librdkafka would wait for a missing one until the message times out; and where one
        may not be written, it fails a transaction without a word of which."""
        topics -= self._known
        if not topics:
            return {}
        try:
            found = await self._writable(topics)
        except PermissionDenied as error:
            return dict.fromkeys(topics, rejected(Code.PERMISSION, str(error)))
        except AtLeastOnceError:
            return {}  # not reachable: what is sent now ends as unknown by itself
        self._known.update(name for name, fault in found.items() if fault is None)
        return {name: Outcome(Status.REJECTED, fault) for name, fault in found.items() if fault is not None}


class _Fields:
    """Header fields as the client takes them, for one list of messages.

    Attributes:
        base: what the last of them had in common with others.
        made: of that.
    """

    __slots__ = ("base", "made")

    def __init__(self) -> None:
        self.base: Headers | None = None
        self.made: list[tuple[str, HeaderValue]] = []

    def of(self, headers: Headers) -> list[tuple[str, HeaderValue]]:
        """Those of one message. What it has in common with the one before is looked at once."""
        if headers.__class__ is Composed:
            if headers.shared is not self.base:
                self.base, self.made = headers.shared, _fields(headers.shared.items())
            own = headers.own
            for _, value in own:
                if value.__class__ is str and "\0" in value:
                    return _fields(own) + self.made
            return own + self.made
        if headers.__class__ is not Added:
            return _fields(headers.items())
        if headers.base is not self.base:
            self.base, self.made = headers.base, _fields(headers.base.items())
        value = headers.value
        return [*self.made, (headers.name, value.encode() if "\0" in value else value)]


def _fields(items: Sequence[tuple[str, HeaderValue]]) -> list[tuple[str, HeaderValue]]:
    """The client cuts text at a NUL, which foreign ones may hold; bytes it leaves alone."""
    for _, value in items:
        if value.__class__ is str and "\0" in value:
            return [(name, value.encode() if isinstance(value, str) else value) for name, value in items]
    return list(items)
