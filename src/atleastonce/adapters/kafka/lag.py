"""What a group has not handled: how much is past the committed offsets, how much of that is done already, and how old the oldest of
the rest is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.browse import Span, browse
from atleastonce.adapters.kafka.config import Settings
from atleastonce.channels import Source
from atleastonce.contract import Backlog
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, NotFound
from atleastonce.offsets import decode

_COUNTED = "waiting includes what is in flight: Kafka knows only what is committed"


async def backlog(admin: Admin, settings: Settings, source: Source) -> Backlog:
    """See `Adapter.backlog`. Offsets without a record (compaction, transactions) count as waiting."""
    try:
        return _counted(
            await left(admin, settings, source), "; the age of the oldest is not asked for: it costs a read"
        )
    except AtLeastOnceError as error:
        return Backlog(detail=str(error))


async def dated_backlog(admin: Admin, settings: Settings, source: Source) -> Backlog:
    """See `Dates.dated_backlog`. Of each partition the first record that is not done is looked at: the offsets that the broker
    tells have no times."""
    try:
        spans = await left(admin, settings, source)
    except AtLeastOnceError as error:
        return Backlog(detail=str(error))
    counted = _counted(spans)
    if not counted.true_waiting:
        return counted
    try:
        oldest = await asyncio.to_thread(browse, settings, source, spans, 1)
    except AtLeastOnceError as error:
        return msgspec.structs.replace(counted, detail=f"{_COUNTED}; how old the oldest is cannot be told: {error}")
    if not oldest:  # what is left are marks of transactions, or was compacted away
        return counted
    published = oldest[0].message.published_at
    if published is None:
        return msgspec.structs.replace(counted, detail=f"{_COUNTED}; its records have no times")
    # The clock is the publisher's, and may be ahead of ours.
    return msgspec.structs.replace(counted, oldest_age=max(0.0, time.time() - published))


async def left(admin: Admin, settings: Settings, source: Source) -> dict[int, Span]:
    """By partition, what is not committed, and what of that is done.

    Raises:
        NotFound: no such topic.
        BrokerUnavailable, PermissionDenied: nothing is known.
    """
    topic = source.channel.name
    partitions = (await admin.partitions([topic]))[topic]
    if partitions is None:
        raise NotFound(f"topic {topic} does not exist")
    if not partitions:
        raise BrokerUnavailable(f"{topic} has no leaders")
    bounds = await admin.bounds(topic, partitions)
    committed = await admin.committed(source.group_name, topic, partitions)
    spans: dict[int, Span] = {}
    for number, (start, end) in bounds.items():
        stored = committed.get(number)
        if stored is None or stored.offset < 0:
            spans[number] = (start if settings.reset == "earliest" else end, end, ())
        elif stored.offset < start:  # what retention has removed, done or not
            spans[number] = (start, end, ())
        else:
            spans[number] = (min(stored.offset, end), end, decode(stored.metadata, stored.offset) or ())
    return spans


def _counted(spans: Mapping[int, Span], more: str = "") -> Backlog:
    waiting = sum(end - start for start, end, _ in spans.values())
    done = sum(max(0, min(last, end) - first) for _, end, ranges in spans.values() for first, last in ranges)
    return Backlog(waiting=waiting, true_waiting=max(0, waiting - done), detail=_COUNTED + more)
