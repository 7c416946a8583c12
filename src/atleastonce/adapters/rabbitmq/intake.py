"""Whether the broker hands us messages, and how many: the consumer of one channel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Final

from atleastonce.adapters.rabbitmq.connection import Channel, unexpected
from atleastonce.contract import Window

_MAX_PREFETCH: Final = 65_535

_ASSUMED_SIZE: Final = 256 * 1024
"""Bytes of a message before any was seen. AMQP bounds what is out in messages only: too small, and large messages overshoot
the window's bytes before the consumer is taken away; too large, and small ones come in small portions at first."""

_GROWTH: Final = 2
"""How many times more than now must fit before a consumer is added for the rest."""

_WEIGHT: Final = 1 / 32
"""Of the latest message in the average size: recent ones say what comes next."""

_NAMES = itertools.count(1)


class Intake:
    """Starts and stops the consumers, one change at a time.

    To take more, a second consumer on the same channel is added, with the rest as its prefetch: the queue serves them in order
    through the one channel. Cancelling the first for a larger one would give back what is on its way to us, and it would come again
    after later messages, counted as a redelivery.

    A queue with a single active consumer is never let go: whoever comes next would get messages while ours are unsettled, and
    order would be lost. There, the prefetch alone bounds what comes.
    """

    def __init__(self, channel: Channel, queue: str, window: Window, held: Callable[[], int], *, keep: bool) -> None:
        self.paused = False
        self.crowded = False
        """Whether more bytes are held than the window has."""
        self.ended = False
        self._channel = channel
        self._queue = queue
        self._window = window
        self._held = held
        self._keep = keep
        self._consumers: list[str] = []
        self._prefetch = 0  # of all of them together
        self._portion = 0
        self._average = 0.0
        self._turn = asyncio.Lock()

    def saw(self, size: int) -> bool:
        """A message of ``size`` bytes came. Whether to steer: far more of such messages fit than was thought."""
        self._average += (size - self._average) * _WEIGHT if self._average else size
        self._portion += 1
        if self._portion < self._prefetch or self._keep:
            return False
        self._portion = 0
        return self._too_few

    async def steer(self) -> None:
        """Make it as it is wanted.

        Raises:
            pika.exceptions.AMQPError, TimeoutError: the channel is lost, or the queue may not be read.
        """
        async with self._turn:
            while True:
                wanted = not self.ended and (self._keep or not (self.paused or self.crowded))
                if not wanted:
                    if not self._consumers:
                        return
                    await self._channel.call("basic_cancel", consumer_tag=self._consumers.pop())
                elif not self._consumers or self._too_few:
                    await self._add()
                else:
                    return

    def cancelled(self) -> None:
        """The broker has taken the consumer away."""
        self.ended = True
        self._consumers.clear()

    @property
    def _fitting(self) -> int:
        """How many messages may be out, if they are as those were that came."""
        if self._keep:
            return min(self._window.messages, _MAX_PREFETCH)
        fit = self._window.bytes / max(1.0, self._average or _ASSUMED_SIZE)
        return min(self._window.messages, _MAX_PREFETCH, max(1, int(fit)))

    @property
    def _too_few(self) -> bool:
        return not self._keep and self._average > 0 and self._fitting >= _GROWTH * self._prefetch

    async def _add(self) -> None:
        # The broker counts for each consumer, cancelled ones included: what is out of those comes on top.
        taken = self._prefetch if self._consumers else self._held()
        prefetch = max(1, self._fitting - taken)
        await self._channel.call("basic_qos", prefetch_count=prefetch)
        self._prefetch = prefetch + (self._prefetch if self._consumers else 0)
        self._portion = 0
        name = f"atleastonce-{next(_NAMES)}"
        arguments: dict[str, Any] = {"queue": self._queue, "consumer_tag": name, "on_message_callback": unexpected}
        await self._channel.call("basic_consume", **arguments)
        self._consumers.append(name)
