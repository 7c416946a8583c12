"""Answers: an exclusive queue for each process that asks, read without acknowledgements.

Not direct reply-to, which ties every request to the one channel that reads the answers: it dies with whatever closes that channel,
and the broker cannot tell a responder that nobody is there. Both kinds are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from pika import exceptions as amqp

from atleastonce import wire
from atleastonce.adapters.rabbitmq.connection import Channel, Connection, unexpected
from atleastonce.adapters.rabbitmq.envelope import Bit, Envelope, identity, parse
from atleastonce.adapters.rabbitmq.frames import Raw, Sink
from atleastonce.adapters.rabbitmq.properties import to_message
from atleastonce.contract import Arrived, Reply
from atleastonce.errors import AtLeastOnceError, Closed

log = logging.getLogger("atleastonce.rabbitmq")

DIRECT: Final = "amq.rabbitmq.reply-to."
"""What the broker makes of ``amq.rabbitmq.reply-to`` begins with this."""

_INBOX = re.compile(
    r"alo\.reply\.[0-9a-f]{32}"
    r"|amq\.gen-[A-Za-z0-9_-]{16,40}"  # a queue that the broker named, as most clients' exclusive ones
    r"|amq\.rabbitmq\.reply-to\.[A-Za-z0-9+/=._-]{8,230}"
)
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between attempts to open it again; the last one again and again. Until the broker has noticed that the old connection
is gone, the queue is locked by it."""


def is_inbox(address: str) -> bool:
    """Whether ``address`` is a queue for replies: ours, one that the broker named, or a direct reply-to."""
    return _INBOX.fullmatch(address) is not None


def asked_by(raw: object) -> tuple[str, str]:
    """``reply-to`` and ``correlation-id`` of a request; "" for what it does not have."""
    if not isinstance(raw, Envelope):
        return "", ""
    short = raw.parsed.short
    found = (short.get(Bit.REPLY, b""), short.get(Bit.CORRELATION, b""))
    return found[0].decode("utf-8", "replace"), found[1].decode("utf-8", "surrogateescape")


class ExclusiveInbox(Sink):
    """The queue of one process, made anew under the same name when its connection is lost."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], arrived: Arrived) -> None:
        super().__init__()
        self._connect = connect
        self._arrived = arrived
        self._name = f"alo.reply.{secrets.token_hex(16)}"
        self._batch: list[Reply] = []
        self._channel: Channel | None = None
        self._after_read: Callable[[Callable[[], None]], None]
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Listen.

        Raises:
            pika.exceptions.AMQPError, TimeoutError: the broker does not let us.
            BrokerUnavailable, PermissionDenied: there is no connection.
        """
        connection = await self._connect()
        channel = await connection.channel()
        self._after_read = connection.wire.after_read
        try:
            arguments = {"x-queue-type": "classic"}  # whatever the virtual host's default: only these are exclusive
            await channel.call("queue_declare", queue=self._name, exclusive=True, arguments=arguments)
            channel.attach(self)
            await channel.call(
                "basic_consume", queue=self._name, auto_ack=True, exclusive=True, on_message_callback=unexpected
            )
        except BaseException:
            await channel.close()
            raise
        self._channel = channel
        channel.on_closed = self._lost
        channel.pika.add_on_cancel_callback(lambda _: self._lost(ConnectionError("the queue was deleted")))
        if channel.closed is not None:
            self._lost(channel.closed)

    def address(self, correlation: str) -> str:
        return self._name

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(amqp.AMQPError, TimeoutError):
                await channel.call("queue_delete", queue=self._name)
            await channel.close()

    def delivered(self, raw: Raw) -> None:
        """An answer. What one read of the socket brings is handed over together."""
        _tag, redelivered, exchange, routing_key, encoded, body = raw
        properties = parse(encoded)
        envelope = Envelope(exchange, routing_key, redelivered, encoded, properties)
        message = to_message(wire.read_id(identity(properties)) or "", properties, envelope, body)
        correlation = properties.short.get(Bit.CORRELATION, b"").decode("utf-8", "replace")
        if not self._batch:
            self._after_read(self._hand_over)
        self._batch.append(Reply(correlation, message))

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, []
        self._arrived(batch)

    def _lost(self, reason: Exception) -> None:
        if self._closed or (self._opening is not None and not self._opening.done()):
            return
        log.warning("the queue for replies is lost (%s); making it again", reason)
        self._opening = asyncio.get_running_loop().create_task(self._again(), name="rabbitmq replies")

    async def _again(self) -> None:
        old, self._channel = self._channel, None
        if old is not None:
            await old.close()
        attempt = 0
        while True:
            try:
                await self.open()
            except Closed:
                return
            except (amqp.AMQPError, TimeoutError, AtLeastOnceError) as error:
                log.info("the queue for replies cannot be made (%s)", error)
            else:
                return
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1
