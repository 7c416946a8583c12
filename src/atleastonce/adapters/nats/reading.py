"""What the socket brings, handed over at once.

Through nats-py's stream and the task that reads it, each read of the socket costs two copies and a turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_HUNG_UP = "the server closed the connection"


class Reading(asyncio.Protocol):
    """Takes the place of a stream's protocol.

    Args:
        before: whose place it takes. `StreamWriter.drain` goes on asking that one, so it is told what it has to know.
        came: told of all bytes. Must not raise.
        end: told why there are no more; perhaps twice.

    Attributes:
        full: whether what is to be written waits for the peer to read.
    """

    def __init__(
        self, before: asyncio.Protocol, came: Callable[[bytes], None], end: Callable[[Exception], None]
    ) -> None:
        self._came = came
        self.full = False
        self._before = before
        self._end = end

    def data_received(self, data: bytes) -> None:
        self._came(data)

    def eof_received(self) -> None:
        self._end(ConnectionResetError(_HUNG_UP))

    def connection_lost(self, error: Exception | None) -> None:
        self._before.connection_lost(error)
        self._end(error or ConnectionResetError(_HUNG_UP))

    def pause_writing(self) -> None:
        self.full = True
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self.full = False
        self._before.resume_writing()


async def take_over(
    stream: asyncio.StreamReader,
    transport: asyncio.Transport,
    came: Callable[[bytes], None],
    end: Callable[[Exception], None],
) -> Reading:
    """Have ``came`` told of what ``stream`` has and has not given yet, and of all that ``transport`` brings from now on.

    Raises:
        ConnectionResetError: there is nothing to come.
        Exception: what the stream has failed with.
    """
    if stream.at_eof():
        raise ConnectionResetError(_HUNG_UP)
    before = transport.get_protocol()
    assert isinstance(before, asyncio.Protocol)  # noqa: S101 - a stream's is
    reading = Reading(before, came, end)
    transport.set_protocol(reading)
    stream.feed_eof()  # no more comes there, so that reading the rest does not wait
    came(await stream.read())
    return reading
