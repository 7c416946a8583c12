"""Messages as rows and back. Header fields keep their order, their duplicates, and whether a value is text, bytes or null."""

from __future__ import annotations

from typing import Any

import msgspec

from atleastonce.message import NO_HEADERS, Headers, Message

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Any, Any]]).decode


def pack_headers(headers: Headers) -> bytes | None:
    """Headers as they are stored; None for none.

    Raises:
        UnicodeEncodeError, TypeError: a value that is neither text, bytes nor null.
    """
    return _encode(headers.items()) if headers else None


def read_message(identity: str, key: bytes | None, headers: bytes | None, body: bytes, published: float) -> Message:
    """The message of a row."""
    return Message(identity, body, key, Headers(_decode(headers)) if headers else NO_HEADERS, published)
