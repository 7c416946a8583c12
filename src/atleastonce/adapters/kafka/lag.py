"""`Adapter.backlog`: what is past the committed offset, and how much of that is done already."""

from __future__ import annotations

from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.config import Settings
from atleastonce.channels import Source
from atleastonce.contract import Backlog
from atleastonce.errors import AtLeastOnceError
from atleastonce.offsets import decode


async def backlog(admin: Admin, settings: Settings, source: Source) -> Backlog:
    """See `Adapter.backlog`. Offsets without a record (compaction, transactions) count as waiting."""
    topic = source.channel.name
    try:
        partitions = (await admin.partitions([topic]))[topic]
        if not partitions:
            return Backlog(detail=f"topic {topic} does not exist" if partitions is None else f"{topic} has no leaders")
        bounds = await admin.bounds(topic, partitions)
        committed = await admin.committed(source.group_name, topic, partitions)
    except AtLeastOnceError as error:
        return Backlog(detail=str(error))
    waiting = done = 0
    for number, (start, end) in bounds.items():
        stored = committed.get(number)
        if stored is None or stored.offset < 0:
            waiting += end - start if settings.reset == "earliest" else 0
            continue
        position = max(stored.offset, start)
        waiting += max(0, end - position)
        for first, last in decode(stored.metadata, stored.offset) or ():
            done += max(0, min(last, end) - max(first, position))
    return Backlog(
        waiting=waiting,
        true_waiting=max(0, waiting - done),
        detail="waiting includes what is in flight: Kafka knows only what is committed, and no ages",
    )
