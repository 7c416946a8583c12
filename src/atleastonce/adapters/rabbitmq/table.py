"""AMQP field tables, read without loss.

pika's own decoder truncates floats to integers, turns every integer into one type, and raises on a timestamp beyond the year
9999, which ends the connection: one foreign message would stop a queue for good. Here each field keeps its bytes
beside its text, so that a hop hands it on exactly as it came.
"""

from __future__ import annotations

import struct
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple

from atleastonce.message import HeaderValue

_LENGTH = struct.Struct(">I")
_PREFIXED: Final = frozenset(b"SxAF")
_FIXED: Final = {
    ord(kind): size for kind, size in zip("tbBUusIiLlfdDTV", (1, 1, 1, 2, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0), strict=True)
}
_SIGNED: Final = frozenset(b"bUsILl")  # RabbitMQ's errata: "l" and "L" are both signed
_UNSIGNED: Final = frozenset(b"BuiT")
_TEXT, _BYTES, _BOOL, _FLOAT, _DOUBLE, _DECIMAL, _VOID = b"SxtfdDV"


class Field(NamedTuple):
    """One field of a table.

    Attributes:
        name: decoded; bytes that are not UTF-8 as surrogates, which `encode_name` turns back.
        value: as text for scalars; bytes for byte arrays and for text that is not UTF-8; None for null and for tables and
            arrays, which have no text.
        raw: the type's letter and the value's bytes, as they came; None where writing ``value`` gives the same bytes.
        nested: whether it is a table or an array.
    """

    name: str
    value: HeaderValue
    raw: bytes | None
    nested: bool = False


# Of a count, more than any broker reaches; Python takes quadratic time for thousands of digits, and then refuses.
_DIGITS: Final = 18

# What a named tuple's own constructor does, without its arguments' binding: messages have a dozen fields each.
_NEW: Final = tuple.__new__


# Of text fields what comes before the value's length (the name with its length, and the type), and the name: the fields of one
# message are those of the next, and what is known of them is not taken apart again.
_KNOWN: Final[dict[bytes, str]] = {}
_MOST_KNOWN: Final = 1024


def read_table(data: bytes, at: int, stop: int) -> list[Field]:
    """The fields of the table whose content is ``data[at:stop]``.

    What cannot be read (an unknown type, a length beyond the end) ends the reading: RabbitMQ parses tables itself and
    refuses such ones, so this is never seen from a broker.
    """
    fields: list[Field] = []
    while at < stop:
        end = at + 1 + data[at]
        begin = end + 1
        if begin + 4 <= stop and (known := _KNOWN.get(head := data[at:begin])) is not None:
            at = begin + 4 + _LENGTH.unpack_from(data, begin)[0]
            if at > stop:
                break
            value = data[begin + 4 : at]
            try:
                fields.append(_NEW(Field, (known, value.decode(), None, False)))
            except UnicodeDecodeError:
                fields.append(Field(known, value, data[end:at]))
            continue
        if end >= stop:
            break
        name = data[at + 1 : end].decode("utf-8", "surrogateescape")
        kind = data[end]
        if kind in _PREFIXED:
            if begin + 4 > stop:
                break
            at = begin + 4 + _LENGTH.unpack_from(data, begin)[0]
        elif kind in _FIXED:
            at = begin + _FIXED[kind]
        else:
            break
        if at > stop:
            break
        if kind == _TEXT:
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[head] = name
            value = data[begin + 4 : at]
            try:
                fields.append(Field(name, value.decode(), None))
            except UnicodeDecodeError:
                fields.append(Field(name, value, data[end:at]))
        elif kind == _BYTES:
            fields.append(Field(name, data[begin + 4 : at], None))
        elif kind in _PREFIXED:
            fields.append(Field(name, None, data[end:at], nested=True))
        elif kind == _VOID:
            fields.append(Field(name, None, None))
        else:
            fields.append(Field(name, _scalar(kind, data[begin:at]), data[end:at]))
    return fields


def _scalar(kind: int, value: bytes) -> str:
    if kind == _BOOL:
        return "true" if value[0] else "false"
    if kind == _FLOAT:
        return repr(struct.unpack(">f", value)[0])
    if kind == _DOUBLE:
        return repr(struct.unpack(">d", value)[0])
    if kind == _DECIMAL:
        return str(Decimal(int.from_bytes(value[1:], "big", signed=True)).scaleb(-value[0]))
    return str(int.from_bytes(value, "big", signed=kind in _SIGNED))


@lru_cache(1024)
def encode_name(name: str) -> bytes:
    """A field's name with its length.

    Raises:
        ValueError: longer than 255 bytes, or not encodable.
    """
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > 255:
        raise ValueError(f"header name {name[:40]!r}... has {len(raw)} bytes; AMQP takes 255")
    return bytes((len(raw),)) + raw


def encode_value(value: HeaderValue) -> bytes:
    """Text as a long string, bytes as a byte array, None as void.

    Raises:
        ValueError: text that UTF-8 cannot express.
    """
    if isinstance(value, str):
        raw = value.encode()
        return b"S" + _LENGTH.pack(len(raw)) + raw
    if value is None:
        return b"V"
    return b"x" + _LENGTH.pack(len(value)) + value


def encode_table(content: bytes) -> bytes:
    """A table's content with its length."""
    return _LENGTH.pack(len(content)) + content


def count_of(fields: list[Field], name: str) -> int | None:
    """The whole number in field ``name``, None where there is none. Of a classic queue it is whatever a producer wrote."""
    for field in fields:
        if field.name == name:
            text = field.value
            known = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= _DIGITS
            return int(text) if known else None  # type: ignore[arg-type]
    return None
