"""Settlements that the broker has taken together: AMQP does not answer acknowledgements."""

from __future__ import annotations

import asyncio

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.connection import Channel
from atleastonce.adapters.rabbitmq.faults import classify
from atleastonce.contract import Code, Outcome, unknown


class Barrier:
    """A round trip behind the settlements of one channel, shared by all that came before it began: the commit of a transaction.

    A channel's methods are handled in order: when the answer comes, everything before it has gone to the queue. Without it
    an acknowledgement may sit in a socket's buffer when the process is killed, and its message comes again.

    A transaction, because outside of one each frame is a command of its own to a quorum queue. More than 32 of these the broker
    keeps back until earlier ones are on the disk, and forgets them when the channel closes before that (its
    ``rabbit_fifo_client``): of a stop that gave back a hundred messages one by one, the acknowledgements behind them were lost. A
    commit tells each queue of all acknowledgements, and of all returns, at once.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._turn = asyncio.Lock()
        self._frames: list[bytes] = []
        self._written = 0
        self._read = 0

    async def begin(self) -> None:
        """From now on what is settled on the channel counts when `passed` has returned. Raises as `Channel.call`."""
        await self._channel.call("tx_select")

    async def passed(self, frames: bytes) -> Outcome | None:
        """Send the settlements in ``frames``, and wait until the broker has taken them; the outcome instead where nobody can tell.

        They leave with the commit that makes them count, in one write: each wakes the broker, which costs more than what is in it.
        """
        self._frames.append(frames)
        self._written += 1
        mine = self._written
        async with self._turn:
            if self._read >= mine:
                return None
            upto = self._written
            frames, self._frames = b"".join(self._frames), []
            try:
                await self._channel.call("tx_commit", ahead=frames)
            except TimeoutError:
                return unknown(Code.TIMEOUT, "settled, and no sign of the broker since")
            except amqp.AMQPError as error:
                return unknown(Code.UNAVAILABLE, f"settled, and the channel was lost: {classify(error).detail}")
            self._read = upto
            return None
