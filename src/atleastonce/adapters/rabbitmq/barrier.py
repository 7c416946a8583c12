"""Knowing that the broker has read what was written: AMQP does not answer acknowledgements."""

from __future__ import annotations

import asyncio

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.connection import Channel
from atleastonce.adapters.rabbitmq.faults import classify
from atleastonce.contract import Code, Outcome, unknown


class Barrier:
    """A round trip behind the acknowledgements of one channel, shared by all that were written before it began.

    A channel's methods are handled in order: when the answer comes, everything before it has gone to the queue. Without it
    an acknowledgement may sit in a socket's buffer when the process is killed, and its message comes again.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._turn = asyncio.Lock()
        self._written = 0
        self._read = 0

    async def passed(self) -> Outcome | None:
        """Wait until the broker has read what was written until now; the outcome instead where nobody can tell."""
        self._written += 1
        mine = self._written
        async with self._turn:
            if self._read >= mine:
                return None
            upto = self._written
            try:
                # The method with the least effect that has an answer: the channel flows already.
                await self._channel.call("flow", active=True)
            except TimeoutError:
                return unknown(Code.TIMEOUT, "settled, and no sign of the broker since")
            except amqp.AMQPError as error:
                return unknown(Code.UNAVAILABLE, f"settled, and the channel was lost: {classify(error).detail}")
            self._read = upto
            return None
