"""Publishing: confirms pipelined on one channel, one future for each call, an outcome for each message.

What the broker objects to closes the channel under everything else that is on it, and AMQP does not say which publish it was. So
after such a close all of them are unknown, and as many of the next ones travel alone: the one that offends is found
when it comes again, and refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from atleastonce.adapters.rabbitmq import faults
from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.adapters.rabbitmq.confirms import Batch, Ledger, Pending
from atleastonce.adapters.rabbitmq.connection import Channel, Connection, Link
from atleastonce.adapters.rabbitmq.envelope import message_id
from atleastonce.adapters.rabbitmq.frames import Sink, content_frames, publish_frame
from atleastonce.adapters.rabbitmq.lists import Encoder
from atleastonce.adapters.rabbitmq.patience import Patience
from atleastonce.adapters.rabbitmq.properties import Refused
from atleastonce.adapters.rabbitmq.replies import DIRECT
from atleastonce.adapters.rabbitmq.routes import Route, Routes
from atleastonce.channels import Channel as Destination
from atleastonce.contract import Code, Outcome, Outgoing, rejected, unknown
from atleastonce.errors import Closed

_CHUNK: Final = 256
"""Messages encoded in one go: between two of these the event loop and other senders have their turn."""

_ROUTES: Final = 10_000
"""Destinations whose frame is kept: of the inboxes of all processes that ever asked, most are gone."""

_FLUSH: Final = 64 * 1024
"""Bytes joined for one write to the socket."""


class _Stopped(Exception):
    """The rest of a list is not sent: what came before it is unknown, and must not be overtaken."""


def _go_on(batch: Batch, channel: Channel | None = None) -> None:
    if batch.failed or (channel is not None and channel.closed is not None):
        raise _Stopped("not sent: an earlier message of the list is unconfirmed")


class _Confirms(Sink):
    """The confirms and returns of one channel."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__()
        self.ledger = Ledger()
        self._publisher = publisher

    def confirmed(self, tag: int, multiple: bool, ok: bool) -> None:
        self.ledger.confirmed(tag, multiple, ok)
        self._publisher.confirmed()

    def returned(self, code: int, text: str, exchange: str, routing_key: str, properties: bytes) -> None:
        why = f'exchange "{exchange}" has no queue: no group would get it' if exchange else f'no queue "{routing_key}"'
        self.ledger.returned(exchange, routing_key, message_id(properties), f"{why} ({code} {text})")


class Publisher:
    """All that one adapter sends."""

    def __init__(self, config: Config, link: Link, routes: Routes) -> None:
        self._config = config
        self._link = link
        self._routes = routes
        self._channel: Channel | None = None
        self._ledger = Ledger()
        self._frames: dict[Route, bytes] = {}
        self._turn = asyncio.Lock()
        self._waiter: asyncio.Future[None] | None = None
        self._suspects = 0
        self._patience = Patience(link)
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        """As `atleastonce.contract.Adapter.send`."""
        if self._closed:
            raise Closed("the adapter is closed")
        if not items:
            return []
        loop = asyncio.get_running_loop()
        batch = Batch(len(items), loop.create_future())
        self._active += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(self._config.send_timeout) as limit:
                for start in range(0, len(items), _CHUNK):
                    await self._send_chunk(items, range(start, min(start + _CHUNK, len(items))), batch)
                    # A long list may take long, as long as it goes on.
                    limit.reschedule(loop.time() + self._config.send_timeout)
                await batch.settled
        except TimeoutError:
            self._give_up(batch)
        except _Stopped as stopped:
            await self._last_words(batch, str(stopped))
        except Refused as refused:
            batch.fill(rejected(refused.code, str(refused)))
        finally:
            if batch.left:
                self._ledger.abandon(batch)
            self.look_again()
            self._active -= 1
            if not self._active:
                self._idle.set()
        return [outcome for outcome in batch.outcomes if outcome is not None]

    async def close(self) -> None:
        """Take no more, and wait for what is being sent."""
        self._closed = True
        await self._idle.wait()
        if self._channel is not None:
            await self._channel.close()

    def confirmed(self) -> None:
        """Publishes were confirmed or refused one by one: they were not what the broker objected to."""
        if self._suspects:
            self._suspects -= 1
        self.look_again()

    def look_again(self) -> None:
        """Let the writer go on if there is room now."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        config, ledger = self._config, self._ledger
        few = 4 * len(ledger) <= 3 * config.publish_window and 4 * ledger.bytes <= 3 * config.publish_window_bytes
        if not ledger or (few and not self._suspects):
            waiter.set_result(None)

    def _too_late(self) -> Outcome:
        waited = f"{self._config.send_timeout:g} s"
        connection = self._link.current
        if connection is None or connection.closed is not None:
            return unknown(Code.UNAVAILABLE, f"no connection within {waited}: {self._patience.trouble}")
        if connection.blocked is not None:
            return unknown(Code.OVERLOADED, f"blocked by the broker for {waited}: {connection.blocked}")
        return unknown(Code.TIMEOUT, f"no confirm within {waited}")

    async def _last_words(self, batch: Batch, why: str) -> None:
        """Give what was never written its outcome now, and wait for the confirms of what was."""
        written = self._ledger.of(batch)
        for index, outcome in enumerate(batch.outcomes):
            if outcome is None and index not in written:
                batch.end(index, unknown(Code.UNAVAILABLE, why))
        try:
            async with asyncio.timeout(self._config.operation_timeout):
                await batch.settled
        except TimeoutError:
            self._give_up(batch)

    def _give_up(self, batch: Batch) -> None:
        self._ledger.abandon(batch)
        batch.fill(self._too_late())

    async def _send_chunk(self, items: Sequence[Outgoing], indexes: range, batch: Batch) -> None:
        ready: list[tuple[int, Route, bytes]] = []
        encode = Encoder(self._config.max_message_bytes, user=self._config.user, now=time.time()).encode
        for index in indexes:
            item = items[index]
            try:
                to = item.destination
                encoded = encode(item.message, asking=isinstance(to, Destination) and to.requests)
                route = self._routes.known(item)
                if route is None:
                    route = await self._patience.insist(partial(self._routes.find, item))
            except Refused as refused:
                batch.end(index, rejected(refused.code, str(refused)))
            else:
                ready.append((index, route, encoded))
        if ready:
            async with self._turn:
                await self._write(items, ready, batch)

    async def _confirming(self) -> Channel:
        """The channel to publish on; a new one where the last was lost."""
        channel = self._channel
        if channel is None or channel.closed is not None:
            channel = await self._patience.insist(self._open_channel)
        return channel

    async def _open_channel(self, connection: Connection) -> Channel:
        channel = await connection.channel()
        confirms = _Confirms(self)
        channel.attach(confirms)
        await channel.confirm()
        channel.on_closed = self._lost
        self._ledger, self._channel = confirms.ledger, channel
        self._frames.clear()
        return channel

    async def _write(self, items: Sequence[Outgoing], ready: list[tuple[int, Route, bytes]], batch: Batch) -> None:
        _go_on(batch)
        channel = await self._confirming()
        largest, number, ledger = channel.largest_frame, channel.number, self._ledger
        parts: list[bytes] = []
        size = 0
        try:
            for index, route, encoded in ready:
                message = items[index].message
                while self._full(message.size):
                    self._flush(channel, parts, size)
                    parts, size = [], 0
                    await self._room()
                    _go_on(batch, channel)
                if route not in self._frames:
                    if len(self._frames) >= _ROUTES:
                        self._frames.clear()
                    # A direct reply-to is no queue to the broker: a mandatory answer would be delivered and come back as well.
                    direct = route.routing_key.startswith(DIRECT)
                    self._frames[route] = publish_frame(number, *route, mandatory=not direct)
                parts.append(self._frames[route])
                parts += content_frames(number, encoded, message.body, largest)
                ledger.add(Pending(batch, index, message.size, *route, message.id))
                size += message.size
                if size > _FLUSH:
                    self._flush(channel, parts, size)
                    parts, size = [], 0
        finally:
            self._flush(channel, parts, size)

    def _full(self, size: int) -> bool:
        ledger, config, connection = self._ledger, self._config, self._link.current
        return (
            len(ledger) >= config.publish_window
            or (len(ledger) > 0 and (self._suspects > 0 or ledger.bytes + size > config.publish_window_bytes))
            or (connection is not None and connection.blocked is not None)
        )

    async def _room(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _flush(self, channel: Channel, parts: list[bytes], size: int) -> None:
        if parts and channel.closed is None:
            # Large bodies are not joined: that would copy them, and again for every part that the socket takes.
            channel.write(parts if size > 2 * _FLUSH else [b"".join(parts)])

    def _lost(self, reason: Exception) -> None:
        fault = faults.classify(reason)
        offends = faults.reply_code(reason) in faults.CONTENT
        if offends and len(self._ledger) == 1:
            self._ledger.fail(lambda _: rejected(fault.code, fault.detail))
        else:
            if offends:
                self._suspects = max(self._suspects, len(self._ledger))
            code = Code.OVERLOADED if fault.code is Code.OVERLOADED else Code.UNAVAILABLE
            self._ledger.fail(lambda _: unknown(code, fault.detail))
        self._routes.forget()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
