"""The properties of the messages of one list: what they have in common is written once."""

from __future__ import annotations

from typing import Final

from atleastonce import wire
from atleastonce.adapters.rabbitmq.envelope import FLAGS, TIME, Bit
from atleastonce.adapters.rabbitmq.properties import (
    KEY_NAME,
    PERSISTENT,
    content_type_of,
    encode,
    encode_key,
    shape_of,
)
from atleastonce.adapters.rabbitmq.table import encode_table, encode_value
from atleastonce.message import Added, Headers, Message

_SMALL: Final = 8 * 1024
"""Of header fields and key: so many characters are below all limits, whatever they are."""


class Encoder:
    """`encode` for the messages of one list.

    Args:
        limit, user, now: as of `encode`.
    """

    __slots__ = ("_base", "_front", "_head", "_limit", "_now", "_order", "_time", "_user")

    def __init__(self, limit: int, *, user: str, now: float) -> None:
        self._limit = limit
        self._user = user
        self._now = now
        self._time = TIME.pack(int(now))
        self._base: Headers | None = None
        self._head = b""  # flags and content type; empty before a second message has the same fields
        self._front = b""  # of the table: all but the last field's value
        self._order = b""

    def encode(self, message: Message, *, asking: bool = False) -> bytes:
        """See `encode`."""
        headers = message.headers
        if (
            not asking
            and isinstance(headers, Added)
            and message.native is None
            and message.published_at is None
            and headers.name == wire.ID
            and headers.value.isascii()
            and message.id.isascii()
            and len(message.id) < 256
            and (size := message.size) <= self._limit
            and size - len(message.body) <= _SMALL
        ):
            if headers.base is self._base:
                return self._like_the_last(message, headers)
            encoded = encode(message, self._limit, user=self._user, now=self._now)
            self._base, self._head = headers.base, b""  # perhaps the only one of its kind
            return encoded
        return encode(message, self._limit, user=self._user, now=self._now, asking=asking)

    def _like_the_last(self, message: Message, headers: Added) -> bytes:
        if not self._head:
            self._learn(headers)
        table = self._front + encode_value(headers.value)
        if message.key is not None:
            table += KEY_NAME + encode_key(message.key)
        identity = message.id.encode()
        return b"".join(
            (
                self._head,
                encode_table(table + self._order),
                PERSISTENT,
                bytes((len(identity),)),
                identity,
                self._time,
            )
        )

    def _learn(self, headers: Added) -> None:
        content_type, items = content_type_of(headers)
        names, self._order = shape_of(tuple([name for name, _ in items]))
        flags = 1 << Bit.HEADERS | 1 << Bit.MODE | 1 << Bit.MESSAGE_ID | 1 << Bit.TIMESTAMP
        if content_type:
            flags |= 1 << Bit.CONTENT_TYPE
        self._head = FLAGS.pack(flags) + content_type
        fields = [own + encode_value(value) for own, (_, value) in zip(names, items[:-1], strict=False)]
        self._front = b"".join((*fields, names[-1]))
