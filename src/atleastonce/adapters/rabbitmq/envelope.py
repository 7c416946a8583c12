"""The envelope of a delivery: AMQP properties taken apart without a loss, and what RabbitMQ says in them."""

from __future__ import annotations

import contextlib
import struct
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pika import BasicProperties
from pika.data import decode_value

from atleastonce import wire
from atleastonce.adapters.rabbitmq.table import Field, count_of, read_table

_TABLE_LENGTH = struct.Struct(">I")
FLAGS = struct.Struct(">H")
TIME = struct.Struct(">Q")


class Bit:
    """The properties by their bit in the flags, AMQP 0-9-1 section 4.2.6.1."""

    CONTENT_TYPE: Final = 15
    ENCODING: Final = 14
    HEADERS: Final = 13
    MODE: Final = 12
    PRIORITY: Final = 11
    CORRELATION: Final = 10
    REPLY: Final = 9
    EXPIRATION: Final = 8
    MESSAGE_ID: Final = 7
    TIMESTAMP: Final = 6
    TYPE: Final = 5
    USER: Final = 4
    APP: Final = 3
    CLUSTER: Final = 2


OCTETS: Final = frozenset({Bit.MODE, Bit.PRIORITY})

_NAMES: Final = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "x-return-count", "x-delivery-time"})
_PREFIXES: Final = ("x-first-death-", "x-last-death-", "x-opt-")


class Properties(NamedTuple):
    """Properties taken apart.

    Attributes:
        short: the other properties by their bit, as raw bytes without a length.
        table: the headers.
        timestamp: seconds; None if absent.
    """

    short: dict[int, bytes]
    table: list[Field]
    timestamp: int | None


@lru_cache(1024)
def bits(flags: int) -> tuple[int, ...]:
    """Those that are set, in the order of the wire."""
    return tuple(bit for bit in range(15, 1, -1) if flags >> bit & 1)


def parse(data: bytes) -> Properties:
    """Take the properties of a content header apart. Never raises: what does not make sense ends the reading."""
    short: dict[int, bytes] = {}
    table: list[Field] = []
    timestamp: int | None = None
    if len(data) < 2:
        return Properties(short, table, timestamp)
    flags = FLAGS.unpack_from(data)[0]
    at, end = 2, len(data)
    for bit in bits(flags):
        if bit == Bit.HEADERS:
            if at + 4 > end:
                break
            stop = at + 4 + _TABLE_LENGTH.unpack_from(data, at)[0]
            table = read_table(data, at + 4, min(stop, end))
            at = stop
        elif bit == Bit.TIMESTAMP:
            if at + 8 > end:
                break
            timestamp = TIME.unpack_from(data, at)[0]
            at += 8
        elif bit in OCTETS:
            short[bit] = data[at : at + 1]
            at += 1
        else:
            if at >= end:
                break
            stop = at + 1 + data[at]
            short[bit] = data[at + 1 : stop]
            at = stop
    return Properties(short, table, timestamp)


class Envelope:
    """What RabbitMQ said about a delivery, and its properties as they came. `Delivery.raw` and `Message.native`.

    Attributes:
        exchange, routing_key: how it was published, or dead-lettered.
        redelivered: whether somebody may have had it before.
        encoded: the properties as on the wire.
        parsed: the same taken apart.
    """

    __slots__ = ("_parsed", "encoded", "exchange", "redelivered", "routing_key")

    def __init__(
        self, exchange: bytes, routing_key: bytes, redelivered: bool, encoded: bytes, parsed: Properties | None = None
    ) -> None:
        self.exchange = exchange.decode("utf-8", "surrogateescape")
        self.routing_key = routing_key.decode("utf-8", "surrogateescape")
        self.redelivered = redelivered
        self.encoded = encoded
        self._parsed = parsed

    @property
    def parsed(self) -> Properties:
        if self._parsed is None:
            self._parsed = parse(self.encoded)
        return self._parsed

    @property
    def named(self) -> bool:
        """Whether the producer gave the message an id."""
        return identity(self.parsed) is not None

    @property
    def properties(self) -> Any:
        """pika's `BasicProperties`, decoded anew at each call; raises for values that pika cannot express."""
        decoded = BasicProperties()
        decoded.decode(self.encoded)
        return decoded

    def annotations(self) -> dict[str, Any]:
        """See `Annotated`: ``x-death`` and its like, as pika shows them."""
        found: dict[str, Any] = {}
        for name, value, raw, _ in self.parsed.table:
            if is_brokers(name):
                with contextlib.suppress(
                    Exception
                ):  # a producer may have written it, and pika raises for what is strange
                    found[name] = value if raw is None else decode_value(raw, 0)[0]
        return found


@lru_cache(1024)
def is_brokers(name: str) -> bool:
    """Whether the broker writes header ``name`` itself."""
    return name in _NAMES or name.startswith(_PREFIXES)


def delivery_count(properties: Properties, redelivered: bool, *, counts: bool = True) -> int:
    """Hand-outs to this queue's readers so far, this one included; 0 where the queue does not count.

    Quorum queues count in ``x-delivery-count``: 0 or absent (since 4.0) at first. From 4.3 on, a give-back by ``nack`` leaves it
    alone and shows in ``x-acquired-count`` only. A queue with neither, which has handed it out before, does not count.

    Both fields may be a producer's own, as of a program that sends messages on with all that they had: where the broker has
    nothing to say it leaves them as they are (a classic queue always, a quorum queue until its own count is above 0).

    Args:
        properties: the message's.
        redelivered: what the broker says beside them; of a first hand-out nothing else is believed.
        counts: whether the queue may count; not if it was declared as a classic one.
    """
    if not redelivered:
        return 1
    if not counts:
        return 0
    count, acquired = count_of(properties.table, "x-delivery-count"), count_of(properties.table, "x-acquired-count")
    if count is None:
        return 0 if acquired is None else 1
    if acquired is not None and count > acquired:  # nothing is delivered more often than handed out: it is a producer's
        return 1
    return count + 1


def identity(properties: Properties) -> str | None:
    """The id that the producer gave, if any."""
    for name, value, _, _ in reversed(properties.table):
        if name == wire.ID and isinstance(value, str) and value:
            return value
    native = properties.short.get(Bit.MESSAGE_ID)
    return native.decode("utf-8", "replace") if native else None


def came_back(properties: Properties, rooms: str) -> bool:
    """Whether the broker says that the message expired out of a queue whose name begins with ``rooms``."""
    for name, value, _, _ in properties.table:
        if name == "x-first-death-queue":
            return isinstance(value, str) and value.startswith(rooms)
    return False


def message_id(data: bytes) -> str | None:
    """The id in encoded properties: for matching returns with publishes."""
    return identity(parse(data))
