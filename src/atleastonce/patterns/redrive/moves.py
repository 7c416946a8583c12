"""Redrive and purge: dead letters go back to the group that failed them and to nobody else, or away for good.

Every other subscriber of a topic would be notified a second time if the message went back to the topic. So it goes to the
group's own queue where the broker can address one, and otherwise to the group's redrive channel, which leads to the same
handler. The copy is confirmed before the dead letter is settled: a crash in between repeats a message and loses none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Adapter, Delivery, Topology
from atleastonce.errors import ConfigurationError, NotFound
from atleastonce.patterns.redrive.accounts import Purged, Redriven
from atleastonce.patterns.redrive.audit import Audit, Auditor
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.patterns.redrive.pace import Pace, Watch
from atleastonce.patterns.redrive.passage import Passage
from atleastonce.patterns.redrive.run import Run, Sending, Wanted
from atleastonce.patterns.redrive.selection import Selection

Progress = Callable[["Redriven | Purged", int, int | None], None]
"""Told after each batch: the account so far, how many letters were looked at, of how many (None: unknown)."""

# One round trip's worth. Larger moves faster and repeats more after a crash.
_BATCH = 500
# Lists on their way while one is waited for and settled. None: the destination is idle in between. More: memory, and more that goes
# twice after a crash.
_AHEAD = 1
MAX_REDRIVES = 5


def way_back(home: Source, adapter: Adapter) -> Channel[Any] | Source:
    """Where a redriven message of ``home`` is published."""
    if not isinstance(home.channel, Topic):
        return home.channel
    return home if adapter.capabilities.addresses_groups else home.redrive_channel


async def redrive(
    adapter: Adapter,
    home: Source,
    *,
    queue: Queue[Any] | None = None,
    wanted: Wanted = Selection(),  # noqa: B008 - immutable
    to: Queue[Any] | None = None,
    limit: int | None = None,
    rate: float | None = None,
    max_redrives: int = MAX_REDRIVES,
    abort_above: float | None = None,
    change: Callable[[Letter], bytes] | None = None,
    audit: Audit | None = None,
    progress: Progress | None = None,
    stopping: asyncio.Event | None = None,
) -> Redriven:
    """Send the dead letters of ``home`` back to it, up to those that are there now.

    What fails again meanwhile is not redriven in the same run. Run twice, by two people at once, or killed at any moment,
    nothing is lost; what was moved and not yet settled goes twice, under one id.

    Args:
        adapter: open.
        home: the consumer's source.
        queue: its dead letters; default: those of `Source.dead_letter_channel`.
        wanted: which to take; the others stay.
        to: a sandbox to send the copies to, instead of the way back.
        limit: at most so many.
        rate: at most so many per second; None: as fast as it goes.
        max_redrives: a letter that has come back so often stays: it would only go round.
        abort_above: stop when this share of what went back (0.05 for 5 %) has died again, or as many others have died: 50 go
            first, and every few seconds it waits to see. Failures that take longer than that, as in a chain of long delays, it
            cannot see; give a ``rate`` with it.
        change: gives the body to send instead; the original is in the audit, which it needs.
        audit: told of every message.
        progress: told after every batch.
        stopping: once it is set, the run ends after its batch, in good order.

    Raises:
        NotFound: there is no dead-letter queue, or nothing to send its letters to.
        ConnectionLost: the broker went away; what was not moved is still there.
        ConfigurationError: ``change`` without ``audit``.
    """
    if change is not None and audit is None:
        raise ConfigurationError("an edited message needs an audit: the original body is kept there and nowhere else")
    source = Source(queue or home.dead_letter_channel)
    destination = to or way_back(home, adapter)
    await _check_there(adapter, home, destination)
    auditor = Auditor(audit, "redrive", source.name, destination.name)
    run = Run(adapter, home, destination, wanted, max_redrives, change, auditor)
    pace = Pace(rate)
    async with Passage(adapter, source, stopping) as passage, Sending(run, passage) as sending:
        watch = None if abort_above is None else Watch(passage, abort_above)
        while not passage.stopped:
            left = None if limit is None else limit - run.counts["matched"]
            if left is not None and left <= 0:
                break
            if isinstance(wanted, Selection) and wanted.ids and run.found >= wanted.ids:
                break  # each is there once, and all were seen
            if passage.yielding:
                await sending.finish()
            size = pace.size(_BATCH if watch is None else watch.size(run, _BATCH))
            batch = await passage.receive(size)
            if not batch:
                break
            taken = await run.take(passage, batch, left)
            sending.begin(taken)
            # Who paces or watches wants to see each batch end.
            moved = await sending.finish(_AHEAD if rate is None and watch is None else 0)
            if progress is not None:
                progress(run.account(passage.stopped), passage.seen, passage.total)
            if watch is not None:
                passage.stop(await watch.look(run))
            await passage.rest(pace.pause(moved))
        await sending.finish()
        if progress is not None:
            progress(run.account(passage.stopped), passage.seen, passage.total)
        if watch is not None:
            passage.stop(await watch.look(run, last=True))
    return run.account(passage.stopped)


async def purge(
    adapter: Adapter,
    home: Source,
    *,
    queue: Queue[Any] | None = None,
    wanted: Wanted = Selection(),  # noqa: B008 - immutable
    limit: int | None = None,
    audit: Audit | None = None,
    progress: Progress | None = None,
    stopping: asyncio.Event | None = None,
) -> Purged:
    """Remove dead letters of ``home`` for good, up to those that are there now. Arguments as of `redrive`.

    Raises:
        NotFound: there is no dead-letter queue.
        ConnectionLost: the broker went away.
    """
    source = Source(queue or home.dead_letter_channel)
    auditor = Auditor(audit, "purge", source.name)
    begun = time.monotonic()
    matched = purged = skipped = 0
    async with Passage(adapter, source, stopping) as passage:
        while not passage.stopped and (limit is None or matched < limit):
            size = _BATCH if limit is None else min(_BATCH, limit - matched)
            batch = await passage.receive(size)
            if not batch:
                break
            taken, kept = _split(batch, wanted)
            for letter in taken:
                auditor.note(letter, "purged")
            auditor.tell()
            purged += await passage.done([letter.delivery for letter in taken])
            await passage.keep([letter.delivery for letter in kept])
            matched += len(taken)
            skipped += len(kept)
            if progress is not None:
                account = Purged(matched, purged, skipped, False, passage.stopped, time.monotonic() - begun)
                progress(account, passage.seen, passage.total)
    return Purged(matched, purged, skipped, False, passage.stopped, time.monotonic() - begun)


def _split(batch: Sequence[Delivery], wanted: Wanted) -> tuple[list[Letter], list[Letter]]:
    taken: list[Letter] = []
    kept: list[Letter] = []
    for delivery in batch:
        letter = Letter(delivery)
        (taken if wanted(letter) else kept).append(letter)
    return taken, kept


async def _check_there(adapter: Adapter, home: Source, destination: Channel[Any] | Source) -> None:
    """Nothing is moved to where nobody reads.

    Raises:
        NotFound: names what is missing.
    """
    if isinstance(destination, Source):
        topology = Topology(sources=(destination,))
    else:
        own = (Source(destination),) if isinstance(destination, Queue) else ()
        topology = Topology(channels=(destination,), sources=own)
    drifts = await adapter.declare(topology, create=False)
    missing = sorted({drift.name for drift in drifts if drift.setting == "missing"})
    if missing:
        raise NotFound(
            f"{' and '.join(missing)} does not exist (any more), so nothing was moved: start the consumer of {home} once, which "
            "makes what it needs, or give another destination"
        )
