"""``atleastonce lag``: what waits, in a service's sources, retry channels and dead letters, or in one channel."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.live import Live

from atleastonce.broker import Broker
from atleastonce.channels import Queue, Source
from atleastonce.cli.errors import Traceback
from atleastonce.cli.lag_report import report
from atleastonce.cli.loader import load_service
from atleastonce.cli.output import console, log_to_stderr, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import (
    BrokerOption,
    NoWait,
    PartsOption,
    QueueOption,
    TopicOption,
    broker_url,
    channel_named,
    connect_to_look,
    only_to_look,
)
from atleastonce.durations import seconds
from atleastonce.errors import ConfigurationError
from atleastonce.lag import Looks, Place, measure, named, places
from atleastonce.patterns.ordering import message_key

# Columns where nobody looks: a name that is folded is of no use to grep.
_WIDE = 200
# Seconds that --watch waits for a look for hot keys, which then goes on beside it. Shorter: most looks are shown one round later;
# longer: counts wait for a broker that is slow to show messages.
_PATIENCE = 1.0


def lag(
    app: Annotated[
        str | None, typer.Argument(metavar="[MODULE:SERVICE]", help="A service: all that its consumers read.")
    ] = None,
    broker: BrokerOption = None,
    channel: Annotated[str | None, typer.Option("--channel", help="One channel instead of a service.")] = None,
    group: Annotated[str | None, typer.Option(help="Whose lag of --channel; for a topic.")] = None,
    queue: QueueOption = False,
    topic: TopicOption = False,
    parts: PartsOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option(help="How often --watch looks.")] = "2s",
    keys: Annotated[
        bool | None,
        typer.Option(
            "--keys/--no-keys",
            help="Name the hot keys among the oldest messages that wait, where the broker can show them. --watch does.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one list, and with --watch one a line for each look.")
    ] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> None:
    """Print what waits: ready, in flight, delayed, the age of the oldest, and hot keys. What a broker does not tell is unknown,
    never 0."""
    log_to_stderr("WARNING")
    pause = seconds(every, name="--every", minimum=0.1) if watch else None
    connection, where = _target(app, broker, channel, group, queue=queue, topic=topic, parts=parts, no_wait=no_wait)
    if not (watch if keys is None else keys):
        where = [msgspec.structs.replace(place, key_of=None) for place in where]
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():  # the usual end of watching
        interruptible(_look(connection, where, pause, as_json=as_json))


def _target(
    app: str | None,
    broker: str | None,
    channel: str | None,
    group: str | None,
    *,
    queue: bool,
    topic: bool,
    parts: int | None,
    no_wait: bool,
) -> tuple[Broker, list[Place]]:
    if (app is None) == (channel is None):
        raise ConfigurationError("whose lag? give a service (app:service), or --broker and --channel")
    if app is not None:
        service = load_service(app)
        connection = only_to_look(service.make_broker(broker, no_wait=no_wait))
        capabilities = connection.adapter.capabilities
        return connection, [place for consumer in service.consumers for place in places(consumer, capabilities)]
    target = channel_named(channel or "", queue=queue, topic=topic, parts=parts)
    if group is None and not isinstance(target, Queue):
        raise ConfigurationError(f"a topic has a lag for each group; say whose lag of {channel} with --group")
    source = Source(target, group)
    return connect_to_look(broker_url(broker), no_wait=no_wait), [Place(source, source.group, "main", message_key)]


async def _look(broker: Broker, where: Sequence[Place], pause: float | None, *, as_json: bool) -> None:
    screen = console()
    if not screen.is_terminal:
        screen.width = _WIDE
    async with broker:
        looks = Looks(broker.adapter, where)
        with contextlib.ExitStack() as stack:
            live = None
            if pause is not None and not as_json and screen.is_terminal:  # elsewhere it would show the last look alone
                live = stack.enter_context(Live(console=screen, auto_refresh=False))
            try:
                while True:
                    rows, samples = await asyncio.gather(
                        measure(broker.adapter, where), looks.known(None if pause is None else _PATIENCE)
                    )
                    if as_json:
                        print_json(named(rows, samples, time.monotonic()))
                    elif live is None:
                        screen.print(report(rows, samples, time.monotonic()))
                    else:
                        live.update(report(rows, samples, time.monotonic()), refresh=True)
                    if pause is None:
                        return
                    await asyncio.sleep(pause)
            finally:
                await looks.close()
