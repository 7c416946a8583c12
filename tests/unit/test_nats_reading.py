"""The place of nats-py's stream is taken without losing a byte, and the end of a connection is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from front_kit import until

from atleastonce.adapters.nats.reading import Reading, take_over


class Told:
    """What came, and why no more does."""

    def __init__(self) -> None:
        self.came = b""
        self.ends: list[Exception] = []

    def take(self, data: bytes) -> None:
        self.came += data


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamWriter]]:
    """Both streams of one end, and what the other end writes with."""
    others: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    async with await asyncio.start_server(lambda _, writer: others.put_nowait(writer), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        other = await others.get()
        try:
            yield reader, writer, other
        finally:
            writer.transport.abort()
            other.transport.abort()


async def emptied(writer: asyncio.StreamWriter) -> None:
    """Read what comes to where ``writer`` writes from, until cancelled."""
    reader: asyncio.StreamReader = writer.transport.get_protocol()._stream_reader  # type: ignore[union-attr]
    while await reader.read(1 << 16):
        pass


async def test_what_came_before_comes_first_and_nothing_twice() -> None:
    told = Told()
    async with connected() as (reader, writer, other):
        other.write(b"INFO\r\nearly")
        assert await reader.readline() == b"INFO\r\n"
        await until(lambda: bytes(reader._buffer) == b"early")  # type: ignore[attr-defined]
        await take_over(reader, writer.transport, told.take, told.ends.append)
        assert told.came == b"early"
        other.write(b" and late")
        await until(lambda: told.came == b"early and late")
        assert not told.ends
        other.close()
        await until(lambda: told.ends)
        assert isinstance(told.ends[0], ConnectionResetError)


async def test_a_connection_that_is_closed_already_is_not_taken_over() -> None:
    told = Told()
    async with connected() as (reader, writer, other):
        other.close()
        await until(reader.at_eof)
        with pytest.raises(ConnectionResetError, match="closed the connection"):
            await take_over(reader, writer.transport, told.take, told.ends.append)


async def test_a_writer_waits_for_a_peer_that_does_not_read_and_is_told_of_its_end() -> None:
    told = Told()
    async with connected() as (reader, writer, other):
        other.transport.pause_reading()  # type: ignore[attr-defined]
        reading: Reading = await take_over(reader, writer.transport, told.take, told.ends.append)
        assert not reading.full
        while not reading.full:
            writer.write(bytes(1 << 16))
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        other.transport.resume_reading()  # type: ignore[attr-defined]
        emptying = asyncio.create_task(emptied(other))  # its buffer is full before ours is empty, as a rule
        await draining
        assert not reading.full
        emptying.cancel()
        other.transport.pause_reading()  # type: ignore[attr-defined]
        while not reading.full:
            writer.write(bytes(1 << 16))
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        other.transport.abort()
        with pytest.raises(ConnectionError):
            await draining
        assert told.ends
