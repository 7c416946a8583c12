"""Between a NATS message and a `Message`: header blocks with their order, duplicates and bytes; keys; identities.

nats-py's own reading gives a dict: it drops duplicates, trims values, and puts U+FFFD where bytes are not UTF-8. Blocks are
read and written here instead. What a line cannot carry (CR, LF, NUL) travels as base64, and what would act on the server
(``Nats-...``) travels under another name; both come out as they went in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from atleastonce.message import NO_HEADERS, Headers, HeaderValue, Message
from atleastonce.wire import ATTEMPT, ID, PREFIX, read_id

VERSION: Final = b"NATS/1.0\r\n"
KEY: Final = "alo-key"
"""The message's key: printable ASCII as it is, other bytes and ``%`` as ``%41``."""
RENAMED: Final = "alo-as-"
"""Before a name that would otherwise act: a user's ``Nats-Msg-Id`` travels as ``alo-as-Nats-Msg-Id``."""
BASE64: Final = "alo-b64-"
"""Before the name of a value that no header line can carry."""
MESSAGE_ID: Final = "Nats-Msg-Id"

_OURS: Final = b"NATS/1.0\r\nNats-Msg-Id: "
_KEYED: Final = "\r\nalo-key: "
RESERVED: Final = ("nats-", KEY, RENAMED, BASE64)
"""Fields whose names begin so travel under another one, or are ours to write."""
_HISTORY: Final = frozenset({ID, KEY})


class Refused(ValueError):
    """A header field that NATS cannot carry."""


@lru_cache(4096)
def _start(name: str) -> bytes:
    wire = f"{RENAMED}{name}" if name.lower().startswith(RESERVED) else name
    return b"%b: " % wire.encode("utf-8", "surrogateescape")


def encode(message: Message, group: str | None) -> bytes:
    """The header block of ``message``; ``group`` where it is for one group alone.

    Raises:
        Refused: a null value.
    """
    lines = []
    for name, value in message.headers.items():
        if value.__class__ is not str or not _is_plain(name):
            return _encode_carefully(message, group)
        lines.append(f"{name}: {value}\r\n")
    count = len(lines)
    text = "".join(lines)
    if text.count("\n") != count or text.count("\r") != count or "\0" in text:
        return _encode_carefully(message, group)
    key = "" if message.key is None else f"alo-key: {encode_key(message.key)}\r\n"
    to = "" if group is None else f"@{group}"
    return f"NATS/1.0\r\nNats-Msg-Id: {_identity(message)}{to}\r\n{key}{text}\r\n".encode()


@lru_cache(4096)
def _is_plain(name: str) -> bool:
    """Whether a field of that name travels as it is and says nothing about the message's past."""
    return name == ID or (not name.lower().startswith(("nats-", PREFIX)) and name.isascii())


def _encode_carefully(message: Message, group: str | None) -> bytes:
    lines = [VERSION, b"Nats-Msg-Id: %b\r\n" % publish_id(message, group)]
    if message.key is not None:
        lines.append(b"alo-key: %b\r\n" % encode_key(message.key).encode())
    for name, value in message.headers.items():
        if value is None:
            raise Refused(f"header {name!r}: NATS has no null values")
        data = value if isinstance(value, bytes) else value.encode()
        if b"\n" in data or b"\r" in data or b"\0" in data:
            plain = name.encode("utf-8", "surrogateescape")
            lines.append(b"%b%b: %b\r\n" % (BASE64.encode(), plain, base64.b64encode(data)))
        else:
            lines.append(b"%b%b\r\n" % (_start(name), data))
    lines.append(b"\r\n")
    return b"".join(lines)


def publish_id(message: Message, group: str | None) -> bytes:
    """What the server knows a publish by, to drop a second one.

    The message's id alone would make it drop copies that come back into a stream within the window, a redriven dead letter for one,
    and drop is lose: so a copy is known by its id *and* its history, which every hop changes, and one for a group alone by the
    group as well. The same copy published twice still is the same.
    """
    identity = _identity(message)
    if ATTEMPT in message.headers or any(name.startswith(PREFIX) and name not in _HISTORY for name in message.headers):
        digest = hashlib.sha256()
        for name, value in message.headers.items():
            if name.startswith(PREFIX):
                data = value if isinstance(value, bytes) else (value or "").encode()
                digest.update(b"%b\0%b\0" % (name.encode("utf-8", "surrogateescape"), data))
        identity = f"{identity}/{digest.hexdigest()[:20]}"
    return (identity if group is None else f"{identity}@{group}").encode()


def _identity(message: Message) -> str:
    """The id where a header line can carry it, else what stands for it."""
    return read_id(message.id) or hashlib.sha256(message.id.encode("utf-8", "surrogatepass")).hexdigest()


def encode_key(key: bytes) -> str:
    """A key as the value of `KEY`."""
    if key.isascii() and b"%" not in key and (text := key.decode()).isprintable() and text.strip() == text:
        return text
    return quote_from_bytes(key, safe="!#$&'()*+,-./:;<=>?@[]^_`{|}~")


def status_of(block: bytes) -> tuple[int, str]:
    """The status that a block begins with and its words; 0 where it has none."""
    line = block[8 : block.find(b"\r\n")].strip()
    if not line:
        return 0, ""
    code, _, text = line.partition(b" ")
    return (int(code) if code.isdigit() and len(code) == 3 else 0), text.decode("utf-8", "replace")


def fields_of(block: bytes) -> list[tuple[str, bytes]]:
    """The fields of a block as they are. What is no field is left out: nothing in it is believed, or raised about."""
    found: list[tuple[str, bytes]] = []
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon and name:
            found.append((name.decode("utf-8", "surrogateescape"), value[1:] if value[:1] == b" " else value))
    return found


def _value(data: bytes) -> HeaderValue:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _unpacked(name: str, data: bytes) -> tuple[str, HeaderValue]:
    if not name.startswith((BASE64, RENAMED)):
        return name, _value(data)
    if name.startswith(BASE64):
        try:
            return name[len(BASE64) :], _value(base64.b64decode(data, validate=True))
        except binascii.Error:
            return name, _value(data)
    return name[len(RENAMED) :], _value(data)


def _read(block: bytes) -> list[tuple[str, str, HeaderValue]]:
    """The fields of a block: the name on the wire, the name and the value that were given."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = RENAMED
    if RENAMED in text or BASE64 in text:
        return [(on_wire, *_unpacked(on_wire, data)) for on_wire, data in fields_of(block)]
    return _fields_in(text)  # text as a whole, which is cheaper


def _fields_in(text: str) -> list[tuple[str, str, HeaderValue]]:
    found: list[tuple[str, str, HeaderValue]] = []
    for line in text.split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and name:
            found.append((name, name, value[1:] if value[:1] == " " else value))
    return found


def _is_ours(native: HeaderValue, known: str) -> bool:
    """Whether `publish_id` made it: then it is no field of the user's."""
    return isinstance(native, str) and (native == known or native.startswith((f"{known}/", f"{known}@")))


class _Text(Headers):
    """A header block, taken apart when somebody looks at all of it. What is looked for by name is found as it lies there.

    Args:
        text: a block of which no field travels under another name than its own.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text
        self._items = ()
        self._last = None
        self._size = -1

    def get(self, name: str, default: str | None = None) -> str | None:
        """See `Headers.get`."""
        text = self._text
        at = text.rfind(f"\r\n{name}:")
        if at < 0 or ":" in name:
            return default
        at += len(name) + 3
        end = text.find("\r\n", at)
        value = text[at:end] if end >= 0 else text[at:]
        return value[1:] if value[:1] == " " else value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def items(self) -> tuple[tuple[str, HeaderValue], ...]:
        """See `Headers.items`."""
        if not self._items:
            self._items = tuple([(name, value) for _, name, value in _fields_in(self._text)])
        return self._items

    def fields(self) -> Sequence[tuple[str, HeaderValue]]:
        """See `Headers.fields`."""
        return self.items()


def read_unkept(block: bytes, body: bytes, position: str, published_at: float | None) -> Message:
    """As `read_message`, for what comes past all streams, requests and answers: of most of them nobody looks at all fields."""
    headers = plain_headers(block)
    if headers is None:
        return read_message(block, body, position, published_at)
    return Message(read_id(headers.get(ID)) or position, body, None, headers, published_at)


def plain_headers(block: bytes) -> Headers | None:
    """The fields of a block, where they are the message's as they stand there; None where it takes `read_message` to tell."""
    if not block:
        return NO_HEADERS
    try:
        return _plain(block.decode())
    except UnicodeDecodeError:
        return None


def _plain(text: str) -> Headers | None:
    return None if KEY in text or MESSAGE_ID in text or RENAMED in text or BASE64 in text else _Text(text)


def read_message(block: bytes, body: bytes, position: str, published_at: float | None) -> Message:
    """The message that arrived. ``position`` names one without an id: the same at each delivery."""
    return _as_written(block, body, published_at) or _read_any(block, body, position, published_at)


def _as_written(block: bytes, body: bytes, published_at: float | None) -> Message | None:
    """The message of a block like `encode` makes of most: the native id, the key, the fields, which are left as they are until
    somebody looks at them. None where it takes `_read_any` to tell."""
    if not block.startswith(_OURS):
        return None
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return None
    end = text.find("\r\n", len(_OURS))
    native, text, key = text[len(_OURS) : end], text[end:], None
    if text.startswith(_KEYED):
        end = text.find("\r\n", len(_KEYED))
        key, text = unquote_to_bytes(text[len(_KEYED) : end]), text[end:]
    headers = None if end < 0 else _plain(text)
    known = None if headers is None else read_id(headers.get(ID))
    if headers is None or known is None or not _is_ours(native, known):
        return None
    return Message(known, body, key, headers, published_at)


def _read_any(block: bytes, body: bytes, position: str, published_at: float | None) -> Message:
    identity = native = key = None
    fields: list[tuple[str, HeaderValue]] = []
    for on_wire, name, value in _read(block) if block else ():
        if on_wire == KEY:
            key = unquote_to_bytes(value or b"")
            continue
        if on_wire == MESSAGE_ID:
            native = value
        elif on_wire == ID:
            identity = value
        fields.append((name, value))
    known = read_id(identity)
    if known is not None and native is not None and _is_ours(native, known):
        fields.remove((MESSAGE_ID, native))
    return Message(known or read_id(native) or position, body, key, Headers(fields), published_at)
