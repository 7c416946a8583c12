"""What waits in a source, and what lies in a stream, without taking any of it."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from atleastonce.adapters.nats import faults
from atleastonce.adapters.nats.envelope import read_message
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import durable_of, subject_of
from atleastonce.adapters.nats.topology import stream_for
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import Backlog, Delivery
from atleastonce.message import Message

_AHEAD = 127
"""Messages asked for at one time. Fewer: more round trips. More: their answers, of up to the server's largest message each, lie
in memory together."""

_DELAYED = "JetStream counts what waits for a delayed retry as in flight"
_GIVEN_BACK = (
    "nobody asks for messages now, so that what was given back cannot be told from what is handled: waiting holds both"
)


async def measure(link: Link, source: Source) -> Backlog:
    """As `Adapter.backlog`; raises what `Link.ask` does.

    JetStream has one number for what was handed out and not acknowledged: being handled, waiting for a delay, or given back
    and waiting for somebody to ask. While somebody asks, nothing of the last kind is left. While nobody does, all of it counts
    as waiting: a dead-letter queue that was looked through is not empty.
    """
    stream, name = await stream_for(link, source.channel), durable_of(source)
    found = await link.ask(f"CONSUMER.INFO.{stream}.{name}")
    pending, out = int(found["num_pending"]), int(found["num_ack_pending"])
    age: float | None = 0.0
    if pending:
        after = int(found.get("delivered", {}).get("stream_seq", 0)) + 1
        oldest = await _message(link, stream, after, subject_of(source.channel))
        age = (
            None if oldest is None else _age(oldest)
        )  # None: what waits is for this group alone, or was taken meanwhile
    if not out:
        return Backlog(pending, 0, 0, age)
    if found.get("num_waiting"):
        return Backlog(pending, out, None, age, None, _DELAYED)
    return Backlog(pending + out, None, None, None, None, _GIVEN_BACK)


def _age(stored: dict[str, Any]) -> float:
    return max(0.0, datetime.now(UTC).timestamp() - _time(stored))


def _time(stored: dict[str, Any]) -> float:
    # Nanoseconds, which datetime refuses before Python 3.11 and cuts since.
    return datetime.fromisoformat(str(stored["time"]).replace("Z", "+00:00")).timestamp()


async def _message(link: Link, stream: str, sequence: int, subject: str) -> dict[str, Any] | None:
    """The first message of ``subject`` from ``sequence`` on."""
    try:
        found = await link.ask(f"STREAM.MSG.GET.{stream}", {"seq": sequence, "next_by_subj": subject})
    except faults.ApiFailure as failure:
        if failure.error.code == 404:
            return None
        raise
    message: dict[str, Any] = found["message"]
    return message


async def scan(link: Link, channel: Channel[Any]) -> AsyncGenerator[list[Delivery]]:
    """Lists of what lies in the stream, oldest first, up to its end as it is at the first step. Nothing is handed out for it.

    Raises:
        Exception: as `Link.ask`; `NotFound`.
    """
    stream, subject = await stream_for(link, channel), subject_of(channel)
    state = (await link.ask(f"STREAM.INFO.{stream}"))["state"]
    sequence, last = int(state["first_seq"]), int(state["last_seq"])
    source = Source(Queue(channel.name))
    while sequence <= last:
        first = await _message(link, stream, sequence, subject)  # the next one, over any gap
        if first is None or (number := int(first["seq"])) > last:
            return
        # Its neighbours are likely to be there, and are asked for together.
        more = range(number + 1, min(number + _AHEAD, last) + 1)
        stored = [first, *await _at(link, stream, more, subject)]
        sequence = number + _AHEAD + 1
        yield [
            Delivery(_read(channel, each), source, channel.name, int(each["seq"]), 0, None, 0, 0.0, each)
            for each in stored
        ]


async def browse(link: Link, channel: Channel[Any], limit: int) -> Sequence[Delivery]:
    """Up to ``limit`` messages, oldest first."""
    found: list[Delivery] = []
    async with aclosing(scan(link, channel)) as lists:
        async for each in lists:
            found += each
            if len(found) >= limit:
                break
    return found[:limit]


async def _at(link: Link, stream: str, sequences: Iterable[int], subject: str) -> list[dict[str, Any]]:
    """The messages at ``sequences`` that are there and are of ``subject``."""
    found: list[dict[str, Any]] = []
    for answer in await link.ask_all(f"STREAM.MSG.GET.{stream}", [{"seq": each} for each in sequences]):
        if not isinstance(answer, faults.ApiFailure):
            if (message := answer["message"])["subject"] == subject:
                found.append(message)
        elif answer.error.code != 404:
            raise answer
    return found


def _read(channel: Channel[Any], stored: dict[str, Any]) -> Message:
    block = base64.b64decode(stored.get("hdrs") or "")
    body = base64.b64decode(stored.get("data") or "")
    return read_message(block, body, f"{channel.name}-{stored['seq']}", _time(stored))
