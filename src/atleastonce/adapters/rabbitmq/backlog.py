"""What waits in a queue: over AMQP the ready messages, over the management API also those in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.adapters.rabbitmq.connection import Connection
from atleastonce.adapters.rabbitmq.faults import classify
from atleastonce.adapters.rabbitmq.management import ask_queue
from atleastonce.contract import Backlog
from atleastonce.urls import mask


async def ready(connection: Connection, queue: str) -> int:
    """Messages of ``queue`` that nobody has in hand.

    Raises:
        pika.exceptions.AMQPError, TimeoutError: not to be found out.
    """
    async with connection.scratch() as channel:
        answer = await channel.call("queue_declare", queue=queue, passive=True)
        return int(answer.message_count)


async def measure(config: Config, connection: Connection, queue: str, rooms: Iterable[str]) -> Backlog:
    """The backlog of ``queue`` with what waits in ``rooms`` to come back to it. Never raises; None is unknown."""
    reasons: list[str] = []
    waiting: int | None = None
    delayed: int | None = 0
    try:
        waiting = await ready(connection, queue)
    except (amqp.AMQPError, TimeoutError) as error:
        reasons.append(classify(error).detail)
    for room in rooms:
        try:
            delayed = None if delayed is None else delayed + await ready(connection, room)
        except (amqp.AMQPError, TimeoutError) as error:
            delayed = None
            reasons.append(classify(error).detail)
    in_flight: int | None = None
    if config.management is None:
        reasons.append("AMQP does not tell what is in flight; give management=http://host:15672")
    elif waiting is not None:
        try:
            in_flight = int((await asyncio.to_thread(ask_queue, config, queue))["messages_unacknowledged"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reasons.append(f"management: {mask(str(error))}")
    return Backlog(waiting=waiting, in_flight=in_flight, delayed=delayed, detail="; ".join(reasons))
