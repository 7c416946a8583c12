"""What queues are set to, by their arguments and by the broker's policies, which only the management API tells; and whether
failures can be moved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.adapters.rabbitmq.connection import Connection
from atleastonce.adapters.rabbitmq.management import ask_nodes, ask_queue
from atleastonce.channels import Queue
from atleastonce.contract import Fact, Topology, Trait

_AT_ONCE = 8


async def inspect(config: Config, queues: Sequence[str]) -> list[Fact]:
    """See `Inspects.inspect`. What the API does not answer is unknown."""
    if config.management is None:
        return []
    room = asyncio.Semaphore(_AT_ONCE)
    try:
        nodes = await asyncio.to_thread(ask_nodes, config)
    except (OSError, ValueError):
        nodes = 0

    async def one(name: str) -> list[Fact]:
        try:
            async with room:
                found = await asyncio.to_thread(ask_queue, config, name)
        except (OSError, ValueError):
            return []
        return list(queue_facts(name, found, nodes))

    each = await asyncio.gather(*map(one, queues))
    return [fact for facts in each for fact in facts]


async def denied(connection: Connection, topology: Topology) -> list[Fact]:
    """The channels of ``topology`` to which copies cannot go: all of them, or none, since all are reached through the default
    exchange.

    Raises:
        pika.exceptions.AMQPError, TimeoutError: no answer.
    """
    try:
        async with connection.scratch() as channel:
            channel.pika.basic_publish("", "", b"")  # to no queue: the broker drops it, if it takes it
            await channel.call("flow", active=True)
    except amqp.ChannelClosedByBroker as error:
        if error.reply_code != 403:
            raise
    else:
        return []
    queues = (*topology.channels, *topology.dead_letters, *(delay.channel for delay in topology.delays))
    names = dict.fromkeys(queue.name for queue in queues if isinstance(queue, Queue))
    return [Fact(name, Trait.DENIED, "write", "write", detail="grant write on amq.default") for name in names]


def queue_facts(name: str, found: Mapping[str, Any], nodes: int) -> Iterator[Fact]:
    """What the API's answer for a queue says; ``nodes`` of the cluster, 0 for unknown.

    Of a number in both an argument and a policy the smaller one holds
    (www.rabbitmq.com/docs/parameters#combining-policy-definitions).
    """
    arguments: Mapping[str, Any] = found.get("arguments") or {}
    policy: Mapping[str, Any] = found.get("effective_policy_definition") or {}

    def number(key: str) -> tuple[str, float] | None:
        given = [
            (shown, float(value))
            for shown, value in ((f"x-{key}", arguments.get(f"x-{key}")), (f"{key} (policy)", policy.get(key)))
            if isinstance(value, int | float) and value >= 0
        ]
        return min(given, key=lambda each: each[1], default=None)

    def text(key: str) -> str:
        return str(arguments.get(f"x-{key}") or policy.get(key) or "")

    onwards = "x-dead-letter-exchange" in arguments or "dead-letter-exchange" in policy
    if not onwards and (ttl := number("message-ttl")):
        yield Fact(name, Trait.RETENTION, ttl[0], f"{ttl[1]:.0f}", ttl[1] / 1000)
    if not onwards and text("overflow") in ("", "drop-head"):  # with a dead-letter exchange what is dropped goes there
        for key in ("max-length", "max-length-bytes"):
            if most := number(key):
                yield Fact(name, Trait.DROPS, most[0], f"{most[1]:.0f}", most[1])
    if idle := number("expires"):
        yield Fact(name, Trait.VANISHES, idle[0], f"{idle[1]:.0f}", idle[1] / 1000)
    if found.get("durable") is False:
        yield Fact(name, Trait.VOLATILE, "durable", "false")
    if onwards and (limit := number("delivery-limit")):
        # The limit is of *re*deliveries.
        where = text("dead-letter-routing-key") or name
        yield Fact(name, Trait.NET, limit[0], f"{limit[1]:.0f}", limit[1] + 1, where)
    copies = len(found.get("members") or ()) or 1
    if nodes and copies == 1:
        trait = Trait.ONE_NODE if nodes == 1 else Trait.ONE_COPY
        setting = "members" if found.get("type") == "quorum" else "type"
        yield Fact(name, trait, setting, "1" if setting == "members" else str(found.get("type")), nodes)
