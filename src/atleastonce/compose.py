"""From what a user publishes to what an adapter sends: encoded, identified, validated. No IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atleastonce import wire
from atleastonce.channels import Channel, Queue, Topic
from atleastonce.codecs import encode
from atleastonce.contract import Capabilities, Outgoing
from atleastonce.durations import seconds
from atleastonce.errors import ConfigurationError, InvalidMessage
from atleastonce.message import Headers, HeaderValue, Message, check_headers, is_utf8, new_id

_MAX_ID = 256


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
    if not isinstance(channel, Queue | Topic):
        raise ConfigurationError(
            f'publish to a Queue or Topic, not to {channel!r}; write Queue("name") or Topic("name")'
        )
    body, content_type = encode(payload)
    message_id = _checked_id(id) if id is not None else new_id()
    fields: list[tuple[str, HeaderValue]] = []
    if headers:
        if not isinstance(headers, Mapping | Headers):
            raise InvalidMessage(f"headers are a {type(headers).__name__}; give a dict of names and text")
        for name, value in headers.items():
            if str(name).lower().startswith(wire.PREFIX):
                raise InvalidMessage(
                    f'header {name!r}: names that start with "{wire.PREFIX}" are the library\'s; use another'
                )
            fields.append((name, value))
        check_headers(Headers(fields))
    if not headers or all(name.lower() != wire.CONTENT_TYPE for name, _ in fields):
        fields.append((wire.CONTENT_TYPE, content_type))
    fields.append((wire.ID, message_id))
    wait = 0.0
    if delay is not None:
        wait = seconds(delay, name="delay")
        if wait and not capabilities.publish_delay.covers(wait):
            limit = capabilities.publish_delay.limit
            reason = "cannot delay a publish" if limit is None else f"delays a publish by at most {limit:g} s"
            raise ConfigurationError(
                f"delay={delay!r}: {scheme} {reason}; publish later, or raise RetryLater in the consumer"
            )
    if key is not None and not isinstance(key, str | bytes):
        raise InvalidMessage(f"key {key!r} is a {type(key).__name__}; give text or bytes")
    if isinstance(key, str) and not is_utf8(key):
        raise InvalidMessage(f"key {key!r} holds half of a surrogate pair, which UTF-8 cannot carry; give bytes")
    raw_key = key.encode() if isinstance(key, str) else key
    return Outgoing(channel, Message(message_id, body, raw_key, Headers(fields)), wait)


def _checked_id(id: str) -> str:
    if id.__class__ is not str or not 0 < len(id) <= _MAX_ID or not id.isascii() or not id.isprintable():
        raise InvalidMessage(f"id {id!r}: give 1 to {_MAX_ID} printable ASCII characters")
    return id
