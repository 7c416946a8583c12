"""From the table into the line: as much as keeps the broker busy, and no more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import OutboxRow

_FIRST_WAIT = 0.01
# Read at once, beyond which less is asked for: large bodies must not fill the memory.
_FETCH_BYTES = 8 << 20
# Batches that wait in the line when nothing more is read. Fewer: a slow look leaves the broker idle. More: memory, and rows that
# another relay would have to read anew if this one's slots end.
READ_AHEAD = 4
# How fast the first looks grow. They begin small, for nobody knows yet how large the bodies are.
_GROWTH = 4


class Reader:
    """Reads when the line gets short, when the store wakes it, and every ``poll`` seconds.

    Args:
        work: of the relay.
        poll: seconds between two looks at an outbox in which nothing was.
    """

    def __init__(self, work: Work, poll: float) -> None:
        self._work = work
        self._poll = poll
        self._limit = 16
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
            work.token, work.slots, self._limit, held=work.line.look(), paused=work.away.paused(now)
        )
        work.more = len(rows) >= work.batch
        self._tune(rows)
        fresh = work.line.add(row for row in rows if row.slot in work.slots)  # some may have been given back meanwhile
        work.read += fresh
        return fresh

    def _tune(self, rows: Sequence[OutboxRow]) -> None:
        """Ask for so much of each slot that all together are about two batches, however the rows are spread."""
        if not rows:
            return
        batch = self._work.batch
        size = sum(len(row.outgoing.message.body) for row in rows if row.outgoing is not None)
        fullest = max(Counter(row.slot for row in rows).values())
        if size > _FETCH_BYTES:
            self._limit = max(1, self._limit * _FETCH_BYTES // size)
        elif len(rows) > 4 * batch:
            self._limit = max(1, self._limit // 2)
        elif fullest >= self._limit and len(rows) < 2 * batch and _GROWTH * size < _FETCH_BYTES:
            self._limit = min(2 * batch, self._limit * _GROWTH)
