"""From the table into the line: as much as keeps the broker busy, and no more."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence

from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import SLOTS, OutboxRow

_FIRST_WAIT = 0.01
# Read at once, beyond which less is asked for: large bodies must not fill the memory.
_FETCH_BYTES = 8 << 20
# Batches that wait in the line when nothing more is read. Fewer: a slow look leaves the broker idle. More: memory, and rows that
# another relay would have to read anew if this one's slots end.
READ_AHEAD = 4
# How fast looks grow again that had become small, for large bodies. The first one is for a batch: stores bound its bytes.
_GROWTH = 4
# Of how many times its part of a look one slot may have rows in it. Less: rows spread by chance leave holes. More: PostgreSQL reads
# as many in vain.
_ABOVE = 1.3


class Reader:
    """Reads when the line gets short, when the store wakes it, and every ``poll`` seconds.

    Args:
        work: of the relay.
        poll: seconds between two looks at an outbox in which nothing was.
    """

    def __init__(self, work: Work, poll: float) -> None:
        self._work = work
        self._poll = poll
        self._most = work.batch  # of all slots together
        self._limit = _part(work.batch, SLOTS)  # of each
        self._promoted = 0.0

    async def run(self) -> None:
        """Read, until cancelled."""
        work, idle = self._work, 0
        while True:
            if work.stopping or not work.slots or len(work.line) > READ_AHEAD * work.batch:
                await work.reading.heard(1.0)
                continue
            found = 0

            async def read() -> None:
                nonlocal found
                found = await self._read()

            await work.asking("reading", read)
            if found:
                idle = 0
                work.sending.ring()
                continue
            wait = min(self._poll, _FIRST_WAIT * 2.0 ** min(idle, 16))
            idle += 1
            away = work.away.wait(time.monotonic())
            await work.store.outbox_wait(wait if away is None else min(wait, away + 0.001))

    async def _read(self) -> int:
        work, now = self._work, time.monotonic()
        if now - self._promoted >= self._poll:
            self._promoted = now
            await work.store.outbox_promote()
        rows = await work.store.outbox_fetch(
            work.token,
            work.slots,
            self._limit,
            held=work.line.look(),
            paused=work.away.paused(now),
            most=self._most,
        )
        work.more = len(rows) >= work.batch
        self._tune(rows)
        slots = work.slots  # some may have been given back meanwhile
        fresh = work.line.add([row for row in rows if row.slot in slots])
        work.read += fresh
        return fresh

    def _tune(self, rows: Sequence[OutboxRow]) -> None:
        """Ask for two batches, the first rows by number: what is held is then without holes, which a store looks past at once. Of
        one slot not many more than its part, so that one with a long backlog of few keys leaves the others their turn."""
        if not rows:
            return
        work, most = self._work, self._most
        size = sum(len(row.outgoing.message.body) for row in rows if row.outgoing is not None)
        fullest = max(Counter([row.slot for row in rows]).values())
        if size > _FETCH_BYTES:
            self._most = max(1, len(rows) * _FETCH_BYTES // size)
        elif len(rows) >= most and _GROWTH * size < _FETCH_BYTES:
            self._most = min(2 * work.batch, most * _GROWTH)
        if fullest >= self._limit and len(rows) < most:
            self._limit *= _GROWTH  # nothing of the others was left
        elif fullest >= self._limit:
            self._limit //= 2
        self._limit = max(_part(self._most, len(work.slots)), min(self._limit, self._most))


def _part(rows: int, slots: int) -> int:
    """What one of so many slots may have of a look at so many rows, at least."""
    return math.ceil(_ABOVE * rows / max(1, slots))
