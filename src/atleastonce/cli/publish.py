"""``atleastonce publish``: one message from the arguments, or many from stdin."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from atleastonce.channels import Channel
from atleastonce.cli.bodies import SHOWN_PROBLEMS, HeaderOption, TextOption, given
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, one_line
from atleastonce.cli.output import console, note, print_json
from atleastonce.cli.signals import in_background, interruptible
from atleastonce.cli.target import (
    BrokerOption,
    NoWait,
    PartsOption,
    QueueOption,
    TopicOption,
    broker_url,
    channel_named,
    connect_as_told,
)
from atleastonce.contract import Outcome, Outgoing, Status
from atleastonce.unpublished import publish_error

# Lines sent in one go: enough to fill a round trip, and what is in memory at once of an endless stdin.
_CHUNK = 1000


def publish(
    channel: Annotated[str, typer.Argument(help="Name of the queue or topic.")],
    payload: Annotated[
        str, typer.Argument(metavar="[PAYLOAD|-]", help="The body; - for one JSON message per line of stdin.")
    ] = "-",
    broker: BrokerOption = None,
    queue: QueueOption = False,
    topic: TopicOption = False,
    parts: PartsOption = None,
    key: Annotated[str | None, typer.Option(help="Orders and partitions the message.")] = None,
    id: Annotated[str | None, typer.Option(help="Its identity; the same id is the same message.")] = None,
    header: HeaderOption = None,
    delay: Annotated[str | None, typer.Option(help="Not before, like 10m, where the broker can.")] = None,
    text: TextOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what happened as JSON.")] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Publish one message, or each line of stdin as one, and say what the broker confirmed.

    Lines must be JSON; a bad one is named and left out. Exit code 1 if one was bad, rejected or is unconfirmed.
    """
    url = broker_url(broker)
    target = channel_named(channel, queue=queue, topic=topic, parts=parts)
    counts: Counter[str] = Counter()
    many, headers, bodies = given(payload, header, id, counts, text=text, kind="message")
    options = {"key": key, "id": id, "headers": headers, "delay": delay}
    try:
        last = interruptible(_publish(url, target, bodies, options, counts, no_wait=no_wait, bar=many))
    except KeyboardInterrupt:
        note(f"{counts['published']} published before the interruption, and perhaps some that were not yet confirmed")
        raise
    report = {name: counts[name] for name in ("published", "rejected", "unknown", "bad")}
    if as_json:
        print_json({"channel": channel, **report, **({} if many else {"id": last})})
    elif many:
        print(", ".join(f"{name} {count}" for name, count in report.items() if count or name == "published"))
    elif counts["published"]:
        print(last)
    return DONE if counts.total() == counts["published"] else PROBLEM


async def _publish(
    url: str,
    channel: Channel[Any],
    bodies: Iterator[bytes],
    options: dict[str, Any],
    counts: Counter[str],
    *,
    no_wait: bool,
    bar: bool,
) -> str | None:
    """Publish ``bodies`` chunk by chunk; return the last id."""
    last: str | None = None
    async with connect_as_told(url, no_wait=no_wait) as broker:
        broker.compose(channel, b"", **options)  # what is wrong with the options is said before stdin is read
        with _bar(shown=bar) as progress:
            task = progress.add_task(channel.name, total=None)
            while chunk := await in_background(lambda: list(itertools.islice(bodies, _CHUNK))):
                items = [broker.compose(channel, body, **options) for body in chunk]
                for item, outcome in zip(items, await broker.send(items), strict=True):
                    last = item.message.id
                    _count(item, outcome, counts)
                progress.update(task, advance=len(chunk))
    return last


def _bar(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = console(stderr=True)
    return Progress(*columns, console=terminal, transient=True, disable=not (shown and terminal.is_terminal))


def _count(item: Outgoing, outcome: Outcome, counts: Counter[str]) -> None:
    if outcome.ok:
        counts["published"] += 1
        return
    name = "unknown" if outcome.status is Status.UNKNOWN else "rejected"
    counts[name] += 1
    if counts[name] <= SHOWN_PROBLEMS:
        note(one_line(publish_error(item, outcome)))
