"""Header blocks of what goes past all streams: requests and answers over core NATS. Of most of them nobody looks at all fields."""

from __future__ import annotations

from functools import lru_cache

from atleastonce.adapters.nats.envelope import RESERVED, encode, encode_key, plain_headers, read_message
from atleastonce.message import NO_HEADERS, Headers, Message
from atleastonce.wire import ID, REPLY_TO, read_id


class Writer:
    """Writes the blocks of one connection after the other. The last one is kept: answers of one responder have the same fields."""

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._block = b""

    def block(self, message: Message) -> bytes:
        """The header block of ``message``, which nobody drops as a second one. Where its answer goes is the reply subject's to say.
        Raises as `encode`."""
        if message.headers is self._headers and message.key is None:
            return self._block
        block = plain_block(message)
        if block is None:
            return encode(message, None)
        if message.key is None:
            self._headers, self._block = message.headers, block
        return block


class Reader:
    """Reads what comes to one inbox. The fields of the last message are kept, for the same reason."""

    def __init__(self) -> None:
        self._block = b""
        self._headers: Headers | None = NO_HEADERS
        self._id: str | None = None

    def read(self, block: bytes, body: bytes, position: str) -> Message:
        """See `read_unkept`."""
        if block != self._block:
            self._headers = headers = plain_headers(block)
            self._id = None if headers is None else read_id(headers.get(ID))
            self._block = block
        if self._headers is None:
            return read_message(block, body, position, None)
        return Message(self._id or position, body, None, self._headers)


def plain_block(message: Message) -> bytes | None:
    """Its header block, if all fields travel as they are; None where it takes `encode`."""
    lines = []
    for name, value in message.headers.items():
        if value.__class__ is not str or not _travels(name):
            return None
        if name != REPLY_TO:
            lines.append(f"{name}: {value}\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
        return None
    key = "" if message.key is None else f"alo-key: {encode_key(message.key)}\r\n"
    return f"NATS/1.0\r\n{key}{text}\r\n".encode()


@lru_cache(4096)
def _travels(name: str) -> bool:
    """Whether a field of that name travels as it is."""
    return name.isascii() and not name.lower().startswith(RESERVED)
