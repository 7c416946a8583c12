"""``atleastonce request``: ask, and print the answer."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from atleastonce.broker import Broker
from atleastonce.channels import Channel
from atleastonce.cli.bodies import HeaderOption, TextOption, given
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, one_line
from atleastonce.cli.output import note, print_json
from atleastonce.cli.signals import in_background, interruptible
from atleastonce.cli.target import (
    BrokerOption,
    NoWait,
    QueueOption,
    TopicOption,
    broker_url,
    channel_named,
    connect_as_told,
)
from atleastonce.errors import DecodeError, Overloaded, PublishError, RemoteError, RequestError

# Lines of stdin that are asked at once; their answers are printed in their order.
_AT_ONCE = 16


def request(
    channel: Annotated[str, typer.Argument(help="Name of the queue or topic that a responder reads.")],
    payload: Annotated[
        str, typer.Argument(metavar="[PAYLOAD|-]", help="The body; - for one JSON request per line of stdin.")
    ] = "-",
    broker: BrokerOption = None,
    queue: QueueOption = False,
    topic: TopicOption = False,
    timeout: Annotated[str, typer.Option(help="How long to wait for each answer.")] = "5s",
    at_least: Annotated[
        int | None, typer.Option(min=1, help="Ask all groups of a topic; succeed once so many have answered.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Orders and partitions the request.")] = None,
    id: Annotated[str | None, typer.Option(help="Its identity; the same id is the same request.")] = None,
    header: HeaderOption = None,
    text: TextOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object for each request.")] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Ask, and print the answer; or ask each line of stdin and print the answers in their order.

    Exit code 1 if one was not answered, or answered with an error.
    """
    url = broker_url(broker)
    target = channel_named(channel, queue=queue or not topic, topic=topic)  # most requests go to one of many
    counts: Counter[str] = Counter()
    _, headers, bodies = given(payload, header, id, counts, text=text, kind="request")
    options = {"key": key, "id": id, "headers": headers, "timeout": timeout}
    interruptible(_ask(url, target, bodies, options, at_least, counts, as_json=as_json, no_wait=no_wait))
    return DONE if counts.total() == counts["answered"] else PROBLEM


async def _ask(
    url: str,
    channel: Channel[Any],
    bodies: Iterator[bytes],
    options: dict[str, Any],
    at_least: int | None,
    counts: Counter[str],
    *,
    as_json: bool,
    no_wait: bool,
) -> None:
    async with connect_as_told(url, no_wait=no_wait) as broker:
        while chunk := await in_background(lambda: list(itertools.islice(bodies, _AT_ONCE))):
            for result in await asyncio.gather(*(_one(broker, channel, body, options, at_least) for body in chunk)):
                counts["failed" if result["error"] else "answered"] += 1
                if as_json:
                    print_json(result)
                elif result["error"]:
                    note(f"{result['error']['type']}: {result['error']['message']}")
                else:
                    for answer in result["answers"]:
                        print(answer if isinstance(answer, str) else msgspec.json.encode(answer).decode())


async def _one(
    broker: Broker, channel: Channel[Any], body: bytes, options: dict[str, Any], at_least: int | None
) -> dict[str, Any]:
    begin = time.monotonic()
    answers: list[Any] = []
    error: dict[str, Any] | None = None
    try:
        if at_least is None:
            answers = [await broker.request(channel, body, **options)]
        else:
            answers = await broker.gather(channel, body, at_least=at_least, **options)
    except RemoteError as failed:
        error = {"type": failed.type, "message": failed.message, "retryable": failed.retryable}
    except (RequestError, PublishError, DecodeError) as failed:
        error = {
            "type": type(failed).__name__,
            "message": one_line(failed),
            "retryable": isinstance(failed, RequestError | Overloaded),
        }
    seconds = round(time.monotonic() - begin, 6)
    return {"channel": channel.name, "answers": [_shown(each) for each in answers], "error": error, "seconds": seconds}


def _shown(answer: Any) -> Any:
    """An answer as JSON: bytes as text, or as base64 where they are none."""
    if not isinstance(answer, bytes):
        return answer
    try:
        return answer.decode()
    except UnicodeDecodeError:
        return base64.b64encode(answer).decode()
