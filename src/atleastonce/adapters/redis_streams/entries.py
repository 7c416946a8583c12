"""Messages as entries of a stream: the payload in ``body``, the key in ``alo-key``, every header a field of its own name.

An entry's fields keep their order and may repeat, so headers travel as they are. Only a header that is called like one of
those two gets a ``~`` before its name, and one of such a name another: the rule can be undone for every name there is.

An entry without a body (a raw producer's, whose fields are the message) has all its fields as headers, and for a payload
their JSON object. On a hop its fields are written again as they came, and no body is added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from atleastonce.channels import Source
from atleastonce.contract import Delivery, Outcome
from atleastonce.message import NO_HEADERS, Headers, HeaderValue, Message
from atleastonce.wire import ID, PREFIX, read_id

KEY: Final = "alo-key"
BODYLESS: Final = "redis: no body"
"""`Message.native` of an entry that has no body."""

_MARK: Final = "~"


class Layout:
    """How messages are written and read.

    Args:
        body_field: the field of the payload.
    """

    def __init__(self, body_field: str) -> None:
        self.body = body_field.encode()
        self._names: dict[str, bytes] = {}
        self._headers: dict[bytes, str] = {}
        self._taken = frozenset({body_field, KEY})

    def fields(self, message: Message) -> list[Any]:
        """Names and values in turns, as ``XADD`` takes them.

        Raises:
            TypeError: a header has no value.
            UnicodeEncodeError: a header is no text that UTF-8 has.
        """
        flat: list[Any] = [] if message.native is BODYLESS else [self.body, message.body]
        if message.key is not None:
            flat += (KEY, message.key)
        names = self._names
        for name, value in message.headers.items():
            if value is None:
                raise TypeError(f"header {name!r} has no value, and Redis knows no null")
            flat.append(names.get(name) or self._name(name))
            flat.append(value.encode() if value.__class__ is str else value)
        return flat or [self.body, message.body]

    def _name(self, name: str) -> bytes:
        wire = _MARK + name if name.lstrip(_MARK) in self._taken else name
        encoded = wire.encode("utf-8", "surrogateescape")
        if len(self._names) < 1000:
            self._names[name] = encoded
        return encoded

    def _header(self, field: bytes) -> str:
        name = field.decode("utf-8", "surrogateescape")
        if name[:1] == _MARK and name.lstrip(_MARK) in self._taken:
            name = name[1:]
        if len(self._headers) < 1000:
            self._headers[field] = name
        return name

    def payload(self, fields: Sequence[bytes]) -> bytes:
        """The body of an entry."""
        return fields[1] if fields[0] == self.body else self.message("", b"0-0", fields).body

    def message(self, channel: str, id: bytes, fields: Sequence[bytes]) -> Message:
        """The message in an entry. Its identity is ``alo-id``, or else its place in the stream, the same at each delivery."""
        body: bytes | None = None
        key: bytes | None = None
        items: list[tuple[str, HeaderValue]] = []
        identity: str | None = None
        known = self._headers
        pairs = iter(fields)
        for field, value in zip(pairs, pairs, strict=False):
            if body is None and field == self.body:
                body = value
                continue
            if key is None and field == b"alo-key":
                key = value
                continue
            name = known.get(field) or self._header(field)
            try:
                text: HeaderValue = value.decode()
            except UnicodeDecodeError:
                text = value
            items.append((name, text))
            if name == ID:
                identity = read_id(text)
        position = id.decode()
        return Message(
            identity or f"{channel}-{position}",
            _object(items) if body is None else body,
            key,
            Headers(items) if items else NO_HEADERS,
            int(position.partition("-")[0]) / 1000,
            BODYLESS if body is None else None,
        )


def _object(items: list[tuple[str, HeaderValue]]) -> bytes:
    """Fields as a JSON object of texts, ours left out; the last of equal names counts, and what is no UTF-8 is replaced."""
    fields = {
        name: value if isinstance(value, str) else (value or b"").decode("utf-8", "replace")
        for name, value in items
        if not name.startswith(PREFIX)
    }
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")


class EntryDelivery(Delivery):
    """A hand-out of an entry. Its message is made when somebody looks at it: most handlers take the payload and nothing else.

    Attributes:
        token: the entry's id.
        raw: the entry's fields, names and values in turns.
        verdict: how it was settled; None until then.
        unsure: whether a settlement of it was sent and its answer lost.
    """

    __slots__ = ("layout", "unsure", "verdict")

    def __init__(
        self,
        layout: Layout,
        source: Source,
        stream: str,
        epoch: int,
        id: bytes,
        fields: Sequence[bytes],
        count: int,
        lease_until: float,
    ) -> None:
        self.layout = layout
        self.verdict: Outcome | None = None
        self.unsure = False
        self.source = source
        self.stream = stream
        self.epoch = epoch
        self.token = id
        self.count = count
        self.lease_until = lease_until
        self.lost = False
        self.raw = fields
        self.returned = False
        self.size = sum(map(len, fields))
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None

    @property
    def position(self) -> str:  # type: ignore[override]
        """See `Delivery.position`. Made for whoever looks at it."""
        return self.token.decode()  # type: ignore[no-any-return]

    def read(self) -> Message:
        """See `Delivery.read`."""
        return self.layout.message(self.stream, self.token, self.raw)

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        return self.layout.payload(self.raw)
