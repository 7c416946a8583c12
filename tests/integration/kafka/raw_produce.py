"""Records that no client library would write: a Produce request by hand (kafka.apache.org/protocol, version 3)."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence

Fields = Sequence[tuple[bytes, bytes | None]]


async def produce(
    broker: tuple[str, int],
    topic: str,
    partition: int,
    records: Sequence[tuple[bytes, Fields]],
    key: bytes | None = None,
) -> None:
    """Write ``records``, bodies with their header fields, all of one key, and wait until they are there."""
    batch = _batch([_record(index, key, body, fields) for index, (body, fields) in enumerate(records)])
    data = (
        struct.pack(">hhii", -1, -1, 10_000, 1) + _text(topic) + struct.pack(">iii", 1, partition, len(batch)) + batch
    )
    request = struct.pack(">hhi", 0, 3, 1) + _text("raw") + data
    reader, writer = await asyncio.open_connection(*broker)
    try:
        writer.write(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", await reader.readexactly(4))
        answer = await reader.readexactly(length)
    finally:
        writer.close()
    # correlation, topics, the topic's name, partitions, the partition
    (code,) = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(topic.encode()) + 4 + 4)
    assert code == 0, f"error {code}"


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _number(value: int) -> bytes:
    """A signed number of variable length."""
    left, found = (value << 1) ^ (value >> 63), bytearray()
    while left > 127:
        found.append(left & 127 | 128)
        left >>= 7
    return bytes([*found, left])


def _sized(content: bytes | None) -> bytes:
    return _number(-1) if content is None else _number(len(content)) + content


def _record(index: int, key: bytes | None, body: bytes, fields: Fields) -> bytes:
    headers = b"".join(_sized(name) + _sized(value) for name, value in fields)
    return _sized(b"\0" + _number(0) + _number(index) + _sized(key) + _sized(body) + _number(len(fields)) + headers)


def _batch(records: Sequence[bytes]) -> bytes:
    now = int(time.time() * 1000)
    head = struct.pack(">hiqqqhii", 0, len(records) - 1, now, now, -1, -1, -1, len(records))
    checked = head + b"".join(records)
    inner = struct.pack(">ibI", -1, 2, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(inner)) + inner


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
