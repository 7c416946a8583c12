"""Redrive: dead letters go back to the group that failed them, and to nobody else.

Every other subscriber of a topic would be notified a second time if the message went back to the topic. So it goes to
the group's own
queue where the broker can address one, and otherwise to the group's redrive channel, which leads to the same handler.
The copy is
confirmed before the dead letter is settled: a crash in between repeats a message and loses none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import msgspec

from atleastonce.channels import Channel, Source, Topic
from atleastonce.contract import ACK, RELEASE, Adapter, Delivery, Outgoing, Settlement, Window
from atleastonce.patterns.hops import redriven_copy

log = logging.getLogger("atleastonce")

# One round trip's worth. Larger moves faster and repeats more after a crash.
_BATCH = 500
# The end is captured at the start, so this is only for brokers that cannot say how much waits.
_QUIET_SECONDS = 2.0


class Redriven(msgspec.Struct, frozen=True):
    """What a redrive did.

    Attributes:
        matched: dead letters looked at and wanted.
        redriven: went back, confirmed.
        skipped: looked at and not wanted; still dead.
        failed: wanted, but the copy was not confirmed; still dead.
    """

    matched: int = 0
    redriven: int = 0
    skipped: int = 0
    failed: int = 0


class _Quiet:
    """A listener for a subscription that nobody shares."""

    async def drain(self, streams: Collection[str], grace: float) -> None: ...

    def lost(self, streams: Collection[str] | None) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...


def way_back(home: Source, adapter: Adapter) -> Channel[object] | Source:
    """Where a redriven message of ``home`` is published."""
    if not isinstance(home.channel, Topic):
        return home.channel
    return home if adapter.capabilities.addresses_groups else home.redrive_channel


async def redrive(
    adapter: Adapter,
    home: Source,
    *,
    wanted: Callable[[Delivery], bool] = lambda _: True,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
) -> Redriven:
    """Send the dead letters of ``home`` back to it, up to those that are there now.

    Messages that fail again meanwhile are not redriven in the same run. Run twice, or by two people at once, nothing
    is lost.

    Args:
        adapter: open.
        home: the consumer's source.
        wanted: which dead letters to take; the others stay.
        limit: at most so many.
        progress: told how many were looked at, of how many (None: unknown).

    Raises:
        NotFound: there is no dead-letter queue.
        ConnectionLost: the broker went away; what was not moved is still there.
    """
    source = Source(home.dead_letter_channel)
    total = (await adapter.backlog(source)).waiting
    destination = way_back(home, adapter)
    subscription = await adapter.subscribe(source, Window(_BATCH * 4, 64 << 20), _Quiet())
    counts = dict.fromkeys(("matched", "redriven", "skipped", "failed"), 0)
    kept: list[Settlement] = []
    try:
        seen = 0
        while total is None or seen < total:
            batch = await subscription.receive(
                min(_BATCH, total - seen if total is not None else _BATCH), _QUIET_SECONDS
            )
            if not batch:
                break
            seen += len(batch)
            take = [d for d in batch if wanted(d)]
            if limit is not None:
                take = take[: limit - counts["matched"]]
            chosen = set(map(id, take))
            kept += [(d, RELEASE) for d in batch if id(d) not in chosen]
            counts["skipped"] += len(batch) - len(take)
            counts["matched"] += len(take)
            outcomes = await adapter.send([Outgoing(destination, redriven_copy(d)) for d in take]) if take else []
            moved = [d for d, outcome in zip(take, outcomes, strict=True) if outcome.ok]
            for delivery, outcome in zip(take, outcomes, strict=True):
                if not outcome.ok:
                    log.warning("%s stays dead: its copy was not confirmed (%s)", delivery.message.id, outcome.fault)
                    kept.append((delivery, RELEASE))
            await subscription.settle([(delivery, ACK) for delivery in moved])
            counts["redriven"] += len(moved)
            counts["failed"] += len(take) - len(moved)
            progress(seen, total)
            if limit is not None and counts["matched"] >= limit:
                break
    finally:
        # Given back only at the end: released earlier, they would be received again in this run.
        if kept:
            await subscription.settle(kept)
        await subscription.close()
    return Redriven(**counts)
