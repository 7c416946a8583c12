"""Header blocks of what goes past all streams: requests and answers over core NATS. Of most of them nobody looks at all fields."""

from __future__ import annotations

from functools import lru_cache

from atleastonce.adapters.nats.envelope import RESERVED, encode, encode_key, plain_headers, read_message
from atleastonce.contract import AskingHeaders
from atleastonce.message import NO_HEADERS, Headers, Message
from atleastonce.wire import ID, REPLY_TO, read_id


class Writer:
    """Writes the blocks of one connection after the other. The last one is kept: answers of one responder have the same fields, and
    questions to one channel have most of them in common."""

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._block = b""
        self._base: Headers | None = None
        self._begin: str | None = None  # of a block, with the fields of ``_base``

    def block(self, message: Message) -> bytes:
        """The header block of ``message``, which nobody drops as a second one. Where its answer goes is the reply subject's to say.
        Raises as `encode`."""
        headers = message.headers
        if headers is self._headers and message.key is None:
            return self._block
        if headers.__class__ is AskingHeaders and message.key is None:
            return self._asking(message, headers) or encode(message, None)
        block = plain_block(message)
        if block is None:
            return encode(message, None)
        if message.key is None:
            self._headers, self._block = headers, block
        return block

    def _asking(self, message: Message, headers: AskingHeaders) -> bytes | None:
        if headers.base is not self._base:
            self._base, self._begin = headers.base, _plain_begin(message.key, headers.base)
        id = headers.id
        if self._begin is None or headers.correlation or not (id.isascii() and id.isprintable()):
            return plain_block(message)
        return f"{self._begin}alo-deadline: {headers.deadline}\r\nalo-id: {id}\r\n\r\n".encode()


class Reader:
    """Reads what comes to one inbox. The fields of the last message are kept, for the same reason."""

    def __init__(self) -> None:
        self._block = b""
        self._headers: Headers | None = NO_HEADERS
        self._id: str | None = None

    def read(self, block: bytes, body: bytes, position: str) -> Message:
        """See `read_unkept`."""
        if block != self._block:
            headers = plain_headers(block)
            if headers is not None:
                headers = Headers(headers.items())  # looked at for each message, so taken apart
            self._headers = headers
            self._id = None if headers is None else read_id(headers.get(ID))
            self._block = block
        if self._headers is None:
            return read_message(block, body, position, None)
        return Message(self._id or position, body, None, self._headers)


def plain_block(message: Message) -> bytes | None:
    """Its header block, if all fields travel as they are; None where it takes `encode`."""
    begin = _plain_begin(message.key, message.headers)
    return None if begin is None else f"{begin}\r\n".encode()


def _plain_begin(of_key: bytes | None, headers: Headers) -> str | None:
    lines = []
    for name, value in headers.items():
        if value.__class__ is not str or not _travels(name):
            return None
        if name != REPLY_TO:
            lines.append(f"{name}: {value}\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
        return None
    key = "" if of_key is None else f"alo-key: {encode_key(of_key)}\r\n"
    return f"NATS/1.0\r\n{key}{text}"


@lru_cache(4096)
def _travels(name: str) -> bool:
    """Whether a field of that name travels as it is."""
    return name.isascii() and not name.lower().startswith(RESERVED)
