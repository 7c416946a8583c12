"""``atleastonce tail``: look at what is in a queue, or comes by on a topic, without taking it from anybody."""

from __future__ import annotations

import contextlib
import secrets
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from atleastonce.broker import Broker
from atleastonce.channels import Queue, Source, Topic
from atleastonce.cli.errors import Traceback
from atleastonce.cli.output import note, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import (
    Alone,
    BrokerOption,
    NoWait,
    PartsOption,
    QueueOption,
    TopicOption,
    broker_url,
    channel_named,
    connect_to_look,
)
from atleastonce.contract import ACK, Browses, Deletes, Delivery, Topology, Window
from atleastonce.errors import ConfigurationError, NotFound

# How many messages of a queue are shown without --max.
_PEEK = 20
_WINDOW = Window(500, 64 << 20)
_RECEIVE_SECONDS = 1.0


def tail(
    channel: Annotated[str, typer.Argument(help="Name of the queue or topic.")],
    broker: BrokerOption = None,
    queue: QueueOption = False,
    topic: TopicOption = False,
    parts: PartsOption = None,
    group: Annotated[
        str | None, typer.Option(help="Read a topic as this group; what it reads is then gone for the group.")
    ] = None,
    max: Annotated[int | None, typer.Option("--max", min=1, help="Stop after so many.")] = None,  # noqa: A002
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per message.")] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> None:
    """Print messages: the oldest of a queue, which stay in it; or those of a topic, until Ctrl-C.

    A topic is read as a group of its own, made for this and removed afterwards, so nobody else gets less. A queue hands
    each message to one reader: it is only looked at, and where the broker cannot show it so, nothing is read at all.
    """
    target = channel_named(channel, queue=queue, topic=topic, parts=parts)
    if group is not None and isinstance(target, Queue):
        raise ConfigurationError(f"queue {channel} has no groups; leave --group away")
    connection = connect_to_look(broker_url(broker), no_wait=no_wait)
    if isinstance(target, Queue):
        interruptible(_peek(connection, target, max or _PEEK, as_json=as_json))
    elif isinstance(target, Topic):
        with contextlib.suppress(KeyboardInterrupt):  # the usual end of following
            interruptible(_follow(connection, target, group, max, as_json=as_json))


async def _peek(broker: Broker, queue: Queue[Any], limit: int, *, as_json: bool) -> None:
    adapter = broker.adapter
    if not isinstance(adapter, Browses):
        raise ConfigurationError(
            f"{adapter.scheme} cannot show a queue without taking its messages from {queue.name}'s consumers, so tail does "
            f"not read it; count them with its own tools, or publish to a topic, which any group may follow"
        )
    async with broker:
        found = await adapter.browse(queue, limit)
        for delivery in found:
            show(delivery, as_json=as_json)
        waiting = (await adapter.backlog(Source(queue))).waiting
    note(f"{queue.name}: {len(found)} shown of {'an unknown number' if waiting is None else waiting} waiting; all stay")


async def _follow(broker: Broker, topic: Topic[Any], group: str | None, limit: int | None, *, as_json: bool) -> None:
    source = Source(topic, group or f"tail-{secrets.token_hex(4)}")
    own = group is None
    async with broker:
        missing = [drift for drift in await broker.declare(topic, create=False) if drift.setting == "missing"]
        if missing:  # declaring the group would make the topic, and a typo would be followed for ever
            raise NotFound(f"there is no topic {topic.name} at {broker.url}; check the name, or is it a --queue?")
        await broker.declare(source)
        note(
            f"following {topic.name} as group {source.group}, made for this and removed afterwards; Ctrl-C ends"
            if own
            else f"reading {topic.name} as group {group}: what is shown here, no other reader of the group gets; Ctrl-C ends"
        )
        try:
            await _read(broker, source, limit, as_json=as_json)
        finally:
            if own and isinstance(broker.adapter, Deletes):
                with contextlib.suppress(Exception):
                    await broker.adapter.delete(Topology(sources=(source,)))


async def _read(broker: Broker, source: Source, limit: int | None, *, as_json: bool) -> None:
    subscription = await broker.adapter.subscribe(source, _WINDOW, Alone())
    seen = 0
    try:
        while limit is None or seen < limit:
            most = _WINDOW.messages if limit is None else min(_WINDOW.messages, limit - seen)
            batch = await subscription.receive(most, _RECEIVE_SECONDS)
            for delivery in batch:
                show(delivery, as_json=as_json)
            seen += len(batch)
            await subscription.settle([(delivery, ACK) for delivery in batch])
    finally:
        await subscription.close()


def show(delivery: Delivery, *, as_json: bool) -> None:
    """Print one message."""
    message = delivery.message
    if as_json:
        print_json(as_object(delivery))
        return
    when = "" if message.published_at is None else f"{datetime.fromtimestamp(message.published_at, UTC):%H:%M:%S}Z "
    key = "" if message.key is None else f" key={printable(message.key)}"
    fields = "".join(
        f" {field_of(name)}={field_of(value)}" for name, value in message.headers.items() if name != "alo-id"
    )
    print(f"{when}{message.id}{key}{fields}\n  {printable(message.body)}", flush=True)


def as_object(delivery: Delivery) -> dict[str, Any]:
    """One message as JSON has it. A body that is JSON is embedded as it is, other text is a string, other bytes base64."""
    message = delivery.message
    body: Any = message.body
    encoding = "json"
    try:
        msgspec.json.decode(body)
        body = msgspec.Raw(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            body, encoding = message.body.decode(), "text"
        except UnicodeDecodeError:
            encoding = "base64"
    return {
        "id": message.id,
        "key": None if message.key is None else message.key.decode("utf-8", "backslashreplace"),
        "headers": [[name, value] for name, value in message.headers.items()],
        "published_at": message.published_at,
        "position": delivery.position,
        "count": delivery.count,
        "encoding": encoding,
        "body": body,
    }


def field_of(value: str | bytes | None) -> str:
    """The name or value of a header field as one printable line. Foreign names may hold anything, too."""
    return (
        "null"
        if value is None
        else printable(value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value)
    )


def printable(raw: bytes) -> str:
    """Bytes as one printable line: what would move the cursor or colour the terminal is escaped."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
