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

from functools import lru_cache
from typing import Final, TypeAlias

from atleastonce import wire
from atleastonce.adapters.rabbitmq.envelope import (
    FLAGS,
    OCTETS,
    TIME,
    Bit,
    Envelope,
    Properties,
    bits,
    is_brokers,
)
from atleastonce.adapters.rabbitmq.packing import ORDER, order_of, ordered, packed, unpacked
from atleastonce.adapters.rabbitmq.table import Field, encode_name, encode_table, encode_value
from atleastonce.contract import Code
from atleastonce.message import NO_HEADERS, Headers, HeaderValue, Message

MAX_HEADER_BYTES: Final = 100 * 1024
"""Names and values of all headers. All properties travel in one frame of at most 128 KiB; a larger one ends the connection."""

MAX_ENCODED_BYTES: Final = 120 * 1024
"""The properties of one message on the wire; the rest of the frame is left to what the broker adds on a dead-letter hop."""

MAX_HOP_BYTES: Final = 127 * 1024
"""The same for a message that a broker had delivered: nearly all that fits into one frame."""

KEY: Final = "alo-key"

_KEPT: Final = (Bit.ENCODING, Bit.PRIORITY, Bit.CORRELATION, Bit.REPLY, Bit.TYPE, Bit.USER, Bit.APP, Bit.CLUSTER)
_DIRECT_REPLY: Final = b"amq.rabbitmq.reply-to"
PERSISTENT: Final = b"\x02"
KEY_NAME: Final = encode_name(KEY)


class Refused(Exception):
    """A message that AMQP cannot carry."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


def to_message(id: str, properties: Properties, envelope: Envelope, body: bytes) -> Message:
    """The message of a delivery."""
    table = properties.table
    names = tuple([None if nested else name for name, _, _, nested in table])
    keyed, sorted_by, typed = _marks(names)
    places = _places(names, None if sorted_by is None else table[sorted_by][1])
    items = [(name, table[place][1]) for name, place in places]
    key = None if keyed is None else table[keyed][1]
    if isinstance(key, str):
        key = key.encode()
    content_type = properties.short.get(Bit.CONTENT_TYPE)
    if content_type is not None and not typed:
        items.insert(0, (wire.CONTENT_TYPE, content_type.decode("utf-8", "replace")))
    return Message(
        id=id,
        body=body,
        key=key,
        headers=Headers(items) if items else NO_HEADERS,
        published_at=None if properties.timestamp is None else float(properties.timestamp),
        native=envelope,
    )


def encode(message: Message, limit: int, *, user: str, now: float, asking: bool = False) -> bytes:
    """The properties of a publish by ``user``, for a message of at most ``limit`` bytes. ``asking``: it is a request or an answer,
    and says so in AMQP's own fields as well, for clients of any kind. Of a copy of what came from the broker the body alone is
    measured, as the broker does (its ``max_message_size``): the largest message that is taken can still be retried.

    Raises:
        Refused: too large, or a header that AMQP cannot carry or that belongs to the broker.
    """
    # It came from a broker with these headers: it must be possible to put it somewhere else.
    hop = message.native is not None
    if (size := len(message.body) if hop else message.size) > limit:
        raise Refused(Code.TOO_LARGE, f"{size} bytes; max_message_bytes is {limit}")
    if not hop and size > MAX_HEADER_BYTES and (size := message.headers.size) > MAX_HEADER_BYTES:
        raise Refused(Code.TOO_LARGE, f"{size} bytes of headers; the limit is {MAX_HEADER_BYTES}")
    encoded = _encode(message, user, now, asking)
    most = MAX_HOP_BYTES if hop else MAX_ENCODED_BYTES
    if len(encoded) > most:
        raise Refused(Code.TOO_LARGE, f"{len(encoded)} bytes of encoded headers; the limit is {most}")
    return encoded


def _encode(message: Message, user: str, now: float, asking: bool) -> bytes:
    native = message.native.parsed if isinstance(message.native, Envelope) else None
    flags = 1 << Bit.HEADERS | 1 << Bit.MODE
    parts: dict[int, bytes] = {Bit.MODE: PERSISTENT}
    content_type, items = content_type_of(message.headers)
    if content_type:
        parts[Bit.CONTENT_TYPE] = content_type
        flags |= 1 << Bit.CONTENT_TYPE
    try:
        parts[Bit.HEADERS] = encode_table(_fields(items, message.key, native))
        identity = message.id.encode()
    except UnicodeEncodeError as error:
        raise Refused(Code.INVALID, f"{error.object[:40]!r} has no UTF-8 form") from None
    except ValueError as error:
        raise Refused(Code.INVALID, str(error)) from None
    if len(identity) < 256:
        parts[Bit.MESSAGE_ID] = bytes((len(identity),)) + identity
        flags |= 1 << Bit.MESSAGE_ID
    at = message.published_at if message.published_at is not None else now
    if 0 <= at < 2**63:
        parts[Bit.TIMESTAMP] = TIME.pack(int(at))
        flags |= 1 << Bit.TIMESTAMP
    if native is not None:
        flags |= _keep(native, parts, user)
    if asking:
        for bit, name in ((Bit.CORRELATION, wire.CORRELATION), (Bit.REPLY, wire.REPLY_TO)):
            text = message.headers.get(name)
            if text and text.isascii() and len(text) < 256:
                parts[bit] = bytes((len(text),)) + text.encode()
                flags |= 1 << bit
            elif text and isinstance(value := message.headers.get_all(name)[-1], bytes) and len(value) < 256:
                parts[bit] = bytes((len(value),)) + value  # a raw client's own, which is not text to us
                flags |= 1 << bit
    return FLAGS.pack(flags) + b"".join([parts[bit] for bit in bits(flags)])


def content_type_of(headers: Headers) -> tuple[bytes, tuple[tuple[str, HeaderValue], ...]]:
    """The property, empty for none, and what goes into the table."""
    items = headers.items()
    if items and items[0][0] == wire.CONTENT_TYPE:
        # It comes back as the first field. In any other place it stays in the table as well, which keeps its place.
        value = items[0][1]
        rest = items[1:]
        if isinstance(value, str) and value.isascii() and len(value) < 256 and wire.CONTENT_TYPE not in dict(rest):
            return _short(value), rest
    elif (text := headers.get(wire.CONTENT_TYPE)) is not None and text.isascii() and len(text) < 256:
        return _short(text), items
    return b"", items


@lru_cache(64)
def _short(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def _keep(native: Properties, parts: dict[int, bytes], user: str) -> int:
    flags = 0
    for bit in _KEPT:
        value = native.short.get(bit)
        if (
            value is None
            or (bit == Bit.USER and value != user.encode())
            or (bit == Bit.REPLY and value == _DIRECT_REPLY)
        ):
            continue
        parts[bit] = value if bit in OCTETS else bytes((len(value),)) + value
        flags |= 1 << bit
    return flags


# What follows from the names of a table's fields is found out once: those of one queue are the same, as a rule. What has no text is
# no name.
_Names: TypeAlias = tuple[str | None, ...]


@lru_cache(256)
def _marks(names: _Names) -> tuple[int | None, int | None, bool]:
    """The places of the key and of the order, and whether there is a content type."""
    last = {name: place for place, name in enumerate(names)}
    return last.get(KEY), last.get(ORDER), wire.CONTENT_TYPE in last


@lru_cache(256)
def _places(names: _Names, order: HeaderValue) -> tuple[tuple[str, int], ...]:
    """The user's names of the message's header fields as they were sent, and the place of each in the table."""
    items = [
        (name, place)
        for place, name in enumerate(names)
        if name is not None and name not in (KEY, ORDER) and not is_brokers(name)
    ]
    if order is not None:
        items = ordered(items, order)
    return tuple([(unpacked(name), place) for name, place in items])


@lru_cache(1024)
def _reserved(name: str) -> bool:
    return is_brokers(name) or name in (KEY, ORDER) or unpacked(name) != name


def _fields(items: tuple[tuple[str, HeaderValue], ...], key: bytes | None, native: Properties | None) -> bytes:
    names, order = shape_of(tuple([name for name, _ in items]))
    odd = [] if native is None else [field for field in native.table if field[2] is not None]
    typed: dict[str, list[Field]] = {}
    for field in odd:
        if not field.nested:
            typed.setdefault(unpacked(field.name), []).append(field)
    pieces: list[bytes] = []
    for own, (name, value) in zip(names, items, strict=True):
        known = typed.get(name) if typed else None
        if known and known[0].value == value:
            pieces += (own, known.pop(0).raw or b"")
        else:
            pieces += (own, encode_value(value))
    for field in odd:
        if field.nested and not is_brokers(field.name):
            pieces += (encode_name(packed([field.name])[0]), field.raw or b"")
    if key is not None:
        pieces += (KEY_NAME, encode_key(key))
    pieces.append(order)
    return b"".join(pieces)


@lru_cache(256)
def shape_of(names: tuple[str, ...]) -> tuple[list[bytes], bytes]:
    """Names of fields as they are written, and the field that keeps their order, empty where none is needed. Messages of one list
    have the same names, as a rule."""
    for name in names:
        if _reserved(name):
            raise Refused(Code.INVALID, f'header "{name}" is written by RabbitMQ or by its adapter; use another name')
    own = packed(list(names))
    order = order_of(own)
    places = b"" if order is None else encode_name(ORDER) + encode_value(order)
    return [encode_name(name) for name in own], places


def encode_key(key: bytes) -> bytes:
    try:
        return encode_value(key.decode())
    except UnicodeDecodeError:
        return encode_value(key)
