"""What a request and its answer say on the wire.

An answer is the payload as any message has it; an error is JSON, marked by the header ``alo-error-type``, so that clients of any
kind can read both. Everything that arrives is untrusted and read defensively.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from atleastonce import wire
from atleastonce.codecs import JSON, encode
from atleastonce.contract import AskingHeaders, Outgoing, ReplyTo
from atleastonce.errors import RemoteError
from atleastonce.message import Added, Headers, HeaderValue, Message, new_id

_LONGEST_TYPE, _LONGEST_TEXT = 256, 2048

MAX_ADDRESS = 512
"""Characters of the longest address that is looked at."""


class Failure(msgspec.Struct, frozen=True):
    """An error as it travels."""

    type: str
    message: str = ""
    retryable: bool = False


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A reply's bytes, and what they are."""

    body: bytes
    content_type: str

    def packed(self) -> bytes:
        """As one value, to be remembered."""
        return self.content_type.encode() + b"\n" + self.body

    @classmethod
    def unpacked(cls, stored: bytes) -> Answer | None:
        """What `packed` gave; None where there is nothing."""
        content_type, found, body = stored.partition(b"\n")
        return cls(body, content_type.decode("ascii", "replace")) if found else None


def answer_of(result: Any) -> Answer:
    """What a handler returned.

    Raises:
        EncodeError: it has no encoding.
    """
    return Answer(*encode(result))


def request_of(item: Outgoing, address: str, correlation: str, deadline: float) -> Outgoing:
    """``item`` as a question that is answered to ``address`` until ``deadline``, in seconds since the epoch."""
    message = item.message
    composed = message.headers
    if isinstance(composed, Added) and composed.name == wire.ID:  # as nearly always
        base = composed.base
    else:
        base = Headers([field for field in composed.items() if field[0] != wire.ID])
    apart = "" if address.endswith(correlation) else correlation  # else the address says which one is answered
    headers = AskingHeaders(base, message.id, apart, wire.millis(deadline), address)
    return Outgoing(item.destination, Message(message.id, message.body, message.key, headers))


def reply_of(answer: Answer, to: ReplyTo, correlation: str, responder: str) -> Outgoing:
    """An answer on its way."""
    if correlation:
        return _reply(to, answer.body, answer.content_type, correlation, responder)
    # The address says it.
    return Outgoing(to, Message(new_id(), answer.body, None, _signed(answer.content_type, responder)))


def failure_of(failure: Failure, to: ReplyTo, correlation: str, responder: str) -> Outgoing:
    """An error on its way."""
    short = Failure(failure.type[:_LONGEST_TYPE], failure.message[:_LONGEST_TEXT], failure.retryable)
    return _reply(to, msgspec.json.encode(short), JSON, correlation, responder, (wire.ERROR_TYPE, short.type))


def _reply(
    to: ReplyTo, body: bytes, content_type: str, correlation: str, responder: str, *more: tuple[str, HeaderValue]
) -> Outgoing:
    fields: list[tuple[str, HeaderValue]] = [(wire.CONTENT_TYPE, content_type)]
    id = wire.read_id(correlation)
    if correlation:  # a raw client's may be any bytes, and goes back as those
        fields.append((wire.CORRELATION, correlation if id else correlation.encode("utf-8", "surrogateescape")))
    fields += *more, (wire.RESPONDER, responder)
    return Outgoing(to, Message(id or new_id(), body, None, Headers(fields)))


@lru_cache(256)
def _signed(content_type: str, responder: str) -> Headers:
    """Of answers that have no fields of their own: one object, so that what is made of it need be made once."""
    return Headers([(wire.CONTENT_TYPE, content_type), (wire.RESPONDER, responder)])


def correlation_of(message: Message) -> str:
    """Which request an answer is for; "" if it does not say."""
    return message.headers.get(wire.CORRELATION) or ""


def error_in(message: Message) -> RemoteError | None:
    """The error that an answer is; None if it is none."""
    kind = message.headers.get(wire.ERROR_TYPE)
    if kind is None:
        return None
    try:
        failure = msgspec.json.decode(message.body, type=Failure)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        failure = Failure(kind)
    return RemoteError(
        failure.type[:_LONGEST_TYPE] or "Error", failure.message[:_LONGEST_TEXT], retryable=failure.retryable
    )


__all__ = [
    "Answer",
    "Failure",
    "MAX_ADDRESS",
    "answer_of",
    "correlation_of",
    "error_in",
    "failure_of",
    "reply_of",
    "request_of",
]
