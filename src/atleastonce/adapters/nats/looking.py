"""What waits in a source, and what lies in a stream, without taking any of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import msgspec

from atleastonce.adapters.nats import direct, faults
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import durable_of, group_subject, subject_of
from atleastonce.adapters.nats.stored import Stored, seconds_of
from atleastonce.adapters.nats.topology import stream_for
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import Backlog, Delivery

_AHEAD = 128
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
    return max(0.0, datetime.now(UTC).timestamp() - seconds_of(str(stored["time"])))


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
    stream, source, subject = await stream_for(link, channel), Source(Queue(channel.name)), subject_of(channel)
    told = await link.ask(f"STREAM.INFO.{stream}")
    begin, end = max(1, int(told["state"]["first_seq"])), int(told["state"]["last_seq"])
    if begin <= end and direct.has_one_copy(told["config"]):
        try:
            async with aclosing(direct.lists(link, stream, source, subject, begin, end)) as lists:
                async for each in lists:
                    begin = int(each[-1].position) + 1
                    yield each
        except direct.NotServed:
            pass
        else:
            return
    async with aclosing(_lists(link, stream, source, Stretch(begin, end, [subject]))) as lists:
        async for each in lists:
            yield each


async def browse(link: Link, channel: Channel[Any], limit: int) -> Sequence[Delivery]:
    """Up to ``limit`` messages, oldest first."""
    return await _up_to(limit, scan(link, channel))


async def waiting(link: Link, source: Source, limit: int) -> Sequence[Delivery]:
    """Up to ``limit`` messages that a topic's group has not acknowledged, oldest first.

    JetStream tells how many it has handed out and not heard of, not which. If there are just as many between the ack floor and the
    last that it handed out, it is those. If there are more, some of them are done, and they are left out: what is shown begins
    with the first that nobody was handed.
    """
    stream = await stream_for(link, source.channel)
    found = await link.ask(f"CONSUMER.INFO.{stream}.{durable_of(source)}")
    last = int((await link.ask(f"STREAM.INFO.{stream}"))["state"]["last_seq"])
    handed, floor = int(found["delivered"]["stream_seq"]), int(found["ack_floor"]["stream_seq"])
    out, subjects = int(found["num_ack_pending"]), [subject_of(source.channel), group_subject(source)]

    async def within(begin: int, end: int, most: int) -> list[Delivery]:
        return await _up_to(most, _lists(link, stream, source, Stretch(begin, end, subjects))) if most > 0 else []

    shown: list[Delivery] = []
    if out and handed - floor == out:
        shown = await within(floor + 1, handed, limit)
    elif 0 < out <= limit:  # what lies between may be other groups'
        shown = await within(floor + 1, handed, out + 1)
        if len(shown) != out:
            shown = []
    return shown + await within(handed + 1, last, limit - len(shown))


class Stretch(msgspec.Struct, frozen=True):
    """The messages of any of ``subjects`` from sequence ``begin`` to ``end``, both included."""

    begin: int
    end: int
    subjects: list[str]


async def _lists(link: Link, stream: str, source: Source, there: Stretch) -> AsyncGenerator[list[Delivery]]:
    coming = asyncio.ensure_future(_next(link, stream, there, there.begin))
    try:
        while True:
            stored, begin = await coming
            if begin is not None:  # the server looks for the next ones while somebody reads these
                coming = asyncio.ensure_future(_next(link, stream, there, begin))
            if stored:
                yield [_read(source, each) for each in stored]
            if begin is None:
                return
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _next(link: Link, stream: str, there: Stretch, begin: int) -> tuple[list[dict[str, Any]], int | None]:
    """What is there from ``begin`` on, a list of it, and where to go on; None at the end."""
    if begin > there.end:
        return [], None
    numbers = range(begin, min(begin + _AHEAD, there.end + 1))
    if found := await _at(link, stream, numbers, there.subjects):
        return found, numbers.stop
    first = await _first(link, stream, numbers.stop, there.subjects)  # over any gap
    return [], None if first is None else int(first["seq"])


def _read(source: Source, stored: dict[str, Any]) -> Stored:
    block, payload = base64.b64decode(stored.get("hdrs") or ""), base64.b64decode(stored.get("data") or "")
    return Stored(source, int(stored["seq"]), block, payload, str(stored["time"]), stored)


async def _up_to(limit: int, lists: AsyncGenerator[list[Delivery]]) -> list[Delivery]:
    found: list[Delivery] = []
    async with aclosing(lists):
        async for each in lists:
            found += each
            if len(found) >= limit:
                break
    return found[:limit]


async def _first(link: Link, stream: str, sequence: int, subjects: Sequence[str]) -> dict[str, Any] | None:
    """The first message of any of ``subjects`` from ``sequence`` on."""
    each = [await _message(link, stream, sequence, subject) for subject in subjects]
    return min((one for one in each if one is not None), key=lambda one: int(one["seq"]), default=None)


async def _at(link: Link, stream: str, sequences: Iterable[int], subjects: Sequence[str]) -> list[dict[str, Any]]:
    """The messages at ``sequences`` that are there and are of one of ``subjects``."""
    found: list[dict[str, Any]] = []
    for answer in await link.ask_all(f"STREAM.MSG.GET.{stream}", [{"seq": each} for each in sequences]):
        if not isinstance(answer, faults.ApiFailure):
            if (message := answer["message"])["subject"] in subjects:
                found.append(message)
        elif answer.error.code != 404:
            raise answer
    return found
