"""Reading through a queue and leaving everything in it.

RabbitMQ shows a message only by handing it out. So each is taken and never settled, and all of them are given back at the
end: given back at once they would come again at once. Nothing of them is kept here: the broker knows what is out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.backlog import ready
from atleastonce.adapters.rabbitmq.connection import Channel, Connection, unexpected
from atleastonce.adapters.rabbitmq.frames import Raw, Sink, ack_frame
from atleastonce.contract import Delivery

_PORTION_BYTES: Final = 4 * 2**20
_PORTION: Final = (20, 2000)
"""Messages asked for at a time, and as many again are on their way while they are read. Fewer: the round trips of asking show;
more: they lie in memory, however large."""

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
    what is out of a cancelled one stays out. There are two readers, so that the broker always has somebody to hand out to; where
    something may have to be put back there is one.

    Raises:
        pika.exceptions.AMQPError, TimeoutError: the queue may not be read, or the connection is lost.
    """
    news = asyncio.Event()
    readers = [_Reader(await connection.channel(), queue, news)]
    try:
        # A quorum queue whose leader is not elected yet, as after a restart, counts 0: it is asked for a message, too.
        unsure = waiting == 0
        left = waiting or _PORTION[0]
        left -= readers[0].ask(min(left, _PORTION[0]))
        while any(reader.awaited for reader in readers):
            reader = await _first_to_have(readers, news, _QUIET_SECONDS / (1 + unsure))
            if reader is None:
                return
            if unsure:
                left, unsure = await ready(connection, queue), False
            found = [deliver(raw) for raw in reader.take()]
            if renew is not None and (worn := [each for each in found if each.count >= WORN]):
                # The last one goes back, and by its return we know that the broker has taken notice of the others.
                reader.renewed += await renew(worn if left + reader.awaited or waiting == 1 else worn[:-1])
            yield found
            if reader.awaited:
                continue
            reader.finish()
            if left and renew is None and len(readers) == 1:
                readers.append(_Reader(await connection.channel(), queue, news))
            for each in readers:
                if left and not each.awaited:
                    left -= each.ask(min(left, _fitting(reader.average)))
            await asyncio.sleep(0)  # they are asked before anybody reads on
    finally:
        await asyncio.shield(_give_back(connection, queue, readers))


def _fitting(average: int) -> int:
    """How many messages of ``average`` bytes to ask for. Powers of two: a consumer like the last one costs a round trip less."""
    most = max(_PORTION[0], min(_PORTION[1], _PORTION_BYTES // max(1, average)))
    return most if most in _PORTION else 1 << (most.bit_length() - 1)


async def _first_to_have(readers: list[_Reader], news: asyncio.Event, patience: float) -> _Reader | None:
    """The one that was handed most; None after ``patience`` seconds in which nobody was handed any.

    Raises:
        pika.exceptions.AMQPError, TimeoutError: what one of them asked was refused, or not answered.
    """
    while True:
        asking = [reader for reader in readers if reader.is_asking()]
        best = max(readers, key=lambda reader: len(reader.raws))
        if best.raws:
            return best
        news.clear()
        try:
            async with asyncio.timeout(None if asking else patience):
                await news.wait()
        except TimeoutError:
            for reader in readers:
                if reader.channel.closed is not None:
                    raise reader.channel.closed from None
            return None


async def _give_back(connection: Connection, queue: str, readers: list[_Reader]) -> None:
    """Return what is out and close, once it is back in the queue beside what lay there. What a channel has settled and returned
    reaches its queues in their own time, and a channel that is closed before takes some of it back: seen with more than 32
    acknowledgements one by one. And whoever looked next would miss some."""
    for reader in readers:
        await reader.leave()  # all of them, before anything is returned to which another would help itself
    whole = 0
    if out := sum([reader.out for reader in readers]):
        with contextlib.suppress(amqp.AMQPError, TimeoutError):  # then nobody can tell when it is back
            whole = await ready(connection, queue) + out  # not earlier: copies were put there, and others may have sent
    for reader in readers:
        reader.give_back()
    loop = asyncio.get_running_loop()
    end = loop.time() + _QUIET_SECONDS
    with contextlib.suppress(amqp.AMQPError, TimeoutError):
        while whole and await ready(connection, queue) < whole:
            if loop.time() > end:
                break
            await asyncio.sleep(0.02)
    for reader in readers:
        await reader.channel.close()


class _Reader(Sink):
    """A channel that is handed one portion after another, each by a consumer of its own.

    Attributes:
        awaited: messages that were asked for and not taken yet.
        average: bytes of those of the portion that were taken.
        raws: handed out and not taken yet.
        renewed: deliveries of the portion that were put back as copies.
    """

    def __init__(self, channel: Channel, queue: str, news: asyncio.Event) -> None:
        super().__init__()
        self.channel = channel
        self.awaited = 0
        self.raws: list[Raw] = []
        self.renewed: list[Delivery] = []
        self._queue = queue
        self._news = news
        self._consumer = ""
        self._prefetch = 0
        self._asking: asyncio.Task[None] | None = None
        self._taken = self._bytes = self._out = 0
        channel.attach(self)

    @property
    def average(self) -> int:
        return self._bytes // max(1, self._taken)

    def delivered(self, raw: Raw) -> None:
        self.raws.append(raw)
        self._news.set()

    def ask(self, count: int) -> int:
        """Begin to ask for ``count``; returns it."""
        self.awaited = count
        self._taken = self._bytes = 0
        self._asking = asyncio.ensure_future(self._consume(count))
        self._asking.add_done_callback(lambda _: self._news.set())
        return count

    async def _consume(self, count: int) -> None:
        if count != self._prefetch:
            await self.channel.call("basic_qos", prefetch_count=count)
            self._prefetch = count
        self._consumer = f"atleastonce-scan-{next(_NAMES)}"
        arguments: dict[str, Any] = {"queue": self._queue, "on_message_callback": unexpected}
        await self.channel.call("basic_consume", consumer_tag=self._consumer, **arguments)

    def is_asking(self) -> bool:
        """Whether the broker has not answered yet. Raises what it was asked in vain with."""
        if self._asking is None:
            return False
        if self._asking.done():
            asked, self._asking = self._asking, None
            asked.result()
            return False
        return True

    def take(self) -> list[Raw]:
        """What is there."""
        raws, self.raws = self.raws, []
        self.awaited -= len(raws)
        self._taken += len(raws)
        self._out += len(raws)
        self._bytes += sum([len(raw[4]) + len(raw[5]) for raw in raws])
        return raws

    def finish(self) -> None:
        """Be handed no more of this portion. What is out stays out, but for what was put back as a copy."""
        if self.channel.closed is not None:
            raise self.channel.closed
        name, self._consumer = self._consumer, ""
        self.channel.pika.basic_cancel(name)
        self._end_renewed()  # not before: the consumer would get as many more, and they are not counted

    def _end_renewed(self) -> None:
        """What was put back as a copy ends here: given back as well it would be there twice."""
        self.channel.write([ack_frame(self.channel.number, each.token) for each in self.renewed])
        self._out -= len(self.renewed)
        self.renewed = []

    async def leave(self) -> None:
        """Be handed no more, whatever it is at. What was on its way has come when it returns."""
        if self._asking is not None:
            # A consumer that nobody waits for any more would help itself to what is given back.
            await asyncio.wait({self._asking}, timeout=_QUIET_SECONDS)
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        name, self._consumer = self._consumer, ""
        if name and self.channel.closed is None:
            with contextlib.suppress(amqp.AMQPError, TimeoutError):
                await self.channel.call("basic_cancel", consumer_tag=name)
        if self.renewed and self.channel.closed is None:
            self._end_renewed()

    @property
    def out(self) -> int:
        """Messages that are here and not settled."""
        return 0 if self.channel.closed is not None else self._out + len(self.raws)

    def give_back(self) -> None:
        """Return all that is out."""
        if self.channel.closed is None:
            self.channel.pika.basic_nack(0, multiple=True, requeue=True)
