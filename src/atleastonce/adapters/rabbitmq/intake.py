"""Whether the broker hands us messages, and how many: the consumer of one channel."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

from atleastonce.adapters.rabbitmq.connection import Channel, unexpected
from atleastonce.contract import Window

_MAX_PREFETCH: Final = 65_535

_ASSUMED_SIZE: Final = 16 * 1024
"""Bytes of a message before any was seen. AMQP bounds what is out in messages only: too small, and large messages overshoot
the window's bytes before the consumer is taken away; too large, and small ones come in small portions at first."""

_NAMES = itertools.count(1)


class Intake:
    """Starts and stops the consumer, one change at a time.

    A queue with a single active consumer is never let go: whoever comes next would get messages while ours are unsettled, and
    order would be lost. There, the prefetch alone bounds what comes.
    """

    def __init__(self, channel: Channel, queue: str, window: Window, *, keep: bool) -> None:
        self.paused = False
        self.crowded = False
        """Whether more bytes are held than the window has."""
        self.ended = False
        self._channel = channel
        self._queue = queue
        self._window = window
        self._keep = keep
        self._consumer: str | None = None
        self._prefetch = 0
        self._seen = self._seen_bytes = 0
        self._turn = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        """Whether messages should come."""
        return not self.ended and (self._keep or not (self.paused or self.crowded))

    def saw(self, size: int) -> None:
        """A message of ``size`` bytes came."""
        self._seen += 1
        self._seen_bytes += size

    async def steer(self) -> None:
        """Make it as it is wanted.

        Raises:
            pika.exceptions.AMQPError, TimeoutError: the channel is lost, or the queue may not be read.
        """
        async with self._turn:
            while self.wanted != (self._consumer is not None):
                if self._consumer is None:
                    await self._start()
                else:
                    consumer, self._consumer = self._consumer, None
                    await self._channel.call("basic_cancel", consumer_tag=consumer)

    def cancelled(self) -> None:
        """The broker has taken the consumer away."""
        self.ended = True
        self._consumer = None

    async def _start(self) -> None:
        average = max(1, self._seen_bytes // self._seen) if self._seen else _ASSUMED_SIZE
        prefetch = min(self._window.messages, _MAX_PREFETCH, max(1, self._window.bytes // average))
        if prefetch != self._prefetch:
            await self._channel.call("basic_qos", prefetch_count=prefetch)
            self._prefetch = prefetch
        name = f"atleastonce-{next(_NAMES)}"
        arguments: dict[str, Any] = {"queue": self._queue, "consumer_tag": name, "on_message_callback": unexpected}
        await self._channel.call("basic_consume", **arguments)
        self._consumer = name
