"""pika's connections and channels for coroutines: one future for each operation, none for a message."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.adapters.rabbitmq.frames import Sink, Wire

# pika reports each failed attempt as an error of its own. What matters of it travels in exceptions, conditions and outcomes;
# a program that wants pika's account as well configures its logger.
_pika = logging.getLogger("pika")
_pika.addHandler(logging.NullHandler())
if _pika.level == logging.NOTSET:
    _pika.setLevel(logging.CRITICAL)

# How long a goodbye is waited for. Nobody needs the answer; a broker that is going down itself may not give one.
_GOODBYE_SECONDS = 3.0

Loss = Callable[[Exception], None]


class Channel:
    """An AMQP channel. Dead once ``closed`` is set; a broker that objects closes it, and it alone."""

    def __init__(self, connection: Connection, pika: Any) -> None:
        self.closed: Exception | None = None
        self.on_closed: Loss | None = None
        self._connection = connection
        self._pika = pika
        self._waiting: set[asyncio.Future[Any]] = set()
        self._silent = False  # a question was not answered: no other will be
        pika.add_on_close_callback(self._lost)

    @property
    def number(self) -> int:
        return int(self._pika.channel_number)

    @property
    def largest_frame(self) -> int:
        """Bytes, as agreed with the broker."""
        return int(self._connection.wire.params.frame_max)

    @property
    def pika(self) -> Any:
        """pika's own channel."""
        return self._pika

    def attach(self, sink: Sink) -> None:
        """From now on ``sink`` takes deliveries, confirms and returns."""
        self._connection.wire.sinks[self.number] = sink

    def write(self, pieces: list[bytes]) -> None:
        """Send whole frames."""
        self._connection.wire.write(pieces)

    async def call(self, operation: str, *, ahead: bytes = b"", **arguments: Any) -> Any:
        """Run one of pika's operations and return the broker's answer.

        Args:
            ahead: whole frames of this channel that leave before it, in one write with it where nothing waits to be sent.

        Raises:
            pika.exceptions.AMQPError: the broker closed the channel or the connection instead of answering.
            TimeoutError: no answer within the operation timeout. The channel is then of no further use.
        """
        answer = self._future()
        with self._connection.wire.ahead(ahead):
            getattr(self._pika, operation)(
                callback=lambda frame: _resolve(answer, getattr(frame, "method", frame)), **arguments
            )
        return await self._wait(answer)

    async def confirm(self) -> None:
        """Switch to publisher confirms, which come to the sink."""
        answer = self._future()
        self._pika.confirm_delivery(unexpected, callback=lambda frame: _resolve(answer, frame.method))
        await self._wait(answer)

    async def close(self, *, at_once: bool = False) -> None:
        """A round trip: all that was written before has reached the broker when it returns. Silent if it is dead already.

        ``at_once``: without cancelling its consumers first, as the client would. The broker then returns what is unsettled before
        it lets anybody else take their place; a cancelled consumer's place is taken at once.
        """
        if self.closed is not None:
            return
        if at_once:
            self._pika._consumers.clear()
        answer = self._future()
        with contextlib.suppress(amqp.AMQPError, TimeoutError):
            if not self._pika.is_closing:
                self._pika.close()
            if not self._silent:
                await self._wait(answer)

    def _future(self) -> asyncio.Future[Any]:
        if self.closed is not None:
            raise self.closed
        return asyncio.get_running_loop().create_future()

    async def _wait(self, answer: asyncio.Future[Any]) -> Any:
        self._waiting.add(answer)
        try:
            with self._connection.wire.silence.until("an answer of the broker"):
                async with asyncio.timeout(self._connection.config.operation_timeout):
                    return await answer
        except TimeoutError:
            self._silent = True
            raise
        finally:
            self._waiting.discard(answer)

    def _lost(self, _channel: Any, reason: Exception) -> None:
        self.closed = reason
        self._connection.wire.sinks.pop(self.number, None)
        for answer in list(self._waiting):
            if not answer.done():
                answer.set_exception(reason)
        if self.on_closed is not None:
            self.on_closed(reason)


def _resolve(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():
        answer.set_result(value)


def _give_up(attempt: Any, wires: list[Wire]) -> None:
    """End an attempt to connect, whatever it is at.

    While AMQP is being agreed upon pika's own ``abort`` fails half-way: the connection stays, and a timer, which fails as well.
    Just before that it forgets the connection.
    """
    with contextlib.suppress(Exception):  # it has ended by itself, or see above
        attempt.abort()
    for wire in wires:
        if not wire.is_closed:
            wire.add_on_open_error_callback(lambda *_: None)  # pika's own raises, in the loop
            with contextlib.suppress(Exception):  # nothing to end yet
                wire.abort(amqp.StreamLostError("nobody waits for this connection any more"))


def unexpected(*_: Any) -> None:
    """What pika is given as a callback where a sink takes over."""
    raise RuntimeError("a confirm or delivery went past its sink: this release of pika reads frames in another way")


class Connection:
    """An open AMQP connection. Dead once ``closed`` is set."""

    def __init__(self, config: Config, wire: Wire) -> None:
        self.config = config
        self.wire = wire
        self.closed: Exception | None = None
        self.blocked: str | None = None
        """Why the broker takes no publishes at present."""
        self.on_closed: Loss | None = None
        self.on_blocked: Callable[[str | None], None] | None = None
        self._ended = asyncio.get_running_loop().create_future()
        wire.add_on_close_callback(self._lost)
        wire.add_on_connection_blocked_callback(lambda _, frame: self._block(str(frame.method.reason)))
        wire.add_on_connection_unblocked_callback(lambda *_: self._block(None))

    @classmethod
    async def open(cls, config: Config, purpose: str) -> Connection:
        """Connect to the first host that lets us.

        Raises:
            Exception: pika's, for `atleastonce.adapters.rabbitmq.faults`.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Wire] = loop.create_future()

        def done(outcome: Any) -> None:
            if result.done():  # we were cancelled meanwhile
                if isinstance(outcome, Wire):
                    outcome.close()
            elif isinstance(outcome, Wire):
                result.set_result(outcome)
            else:
                result.set_exception(outcome)

        wires: list[Wire] = []

        class Noted(Wire):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                wires.append(self)

        attempt = Noted.create_connection(config.parameters(purpose), done, custom_ioloop=loop)
        try:
            return cls(config, await result)
        except asyncio.CancelledError:
            _give_up(attempt, wires)
            raise

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's."""
        return tuple(int(part) for part in re.findall(r"\d+", str(self.wire.server_properties.get("version", "")))[:3])

    async def channel(self) -> Channel:
        """Open a channel.

        Raises:
            pika.exceptions.AMQPError: the connection is gone, or has no channels left.
        """
        if self.closed is not None:
            raise self.closed
        opened = asyncio.get_running_loop().create_future()
        channel = Channel(self, self.wire.channel(on_open_callback=lambda pika: _resolve(opened, pika)))
        await channel._wait(opened)
        return channel

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Channel]:
        """A channel to throw away: for questions that the broker answers by closing it."""
        channel = await self.channel()
        try:
            yield channel
        finally:
            await channel.close()

    async def close(self) -> None:
        """Say goodbye, or hang up if nobody answers."""
        if self.closed is None:
            with contextlib.suppress(amqp.ConnectionWrongStateError):
                self.wire.close()
            try:
                async with asyncio.timeout(min(_GOODBYE_SECONDS, self.config.operation_timeout)):
                    await asyncio.shield(self._ended)
            except TimeoutError:
                self.wire.abort(amqp.StreamLostError("the broker did not answer the goodbye"))
        await self._ended

    def _block(self, reason: str | None) -> None:
        self.blocked = reason
        if self.on_blocked is not None:
            self.on_blocked(reason)

    def _lost(self, _wire: Any, reason: Exception) -> None:
        self.closed = reason
        self.wire.sinks.clear()
        if not self._ended.done():
            self._ended.set_result(None)
        if self.on_closed is not None:
            self.on_closed(reason)


class Link:
    """A connection that is made when it is needed, and made again after it was lost."""

    def __init__(self, config: Config, purpose: str) -> None:
        self.current: Connection | None = None
        self.on_blocked: Callable[[str | None], None] | None = None
        self._config = config
        self._purpose = purpose
        self._turn = asyncio.Lock()

    async def get(self) -> Connection:
        """The open connection.

        Raises:
            Exception: as `Connection.open`.
        """
        if self.current is None or self.current.closed is not None:
            async with self._turn:
                if self.current is None or self.current.closed is not None:
                    self.current = await Connection.open(self._config, self._purpose)
                    self.current.on_blocked = self.on_blocked
        return self.current

    async def close(self) -> None:
        async with self._turn:
            if self.current is not None:
                await self.current.close()
