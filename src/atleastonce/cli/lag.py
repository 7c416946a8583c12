"""``atleastonce lag``: what waits, in a service's sources, retry channels and dead letters, or in one channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from atleastonce.broker import Broker
from atleastonce.channels import Queue, Source
from atleastonce.cli.errors import Traceback, one_line
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
from atleastonce.durations import readable, seconds
from atleastonce.errors import ConfigurationError
from atleastonce.lag import Lag, Place, measure, places

# Columns where nobody looks: a name that is folded is of no use to grep.
_WIDE = 200


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one list, and with --watch one a line for each look.")
    ] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> None:
    """Print what waits: ready, in flight, delayed, and the age of the oldest. What a broker does not tell is unknown, never 0."""
    log_to_stderr("WARNING")
    pause = seconds(every, name="--every", minimum=0.1) if watch else None
    connection, where = _target(app, broker, channel, group, queue=queue, topic=topic, parts=parts, no_wait=no_wait)
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
    return connect_to_look(broker_url(broker), no_wait=no_wait), [Place(source, source.group, "main")]


async def _look(broker: Broker, where: Sequence[Place], pause: float | None, *, as_json: bool) -> None:
    screen = console()
    if not screen.is_terminal:
        screen.width = _WIDE
    async with broker:
        if pause is None or as_json:
            while True:
                rows = await measure(broker.adapter, where)
                if as_json:
                    print_json(rows)
                else:
                    screen.print(_table(rows))
                if pause is None:
                    return
                await asyncio.sleep(pause)
        with Live(console=screen, auto_refresh=False) as live:
            while True:
                live.update(_table(await measure(broker.adapter, where)), refresh=True)
                await asyncio.sleep(pause)


def _table(rows: Sequence[Lag]) -> Group:
    table = Table(box=None, pad_edge=False)
    table.add_column("channel", overflow="fold")
    table.add_column("group")
    table.add_column("role")
    for name in ("waiting", "in flight", "delayed", "oldest"):
        table.add_column(name, justify="right")
    if true_lag := any(row.true_lag is not None for row in rows):
        table.add_column("not handled", justify="right")
    for row in rows:
        oldest = "?" if row.oldest_age_s is None else readable(row.oldest_age_s)
        numbers = [_number(row.waiting), _number(row.in_flight), _number(row.delayed), oldest if row.waiting else ""]
        if true_lag:
            numbers.append(_number(row.true_lag))
        table.add_row(row.channel, row.group or "", row.role, *numbers)
    details = [f"{row.channel}: {one_line(row.detail)}" for row in rows if row.detail]
    return Group(table, *details)


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
