"""One source being read: a channel of its own, a buffer, and settlements in the fewest frames."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq import faults, topology
from atleastonce.adapters.rabbitmq.barrier import Barrier
from atleastonce.adapters.rabbitmq.connection import Channel, Connection
from atleastonce.adapters.rabbitmq.envelope import Envelope, came_back, delivery_count, identity, parse
from atleastonce.adapters.rabbitmq.frames import Raw, Sink
from atleastonce.adapters.rabbitmq.intake import Intake
from atleastonce.adapters.rabbitmq.properties import to_message
from atleastonce.adapters.rabbitmq.strays import Strays
from atleastonce.adapters.rabbitmq.tags import Tags
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import OK, Ack, Delivery, Listener, Outcome, Settlement, Subscription, Window
from atleastonce.errors import AtLeastOnceError, Closed, ConnectionLost, NotFound
from atleastonce.silence import Owed
from atleastonce.wake import Signal
from atleastonce.wire import read_id

_EPOCHS = itertools.count(1)
_DIED = b"x-first-death-queue"


def read_delivery(raw: Raw, source: Source, strays: Strays, epoch: int, rooms: str, *, counts: bool = True) -> Delivery:
    """The delivery in ``raw``. One that expired in a queue whose name begins with ``rooms`` has come back from a retry.

    ``counts``: as of `delivery_count`.
    """
    tag, redelivered, exchange, routing_key, encoded, body = raw
    properties = parse(encoded)
    id = read_id(identity(properties)) or strays.identify(body, redelivered)
    envelope = Envelope(exchange, routing_key, redelivered, encoded, properties)
    delivery = Delivery(
        to_message(id, properties, envelope, body),
        source,
        source.name,
        "",
        epoch,
        tag,
        delivery_count(properties, redelivered, counts=counts),
        0.0,
        envelope,
    )
    if _DIED in encoded:  # of most there is nothing to look for
        delivery.returned = came_back(properties, rooms)
    return delivery


class RabbitMQSubscription(Subscription):
    """Deliveries of one queue."""

    def __init__(
        self,
        source: Source,
        window: Window,
        listener: Listener,
        connection: Connection,
        channel: Channel,
        strays: Strays,
    ) -> None:
        self.listener = listener
        self.on_end: Callable[[RabbitMQSubscription], None] = lambda _: None
        self._source = source
        self._rooms = f"{source.name}.retry."
        self._counts = topology.counts(source)
        self._window = window
        self._connection = connection
        self._channel = channel
        self._strays = strays
        self._epoch = next(_EPOCHS)
        self._barrier = Barrier(channel)
        self._keep = keep = isinstance(source.channel, Queue | Topic) and source.channel.single_active
        self._tags = Tags(channel.number, self._epoch, keep=keep)
        self._intake = Intake(channel, source.name, window, self._tags.__len__, keep=keep)
        self._buffer: deque[Raw] = deque()
        self._news = Signal()
        self._error: AtLeastOnceError | None = None
        self._cancelled = False
        self._closed = False
        self._steering: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Start to consume.

        Raises:
            pika.exceptions.AMQPError, TimeoutError: the broker does not let us.
        """
        self._channel.attach(_Deliveries(self._arrived))
        self._channel.on_closed = self._lost
        self._channel.pika.add_on_cancel_callback(self._cancel)
        await self._barrier.begin()
        await self._intake.steer()

    @property
    def stale(self) -> int:
        """Settlements of earlier epochs that were dropped."""
        return self._tags.stale

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        if not self._buffer and not self._ended and max_wait > 0:
            await self._news.wait(max_wait)
        if self._cancelled and self._error is None:
            await self._explain()
        if self._closed:
            raise Closed(f"{self._source.name}: the subscription is closed")
        if self._error is not None:
            raise self._error
        buffer = self._buffer
        return [self._delivery(buffer.popleft()) for _ in range(min(max_messages, len(buffer)))]

    @property
    def _ended(self) -> bool:
        return self._closed or self._cancelled or self._error is not None

    def _delivery(self, raw: Raw) -> Delivery:
        delivery = read_delivery(raw, self._source, self._strays, self._epoch, self._rooms, counts=self._counts)
        self._tags.handed_out(raw[0], delivery)
        return delivery

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        outcomes, frames = self._tags.settle(batch, alive=not self._ended)
        for delivery, verdict in batch:
            if not isinstance(verdict, Ack) and delivery.epoch == self._epoch and not delivery.raw.named:
                self._strays.returned(delivery.message)
        if self._intake.crowded and 2 * self._tags.bytes <= self._window.bytes:
            self._intake.crowded = False
            self._steer()
        if OK in outcomes:
            lost = await self._barrier.passed(frames)
            if lost is not None:
                outcomes = [lost if outcome is OK else outcome for outcome in outcomes]
        return outcomes

    @property
    def overdue(self) -> Owed | None:
        return self._connection.wire.silence.look()

    async def pause(self) -> None:
        self._intake.paused = True
        await self._steer_quietly()

    async def resume(self) -> None:
        self._intake.paused = False
        await self._steer_quietly()

    async def leave(self) -> None:
        # Of a queue with a single active consumer nothing is given back before the channel is closed: the next one would
        # be handed what comes later as soon as this one is cancelled, and what was given back one by one would be behind it.
        self._intake.ended = not self._keep
        await self.pause()
        await self._give_back()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.notify()
        if not self._keep:
            self._intake.ended = True
            await self._steer_quietly()
        if self._steering is not None:
            await self._steering
        if self._channel.closed is None:
            await self._give_back()
            self._channel.on_closed = None
            await self._channel.close(at_once=self._keep)
        self._buffer.clear()
        self._tags.lose()
        self.on_end(self)

    async def _give_back(self) -> None:
        """What came and was never handed out, where it may go before the channel does: see `leave`."""
        if self._buffer and not self._keep and self._channel.closed is None:
            frames = self._tags.give_back([raw[0] for raw in self._buffer])
            self._buffer.clear()
            await self._barrier.passed(frames)

    # --------------------------------------------------------------------------- told by the broker

    def _arrived(self, raw: Raw) -> None:
        size = len(raw[4]) + len(raw[5])
        self._buffer.append(raw)
        self._tags.arrived(raw[0], size)
        more = self._intake.saw(size)
        if self._tags.bytes > self._window.bytes and not self._intake.crowded:
            self._intake.crowded = more = True
        if more:
            self._steer()
        self._news.notify()

    def _cancel(self, _frame: object) -> None:
        self._intake.cancelled()
        self._cancelled = True
        self._news.notify()

    async def _explain(self) -> None:
        """Why the broker took the consumer away: the queue was deleted, or cannot serve us any more."""
        name = self._source.name
        try:
            async with self._connection.scratch() as channel:
                await channel.call("queue_declare", queue=name, passive=True)
        except (amqp.AMQPError, TimeoutError) as error:
            self._end(faults.as_error(error, f"{name}: the broker ended the subscription", lost=True))
        else:
            self._end(ConnectionLost(f"{name}: the broker ended the subscription; the queue itself is there"))
        await self._channel.close()

    def _lost(self, reason: Exception) -> None:
        error = faults.as_error(reason, self._source.name, lost=True)
        # A refusal of this one channel. What was read a moment ago may be gone, but may also be no more than a stale tag.
        self._end(error if isinstance(error, NotFound | ConnectionLost) else ConnectionLost(str(error)))

    def _end(self, error: AtLeastOnceError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._buffer.clear()
        self._tags.lose()
        self._news.notify()
        self.listener.lost(None)
        self.listener.condition("disconnected", str(error))
        self.on_end(self)

    # --------------------------------------------------------------------------- consumer on and off

    def _steer(self) -> None:
        if self._steering is None or self._steering.done():
            self._steering = asyncio.create_task(self._steer_quietly(), name=f"rabbitmq intake {self._source.name}")

    async def _steer_quietly(self) -> None:
        with contextlib.suppress(amqp.AMQPError, TimeoutError):  # the channel's end is told by receive
            await self._intake.steer()


class _Deliveries(Sink):
    """Hands deliveries on."""

    def __init__(self, arrived: Callable[[Raw], None]) -> None:
        super().__init__()
        self._arrived = arrived

    def delivered(self, raw: Raw) -> None:
        self._arrived(raw)
