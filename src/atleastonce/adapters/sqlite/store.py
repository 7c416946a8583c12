"""What the broker does, in SQL: publish, claim, settle and extend, each in a transaction that `Session.begin` opened."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from atleastonce.adapters.sqlite.rows import pack_headers, read_message
from atleastonce.adapters.sqlite.session import Lease, Session
from atleastonce.adapters.sqlite.topology import Target
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    STALE,
    Ack,
    Code,
    Delivery,
    Outcome,
    Outgoing,
    Release,
    Retry,
    Settlement,
    rejected,
)
from atleastonce.wire import ID, read_id

_CLAIMABLE = """
    SELECT d.seq, d.count, d.claim, m.id, m.key, m.headers, m.body, m.published
    FROM deliveries d INDEXED BY deliveries_visible JOIN messages m ON m.seq = d.seq
    WHERE d.source = ? AND d.visible <= ? ORDER BY d.visible, d.seq LIMIT ?"""
_CLAIM = (
    "UPDATE deliveries SET visible = ?, held = 1, count = count + 1, claim = claim + 1 WHERE source = ? AND seq = ?"
)
_ACK = "DELETE FROM deliveries WHERE source = ? AND seq = ? AND claim = ?"
_RETRY = "UPDATE deliveries SET visible = ?, held = 0 WHERE source = ? AND seq = ? AND claim = ?"
_RELEASE = """
    UPDATE deliveries SET visible = due, held = 0, count = count - 1 WHERE source = ? AND seq = ? AND claim = ?"""
_KEEP_COUNTED = "UPDATE deliveries SET visible = due, held = 0 WHERE source = ? AND seq = ? AND claim = ?"
_EXTEND = "UPDATE deliveries SET visible = ?, held = 1 WHERE source = ? AND seq = ? AND claim = ?"
_UNBLOCK = """
    UPDATE deliveries SET visible = due
    WHERE source = ?1 AND visible IS NULL
      AND seq = (SELECT seq FROM deliveries WHERE source = ?1 AND lane = ?2 ORDER BY seq LIMIT 1)"""
# A message goes when no source of its channel has it any more.
FORGET = """
    DELETE FROM messages WHERE seq = ?1 AND NOT EXISTS (
        SELECT 1 FROM sources s JOIN deliveries d ON d.source = s.id AND d.seq = ?1 WHERE s.channel = messages.channel)"""


class Claimed(NamedTuple):
    """What a claim brought; where nothing was ready, in how many seconds something may be (None: not by itself)."""

    deliveries: list[Delivery]
    again_in: float | None
    exists: bool


class Store(Session):
    """The broker's operations. Used in one thread.

    Args:
        max_bytes: of one message.
        max_pages: of the file, for publishers; None for no limit.
        clock: the wall clock.
    """

    def __init__(
        self, db: sqlite3.Connection, max_bytes: int, max_pages: int | None, clock: Callable[[], float]
    ) -> None:
        super().__init__(db, clock)
        self._max_bytes = max_bytes
        self._max_pages = max_pages

    # ---------------------------------------------------------------------------------------------------------- publish

    def publish(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        messages: list[tuple[object, ...]] = []
        deliveries: list[tuple[object, ...]] = []
        lanes: set[tuple[int, bytes]] = set()
        wall = self.clock()
        for item in batch:
            row = self._row(item, wall)
            if isinstance(row, Outcome):
                outcomes.append(row)
                continue
            target, columns = row
            seq, self.next = self.next, self.next + 1
            messages.append((seq, target.channel, *columns))
            due = self.now + item.delay if item.delay > 0 else self.now
            for source in target.sources:
                lane = item.message.key if target.fifo else None
                visible = None if lane is not None and self._occupied(source, lane, lanes) else due
                deliveries.append((source, seq, visible, due, lane))
            outcomes.append(OK)
        if self._max_pages is not None:
            self.db.execute(f"PRAGMA max_page_count = {self._max_pages}")
        try:
            self.db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", messages)
            self.db.executemany("INSERT INTO deliveries VALUES (?, ?, ?, ?, 0, 0, 0, ?)", deliveries)
        finally:
            if self._max_pages is not None:  # the limit is for publishers: settling must go on in a full file
                self.db.execute("PRAGMA max_page_count = 4294967294")
        self.touched.update(row[0] for row in deliveries)  # type: ignore[misc]
        return outcomes

    def _row(self, item: Outgoing, wall: float) -> tuple[Target, tuple[object, ...]] | Outcome:
        message = item.message
        size = message.size
        if size > self._max_bytes:
            return rejected(Code.TOO_LARGE, f"{size} bytes; this broker takes {self._max_bytes}")
        target = self.catalogue.target(item.destination)
        if target is None:
            return rejected(
                Code.NOT_FOUND, f"{item.destination.name}: no such channel or group in this file; declare it"
            )
        headers = message.headers
        try:
            identity = (read_id(headers.get(ID)) if headers else None) or message.id
            identity.encode()
            packed = pack_headers(headers)
        except (UnicodeEncodeError, TypeError) as error:
            return rejected(Code.INVALID, f"id or header that is no text: {error}")
        return target, (identity, message.key, packed, wall, message.body)

    def _occupied(self, source: int, lane: bytes, seen: set[tuple[int, bytes]]) -> bool:
        if (source, lane) in seen:
            return True
        seen.add((source, lane))
        query = "SELECT 1 FROM deliveries WHERE source = ? AND lane = ? LIMIT 1"
        return self.db.execute(query, (source, lane)).fetchone() is not None

    # ------------------------------------------------------------------------------------------------- claim and settle

    def next_visible(self, source: int) -> Claimed:
        """Without the write lock: whether a claim can bring anything, and if not, when."""
        self.look()
        row = self.db.execute(
            "SELECT min(visible) FROM deliveries WHERE source = ? AND visible IS NOT NULL", (source,)
        ).fetchone()
        again_in = None if row[0] is None else max(0.0, row[0] - self.now)
        return Claimed([], again_in, source in self.catalogue.sources)

    def claim(self, source: Source, number: int, limit: int, room: int, lease: float) -> Claimed:
        """Hand out up to ``limit`` messages, the longest ready first, until they hold ``room`` bytes."""
        fifo = self.catalogue.sources.get(number, False)
        until = time.monotonic() + lease
        found: list[Delivery] = []
        for seq, count, claim, identity, key, headers, body, published in self._claimable(number, limit):
            message = read_message(identity, key, headers, body, published)
            size = message.size
            token = Lease(number, seq, claim + 1, key if fifo else None, size)
            found.append(Delivery(message, source, source.name, seq, 0, token, count + 1, until))
            room -= size
            if room <= 0:
                break
        if not found:
            return self.next_visible(number)
        visible = self.now + lease
        self.db.executemany(_CLAIM, [(visible, number, delivery.position) for delivery in found])
        self.touched.add(number)  # its other readers should know of the new lease ends
        return Claimed(found, None, True)

    def _claimable(self, number: int, limit: int) -> Iterator[tuple[Any, ...]]:
        cursor = self.db.execute(_CLAIMABLE, (number, self.now, limit))
        try:
            while rows := cursor.fetchmany(100):
                yield from rows
        finally:
            cursor.close()

    def settle(self, batch: Sequence[Settlement]) -> list[Outcome]:
        acked: list[tuple[int]] = []
        outcomes = [self._settle(delivery.token, verdict, acked) for delivery, verdict in batch]
        self.db.executemany(FORGET, acked)
        return outcomes

    def _settle(self, lease: Lease, verdict: object, acked: list[tuple[int]]) -> Outcome:
        earlier = lease.outcome or self.settled.get(lease)
        if earlier is not None:
            return earlier
        row = (lease.source, lease.seq, lease.claim)
        if isinstance(verdict, Ack):
            done = self.db.execute(_ACK, row).rowcount
            if done:
                acked.append((lease.seq,))
                if lease.lane is not None:
                    self.db.execute(_UNBLOCK, (lease.source, lease.lane))
                    self.touched.add(lease.source)
        elif isinstance(verdict, Retry):
            done = self.db.execute(_RETRY, (self.now + max(0.0, verdict.delay), *row)).rowcount
            self.touched.add(lease.source)
        elif isinstance(verdict, Release):
            done = self.db.execute(_KEEP_COUNTED if verdict.died else _RELEASE, row).rowcount
            self.touched.add(lease.source)
        else:
            return rejected(Code.INVALID, "sqlite has no dead-letter net of its own; copy the message, then Ack")
        outcome = self.settled[lease] = OK if done else STALE
        return outcome

    def extend(self, leases: Sequence[Lease], seconds: float) -> list[Outcome]:
        visible = self.now + seconds
        outcomes: list[Outcome] = []
        for lease in leases:
            settled = lease.outcome or self.settled.get(lease)
            row = (visible, lease.source, lease.seq, lease.claim)
            outcomes.append(STALE if settled or not self.db.execute(_EXTEND, row).rowcount else OK)
        return outcomes
