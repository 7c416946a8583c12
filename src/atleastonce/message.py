"""What travels: a message with an identity, a key, headers and bytes.

A message is immutable, and every hop (retry, dead letter, redrive) hands on body, key and the user's headers exactly as
they came. Messages published by raw clients are first-class: they have no ``alo-`` headers and need none.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec

from atleastonce.errors import InvalidMessage

HeaderValue: TypeAlias = str | bytes | None
"""Text; bytes where a foreign producer wrote what is not UTF-8; None where the broker knows null values (Kafka)."""

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_FORBIDDEN = re.compile(r"[\r\n\x00]")


class Headers:
    """An immutable sequence of header fields: order and duplicates are kept, look-up returns the *last* value.

    Names are case-sensitive, because some brokers' are.
    """

    __slots__ = ("_items", "_last", "_size")

    def __init__(self, items: Mapping[str, HeaderValue] | Headers | Iterable[tuple[str, HeaderValue]] = ()) -> None:
        # Asking an abstract class costs as much as everything else here, and adapters give lists.
        pairs = items if items.__class__ is list or not isinstance(items, Mapping | Headers) else items.items()
        self._items: tuple[tuple[str, HeaderValue], ...] = tuple(pairs)
        self._last: dict[str, HeaderValue] | None = None  # made when a field is looked for: a failure looks for a dozen
        self._size = -1

    def get(self, name: str, default: str | None = None) -> str | None:
        """The last value of ``name`` as text; bytes are decoded as UTF-8 with replacement; ``default`` if absent or
        null."""
        last = self._last
        if last is None:
            last = self._last = dict(self.fields())
        value = last.get(name)
        if value is None:
            return default
        return value if isinstance(value, str) else value.decode("utf-8", "replace")

    def get_all(self, name: str) -> list[HeaderValue]:
        """Every value of ``name`` in order, as it travelled."""
        return [value for key, value in self.items() if key == name]

    def items(self) -> tuple[tuple[str, HeaderValue], ...]:
        """All fields in order, duplicates included."""
        return self._items

    def fields(self) -> Sequence[tuple[str, HeaderValue]]:
        """As `items`, for whoever only hands them on: an adapter may leave text as the bytes that came, which is cheaper."""
        return self._items

    def set(self, fields: Mapping[str, HeaderValue]) -> Headers:
        """A copy in which ``fields`` replace every earlier value of their names."""
        if not fields:
            return self
        kept = [item for item in self.items() if item[0] not in fields]
        kept.extend(fields.items())
        return Headers(kept)

    def plus(self, name: str, value: str) -> Headers:
        """A copy with one more field at the end: for lists of messages that have all others in common."""
        return Added(self, name, value)

    def without(self, prefix: str) -> Headers:
        """A copy without the fields whose names start with ``prefix``."""
        if not any(name.startswith(prefix) for name, _ in self.items()):
            return self
        return Headers(item for item in self.items() if not item[0].startswith(prefix))

    @property
    def size(self) -> int:
        """Bytes of all names and values, as most brokers count them (characters stand for bytes in text)."""
        size = self._size
        if size < 0:  # counted once: the adapter, the window and the settlement all ask
            size = 0
            for name, value in self.items():
                size += len(name)
                if value is not None:
                    size += len(value)
            self._size = size
        return size

    def __contains__(self, name: object) -> bool:
        last = self._last
        if last is None:
            last = self._last = dict(self.fields())
        return name in last

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items())

    def __len__(self) -> int:
        return len(self.items())

    def __bool__(self) -> bool:
        return bool(self.items())

    def __eq__(self, other: object) -> bool:
        return self.items() == other.items() if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.items())

    def __repr__(self) -> str:
        return f"Headers({list(self.items())!r})"


class Added(Headers):
    """The fields that a list of messages has in common, and one more: who writes them may keep what it made of ``base``.

    Attributes:
        base: those in common, one object for all of the list.
        name, value: of the last field.
    """

    __slots__ = ("base", "name", "value")

    def __init__(self, base: Headers, name: str, value: str) -> None:
        self.base = base
        self.name = name
        self.value = value
        self._items = ()
        self._last = None
        size = base._size
        self._size = (size if size >= 0 else base.size) + len(name) + len(value)

    def items(self) -> tuple[tuple[str, HeaderValue], ...]:
        """See `Headers.items`."""
        if not self._items:
            self._items = (*self.base.items(), (self.name, self.value))
        return self._items

    def fields(self) -> Sequence[tuple[str, HeaderValue]]:
        """See `Headers.fields`."""
        return self.items()


class Composed(Headers):
    """The fields of one message, and after them those that it has in common with others, of which whoever writes them may keep what
    it made.

    Args:
        own: given away.
        size: their bytes, as `Headers.size` counts them: whoever made the list has looked at each of them already.
        marks: come after them.
        shared: come last; one object for all that have them.
    """

    __slots__ = ("own", "shared")

    def __init__(
        self, own: list[tuple[str, HeaderValue]], size: int, marks: Sequence[tuple[str, str]], shared: Headers
    ) -> None:
        own += marks
        self.own = own
        self.shared = shared
        self._items = ()
        self._last = None
        common = shared._size
        size += common if common >= 0 else shared.size
        for name, value in marks:
            size += len(name) + len(value)
        self._size = size

    def items(self) -> tuple[tuple[str, HeaderValue], ...]:
        """See `Headers.items`."""
        if not self._items:
            self._items = (*self.own, *self.shared.items())
        return self._items

    def fields(self) -> Sequence[tuple[str, HeaderValue]]:
        """See `Headers.fields`."""
        return self.items()


NO_HEADERS = Headers()


def sift(
    fields: Iterable[tuple[str, HeaderValue]], names: Container[str]
) -> tuple[list[tuple[str, HeaderValue]], int, dict[str, HeaderValue]]:
    """``fields`` without those of ``names``, in order; their bytes, as `Headers.size` counts them; and of each of ``names`` that is
    among them the last value. All that a copy has to know of its message's fields, in one look."""
    kept: list[tuple[str, HeaderValue]] = []
    gone: dict[str, HeaderValue] = {}
    size = 0
    for field in fields:
        name, value = field
        if name in names:
            gone[name] = value
        else:
            kept.append(field)
            size += len(name) if value is None else len(name) + len(value)
    return kept, size, gone


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message.

    Attributes:
        id: who this message *is*, kept across every hop. The ``alo-id`` header where there is one; else the native message id
            where the producer chose it; else what the adapter derives (Kafka: topic, partition and offset).
        body: the payload's bytes, untouched.
        key: what orders and partitions it, as bytes; None for no key.
        headers: the user's fields and ours, in order.
        published_at: seconds since the epoch when the *broker* or producer says it was published; None if unknown.
        native: what only one broker has (content encoding, priority, foreign header types): opaque to everything but
            the adapter that made it, handed back to it on a hop through the same broker. Never serialised.
    """

    id: str
    body: bytes
    key: bytes | None = None
    headers: Headers = NO_HEADERS
    published_at: float | None = None
    native: object = None

    @property
    def size(self) -> int:
        """Bytes that this message holds in memory and on the wire, without the broker's framing."""
        size = self.headers._size
        if size < 0:
            size = self.headers.size
        size += len(self.body)
        return size if self.key is None else size + len(self.key)


def sizes(messages: Iterable[Message]) -> list[int]:
    """`Message.size` of each: of a list, to call for each costs more than to count."""
    found = []
    for message in messages:
        size = message.headers._size
        if size < 0:
            size = message.headers.size
        size += len(message.body)
        key = message.key
        found.append(size if key is None else size + len(key))
    return found


def new_id() -> str:
    """A new message id: 32 hexadecimal digits, 48 bits of milliseconds and then 80 random ones.

    Rising with time, so that ids written to a database's index land next to each other.
    """
    try:
        digits = _spare.pop()
    except IndexError:
        digits, *more = _random(_SPARE)
        _spare.extend(more)
    return f"{time.time_ns() // 1_000_000:012x}{digits}"


def new_ids(count: int) -> list[str]:
    """So many ids, as `new_id` makes them; the system is asked once for the time and for what is random."""
    millis = f"{time.time_ns() // 1_000_000:012x}"
    return [millis + digits for digits in _random(count)]


def _random(count: int) -> list[str]:
    digits = os.urandom(10 * count).hex()
    return [digits[begin : begin + 20] for begin in range(0, 20 * count, 20)]


# To ask the system for each id costs more than the id. A child that was forked must not give out its parent's.
_SPARE = 64
_spare: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spare.clear)


def is_utf8(text: str) -> bool:
    """Whether ``text`` can be encoded at all: half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_headers(headers: Headers) -> None:
    """Refuse, before any IO and alike on every broker, header fields that would be dangerous on one.

    A name has 1 to 128 characters of RFC 9110's token set; a value has no CR, LF or NUL (they end a header line
    on NATS and could smuggle another one), and no half of a surrogate pair (UTF-8 has no bytes for it).

    Raises:
        InvalidMessage: names the field and the rule.
    """
    for name, value in headers.items():
        if name.__class__ is not str or not _NAME.fullmatch(name):
            raise InvalidMessage(
                f"header name {name!r}: use 1 to 128 of the characters A-Z a-z 0-9 and !#$%&'*+.^_`|~- (no spaces)"
            )
        if isinstance(value, str):
            if _FORBIDDEN.search(value):
                raise InvalidMessage(f"header {name!r}: the value holds CR, LF or NUL; encode it (base64, JSON) first")
            if not value.isascii() and not is_utf8(value):
                raise InvalidMessage(
                    f"header {name!r}: the value holds half of a surrogate pair, which UTF-8 cannot carry"
                )
        elif value is not None and not isinstance(value, bytes):
            raise InvalidMessage(f"header {name!r}: the value is a {type(value).__name__}; give text")
