"""How many subscriptions read the parts of a channel: the consumers of a queue to which nobody publishes.

A queue with a single active consumer tells nobody over AMQP how many stand by. The queue that is counted, ``orders.readers``,
vanishes with its last consumer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.connection import Channel, Connection, unexpected
from atleastonce.adapters.rabbitmq.frames import Sink
from atleastonce.channels import Source
from atleastonce.errors import AtLeastOnceError


class QueueReaders:
    """See `parts.Readers`. Unknown for who may not make that queue."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._channels: dict[str, Channel] = {}

    async def __call__(self, source: Source, me: str, *, here: bool) -> int | None:
        if not here:
            if (channel := self._channels.pop(me, None)) is not None:
                await channel.close()
            return None
        name = f"{source.name}.readers"
        try:
            channel = await self._standing(name, me)
            answer = await channel.call("queue_declare", queue=name, passive=True)
            return int(answer.consumer_count)
        except (AtLeastOnceError, amqp.AMQPError, TimeoutError):
            return None

    async def _standing(self, name: str, me: str) -> Channel:
        """The channel on which ``me`` consumes from queue ``name``."""
        channel = self._channels.get(me)
        if channel is None or channel.closed is not None:
            connection = await self._connect()
            channel = self._channels[me] = await connection.channel()
            channel.attach(Sink())
            arguments = {"x-queue-type": "classic"}
            # Durable only because brokers do away with those that are neither durable nor exclusive.
            await channel.call("queue_declare", queue=name, durable=True, auto_delete=True, arguments=arguments)
            await channel.call("basic_consume", queue=name, on_message_callback=unexpected, auto_ack=True)
        return channel
