"""What all ``dlq`` commands share: whose dead letters, and which of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from atleastonce.broker import Broker
from atleastonce.channels import Queue, Source, Topic
from atleastonce.cli.loader import load_service
from atleastonce.cli.target import broker_url, channel_named, connect_to_look, only_to_look
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.redrive import DeadLetters, Selection

App = Annotated[
    str | None,
    typer.Argument(metavar="[MODULE:SERVICE]", help="Whose dead letters; without one, give --channel and --group."),
]
ChannelOption = Annotated[str | None, typer.Option("--channel", help="Dead letters of this topic or queue alone.")]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group", help="Of this group of the topic. Without MODULE:SERVICE, a channel without it is a queue."
    ),
]
DlqOption = Annotated[
    str | None, typer.Option("--dlq", help="The dead-letter queue, if its name is not CHANNEL.GROUP.dlq or QUEUE.dlq.")
]
ErrorTypes = Annotated[list[str] | None, typer.Option("--error-type", help="Only this exception. May be repeated.")]
Fingerprints = Annotated[
    list[str] | None,
    typer.Option("--fingerprint", help="Only failures of this kind, as list shows them. May be repeated."),
]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Only this message. May be repeated.")]
OlderThan = Annotated[str | None, typer.Option("--older-than", help="Only what failed at least so long ago, like 2h.")]
NewerThan = Annotated[str | None, typer.Option("--newer-than", help="Only what failed less long ago than this.")]
HeaderFields = Annotated[
    list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="Only with this header. May be repeated.")
]
Where = Annotated[
    str | None, typer.Option("--where", metavar="JMESPATH", help="Only bodies that fit, like 'total > `100`'.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def selection(
    error_type: list[str] | None,
    fingerprint: list[str] | None,
    id: list[str] | None,
    older_than: str | None,
    newer_than: str | None,
    header: list[str] | None,
    where: str | None,
) -> Selection:
    """The filters, checked.

    Raises:
        ConfigurationError: names the option.
    """
    fields: list[tuple[str, str]] = []
    for field in header or ():
        name, equals, value = field.partition("=")
        if not name or not equals:
            raise ConfigurationError(f'--header "{field}": write NAME=VALUE')
        fields.append((name, value))
    return Selection(
        error_type=error_type or (),
        fingerprint=fingerprint or (),
        id=id or (),
        older_than=older_than,
        newer_than=newer_than,
        headers=fields,
        where=where,
    )


class Target(msgspec.Struct, frozen=True):
    """Whose dead letters.

    Attributes:
        make: a connection to their broker, not open yet.
        homes: the sources.
        queue: where they are, if not where they usually are.
        queues: names of the queues that the service reads: where copies may go.
        topics: of its topics.
    """

    make: Callable[[], Broker]
    homes: tuple[Source, ...]
    queue: Queue[Any] | None
    queues: frozenset[str]
    topics: frozenset[str]

    def letters(self, broker: Broker) -> list[DeadLetters]:
        """Of each source."""
        return [broker.dead_letters(home.channel, home.group, queue=self.queue) for home in self.homes]

    @property
    def names(self) -> str:
        """Of the dead-letter queues."""
        return ", ".join((self.queue or home.dead_letter_channel).name for home in self.homes)


def target(
    app: str | None,
    broker: str | None,
    channel: str | None,
    group: str | None,
    dlq: str | None,
    *,
    no_wait: bool,
    parts: int | None = None,
) -> Target:
    """What the options name. Nothing is connected to.

    Args:
        app, broker, channel, group, dlq, no_wait: as given.
        parts: of how many the channel is made, where no service says it.

    Raises:
        ConfigurationError: they name nothing, or contradict each other.
    """
    queue = None if dlq is None else Queue[Any](dlq)
    if app is None:
        if channel is None:
            raise ConfigurationError(
                "whose dead letters? give MODULE:SERVICE, like app:service; or --broker URL --channel orders.created "
                "--group billing"
            )
        home = Source(channel_named(channel, queue=not group, topic=bool(group), parts=parts), group)
        own = frozenset() if group else frozenset({channel})
        topics = frozenset({channel}) if group else frozenset()
        url = broker_url(broker)
        return Target(lambda: connect_to_look(url, no_wait=no_wait), (home,), queue, own, topics)
    if parts is not None:
        raise ConfigurationError(
            f"--parts {parts}: {app} says itself how many parts a channel has; leave one of the two away"
        )
    service = load_service(app)
    all_homes = [consumer.home for consumer in service.consumers if consumer.dead_letter]
    homes = [h for h in all_homes if channel in (None, h.channel.name) and group in (None, h.group)]
    if not homes:
        wanted = " ".join(f"--{name} {value}" for name, value in (("channel", channel), ("group", group)) if value)
        there = ", ".join(map(str, all_homes)) or "none: no consumer has a dead-letter queue"
        raise ConfigurationError(f"{app} has no dead letters of {wanted or 'any source'}; there are {there}")
    if queue is not None and len(homes) > 1:
        raise ConfigurationError(
            f"--dlq {dlq}: whose is it? say --channel (and --group), for {app} has {len(homes)} sources"
        )
    channels = [consumer.home.channel for consumer in service.consumers]
    return Target(
        lambda: only_to_look(service.make_broker(broker, no_wait=no_wait)),
        tuple(homes),
        queue,
        frozenset(c.name for c in channels if isinstance(c, Queue)),
        frozenset(c.name for c in channels if isinstance(c, Topic)),
    )
