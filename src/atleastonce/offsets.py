"""Out-of-order completion on a log that only remembers one number: what is done, what to commit, what to skip.

A log's consumer group stores one offset per partition. Work that finishes out of order leaves holes behind the newest
finished record, so the offset may only rise to the first hole, and all that was done beyond it would be repeated after
a crash. `OffsetTracker` keeps the holes; `encode` writes what is done beyond the first one into the commit's metadata
text, and `decode` reads it back, so that the next owner repeats only the holes.

Pure: no clock, no IO, no client library. One tracker serves one assignment of one partition; a new assignment gets a
new tracker, so that a late result can never mark a fresh record that happens to have a used offset.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Collection, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

Range: TypeAlias = tuple[int, int]
"""Offsets from the first number up to, not including, the second."""

METADATA_LIMIT = 4096
"""Characters that a broker takes by default (Kafka: ``offset.metadata.max.bytes``); more fails the whole commit."""

_MAGIC = "alo1:"
_RUNS, _BITS = 0x52, 0x42
_MARKED = 0x20
"""Set in the codec: a `Mark` comes first. Releases that do not know it believe nothing of the text, and only repeat some."""
_HEAD = struct.Struct(">BQ")
_CRC = struct.Struct(">I")
_MAX_OFFSET = 2**63 - 1
_MAX_COUNT = 2**31


class Point(NamedTuple):
    """What is worth committing at one moment.

    Attributes:
        offset: the lowest offset that is not done: the next owner starts here. Everything below is done.
        ahead: ranges done beyond ``offset``, ascending, disjoint, each starting above ``offset``.
    """

    offset: int
    ahead: tuple[Range, ...] = ()

    @property
    def done_ahead(self) -> int:
        """How many offsets beyond ``offset`` are done."""
        return sum(end - start for start, end in self.ahead)


class Mark(NamedTuple):
    """What a reader notes before it hands records out, and takes back when it leaves in good order: found by the next one, it
    tells of a reader that did not.

    Attributes:
        begun: how many readers in a row began at about this place and were not seen to leave, the writing one included.
        end: what was handed out by them lies below this offset; the commit's own offset where that is not known.
    """

    begun: int
    end: int


class OffsetTracker(Generic[T]):
    """Which received records of one partition are not done yet.

    Costs one dict entry for each record that is received and not done: memory follows the window, not how far the work
    ran ahead of its oldest record. Offsets must arrive ascending; gaps (compaction, transaction markers, skipped
    records) count as done.

    Args:
        start: the committed offset, where reading begins; None where nothing was committed: the first record decides.
        ahead: what an earlier owner had done beyond ``start``, from `decode`.
    """

    __slots__ = ("_ahead", "open", "position")

    def __init__(self, start: int | None = None, ahead: Sequence[Range] = ()) -> None:
        self.open: dict[int, T] = {}
        """Records received and not done, by offset, ascending."""
        self.position = start
        """The next offset to be received; None before the first record of a partition without a commit."""
        self._ahead = list(ahead)

    def rewound(self, offset: int) -> bool:
        """Whether a record at ``offset`` was received before: the log or the position was reset, and this tracker with
        all that it knows must be thrown away."""
        return self.position is not None and offset < self.position

    @property
    def restored(self) -> bool:
        """Whether records may still come that an earlier owner completed: only then `skip` need be asked."""
        return bool(self._ahead)

    def skip(self, offset: int) -> bool:
        """Whether the record at ``offset`` was completed by an earlier owner. If so it counts as received and done."""
        ahead = self._ahead
        while ahead and ahead[0][1] <= offset:
            del ahead[0]
        if ahead and ahead[0][0] <= offset:
            self.position = offset + 1
            return True
        return False

    def receive(self, offsets: Sequence[int], records: Sequence[T]) -> None:
        """Take note of records, in the log's order, *before* anybody else sees them."""
        if offsets:
            self.open.update(zip(offsets, records, strict=True))
            self.position = max(self.position or 0, offsets[-1] + 1)

    def complete(self, offset: int) -> bool:
        """Mark one record done; False if it was done already or never received."""
        if offset not in self.open:
            return False
        del self.open[offset]
        return True

    def reached(self, offset: int) -> None:
        """Take note that no record lies below ``offset`` but those received: the log ends there, with records that are none
        (transaction markers)."""
        if self.position is not None and offset > self.position:
            self.position = offset

    def point(self, done: Collection[int] = ()) -> Point | None:
        """What may be committed now, or could be if ``done`` were completed; None while there is nothing to commit."""
        if self.position is None:
            return None
        open_ = [offset for offset in self.open if offset not in done] if done else list(self.open)
        position = self.position
        ahead: list[Range] = []
        if open_:
            offset = previous = open_[0]
            for current in open_:
                if current > previous + 1:
                    ahead.append((previous + 1, current))
                previous = current
            if position > previous + 1:
                ahead.append((previous + 1, position))
        else:
            offset = position
        for start, end in self._ahead:
            if end <= position:
                continue
            start = max(start, position)
            if start <= offset:  # nothing is open before it
                offset = end
            elif ahead and ahead[-1][1] == start:
                ahead[-1] = (ahead[-1][0], end)
            else:
                ahead.append((start, end))
        return Point(offset, tuple(ahead))


def encode(point: Point, limit: int = METADATA_LIMIT, mark: Mark | None = None) -> str:
    """The metadata text of ``point`` and ``mark``: at most ``limit`` characters, "" where nothing is done ahead or marked.

    Run lengths or a bitmap, whichever is shorter. Where neither holds everything, as much as fits is kept, lowest
    offsets first: what is left out is repeated after a crash, never lost.
    """
    note = b"" if mark is None else _varint(mark.begun) + _varint(max(0, mark.end - point.offset))
    room = max(0, (limit - len(_MAGIC)) // 4 * 3 - _HEAD.size - _CRC.size - len(note))
    if not (point.ahead or note) or room < 2:
        return ""
    runs, in_runs = _runs(point, room)
    bits, in_bits = _bits(point, room)
    codec, payload = (_RUNS, runs) if (in_runs, -len(runs)) >= (in_bits, -len(bits)) else (_BITS, bits)
    data = _HEAD.pack(codec | _MARKED if note else codec, point.offset) + note + payload
    return _MAGIC + base64.b64encode(data + _CRC.pack(zlib.crc32(data))).decode("ascii")


def decode(metadata: str | None, committed: int) -> tuple[Range, ...] | None:
    """The ranges done beyond ``committed``; () where the text is empty, None where it is not ours to believe.

    Not believed: another program's text, a damaged one, or one written for another offset (somebody has moved the
    group since). Believing a wrong one would skip records; not believing a right one only repeats some.
    """
    return () if not metadata else _read(metadata, committed)[0]


def read_mark(metadata: str | None, committed: int) -> Mark | None:
    """The mark beside ``committed``; None where there is none, or the text is not ours to believe."""
    return None if not metadata else _read(metadata, committed)[1]


def _read(metadata: str, committed: int) -> tuple[tuple[Range, ...] | None, Mark | None]:
    """What `encode` was given; (None, None) where it is not ours to believe."""
    found = _unpack(metadata, committed)
    if found is None:
        return None, None
    codec, base, payload = found
    mark = None
    if codec & _MARKED:
        count, at = _read_varint(payload, 0)
        delta, at = _read_varint(payload, at)
        if at < 0 or not 0 < count <= _MAX_COUNT or base + delta > _MAX_OFFSET:
            return None, None
        codec, mark, payload = codec & ~_MARKED, Mark(count, base + delta), payload[at:]
    if codec == _RUNS:
        ranges = _read_runs(payload, base)
    else:
        ranges = _read_bits(payload, base) if codec == _BITS else None
    return (None, None) if ranges is None else (ranges, mark)


def _unpack(metadata: str, committed: int) -> tuple[int, int, bytes] | None:
    """Codec, base offset and payload of a text that is ours, undamaged, and written for ``committed``."""
    if not metadata.startswith(_MAGIC) or len(metadata) > 4 * METADATA_LIMIT:
        return None
    try:
        raw = base64.b64decode(metadata[len(_MAGIC) :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    data, check = raw[: -_CRC.size], raw[-_CRC.size :]
    if len(data) < _HEAD.size or _CRC.pack(zlib.crc32(data)) != check:
        return None
    codec, base = _HEAD.unpack_from(data)
    if base != committed:
        return None
    return codec, base, data[_HEAD.size :]


def _runs(point: Point, room: int) -> tuple[bytes, int]:
    """Alternating varints, *todo* then *done*, from the committed offset on; and how many done offsets they hold."""
    out = bytearray()
    covered, cursor = 0, point.offset
    for start, end in point.ahead:
        pair = _varint(start - cursor) + _varint(end - start)
        if len(out) + len(pair) > room:
            break
        out += pair
        covered += end - start
        cursor = end
    return bytes(out), covered


def _bits(point: Point, room: int) -> tuple[bytes, int]:
    """One bit for each offset after the committed one, lowest first; and how many done offsets they hold."""
    if not point.ahead:
        return b"", 0
    first, last = point.offset + 1, min(point.ahead[-1][1], point.offset + 1 + room * 8)
    value = covered = 0
    for start, end in point.ahead:
        end = min(end, last)
        if end <= start:
            break
        value |= ((1 << (end - start)) - 1) << (start - first)
        covered += end - start
    return value.to_bytes((last - first + 7) // 8, "little"), covered


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(payload: bytes, at: int) -> tuple[int, int]:
    """The number at ``at`` and where the next begins; (0, -1) where there is none."""
    value = shift = 0
    while 0 <= at < len(payload) and shift < 64:
        byte = payload[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    return 0, -1


def _read_runs(payload: bytes, base: int) -> tuple[Range, ...] | None:
    numbers: list[int] = []
    value = shift = 0
    for byte in payload:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            continue
        numbers.append(value)
        value = shift = 0
    if shift or len(numbers) % 2:
        return None
    ranges: list[Range] = []
    cursor = base
    for todo, done in zip(numbers[::2], numbers[1::2], strict=True):
        if todo == 0 or done == 0 or cursor + todo + done > _MAX_OFFSET:
            return None
        ranges.append((cursor + todo, cursor + todo + done))
        cursor += todo + done
    return tuple(ranges)


def _read_bits(payload: bytes, base: int) -> tuple[Range, ...] | None:
    value = int.from_bytes(payload, "little")
    ranges: list[Range] = []
    cursor = base + 1
    while value:
        todo = (value & -value).bit_length() - 1
        value >>= todo
        done = (~value & (value + 1)).bit_length() - 1
        value >>= done
        ranges.append((cursor + todo, cursor + todo + done))
        cursor += todo + done
    return tuple(ranges) if cursor <= _MAX_OFFSET else None
