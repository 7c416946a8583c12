"""Messages as AMQP properties, and back.

========================  ============================================================
`Message.id`              header ``alo-id`` and the ``message-id`` property (up to 255 bytes)
`Message.key`             header ``alo-key``: text where it is UTF-8, else a byte array; AMQP has no key
`Message.headers`         the ``headers`` table, text as long strings; ``content-type`` is the property
`Message.published_at`    the ``timestamp`` property, whole seconds
their order               header ``alo-order`` where it is not by name: the broker sorts tables, at the latest on redelivery
their duplicates          the last one under its name, the others as ``alo-dup-...``: RabbitMQ 4 drops all but one
all else                  kept in `Envelope` and written again on a hop through RabbitMQ
========================  ============================================================

Not written again: ``expiration`` (a retried message would vanish), ``user-id`` of others (the broker closes the channel
over it), and what the broker itself wrote: ``x-death`` and its like. A broker before 4.0 believes an ``x-death`` it finds, and
drops a message that seems to go round in a circle.
"""

from __future__ import annotations

import struct
from operator import le
from typing import Any, Final, NamedTuple

from atleastonce import wire
from atleastonce.adapters.rabbitmq.table import Field, count_of, encode_name, encode_table, encode_value, read_table
from atleastonce.contract import Code
from atleastonce.message import NO_HEADERS, Headers, HeaderValue, Message

KEY: Final = "alo-key"
_ORDER: Final = "alo-order"

# The broker reads these from a publish, and sends copies to the queues they name: as a user's field they travel under
# another name.
_PACKED: Final = {"CC": "alo-cc", "BCC": "alo-bcc"}
_UNPACKED: Final = {packed: name for name, packed in _PACKED.items()}

# RabbitMQ 4 keeps one field of each name, the first; earlier ones than the last travel under names of their own.
_EARLIER: Final = "alo-dup-"

_BROKERS: Final = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "x-return-count", "x-delivery-time"})
_BROKERS_PREFIXES: Final = ("x-first-death-", "x-last-death-", "x-opt-")

MAX_HEADER_BYTES: Final = 100 * 1024
"""Names and values of all headers. All properties travel in one frame of at most 128 KiB; a larger one ends the connection."""

MAX_ENCODED_BYTES: Final = 120 * 1024
"""The properties of one message on the wire; the rest of the frame is left to what the broker adds on a dead-letter hop."""

_TABLE_LENGTH = struct.Struct(">I")
_FLAGS = struct.Struct(">H")
_TIME = struct.Struct(">Q")
_CONTENT_TYPE, _ENCODING, _HEADERS, _MODE, _PRIORITY, _CORRELATION, _REPLY = 15, 14, 13, 12, 11, 10, 9
_EXPIRATION, _MESSAGE_ID, _TIMESTAMP, _TYPE, _USER, _APP, _CLUSTER = 8, 7, 6, 5, 4, 3, 2
_OCTETS: Final = frozenset({_MODE, _PRIORITY})
_KEPT: Final = (_ENCODING, _PRIORITY, _CORRELATION, _REPLY, _TYPE, _USER, _APP, _CLUSTER)
_DIRECT_REPLY: Final = b"amq.rabbitmq.reply-to"
_PERSISTENT: Final = b"\x02"


class Refused(Exception):
    """A message that AMQP cannot carry."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Envelope:
    """What RabbitMQ said about a delivery, and its properties as they came. `Delivery.raw` and `Message.native`.

    Attributes:
        exchange, routing_key: how it was published, or dead-lettered.
        redelivered: whether somebody may have had it before.
        encoded: the properties as on the wire.
    """

    __slots__ = ("encoded", "exchange", "redelivered", "routing_key")

    def __init__(self, exchange: bytes, routing_key: bytes, redelivered: bool, encoded: bytes) -> None:
        self.exchange = exchange.decode("utf-8", "surrogateescape")
        self.routing_key = routing_key.decode("utf-8", "surrogateescape")
        self.redelivered = redelivered
        self.encoded = encoded

    @property
    def named(self) -> bool:
        """Whether the producer gave the message an id."""
        return identity(parse(self.encoded)) is not None

    @property
    def properties(self) -> Any:
        """pika's `BasicProperties`, decoded anew at each call; raises for values that pika cannot express."""
        from pika import BasicProperties

        decoded = BasicProperties()
        decoded.decode(self.encoded)
        return decoded


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


def parse(data: bytes) -> Properties:
    """Take the properties of a content header apart. Never raises: what does not make sense ends the reading."""
    short: dict[int, bytes] = {}
    table: list[Field] = []
    timestamp: int | None = None
    if len(data) < 2:
        return Properties(short, table, timestamp)
    flags = _FLAGS.unpack_from(data)[0]
    at, end = 2, len(data)
    for bit in range(15, 1, -1):
        if not flags >> bit & 1:
            continue
        if bit == _HEADERS:
            if at + 4 > end:
                break
            stop = at + 4 + _TABLE_LENGTH.unpack_from(data, at)[0]
            table = read_table(data, at + 4, min(stop, end))
            at = stop
        elif bit == _TIMESTAMP:
            if at + 8 > end:
                break
            timestamp = _TIME.unpack_from(data, at)[0]
            at += 8
        elif bit in _OCTETS:
            short[bit] = data[at : at + 1]
            at += 1
        else:
            if at >= end:
                break
            stop = at + 1 + data[at]
            short[bit] = data[at + 1 : stop]
            at = stop
    return Properties(short, table, timestamp)


def is_brokers(name: str) -> bool:
    """Whether the broker writes header ``name`` itself."""
    return name in _BROKERS or name.startswith(_BROKERS_PREFIXES)


def delivery_count(properties: Properties, redelivered: bool) -> int:
    """Hand-outs to this queue's readers so far, this one included; 0 where the queue does not count.

    Quorum queues count in ``x-delivery-count``: 0 or absent (since 4.0) at first. From 4.3 on, a give-back by ``nack`` leaves it
    alone and shows in ``x-acquired-count`` only. A queue with neither, which has handed it out before, does not count.
    """
    count = count_of(properties.table, "x-delivery-count")
    if count is not None:
        return count + 1
    if not redelivered or count_of(properties.table, "x-acquired-count") is not None:
        return 1
    return 0


def message_id(data: bytes) -> str | None:
    """The id in encoded properties: for matching returns with publishes."""
    return identity(parse(data))


def identity(properties: Properties) -> str | None:
    """The id that the producer gave, if any."""
    for name, value, _, _ in reversed(properties.table):
        if name == wire.ID and isinstance(value, str) and value:
            return value
    native = properties.short.get(_MESSAGE_ID)
    return native.decode("utf-8", "replace") if native else None


def to_message(id: str, properties: Properties, envelope: Envelope, body: bytes) -> Message:
    """The message of a delivery."""
    items: list[tuple[str, HeaderValue]] = []
    key: bytes | None = None
    order: HeaderValue = None
    for name, value, _, nested in properties.table:
        if name == KEY:
            key = value.encode() if isinstance(value, str) else value
        elif name == _ORDER:
            order = value
        elif not nested and not is_brokers(name):
            items.append((name, value))
    if order is not None:
        items = _ordered(items, order)
    items = [(_unpacked(name), value) if name.startswith(wire.PREFIX) else (name, value) for name, value in items]
    content_type = properties.short.get(_CONTENT_TYPE)
    if content_type is not None and not any(name == wire.CONTENT_TYPE for name, _ in items):
        items.insert(0, (wire.CONTENT_TYPE, content_type.decode("utf-8", "replace")))
    return Message(
        id=id,
        body=body,
        key=key,
        headers=Headers(items) if items else NO_HEADERS,
        published_at=None if properties.timestamp is None else float(properties.timestamp),
        native=envelope,
    )


def encode(message: Message, limit: int, *, user: str, now: float) -> bytes:
    """The properties of a publish by ``user``, for a message of at most ``limit`` bytes.

    Raises:
        Refused: too large, or a header that AMQP cannot carry or that belongs to the broker.
    """
    if message.size > limit:
        raise Refused(Code.TOO_LARGE, f"{message.size} bytes; max_message_bytes is {limit}")
    if message.headers.size > MAX_HEADER_BYTES:
        raise Refused(Code.TOO_LARGE, f"{message.headers.size} bytes of headers; the limit is {MAX_HEADER_BYTES}")
    encoded = _encode(message, user, now)
    if len(encoded) > MAX_ENCODED_BYTES:
        raise Refused(Code.TOO_LARGE, f"{len(encoded)} bytes of encoded headers; the limit is {MAX_ENCODED_BYTES}")
    return encoded


def _encode(message: Message, user: str, now: float) -> bytes:
    items = message.headers.items()
    native = parse(message.native.encoded) if isinstance(message.native, Envelope) else None
    flags = 1 << _HEADERS | 1 << _MODE
    parts: dict[int, bytes] = {_MODE: _PERSISTENT}
    if items and items[0][0] == wire.CONTENT_TYPE:
        # It comes back as the first field. In any other place it stays in the table as well, which keeps its place.
        value = items[0][1]
        if isinstance(value, str) and len(value) < 256:
            raw = value.encode("utf-8", "surrogateescape")
            if len(raw) < 256 and sum(name == wire.CONTENT_TYPE for name, _ in items) == 1:
                parts[_CONTENT_TYPE] = bytes((len(raw),)) + raw
                flags |= 1 << _CONTENT_TYPE
                items = items[1:]
    elif (text := message.headers.get(wire.CONTENT_TYPE)) is not None and text.isascii() and len(text) < 256:
        parts[_CONTENT_TYPE] = bytes((len(text),)) + text.encode()
        flags |= 1 << _CONTENT_TYPE
    try:
        parts[_HEADERS] = encode_table(_fields(items, message.key, native))
        identity = message.id.encode()
    except UnicodeEncodeError as error:
        raise Refused(Code.INVALID, f"{error.object[:40]!r} has no UTF-8 form") from None
    except ValueError as error:
        raise Refused(Code.INVALID, str(error)) from None
    if len(identity) < 256:
        parts[_MESSAGE_ID] = bytes((len(identity),)) + identity
        flags |= 1 << _MESSAGE_ID
    at = message.published_at if message.published_at is not None else now
    if 0 <= at < 2**63:
        parts[_TIMESTAMP] = _TIME.pack(int(at))
        flags |= 1 << _TIMESTAMP
    if native is not None:
        flags |= _keep(native, parts, user)
    return _FLAGS.pack(flags) + b"".join([parts[bit] for bit in range(15, 1, -1) if bit in parts])


def _keep(native: Properties, parts: dict[int, bytes], user: str) -> int:
    flags = 0
    for bit in _KEPT:
        value = native.short.get(bit)
        if value is None or (bit == _USER and value != user.encode()) or (bit == _REPLY and value == _DIRECT_REPLY):
            continue
        parts[bit] = value if bit in _OCTETS else bytes((len(value),)) + value
        flags |= 1 << bit
    return flags


def _fields(items: tuple[tuple[str, HeaderValue], ...], key: bytes | None, native: Properties | None) -> bytes:
    typed: dict[str, list[Field]] = {}
    pieces: list[bytes] = []
    if native is not None:
        for field in native.table:
            if field.raw is not None and not field.nested:
                typed.setdefault(_unpacked(field.name), []).append(field)
    names = _packed([name for name, _ in items])
    for (name, value), packed in zip(items, names, strict=True):
        if is_brokers(name) or name in (KEY, _ORDER) or _unpacked(name) != name:
            raise Refused(Code.INVALID, f'header "{name}" is written by RabbitMQ or by its adapter; use another name')
        known = typed.get(name)
        if known and known[0].value == value and known[0].raw is not None:
            pieces += (encode_name(packed), known.pop(0).raw or b"")
        else:
            pieces += (encode_name(packed), encode_value(value))
    if native is not None:
        for field in native.table:
            if field.nested and field.raw is not None and not is_brokers(field.name):
                pieces += (encode_name(_PACKED.get(field.name, field.name)), field.raw)
    if key is not None:
        pieces += (encode_name(KEY), _key(key))
    if (order := _order(names)) is not None:
        pieces += (encode_name(_ORDER), encode_value(order))
    return b"".join(pieces)


def _key(key: bytes) -> bytes:
    try:
        return encode_value(key.decode())
    except UnicodeDecodeError:
        return encode_value(key)


def _packed(names: list[str]) -> list[str]:
    """The names under which fields travel: each is there once, and the last of several equal ones keeps its own."""
    if len(set(names)) < len(names):
        last = {name: place for place, name in enumerate(names)}
        names = [name if last[name] == place else f"{_EARLIER}{place}-{name}" for place, name in enumerate(names)]
    return [_PACKED.get(name, name) for name in names]


def _unpacked(name: str) -> str:
    if name.startswith(_EARLIER):
        return name[len(_EARLIER) :].partition("-")[2] or name
    return _UNPACKED.get(name, name)


def _order(names: list[str]) -> str | None:
    """Where each field belongs, for a table that the broker sorts by name; None where sorting changes nothing."""
    if all(map(le, names, names[1:])):
        return None
    return " ".join(map(str, sorted(range(len(names)), key=names.__getitem__)))


def _ordered(items: list[tuple[str, HeaderValue]], order: HeaderValue) -> list[tuple[str, HeaderValue]]:
    """``items`` as they were sent; as they are where ``order`` does not fit them."""
    places = str(order).split()
    if len(places) != len(items) or not all(place.isascii() and place.isdigit() for place in places):
        return items
    positions = [int(place) for place in places]
    if sorted(positions) != list(range(len(items))):
        return items
    restored = items[:]
    for position, item in zip(positions, sorted(items, key=lambda item: item[0]), strict=True):
        restored[position] = item
    return restored
