"""What SQS hands out, as deliveries: the text is made bytes, and attributes a message, when somebody looks at them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from atleastonce.adapters.sqs.entries import BASE64, BODY, EMPTY, FIELDS, KEY, UNKEYED, Types, rank
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.message import NO_HEADERS, Headers, HeaderValue, Message
from atleastonce.wire import ID, read_id

SYSTEM = ["ApproximateReceiveCount", "SentTimestamp", "DeadLetterQueueSourceArn"]
SYSTEM_FIFO = [*SYSTEM, "MessageGroupId", "SequenceNumber"]
"""The system attributes that are asked for; each more costs parsing, the last
one only where SQS moved a message to a dead-letter queue."""


class SQSDelivery(Delivery):
    """A hand-out. ``raw`` is the client's dictionary.

    Attributes:
        received: when, by ``time.monotonic``: what a message's twelve hours are counted from.
    """

    __slots__ = ("received",)

    def __init__(self, raw: dict[str, Any], source: Source, queue: str, epoch: int, now: float, lease: float) -> None:
        system = raw["Attributes"]
        group = system.get("MessageGroupId")
        self.source = source
        self.stream = queue if group is None else f"{queue}/{group}"
        self.position = system.get("SequenceNumber") or raw["MessageId"]
        self.epoch = epoch
        self.token = raw["ReceiptHandle"]
        self.count = int(system.get("ApproximateReceiveCount", 1))
        self.lease_until = now + lease
        self.lost = False
        self.raw = raw
        self.returned = False
        size = len(raw["Body"])
        for name, attribute in raw.get("MessageAttributes", _NONE).items():
            size += len(name) + len(attribute.get("StringValue") or attribute.get("BinaryValue") or "")
        self.size = size
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None
        self.received = now

    def read(self) -> Message:
        """See `Delivery.read`."""
        return read_message(self.raw)

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        return read_body(self.raw)


_NONE: Mapping[str, Any] = {}
_BYTES = ("Binary", BASE64)
_USUAL = ("String", *_BYTES)


def read_body(raw: Mapping[str, Any]) -> bytes:
    """The payload in a received message."""
    attribute = raw.get("MessageAttributes", _NONE).get(BODY)
    if attribute is not None:
        if attribute.get("DataType") == EMPTY:
            return b""
        if attribute.get("DataType") in _BYTES and isinstance(value := value_of(attribute), bytes):
            return value
    text: str = raw["Body"]
    return text.encode("utf-8", "surrogatepass")


def read_message(raw: Mapping[str, Any]) -> Message:
    """The message that was received."""
    system = raw.get("Attributes", _NONE)
    attributes = raw.get("MessageAttributes", _NONE)
    sent = system.get("SentTimestamp")
    headers, types = read_headers(attributes) if attributes else (NO_HEADERS, None)
    return Message(
        read_id(headers.get(ID)) or raw["MessageId"],
        read_body(raw),
        _key(attributes.get(KEY), system.get("MessageGroupId")),
        headers,
        None if sent is None else int(sent) / 1000,
        types,
    )


def _key(attribute: Mapping[str, Any] | None, group: str | None) -> bytes | None:
    if attribute is not None:
        if attribute.get("DataType") == EMPTY:
            return b""
        value = value_of(attribute)
        return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return None if group is None or group.startswith(UNKEYED) else group.encode()


def value_of(attribute: Mapping[str, Any]) -> str | bytes | None:
    """The value of a message attribute."""
    value: str | bytes | None = attribute.get("StringValue")
    if value is None:
        return attribute.get("BinaryValue")
    if attribute.get("DataType") == BASE64:
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            pass  # somebody else's idea of that type
    return value


def read_headers(attributes: Mapping[str, Any]) -> tuple[Headers, Types | None]:
    """The header fields among a message's attributes, and the types of those that have strange ones."""
    named: dict[str, HeaderValue] = {}
    types: Types | None = None
    fields: list[Any] | None = None
    for name, attribute in attributes.items():
        kind = attribute.get("DataType", "String")
        if name == FIELDS and (fields := _fields(attribute)) is not None:
            continue
        if name == KEY or (name == BODY and kind in (*_BYTES, EMPTY)):
            continue
        named[name] = value_of(attribute)
        if kind not in _USUAL:
            types = Types() if types is None else types
            types[name] = kind
    if fields is None:
        return Headers(sorted(named.items(), key=lambda item: rank(item[0]))), types
    items: list[tuple[str, HeaderValue]] = []
    for field in fields:
        if isinstance(field, str):
            if field in named:
                items.append((field, named.pop(field)))
        else:
            items.append((field[0], base64.b64decode(field[1]) if len(field) == 3 else field[1]))
    items.extend(sorted(named.items(), key=lambda item: rank(item[0])))  # what somebody else has added
    return Headers(items), types


def _fields(attribute: Mapping[str, Any]) -> list[Any] | None:
    """What ``alo-headers`` says; None where it is not ours, for anybody can write one."""
    try:
        fields = json.loads(attribute.get("StringValue") or "")
        if not isinstance(fields, list) or not all(_is_field(field) for field in fields):
            return None
    except (ValueError, RecursionError):
        return None
    return fields


def _is_field(field: object) -> bool:
    if isinstance(field, str):
        return True
    if not isinstance(field, list) or not 2 <= len(field) <= 3 or not isinstance(field[0], str):
        return False
    if len(field) == 2:
        return field[1] is None or isinstance(field[1], str)
    try:
        base64.b64decode(field[1], validate=True)
    except (binascii.Error, TypeError, ValueError):
        return False
    return True
