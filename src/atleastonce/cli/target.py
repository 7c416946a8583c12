"""The options by which commands name a broker and a channel."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import typer

from atleastonce.broker import Broker, connect
from atleastonce.channels import Channel, Queue, Topic
from atleastonce.cli.output import note
from atleastonce.errors import ConfigurationError

BrokerOption = Annotated[
    str | None, typer.Option("--broker", envvar="ALO_BROKER", help="Broker URL, like kafka://localhost:9092.")
]
QueueOption = Annotated[bool, typer.Option("--queue", help="CHANNEL is a queue.")]
App = Annotated[str, typer.Argument(metavar="MODULE:SERVICE", help="Where the service is, like app:service.")]
OtherBroker = Annotated[
    str | None, typer.Option("--broker", help="Broker URL, instead of the service's own and ALO_BROKER.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Fail at once if the broker is not there.")]
TopicOption = Annotated[bool, typer.Option("--topic", help="CHANNEL is a topic.")]
PartsOption = Annotated[
    int | None,
    typer.Option("--parts", min=2, help="CHANNEL is declared with single_active=True and so many partitions."),
]


def broker_url(given: str | None) -> str:
    """The URL.

    Raises:
        ConfigurationError: there is none.
    """
    if not given:
        raise ConfigurationError("no broker: give --broker kafka://localhost:9092, or set ALO_BROKER")
    return given


def connect_as_told(url: str, *, no_wait: bool = False) -> Broker:
    """A connection that says on stderr why it waits."""
    settings: dict[str, Any] = {"wait": 0} if no_wait else {}
    return connect(url, waiting=note, **settings)


def connect_to_look(url: str, *, no_wait: bool = False) -> Broker:
    """A connection for who looks at what is there."""
    return only_to_look(connect_as_told(url, no_wait=no_wait))


def only_to_look(broker: Broker) -> Broker:
    """``broker``, not yet open, for who looks at what is there: a mistyped file is not made."""
    broker.adapter.may_create = False
    return broker


def channel_named(name: str, *, queue: bool, topic: bool, parts: int | None = None) -> Channel[Any]:
    """The channel. Nobody can tell from its name which kind it is, and a wrong guess would create the other one.

    Args:
        name, queue, topic: as given.
        parts: of how many it is made; None for one that is not.

    Raises:
        ConfigurationError: neither or both kinds were given, or a bad name.
    """
    if queue == topic:
        problem = "both" if queue else "neither"
        raise ConfigurationError(f"{name} is a queue or a topic? {problem} was given; say --queue or --topic")
    kind = Queue if queue else Topic
    return kind(name, partitions=parts, single_active=parts is not None)


class Alone:
    """A `Listener` for a reader that holds nothing and shares with nobody."""

    async def drain(self, streams: Collection[str], grace: float) -> None: ...

    def lost(self, streams: Collection[str] | None) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...
