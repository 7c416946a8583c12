"""From what a user publishes to what an adapter sends: encoded, identified, validated. No IO."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from atleastonce import wire
from atleastonce.channels import Channel, Queue, Topic
from atleastonce.codecs import encode
from atleastonce.contract import Ability, Capabilities, Counting, Leasing, Level, Ordering, Outgoing
from atleastonce.contract.capabilities import NONE
from atleastonce.durations import seconds
from atleastonce.errors import ConfigurationError, InvalidMessage
from atleastonce.message import Headers, HeaderValue, Message, check_headers, is_utf8, new_id, new_ids

_MAX_ID = 256
_CHANNELS = (Queue, Topic)  # a union would be made anew for each message


def compose(
    channel: Channel[Any],
    payload: Any,
    *,
    capabilities: Capabilities,
    scheme: str,
    key: str | bytes | None = None,
    id: str | None = None,
    headers: Mapping[str, HeaderValue] | Headers | None = None,
    delay: str | float | None = None,
) -> Outgoing:
    """An `Outgoing` for ``payload``, checked as far as it can be without the broker.

    Raises:
        EncodeError: the payload has no encoding.
        InvalidMessage: an id, key or header that no broker may be handed, or one with our prefix.
        ConfigurationError: not a channel, or a delay that this broker cannot keep.
    """
    _check_channel(channel)
    body, content_type = encode(payload)
    message_id = _checked_id(id) if id is not None else new_id()
    fields = (_own(_checked_fields(headers), content_type) if headers else _typed(content_type)).plus(
        wire.ID, message_id
    )
    wait = 0.0
    if delay is not None:
        wait = seconds(delay, name="delay")
        if wait and not capabilities.publish_delay.covers(wait):
            limit = capabilities.publish_delay.limit
            reason = "cannot delay a publish" if limit is None else f"delays a publish by at most {limit:g} s"
            raise ConfigurationError(
                f"delay={delay!r}: {scheme} {reason}; publish later, or raise RetryLater in the consumer"
            )
    return Outgoing(channel, Message(message_id, body, _checked_key(key), fields), wait)


def compose_many(
    channel: Channel[Any],
    payloads: Iterable[Any],
    *,
    key: Callable[[Any], str | bytes | None] | None = None,
    id: Callable[[Any], str] | None = None,
    headers: Mapping[str, HeaderValue] | Headers | None = None,
) -> list[Outgoing]:
    """As `compose`, for a list: what its messages have in common is looked at and made once.

    Args:
        key, id: from a payload to its key and id.

    Raises:
        EncodeError, InvalidMessage, ConfigurationError: as `compose`, for the first payload that has no message.
    """
    _check_channel(channel)
    payloads = list(payloads)
    fields = _checked_fields(headers)
    shared: dict[str, Headers] = {}  # by content type
    raw_key = None
    items: list[Outgoing] = []
    for payload, fresh in zip(payloads, new_ids(len(payloads)), strict=True):
        body, content_type = encode(payload)
        common = shared.get(content_type)
        if common is None:
            common = shared[content_type] = _own(fields, content_type)
        message_id = fresh if id is None else _checked_id(id(payload))
        if key is not None:
            raw_key = _checked_key(key(payload))
        items.append(Outgoing(channel, Message(message_id, body, raw_key, common.plus(wire.ID, message_id))))
    return items


def _check_channel(channel: object) -> None:
    if not isinstance(channel, _CHANNELS):
        raise ConfigurationError(
            f'publish to a Queue or Topic, not to {channel!r}; write Queue("name") or Topic("name")'
        )


def _checked_fields(headers: Mapping[str, HeaderValue] | Headers | None) -> list[tuple[str, HeaderValue]]:
    if not headers:
        return []
    if not isinstance(headers, Mapping | Headers):
        raise InvalidMessage(f"headers are a {type(headers).__name__}; give a dict of names and text")
    fields = list(headers.items())
    for name, _ in fields:
        if str(name).lower().startswith(wire.PREFIX):
            raise InvalidMessage(
                f'header {name!r}: names that start with "{wire.PREFIX}" are the library\'s; use another'
            )
    check_headers(Headers(fields))
    return fields


def _own(fields: list[tuple[str, HeaderValue]], content_type: str) -> Headers:
    """The user's fields, and the content type unless they have one."""
    if any(name.lower() == wire.CONTENT_TYPE for name, _ in fields):
        return Headers(fields)
    return Headers([*fields, (wire.CONTENT_TYPE, content_type)])


@lru_cache(64)
def _typed(content_type: str) -> Headers:
    return Headers([(wire.CONTENT_TYPE, content_type)])


def _checked_key(key: str | bytes | None) -> bytes | None:
    if key is None or key.__class__ is bytes:
        return key
    if not isinstance(key, str | bytes):
        raise InvalidMessage(f"key {key!r} is a {type(key).__name__}; give text or bytes")
    if isinstance(key, str) and not is_utf8(key):
        raise InvalidMessage(f"key {key!r} holds half of a surrogate pair, which UTF-8 cannot carry; give bytes")
    return key.encode() if isinstance(key, str) else key


# An outbox keeps a message until it is due, whatever the broker can.
_OUTBOX = Capabilities(
    delay=NONE,
    publish_delay=Ability(Level.EMULATED),
    delivery_count=Counting.NONE,
    lease=Leasing.NONE,
    order=Ordering.KEY,
)


def compose_row(channel: Channel[Any], payload: Any, **options: Any) -> Outgoing:
    """As `compose`, for an outbox: with any delay, and without knowing the broker."""
    return compose(channel, payload, capabilities=_OUTBOX, scheme="outbox", **options)


def _checked_id(id: str) -> str:
    if id.__class__ is not str or not 0 < len(id) <= _MAX_ID or not id.isascii() or not id.isprintable():
        raise InvalidMessage(f"id {id!r}: give 1 to {_MAX_ID} printable ASCII characters")
    return id
