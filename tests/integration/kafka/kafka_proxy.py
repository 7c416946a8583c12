"""Between Kafka's clients and their broker: a proxy that knows the protocol well enough to change single answers."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

METADATA, OFFSET_COMMIT = 3, 8
FLEXIBLE = 9  # from this version on metadata has compact arrays


class KafkaProxy:
    """Forwards frames; see `proxied`.

    Args:
        upstream: the broker's door whose advertised address is the proxy's.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._swallowed: frozenset[int] = frozenset()
        self._brokerless = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.changed: Counter[int] = Counter()
        """By kind of request: how many were answered otherwise, or never."""

    @contextmanager
    def brokerless(self) -> Iterator[None]:
        """Metadata names topics and no broker, as a broker that is being fenced or shut down answers."""
        self._brokerless = True
        try:
            yield
        finally:
            self._brokerless = False

    @contextmanager
    def swallowing(self, *kinds: int) -> Iterator[None]:
        """Requests of these kinds do not arrive, and their connections stay open."""
        self._swallowed = frozenset(kinds)
        try:
            yield
        finally:
            self._swallowed = frozenset()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._upstream.rpartition(":")
        asked: dict[int, tuple[int, int]] = {}
        try:
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        self._writers |= {writer, inner_writer}
        both = [
            asyncio.create_task(self._requests(reader, inner_writer, asked)),
            asyncio.create_task(self._answers(inner_reader, writer, asked)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        writer.close()
        inner_writer.close()
        self._writers -= {writer, inner_writer}

    def cut(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, tuple[int, int]]
    ) -> None:
        async for frame in _frames(reader):
            kind, version, number = struct.unpack_from(">hhi", frame)
            if kind in self._swallowed:
                self.changed[kind] += 1
                continue
            asked[number] = kind, version
            writer.write(struct.pack(">i", len(frame)) + frame)

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, tuple[int, int]]
    ) -> None:
        async for frame in _frames(reader):
            kind, version = asked.pop(struct.unpack_from(">i", frame)[0])
            if kind == METADATA and self._brokerless and version >= FLEXIBLE:
                frame = _without_brokers(frame)
                self.changed[kind] += 1
            writer.write(struct.pack(">i", len(frame)) + frame)


@asynccontextmanager
async def proxied(upstream: str, listen: str) -> AsyncIterator[KafkaProxy]:
    """A proxy that listens on ``listen`` within the block."""
    proxy = KafkaProxy(upstream)
    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(proxy.serve, host, int(port))
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    try:
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            yield await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return


def _without_brokers(frame: bytes) -> bytes:
    """A metadata answer with an empty list of brokers, all else as it was."""
    begin = place = 4 + 1 + 4  # the number, no tagged fields, the throttle time
    count, place = _varint(frame, place)
    for _ in range(count - 1):
        place += 4  # its id
        place = _past_text(frame, place) + 4  # its host, its port
        place = _past_text(frame, place)  # its rack
        tags, place = _varint(frame, place)
        assert not tags
    return frame[:begin] + b"\x01" + frame[place:]


def _past_text(frame: bytes, place: int) -> int:
    size, place = _varint(frame, place)
    return place + max(0, size - 1)


def _varint(frame: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = frame[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
