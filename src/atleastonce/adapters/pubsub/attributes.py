"""Between a message's header fields and key and Pub/Sub's attributes: an unordered map of at most 100 short texts.

A field that an attribute can hold travels as that attribute, readable by every client. What a map of texts cannot say is
packed beside them and unpacked again: the fields' order, earlier ones of equal names, bytes, nulls, values over 1024 bytes
(a dead letter's traceback), names that begin with "goog" (Pub/Sub refuses them), and fields beyond the hundredth.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from atleastonce.contract import Code
from atleastonce.message import NO_HEADERS, Added, Headers, HeaderValue, Message, is_utf8
from atleastonce.wire import ID

MAX_ATTRIBUTES: Final = 100
MAX_VALUE: Final = 1024
MAX_NAME: Final = 256
MAX_HEADER_BYTES: Final = 64 * 1024
"""cloud.google.com/pubsub/quotas: attributes of a message, bytes of a value, bytes of a name. The last is ours."""

KEY: Final = "alo-key"
BINARY_KEY: Final = "alo-key-64"
ORDER: Final = "alo-order"
"""Where each attribute belongs among the fields, for names in their sorted order."""
MORE: Final = "alo-more-"
"""What did not fit, as JSON, in pieces: ``[[place, name, value], ...]``; a value in a list is bytes in base64."""
EMPTY: Final = "alo-empty"
"""A message without body and attributes is refused; this one has nothing else."""

_RESERVED: Final = ("goog", KEY, ORDER, MORE, EMPTY)
_DIRECT: Final = 80  # attributes for fields; the rest of the hundred is for what is packed, 18 KiB of it
_PLACES: Final = 1 << 16  # more fields than their bytes leave room for: a place beyond is none that we have written


class Refused(Exception):
    """Pub/Sub cannot carry it. ``code`` says why."""

    def __init__(self, code: Code, detail: str) -> None:
        self.code = code
        super().__init__(detail)


@lru_cache(4096)
def _travels(name: str) -> bool:
    return not name.startswith(_RESERVED) and is_utf8(name) and 0 < len(name.encode()) <= MAX_NAME


def attributes_of(message: Message) -> dict[str, str]:
    """The attributes of ``message``, but for its key.

    Raises:
        Refused: too much for a hundred attributes, or text that UTF-8 has no bytes for.
    """
    items = message.headers.items()
    order = _order_of(tuple([name for name, _ in items]))
    if order is None:
        return _packed(message)
    for _, value in items:
        if value.__class__ is not str or len(value) > 256 or not (value.isascii() or is_utf8(value)):
            return _packed(message)
    attributes: dict[str, str] = dict(items)  # type: ignore[arg-type]
    if order:
        attributes[ORDER] = order
    return attributes


class Attributes:
    """`attributes_of`, for the messages of one list: what a message has in common with the one before is looked at once."""

    __slots__ = ("_base", "_shared")

    def __init__(self) -> None:
        self._base: Headers | None = None
        self._shared: dict[str, str] | None = (
            None  # of all fields of the base, and their order; None if that is not all there is
        )

    def of(self, message: Message) -> dict[str, str]:
        """See `attributes_of`."""
        headers = message.headers
        if not isinstance(headers, Added) or headers.name != ID:
            return attributes_of(message)
        value = headers.value
        if headers.base is self._base and self._shared is not None and len(value) <= 256 and value.isascii():
            return {**self._shared, ID: value}
        made = attributes_of(message)
        if headers.base is not self._base:
            self._base = headers.base
            plain = all(name in made and made[name] == text for name, text in headers.items())
            self._shared = made.copy() if plain else None
        return made


@lru_cache(4096)
def _order_of(names: tuple[str, ...]) -> str | None:
    """`ORDER` for fields of these names, "" where it goes without saying; None where not all can be attributes. Programs
    use few sets of names, so that this is asked once for each and not for each message."""
    if len(names) > _DIRECT or len(set(names)) < len(names) or not all(map(_travels, names)):
        return None
    return "" if list(names) == sorted(names) else _order(list(names))


def _order(names: list[str]) -> str:
    return " ".join(map(str, sorted(range(len(names)), key=names.__getitem__)))


def _packed(message: Message) -> dict[str, str]:
    headers = message.headers
    if headers.size > MAX_HEADER_BYTES:
        raise Refused(Code.TOO_LARGE, f"{headers.size} bytes of headers; at most {MAX_HEADER_BYTES} go through Pub/Sub")
    items = headers.items()
    latest = {name: place for place, (name, _) in enumerate(items)}
    attributes: dict[str, str] = {}
    more: list[list[Any]] = []
    for place, (name, value) in enumerate(items):
        if not is_utf8(name) or (isinstance(value, str) and not is_utf8(value)):
            raise Refused(Code.INVALID, f"header {name!r} holds half of a surrogate pair, which UTF-8 cannot carry")
        fits = (
            isinstance(value, str)
            and latest[name] == place
            and _travels(name)
            and (len(value) <= 256 or len(value.encode()) <= MAX_VALUE)
            and len(attributes) < _DIRECT
        )
        if fits:
            attributes[name] = value  # type: ignore[assignment]
        else:
            binary = isinstance(value, bytes)
            more.append([place, name, [base64.b64encode(value).decode()] if binary else value])  # type: ignore[arg-type]
    names = list(attributes)
    if names != sorted(names):
        attributes[ORDER] = _order(names)
    if more:
        text = json.dumps(more, separators=(",", ":"))
        for number, start in enumerate(range(0, len(text), MAX_VALUE)):
            attributes[f"{MORE}{number}"] = text[start : start + MAX_VALUE]
    if len(attributes) > MAX_ATTRIBUTES - 2:
        raise Refused(Code.TOO_LARGE, f"the headers need {len(attributes)} attributes; Pub/Sub takes {MAX_ATTRIBUTES}")
    return attributes


def add_key(attributes: dict[str, str], key: bytes | None, *, ordered: bool) -> str:
    """Put ``key`` among ``attributes`` if it does not travel as the ordering key, which is returned; "" for none.

    Raises:
        Refused: longer than an attribute or an ordering key can be.
    """
    if key is None:
        return ""
    try:
        text, name = key.decode(), KEY
    except UnicodeDecodeError:
        text, name = base64.b64encode(key).decode(), BINARY_KEY
    if "\0" in text:
        text, name = base64.b64encode(key).decode(), BINARY_KEY
    if len(text.encode()) > MAX_VALUE:
        raise Refused(Code.TOO_LARGE, f"a key of {len(key)} bytes; Pub/Sub takes {MAX_VALUE} (768 if it is no text)")
    if not ordered or name is BINARY_KEY or not text:
        attributes[name] = text
    return text if ordered else ""


def read_attributes(found: Mapping[str, str], ordering_key: str) -> tuple[Headers, bytes | None]:
    """The header fields as they were sent, and the key. Never raises: anybody may have written these."""
    fields = dict(found)
    key: bytes | None = ordering_key.encode() if ordering_key else None
    if KEY in fields:
        key = fields.pop(KEY).encode()
    elif BINARY_KEY in fields:
        try:
            key = base64.b64decode(fields[BINARY_KEY], validate=True)
            del fields[BINARY_KEY]
        except (binascii.Error, ValueError):
            pass
    if not fields:
        return NO_HEADERS, key
    order = fields.pop(ORDER, None)
    more = _unpacked(fields) if f"{MORE}0" in fields else None
    fields.pop(EMPTY, None)
    items: list[tuple[str, HeaderValue]] = sorted(fields.items())
    if order is not None:
        items = _ordered(items, order)
    for place, name, value in more or ():
        items.insert(place, (name, value))
    return Headers(items), key


def _unpacked(fields: dict[str, str]) -> list[tuple[int, str, HeaderValue]]:
    """What `MORE` holds, which is taken out of ``fields``; nothing, and it stays there as it came, where it is not as we write
    it: then it travels on unchanged."""
    names = [name for number in range(MAX_ATTRIBUTES) if (name := f"{MORE}{number}") in fields]
    try:
        found = [_field(*entry) for entry in json.loads("".join(fields[name] for name in names))]
    except (ValueError, TypeError, LookupError, RecursionError):
        return []
    for name in names:
        del fields[name]
    return found


def _field(place: object, name: object, value: object) -> tuple[int, str, HeaderValue]:
    if isinstance(value, list):
        value = base64.b64decode(value[0], validate=True)
    if (
        not isinstance(place, int)
        or isinstance(place, bool)
        or not isinstance(name, str)
        or not isinstance(value, str | bytes | None)
    ):
        raise TypeError("not as we write it")
    if not 0 <= place < _PLACES or not is_utf8(name) or (isinstance(value, str) and not is_utf8(value)):
        raise ValueError("not as we write it")
    return place, name, value


def _ordered(items: list[tuple[str, HeaderValue]], order: str) -> list[tuple[str, HeaderValue]]:
    places = order.split()
    if len(places) != len(items) or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in places):
        return items
    positions = [int(place) for place in places]
    if sorted(positions) != list(range(len(items))):
        return items
    restored = items[:]
    for position, item in zip(positions, items, strict=True):
        restored[position] = item
    return restored
