"""Where a publish goes: exchange and routing key of each destination, checked before the first message uses them.

A publish to an exchange that does not exist closes the channel under all other publishes; one to a queue that does not
exist comes back by itself (it is ``mandatory``). So exchanges are looked up once, on a channel to throw away.
"""

from __future__ import annotations

from typing import NamedTuple

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq import topology
from atleastonce.adapters.rabbitmq.connection import Connection
from atleastonce.adapters.rabbitmq.faults import classify
from atleastonce.adapters.rabbitmq.properties import Refused
from atleastonce.channels import Channel, Source, Topic
from atleastonce.contract import Code, Outgoing, ReplyTo

_MAX_NAME = 255


class Route(NamedTuple):
    """Exchange and routing key of a publish."""

    exchange: str
    routing_key: str


class Routes:
    """What is known of destinations."""

    def __init__(self) -> None:
        self._exchanges: dict[str, Route] = {}
        self._queues: dict[str, Route] = {}
        self._delayed: dict[tuple[bool, str, int], Route] = {}

    def learn(self, exchange: str) -> None:
        """``exchange`` was declared."""
        self._exchanges[exchange] = Route(exchange, "")

    def forget(self) -> None:
        """Something was not as we believed it to be."""
        self._exchanges.clear()
        self._delayed.clear()

    def known(self, item: Outgoing) -> Route | None:
        """The route of ``item`` as far as it needs no question.

        Raises:
            Refused: the name is too long for AMQP.
        """
        destination = item.destination
        if item.delay > 0:
            return self._delayed.get(_key(destination, item.delay))
        if isinstance(destination, Topic):
            return self._exchanges.get(destination.name)
        name = destination.name
        if isinstance(destination, ReplyTo):  # one for each process that ever asks: not remembered
            _check(name)
            return Route("", name)
        route = self._queues.get(name)
        if route is None:
            _check(name)
            route = self._queues[name] = Route("", name)
        return route

    async def find(self, item: Outgoing, connection: Connection) -> Route:
        """Ask the broker about the destination of ``item``; make its waiting room if it is delayed.

        Raises:
            Refused: it does not exist, or may not be used.
            pika.exceptions.AMQPError, TimeoutError: no answer.
        """
        destination = item.destination
        name = destination.name
        _check(name)
        is_topic = isinstance(destination, Topic)
        try:
            async with connection.scratch() as channel:
                if is_topic:
                    await channel.call("exchange_declare", exchange=name, passive=True)
                    self.learn(name)
                else:
                    await channel.call("queue_declare", queue=name, passive=True)
                if item.delay <= 0:
                    return self._exchanges[name]
                room = topology.delay_queue(name, item.delay)
                _check(room)
                back = (name, "") if is_topic else ("", name)
                arguments = topology.delay_arguments(topology.tier(item.delay), *back)
                await channel.call("queue_declare", queue=room, durable=True, arguments=arguments)
        except amqp.ChannelClosedByBroker as error:
            fault = classify(error)
            raise Refused(fault.code, f"{'topic' if is_topic else 'queue'} {name}: {fault.detail}") from None
        route = self._delayed[_key(destination, item.delay)] = Route("", room)
        return route


def _key(destination: Channel[object] | Source, delay: float) -> tuple[bool, str, int]:
    return isinstance(destination, Topic), destination.name, topology.tier(delay)


def _check(name: str) -> None:
    if len(name) > _MAX_NAME:
        raise Refused(Code.INVALID, f"{name[:40]}...: {len(name)} characters; AMQP names have at most {_MAX_NAME}")
