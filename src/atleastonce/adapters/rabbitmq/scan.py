"""Reading through a queue and leaving everything in it.

RabbitMQ shows a message only by handing it out. So each is taken and never settled, and all of them are given back at the
end: given back at once they would come again at once. Nothing of them is kept here: the broker knows what is out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.backlog import ready
from atleastonce.adapters.rabbitmq.connection import Channel, Connection, unexpected
from atleastonce.adapters.rabbitmq.frames import Raw, Sink, ack_frame
from atleastonce.contract import Delivery

_PORTION_BYTES: Final = 8 * 2**20
_PORTION: Final = (20, 2000)
"""Messages asked for at a time. Fewer: three round trips show between them; more: they lie in memory, however large."""

_QUIET_SECONDS: Final = 2.0
"""After this long without a message, somebody else has taken what was counted."""

_NAMES = itertools.count(1)


WORN: Final = 10
"""Hand-outs after which a message may be near its queue's delivery limit (20 by default since 4.0), beyond which it is dropped."""

Renew = Callable[[list[Delivery]], Awaitable[list[Delivery]]]
"""Puts copies of messages at their queue's end, and returns those whose copy is confirmed."""


async def scan(
    connection: Connection, queue: str, waiting: int, deliver: Callable[[Raw], Delivery], renew: Renew | None
) -> AsyncGenerator[list[Delivery]]:
    """The first ``waiting`` messages of ``queue``, in lists.

    With ``renew``, a worn one is not given back, which would count against it, but put back as a copy.

    A consumer's prefetch bounds what is out of it, and nothing is settled. So each portion has a consumer of its own:
    what is out of a cancelled one stays out.

    Raises:
        pika.exceptions.AMQPError, TimeoutError: the queue may not be read, or the connection is lost.
    """
    channel = await connection.channel()
    arrived = _Arrived()
    channel.attach(arrived)
    out = copies = 0
    try:
        # A quorum queue whose leader is not elected yet, as after a restart, counts 0: it is asked for a message, too.
        unsure = waiting == 0
        left, portion = waiting or _PORTION[0], _PORTION[0]
        while left > 0:
            count = min(left, portion)
            size = 0
            renewed: list[Delivery] = []
            name = await _consume(channel, queue, count)
            while count > 0 and (raws := await arrived.take(_QUIET_SECONDS / (1 + unsure), channel)):
                if unsure:
                    left, unsure = count + await ready(connection, queue), False
                count -= len(raws)
                left -= len(raws)
                out += len(raws)
                size += sum(len(raw[4]) + len(raw[5]) for raw in raws)
                found = [deliver(raw) for raw in raws]
                if renew is not None and (worn := [each for each in found if each.count >= WORN]):
                    # The last one goes back, and by its return we know that the broker has taken notice of the others.
                    renewed += await renew(worn if left or waiting == 1 else worn[:-1])
                yield found
            await channel.call("basic_cancel", consumer_tag=name)
            # Not before: the consumer would get as many more, and they are not counted.
            channel.write([ack_frame(channel.number, each.token) for each in renewed])
            out, copies = out - len(renewed), copies + len(renewed)
            if count > 0:
                return
            average = max(1, size // portion)
            portion = max(_PORTION[0], min(_PORTION[1], _PORTION_BYTES // average))
    finally:
        await asyncio.shield(_give_back(connection, channel, queue, out, copies))


async def _give_back(connection: Connection, channel: Channel, queue: str, out: int, copies: int) -> None:
    """Return the ``out`` messages and close, once they are back in the queue. What a channel has settled and returned reaches
    its queues in their own time, and a channel that is closed before takes some of it back: seen with more than 32
    acknowledgements one by one. And whoever looked next would miss some."""
    if channel.closed is None:
        channel.pika.basic_nack(0, multiple=True, requeue=True)
        loop = asyncio.get_running_loop()
        end = loop.time() + _QUIET_SECONDS
        with contextlib.suppress(amqp.AMQPError, TimeoutError):
            while out and await ready(connection, queue) < out + copies:
                if loop.time() > end:
                    break
                await asyncio.sleep(0.02)
    await channel.close()


async def _consume(channel: Channel, queue: str, count: int) -> str:
    name = f"atleastonce-scan-{next(_NAMES)}"
    await channel.call("basic_qos", prefetch_count=count)
    arguments: dict[str, Any] = {"queue": queue, "consumer_tag": name, "on_message_callback": unexpected}
    await channel.call("basic_consume", **arguments)
    return name


class _Arrived(Sink):
    """What was handed out and not yet looked at."""

    def __init__(self) -> None:
        super().__init__()
        self._raws: deque[Raw] = deque()
        self._changed = asyncio.Event()

    def delivered(self, raw: Raw) -> None:
        self._raws.append(raw)
        self._changed.set()

    async def take(self, patience: float, channel: Channel) -> list[Raw]:
        """What is there, as soon as anything is; empty after ``patience`` seconds without."""
        if not self._raws:
            self._changed.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._changed.wait()
            except TimeoutError:
                if channel.closed is not None:
                    raise channel.closed from None
                return []
        raws = list(self._raws)
        self._raws.clear()
        return raws
