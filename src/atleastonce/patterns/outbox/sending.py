"""From the line to the broker, and what its outcomes mean."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import OK, Code, Outcome, Outgoing, Status, unknown
from atleastonce.patterns.hops import one_line
from atleastonce.patterns.outbox.reading import READ_AHEAD
from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import OutboxRow, Parking
from atleastonce.urls import mask

log = logging.getLogger("atleastonce")

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]

# These say that the message itself is wrong. A missing channel or right is repaired by people, and then it leaves.
_POISON = frozenset({Code.INVALID, Code.TOO_LARGE, Code.INTERNAL})
# How many batches are with the broker at a time. One alone leaves the broker idle from its confirmations to the next batch. No
# order rests on it: `Line` hands out nothing that may not be overtaken.
_UNDER_WAY = 3
# How many batches are out or not removed yet when another one leaves: with it, what a crash repeats at most is three.
_AHEAD = 2


class Sender:
    """Publishes batches, a few at a time.

    Args:
        work: of the relay.
        send: publishes a list, in order, one outcome each.
        blocking: whether a row that is refused for good holds up its key.
        safe: whether the slots are ours for long enough to begin something.
    """

    def __init__(self, work: Work, send: Send, *, blocking: bool, safe: Callable[[], bool]) -> None:
        self._work = work
        self._send = send
        self._blocking = blocking
        self._safe = safe
        self._under_way: dict[asyncio.Task[None], float] = {}  # batches with the broker, and since when

    @property
    def busy(self) -> bool:
        """Whether something is with the broker."""
        return bool(self._under_way)

    @property
    def waits(self) -> float:
        """For how many seconds the oldest batch has been with the broker."""
        return time.monotonic() - min(self._under_way.values()) if self._under_way else 0.0

    async def run(self) -> None:
        """Publish, until cancelled."""
        work = self._work
        async with asyncio.TaskGroup() as group:
            while True:
                await work.sending.heard()
                while self._may_send:
                    if not self._safe():  # the slots may be another's: they are asked for again
                        work.line.drop(lambda _: True)
                        work.keeping.ring()
                        break
                    task = group.create_task(self._publish(work.line.take(work.batch)))
                    self._under_way[task] = time.monotonic()
                    task.add_done_callback(self._landed)

    @property
    def _may_send(self) -> bool:
        """What was published and not removed is what a crash repeats: publishing waits for the store when that is too slow."""
        work = self._work
        if not work.line.ready or work.stopping or len(self._under_way) >= _UNDER_WAY:
            return False
        if self._under_way and work.more and len(work.line) < work.batch:
            return False  # there is a better one in a moment: to send two halves costs more than to send one whole
        return work.line.out + len(work.sent) <= _AHEAD * work.batch

    def _landed(self, task: asyncio.Task[None]) -> None:
        work = self._work
        del self._under_way[task]
        work.quiet.ring()
        work.sending.ring()
        if len(work.line) <= READ_AHEAD * work.batch:
            work.reading.ring()

    async def _publish(self, rows: list[OutboxRow]) -> None:
        work = self._work
        if any(row.outgoing is None for row in rows):
            for row in rows:
                if row.outgoing is None:
                    self._refuse(row, row.flaw)
            rows = [row for row in rows if row.outgoing is not None]
        outcomes = await self._outcomes(rows) if rows else []
        worked, failed = self._sort(rows, outcomes)
        if work.sent or work.poison:
            work.removing.ring()
        now = time.monotonic()
        for destination in worked - failed.keys():
            if work.away.worked(destination):
                log.warning("outbox: %s takes messages again", destination)
        for destination, reason in failed.items():
            some = destination in worked
            pause = work.away.failed(destination, reason, now, some=some)
            if pause is not None:
                taken = "not all" if some else "no"
                log.warning(
                    "outbox: %s takes %s messages (%s); trying again in %.1f s", destination, taken, reason, pause
                )
        if failed:
            work.line.drop(lambda row: row.destination in failed)

    def _sort(self, rows: list[OutboxRow], outcomes: list[Outcome]) -> tuple[set[str], dict[str, str]]:
        """What becomes of each row. Returns the destinations that took some, and those that did not, and why."""
        work = self._work
        if outcomes.count(OK) == len(rows):  # as nearly always: then nothing is asked of each
            work.line.end_all(rows)
            work.sent += rows
            return {row.destination for row in rows}, {}
        worked: set[str] = set()
        failed: dict[str, str] = {}
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.ok:
                worked.add(row.destination)
                work.line.end(row)
                work.sent.append(row)
            elif outcome.status is Status.REJECTED and outcome.fault is not None and outcome.fault.code in _POISON:
                self._refuse(row, str(outcome.fault))
            else:
                failed.setdefault(row.destination, mask(one_line(str(outcome.fault))))
                work.line.again(row)
                work.counts["repeated"] += 1
        return worked, failed

    async def _outcomes(self, rows: list[OutboxRow]) -> list[Outcome]:
        try:
            return await self._ask(rows)
        except Exception as error:  # noqa: BLE001 - a channel that cannot be made, say; found by asking one by one
            places: dict[str, list[int]] = {}
            for position, row in enumerate(rows):
                places.setdefault(row.destination, []).append(position)
            outcomes = [unknown(Code.UNAVAILABLE, str(error) or type(error).__name__)] * len(rows)
            if len(places) > 1:
                for positions in places.values():
                    some = await self._outcomes([rows[position] for position in positions])
                    for position, outcome in zip(positions, some, strict=True):
                        outcomes[position] = outcome
            return outcomes

    async def _ask(self, rows: list[OutboxRow]) -> list[Outcome]:
        return list(await self._send([row.outgoing for row in rows if row.outgoing is not None]))

    def _refuse(self, row: OutboxRow, reason: str) -> None:
        """``row`` can never be published. If it blocks, its key waits until that is written down."""
        text = mask(one_line(reason))[:1000]
        log.error("outbox: %s to %s is parked: %s", row.id or f"row {row.seq}", row.destination, text)
        self._work.poison.append((row, Parking(row.seq, row.id, text)))
        self._work.removing.ring()
        if not self._blocking:
            self._work.line.end(row)
            self._work.sending.ring()
