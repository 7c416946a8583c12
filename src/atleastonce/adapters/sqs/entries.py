"""Messages as SQS and SNS take them: a text, and at most ten attributes.

========================  ============================================================
`Message.body`            the message's text where it is XML-legal Unicode; else attribute ``alo-body`` (Binary), since SQS
                          takes no other characters; an empty body is marked there, since SQS takes no empty text
`Message.key`             ``MessageGroupId`` where the queue is FIFO and the key fits; else attribute ``alo-key``
`Message.headers`         one attribute each, String or Binary, as long as there are ten
what does not fit         attribute ``alo-headers``, JSON: order, duplicates, empty and null values, names that AWS refuses,
                          and what is more than ten
========================  ============================================================

A raw consumer so reads the text and, as attributes, the first nine headers; ``alo-headers`` is there only where it is needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

from atleastonce import wire
from atleastonce.message import HeaderValue, Message

BODY: Final = "alo-body"
KEY: Final = "alo-key"
FIELDS: Final = "alo-headers"
EMPTY: Final = "String.empty"
"""The type of an attribute that stands for nothing at all."""

BASE64: Final = "String.base64"
"""The type of an attribute of bytes on their way through SNS, whose other subscribers (HTTP, e-mail) read text."""

MAX_ATTRIBUTES: Final = 10
UNKEYED: Final = "alo-unkeyed-"
"""The beginning of the group of a message without a key: it has one for itself, and waits for nobody."""

_HASHED: Final = "alo-key-"
_BYTES_TEXT: Final = "(bytes: see the attribute alo-body)"
_EMPTY_TEXT: Final = "(empty)"
_RESERVED: Final = frozenset({BODY, KEY, FIELDS})
_ILLEGAL: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TOKEN: Final = re.compile(r"[!-~]{1,128}")


class Types(dict[str, str]):
    """`Message.native`: the types of a foreign message's attributes, where they are others than String and Binary."""


class Entry(NamedTuple):
    """One item of a batch, without its ``Id``; and its bytes as AWS counts them."""

    text: str
    attributes: dict[str, Any]
    size: int


def encode(message: Message, *, grouped: bool, as_text: bool = False) -> Entry:
    """``message`` as text and attributes. ``grouped``: its key travels as the message group where it can; ``as_text``: no
    attribute is Binary."""
    attributes: dict[str, Any] = {}
    text = _text(message.body, attributes)
    key = message.key
    if key is not None and not (grouped and group_of(message) == key.decode("latin-1")):
        attributes[KEY] = _value_of_key(key)
    items = message.headers.items()
    if message.headers.get(wire.ID) is None and wire.read_id(message.id) is not None:
        items = (*items, (wire.ID, message.id))  # SQS gives each copy an id of its own; this one stays
    if items:
        _add_fields(items, attributes, message.native if isinstance(message.native, Types) else None)
    size = len(text) if text.isascii() else len(text.encode())
    for name, attribute in attributes.items():
        value = attribute.get("StringValue")
        if value is None and as_text:
            value = base64.b64encode(attribute["BinaryValue"]).decode()
            attributes[name] = attribute = {"DataType": BASE64, "StringValue": value}
        elif value is None:
            value = attribute["BinaryValue"]
        elif not value.isascii():
            value = value.encode()
        size += len(name) + len(attribute["DataType"]) + len(value)
    return Entry(text, attributes, size)


def _text(body: bytes, attributes: dict[str, Any]) -> str:
    if not body:
        attributes[BODY] = {"DataType": EMPTY, "StringValue": "-"}
        return _EMPTY_TEXT
    try:
        text = body.decode()
    except UnicodeDecodeError:
        pass
    else:
        if _ILLEGAL.search(text) is None:
            return text
    attributes[BODY] = {"DataType": "Binary", "BinaryValue": body}
    return _BYTES_TEXT


def _value_of_key(key: bytes) -> dict[str, Any]:
    if not key:
        return {"DataType": EMPTY, "StringValue": "-"}
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return {"DataType": "Binary", "BinaryValue": key}
    if _ILLEGAL.search(text):
        return {"DataType": "Binary", "BinaryValue": key}
    return {"DataType": "String", "StringValue": text}


def group_of(message: Message) -> str:
    """The message group on a FIFO queue."""
    key = message.key
    if key is None:
        # A question that is asked a second time under the same id does not wait for the first one's end.
        name = f"{message.id}{message.headers.get(wire.CORRELATION) or ''}"
        return UNKEYED + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    text = key.decode("latin-1")
    if _TOKEN.fullmatch(text) and not text.startswith((UNKEYED, _HASHED)):
        return text
    return _HASHED + hashlib.sha256(key).hexdigest()


def deduplication_of(message: Message) -> str:
    """What SQS drops repetitions by, for five minutes, on a FIFO queue: the id; another one after a redrive, for each copy of a
    suspect, and for each time that it is asked, which otherwise would be dropped as a repetition of an earlier publish."""
    text = message.id
    for name, field in (
        ("redrive", wire.REDRIVES),
        ("suspect", wire.SUSPECTED_AT),
        ("request", wire.CORRELATION),
    ):
        if (value := message.headers.get(field)) is not None:
            text += f":{name}:{value}"
    return text if _TOKEN.fullmatch(text) else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ------------------------------------------------------------------------------------------------------------- headers


@lru_cache(4096)
def rank(name: str) -> tuple[int, str]:
    """Where a header stands if nothing else is said: the user's by name, then the content type, then ours. AWS keeps no
    order of attributes."""
    return (2 if name.startswith(wire.PREFIX) else 1 if name == wire.CONTENT_TYPE else 0, name)


@lru_cache(4096)
def _nameable(name: str) -> bool:
    """Whether AWS takes an attribute of this name, and we do not use it ourselves."""
    return (
        len(name) <= 256
        and _NAME.fullmatch(name) is not None
        and not name.lower().startswith(("aws.", "amazon."))
        and name not in _RESERVED
    )


def _plain(value: HeaderValue) -> bool:
    if isinstance(value, str):
        return bool(value) and ((value.isascii() and value.isprintable()) or _ILLEGAL.search(value) is None)
    return bool(value)


def _add_fields(items: tuple[tuple[str, HeaderValue], ...], attributes: dict[str, Any], types: Types | None) -> None:
    room = MAX_ATTRIBUTES - len(attributes)
    if len(items) <= room:
        before = (-1, "")
        for name, value in items:
            place = rank(name)
            if place <= before or not _nameable(name) or not _plain(value):
                break
            before = place
        else:
            for name, value in items:
                attributes[name] = _attribute(name, value, types)
            return
    own = _own(items, room - 1)
    fields: list[Any] = []
    for number, (name, value) in enumerate(items):
        if number in own:
            attributes[name] = _attribute(name, value, types)
            fields.append(name)
        elif isinstance(value, bytes):
            fields.append([name, base64.b64encode(value).decode(), 1])
        else:
            fields.append([name, value])
    attributes[FIELDS] = {"DataType": "String", "StringValue": json.dumps(fields, separators=(",", ":"))}


def _own(items: tuple[tuple[str, HeaderValue], ...], room: int) -> set[int]:
    """Which fields get an attribute of their own: the id, then the user's, then ours. Of equal names the last."""
    last = {name: number for number, (name, _) in enumerate(items)}
    fit = [n for n, (name, value) in enumerate(items) if last[name] == n and _nameable(name) and _plain(value)]
    fit.sort(key=lambda number: (items[number][0] != wire.ID, items[number][0].startswith(wire.PREFIX), number))
    return set(fit[:room])


def _attribute(name: str, value: HeaderValue, types: Types | None) -> dict[str, Any]:
    kind = None if types is None else types.get(name)
    if isinstance(value, bytes):
        return {"DataType": kind if kind and kind.startswith("Binary") else "Binary", "BinaryValue": value}
    return {"DataType": kind if kind and not kind.startswith("Binary") else "String", "StringValue": value}
