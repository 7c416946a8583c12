"""Queues, exchanges and bindings: what each channel becomes, and making or comparing it.

The arguments of a queue follow from its name and options alone, not from who declares it: a publisher and a consumer
declare the same queue with the same arguments, in any order. That is why every queue has its net (dead-letter exchange and
delivery limit), wanted or not. Where nobody declared the dead-letter queue, what falls into the net is kept by the source
queue until somebody does: the dead-lettering is at-least-once.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.connection import Connection
from atleastonce.adapters.rabbitmq.faults import classify
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Code, DelayChannel, Drift
from atleastonce.durations import format_duration
from atleastonce.errors import ConfigurationError, PermissionDenied

MAX_TTL: Final = (2**32 - 1) / 1000
"""Seconds: RabbitMQ keeps times to live as 32-bit milliseconds."""

_NO_LIMIT: Final = 2**31 - 1
"""Hand-outs of a dead letter. Since 4.0 the default is 20, and what exceeds it is dropped: 20 looks at a dead-letter queue would
empty it. (-1 for none is known since 4.0 only.)"""

_OPTION: Final = "rabbitmq"
_DEAD_LETTERS: Final = ".dlq"
_EXCHANGE_OPTIONS: Final = frozenset({"alternate-exchange"})
_BREAKING: Final = frozenset(
    {
        "x-queue-type",
        "type",
        "durable",
        "x-message-ttl",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-overflow",
        "x-single-active-consumer",
    }
)
_INEQUIVALENT = re.compile(r"inequivalent arg '(.+?)' for \w+ '.*?' in vhost '.*?': received (.*?) but current is (.*)")
# Brokers before 4.0 name what is refused, and not for what.
_NEEDS: Final = {
    "queue_declare": "to declare a queue needs configure and read on it, and write on amq.default",
    "exchange_declare": "to declare an exchange needs configure on it",
    "queue_bind": "to bind needs write on the queue and read on the exchange",
}
_PASSING: Final = frozenset({405, 541})
_ATTEMPTS: Final = 5
_NATURAL: Final = (86_400_000, 3_600_000, 60_000, 1_000)


def _options(channel: Channel[Any]) -> Mapping[str, Any]:
    given = channel.options.get(_OPTION, {})
    for name in given:
        if not name.startswith("x-") and not (isinstance(channel, Topic) and name in _EXCHANGE_OPTIONS):
            known = '"x-..." arguments of queues' + (' and "alternate-exchange"' if isinstance(channel, Topic) else "")
            raise ConfigurationError(f'{channel.name}: options["rabbitmq"]["{name}"]: rabbitmq takes {known}')
    return given


def queue_arguments(source: Source, delivery_limit: int) -> dict[str, Any]:
    """Of the queue that holds what ``source`` reads."""
    given = {name: value for name, value in _options(source.channel).items() if name.startswith("x-")}
    if source.name.endswith(_DEAD_LETTERS):
        return {**keeping_arguments(), **given}
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": source.dead_letter_channel.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    if isinstance(source.channel, Queue | Topic) and source.channel.single_active:
        arguments["x-single-active-consumer"] = True
    if not counts(source):
        del arguments["x-delivery-limit"], arguments["x-dead-letter-strategy"]
    return {**arguments, **given}


def counts(source: Source) -> bool:
    """Whether the queue that holds what ``source`` reads is declared as one that counts its hand-outs."""
    return bool(_options(source.channel).get("x-queue-type", "quorum") == "quorum")


def keeping_arguments() -> dict[str, Any]:
    """Of a dead-letter queue: nothing leaves it but through a person, however often it is looked at."""
    return {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT}


async def is_unlimited(connection: Connection, queue: str) -> bool:
    """Whether ``queue``, which exists, was made with `keeping_arguments`: then it may be looked at for ever."""
    try:
        async with connection.scratch() as channel:
            await channel.call("queue_declare", queue=queue, durable=True, arguments=keeping_arguments())
    except amqp.ChannelClosedByBroker:
        return False
    return True


def delay_arguments(milliseconds: int, exchange: str, routing_key: str) -> dict[str, Any]:
    """Of a waiting room: after ``milliseconds`` the broker moves each message on, and keeps it until the move is confirmed."""
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": routing_key,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def delay_channel_arguments(delay: DelayChannel) -> dict[str, Any]:
    """Of the waiting room of a retry.

    Raises:
        ConfigurationError: longer than the broker can.
    """
    if not 0 < delay.delay <= MAX_TTL:
        raise ConfigurationError(
            f"{delay.channel.name}: RabbitMQ delays for at most {MAX_TTL:.0f} s (49 days), not {delay.delay:g} s"
        )
    return delay_arguments(math.ceil(round(delay.delay * 1000, 6)), "", delay.back_to.name)


def tier(delay: float) -> int:
    """The milliseconds that a delayed publish waits: ``delay`` rounded up, by 10 % at most.

    One queue is made for each distinct delay and stays, since a queue that expires takes its messages with it. So the
    number of delays is bounded: whole numbers below 100 of a unit (``90s``, ``36h``) stay as they are, all else is
    rounded up to two digits.
    """
    milliseconds = max(1, math.ceil(round(delay * 1000, 6)))
    for unit in _NATURAL:
        if milliseconds % unit == 0 and milliseconds // unit < 100:
            return milliseconds
    step: int = 10 ** max(0, len(str(milliseconds)) - 2)
    return int(min(-(-milliseconds // step) * step, MAX_TTL * 1000))


def delay_queue(destination: str, delay: float) -> str:
    """The waiting room of publishes to ``destination`` with ``delay``: ``reports.delay.5s``."""
    return f"{destination}.delay.{format_duration(tier(delay) / 1000)}"


def exchange_arguments(topic: Topic[Any]) -> dict[str, Any]:
    """Of the exchange of ``topic``."""
    return {name: value for name, value in _options(topic).items() if name in _EXCHANGE_OPTIONS}


class Maker:
    """Makes or compares, one thing after the other; each `Drift` is collected in ``drifts``."""

    def __init__(self, connection: Connection, create: bool) -> None:
        self.drifts: list[Drift] = []
        self._connection = connection
        self._create = create

    async def queue(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether queue ``name`` exists in the end."""
        return await self._ensure("queue", name, {"queue": name, "durable": True, "arguments": dict(arguments)})

    async def exchange(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether fan-out exchange ``name`` exists in the end."""
        wanted = {"exchange": name, "exchange_type": "fanout", "durable": True, "arguments": dict(arguments)}
        return await self._ensure("exchange", name, wanted)

    async def bind(self, queue: str, exchange: str) -> None:
        """Let ``queue`` get all that ``exchange`` gets."""
        if self._create:
            await self._run("queue_bind", queue, {"queue": queue, "exchange": exchange, "routing_key": ""})

    async def _ensure(self, kind: str, name: str, wanted: dict[str, Any]) -> bool:
        if not self._create:
            # AMQP has no question that compares and never makes: look first, and let only what is there be compared.
            missing = await self._run(f"{kind}_declare", name, {kind: name, "passive": True})
            if missing is not None:
                self.drifts.append(Drift(name, "missing", kind, "nothing", breaks=True))
                return False
        try:
            refusal = await self._run(f"{kind}_declare", name, wanted)
        except PermissionDenied:
            if self._create:
                raise
            return True  # to compare is to declare; who may not, and is to make nothing, takes what is there
        if refusal is not None:
            self.drifts.append(self._drift(name, refusal))
        return True

    async def _run(self, operation: str, name: str, arguments: dict[str, Any]) -> str | None:
        """None, or the broker's objection to settings or to existence."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._connection.scratch() as channel:
                    await channel.call(operation, **arguments)
                return None
            except amqp.UnsupportedAMQPFieldException as error:
                raise ConfigurationError(f"{name}: AMQP has no type for the option {error.args[-1]!r}") from None
            except (amqp.ShortStringTooLong, OverflowError, ValueError) as error:
                raise ConfigurationError(f"{name}: an AMQP name or argument cannot be that: {error}") from None
            except amqp.ChannelClosedByBroker as error:
                fault = classify(error)
                if fault.code in (Code.CONFLICT, Code.NOT_FOUND) and error.reply_code in (404, 406):
                    return str(error.reply_text)
                if error.reply_code in _PASSING and attempt < _ATTEMPTS:
                    await asyncio.sleep(0.1 * attempt)  # somebody declares it too, or its leader is being elected
                    continue
                if error.reply_code == 403 and "reserved prefix" not in error.reply_text:
                    raise PermissionDenied(f"{name}: {fault.detail}; {_NEEDS[operation]}") from None
                if error.reply_code in (403, 406):
                    raise ConfigurationError(f"{name}: {fault.detail}") from None
                raise
        return None

    def _drift(self, name: str, refusal: str) -> Drift:
        match = _INEQUIVALENT.search(refusal)
        if match is None:
            return Drift(name, "settings", "as declared", refusal, breaks=True)
        setting, wanted, found = match.groups()
        wanted, found = wanted.removeprefix("the value "), found.removeprefix("the value ")
        return Drift(name, setting, wanted, found, breaks=setting in _BREAKING)
