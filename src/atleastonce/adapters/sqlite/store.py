"""What the broker does, in SQL: publish, claim, settle, extend, and looking. All of it runs in one thread, and all that
writes runs in a transaction that `Store.begin` opened."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from atleastonce.adapters.sqlite.topology import Catalogue, Target
from atleastonce.channels import Channel, Source
from atleastonce.contract import (
    OK,
    STALE,
    Ack,
    Backlog,
    Code,
    Delivery,
    Drift,
    Outcome,
    Outgoing,
    Release,
    Retry,
    Settlement,
    Topology,
    rejected,
)
from atleastonce.errors import NotFound
from atleastonce.message import NO_HEADERS, Headers, Message
from atleastonce.wire import ID

_encode_headers = msgspec.msgpack.Encoder().encode
_decode_headers = msgspec.msgpack.Decoder(list[tuple[Any, Any]]).decode

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
_EXTEND = "UPDATE deliveries SET visible = ?, held = 1 WHERE source = ? AND seq = ? AND claim = ?"
_UNBLOCK = """
    UPDATE deliveries SET visible = due
    WHERE source = ?1 AND visible IS NULL
      AND seq = (SELECT seq FROM deliveries WHERE source = ?1 AND lane = ?2 ORDER BY seq LIMIT 1)"""
# A message goes when no source of its channel has it any more.
_FORGET = """
    DELETE FROM messages WHERE seq = ?1 AND NOT EXISTS (
        SELECT 1 FROM sources s JOIN deliveries d ON d.source = s.id AND d.seq = ?1 WHERE s.channel = messages.channel)"""
# Not handed out: free, delayed, blocked behind its lane, or with a reader whose lease is over.
_UNHELD = "source = ?1 AND (held = 0 OR visible <= ?2)"
_WAITING = "source = ?1 AND (visible IS NULL OR visible <= ?2)"


class Lease:
    """The token of one delivery: which claim of which row, and how it was settled."""

    __slots__ = ("claim", "lane", "outcome", "seq", "size", "source")

    def __init__(self, source: int, seq: int, claim: int, lane: bytes | None, size: int) -> None:
        self.source = source
        self.seq = seq
        self.claim = claim
        self.lane = lane
        self.size = size
        self.outcome: Outcome | None = None


class Claimed(NamedTuple):
    """What a claim brought; where nothing was ready, in how many seconds something may be (None: not by itself)."""

    deliveries: list[Delivery]
    again_in: float | None
    exists: bool


class Store:
    """One connection's view of the broker.

    Attributes:
        touched: the sources in which this transaction changed what readers may get, and when.
    """

    def __init__(
        self, db: sqlite3.Connection, max_bytes: int, max_pages: int | None, clock: Callable[[], float]
    ) -> None:
        self.db = db
        self.catalogue = Catalogue(db)
        self.touched: set[int] = set()
        self._max_bytes = max_bytes
        self._max_pages = max_pages
        self._clock = clock
        self._now = 0.0
        self._skew = 0.0
        self._next = 0
        self._changes = 0
        self._settled: dict[Lease, Outcome] = {}

    # ---------------------------------------------------------------------------------------------------- transactions

    def begin(self) -> None:
        """Take the write lock, and the time: the wall clock, corrected so that it never goes back in this file.

        A step back of the wall clock would otherwise hide what was published before it and stretch every lease.
        """
        self.db.execute("BEGIN IMMEDIATE")  # never deferred: an upgrade to writing fails at once instead of waiting
        self._changes = self.db.total_changes
        self._next = self._look()
        self._settled.clear()
        self.touched.clear()

    def commit(self) -> bool:
        """End the transaction; whether it changed anything."""
        changed = self.db.total_changes != self._changes
        if changed:
            self.db.execute("UPDATE broker SET next = ?, high = ?, skew = ?", (self._next, self._now, self._skew))
            self.db.execute("COMMIT")
        else:
            self.db.execute("ROLLBACK")
        for lease, outcome in self._settled.items():
            lease.outcome = outcome
        self._settled.clear()
        return changed

    def rollback(self) -> None:
        """Undo the transaction, if SQLite has not done so already. Never raises."""
        if self.db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
        self._settled.clear()
        self.touched.clear()
        self.catalogue.invalidate()

    def _look(self) -> int:
        following, high, skew, generation = self.db.execute(
            "SELECT next, high, skew, generation FROM broker"
        ).fetchone()
        self.catalogue.refresh(generation)
        now = self._clock() + skew
        if now < high:
            skew += high - now
            now = high
        self._now, self._skew = now, skew
        return int(following)

    # --------------------------------------------------------------------------------------------------------- topology

    def declare(self, topology: Topology, create: bool) -> list[Drift]:
        self._look()
        return self.catalogue.declare(topology, create)

    def delete(self, topology: Topology) -> None:
        self.touched |= self.catalogue.delete(topology)

    def numbers(self, what: Channel[Any] | Source) -> tuple[int, ...]:
        """The sources behind ``what``.

        Raises:
            NotFound: it was not declared.
        """
        self._look()
        target = self.catalogue.target(what)
        if target is None:
            raise NotFound(f"{what.name}: no such channel or group in this sqlite file; declare it first")
        return target.sources

    # ---------------------------------------------------------------------------------------------------------- publish

    def publish(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        messages: list[tuple[object, ...]] = []
        deliveries: list[tuple[object, ...]] = []
        lanes: set[tuple[int, bytes]] = set()
        wall = self._clock()
        for item in batch:
            row = self._row(item, wall)
            if isinstance(row, Outcome):
                outcomes.append(row)
                continue
            target, columns = row
            seq, self._next = self._next, self._next + 1
            messages.append((seq, target.channel, *columns))
            due = self._now + item.delay if item.delay > 0 else self._now
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
            identity = (headers.get(ID) if headers else None) or message.id
            identity.encode()
            packed = _encode_headers(headers.items()) if headers else None
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
        self._look()
        row = self.db.execute(
            "SELECT min(visible) FROM deliveries WHERE source = ? AND visible IS NOT NULL", (source,)
        ).fetchone()
        again_in = None if row[0] is None else max(0.0, row[0] - self._now)
        return Claimed([], again_in, source in self.catalogue.sources)

    def claim(self, source: Source, number: int, limit: int, room: int, lease: float) -> Claimed:
        """Hand out up to ``limit`` messages, the longest ready first, until they hold ``room`` bytes."""
        fifo = self.catalogue.sources.get(number, False)
        until = time.monotonic() + lease
        found: list[Delivery] = []
        for seq, count, claim, identity, key, headers, body, published in self._claimable(number, limit):
            message = Message(
                identity, body, key, Headers(_decode_headers(headers)) if headers else NO_HEADERS, published
            )
            size = message.size
            token = Lease(number, seq, claim + 1, key if fifo else None, size)
            found.append(Delivery(message, source, source.name, seq, 0, token, count + 1, until))
            room -= size
            if room <= 0:
                break
        if not found:
            return self.next_visible(number)
        visible = self._now + lease
        self.db.executemany(_CLAIM, [(visible, number, delivery.position) for delivery in found])
        self.touched.add(number)  # its other readers should know of the new lease ends
        return Claimed(found, None, True)

    def _claimable(self, number: int, limit: int) -> Iterator[tuple[Any, ...]]:
        cursor = self.db.execute(_CLAIMABLE, (number, self._now, limit))
        try:
            while rows := cursor.fetchmany(100):
                yield from rows
        finally:
            cursor.close()

    def settle(self, batch: Sequence[Settlement]) -> list[Outcome]:
        acked: list[tuple[int]] = []
        outcomes = [self._settle(delivery.token, verdict, acked) for delivery, verdict in batch]
        self.db.executemany(_FORGET, acked)
        return outcomes

    def _settle(self, lease: Lease, verdict: object, acked: list[tuple[int]]) -> Outcome:
        earlier = lease.outcome or self._settled.get(lease)
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
            done = self.db.execute(_RETRY, (self._now + max(0.0, verdict.delay), *row)).rowcount
            self.touched.add(lease.source)
        elif isinstance(verdict, Release):
            done = self.db.execute(_RELEASE, row).rowcount
            self.touched.add(lease.source)
        else:
            return rejected(Code.INVALID, "sqlite has no dead-letter net of its own; copy the message, then Ack")
        outcome = self._settled[lease] = OK if done else STALE
        return outcome

    def extend(self, leases: Sequence[Lease], seconds: float) -> list[Outcome]:
        visible = self._now + seconds
        outcomes: list[Outcome] = []
        for lease in leases:
            settled = lease.outcome or self._settled.get(lease)
            row = (visible, lease.source, lease.seq, lease.claim)
            outcomes.append(STALE if settled or not self.db.execute(_EXTEND, row).rowcount else OK)
        return outcomes

    # ---------------------------------------------------------------------------------------------------------- looking

    def purge(self, number: int) -> int:
        """Remove what nobody holds."""
        self.touched.add(number)
        gone = self.db.execute(
            f"DELETE FROM deliveries WHERE {_UNHELD} RETURNING seq",  # noqa: S608 - a constant
            (number, self._now),
        ).fetchall()
        self.db.executemany(_FORGET, gone)
        return len(gone)

    def backlog(self, number: int) -> Backlog:
        self._look()
        waiting, held, delayed = self.db.execute(
            """SELECT count(*) FILTER (WHERE visible IS NULL OR visible <= ?2),
                      count(*) FILTER (WHERE visible > ?2 AND held), count(*) FILTER (WHERE visible > ?2 AND NOT held)
               FROM deliveries WHERE source = ?1""",
            (number, self._now),
        ).fetchone()
        oldest = self.db.execute(
            f"""SELECT m.published FROM deliveries d JOIN messages m ON m.seq = d.seq
                WHERE {_WAITING} ORDER BY d.seq LIMIT 1""",  # noqa: S608 - a constant
            (number, self._now),
        ).fetchone()
        age = max(0.0, self._clock() - oldest[0]) if oldest else None
        return Backlog(waiting=waiting, in_flight=held, delayed=delayed, oldest_age=age)

    def browse(self, numbers: Sequence[int], source: Source, limit: int) -> list[Delivery]:
        """Waiting messages of any of the sources, each once, oldest first."""
        self._look()
        found: dict[int, Delivery] = {}
        for number in numbers:
            for seq, count, identity, key, headers, body, published in self.db.execute(
                f"""SELECT d.seq, d.count, m.id, m.key, m.headers, m.body, m.published
                    FROM deliveries d JOIN messages m ON m.seq = d.seq
                    WHERE {_WAITING} ORDER BY d.seq LIMIT ?3""",  # noqa: S608 - a constant
                (number, self._now, limit),
            ):
                fields = Headers(_decode_headers(headers)) if headers else NO_HEADERS
                message = Message(identity, body, key, fields, published)
                found.setdefault(seq, Delivery(message, source, source.name, seq, 0, None, count))
        return [found[seq] for seq in sorted(found)[:limit]]
