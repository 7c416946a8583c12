"""One connection's transactions, its clock and what it knows of the topology."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

from atleastonce.adapters.sqlite.topology import Catalogue
from atleastonce.channels import Channel, Source
from atleastonce.contract import Drift, Outcome, Topology
from atleastonce.errors import NotFound


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


class Session:
    """What every operation of the broker rests on. Used in one thread.

    Attributes:
        touched: the sources in which this transaction changed what readers may get, and when.
        now: this transaction's time, on the file's own clock.
        settled: what this transaction settles; told to the leases when it is committed.
    """

    def __init__(self, db: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self.db = db
        self.clock = clock
        self.catalogue = Catalogue(db)
        self.touched: set[int] = set()
        self.settled: dict[Lease, Outcome] = {}
        self.now = 0.0
        self.next = 0
        self._skew = 0.0
        self._changes = 0
        self._synchronous = ""

    def synchronise(self, level: str) -> None:
        """How the next commits reach the disk: ``"full"`` waits for it, ``"normal"`` leaves it to the next checkpoint."""
        if level != self._synchronous:
            self.db.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def begin(self) -> None:
        """Take the write lock, and the time: the wall clock, corrected so that it never goes back in this file.

        A step back of the wall clock would otherwise hide what was published before it and stretch every lease.
        """
        self.db.execute("BEGIN IMMEDIATE")  # never deferred: an upgrade to writing fails at once instead of waiting
        self._changes = self.db.total_changes
        self.next = self.look()
        self.settled.clear()
        self.touched.clear()

    def commit(self) -> bool:
        """End the transaction; whether it changed anything."""
        changed = self.db.total_changes != self._changes
        if changed:
            self.db.execute("UPDATE broker SET next = ?, high = ?, skew = ?", (self.next, self.now, self._skew))
            self.db.execute("COMMIT")
        else:
            self.db.execute("ROLLBACK")
        for lease, outcome in self.settled.items():
            lease.outcome = outcome
        self.settled.clear()
        return changed

    def rollback(self) -> None:
        """Undo the transaction, if SQLite has not done so already. Never raises."""
        if self.db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
        self.settled.clear()
        self.touched.clear()
        self.catalogue.invalidate()

    def look(self) -> int:
        """Read the time and what is declared; returns the next message's number."""
        following, high, skew, generation = self.db.execute(
            "SELECT next, high, skew, generation FROM broker"
        ).fetchone()
        self.catalogue.refresh(generation)
        now = self.clock() + skew
        if now < high:
            skew += high - now
            now = high
        self.now, self._skew = now, skew
        return int(following)

    # --------------------------------------------------------------------------------------------------------- topology

    def declare(self, topology: Topology, create: bool) -> list[Drift]:
        self.look()
        return self.catalogue.declare(topology, create)

    def delete(self, topology: Topology) -> None:
        self.touched |= self.catalogue.delete(topology)

    def numbers(self, what: Channel[Any] | Source) -> tuple[int, ...]:
        """The sources behind ``what``.

        Raises:
            NotFound: it was not declared.
        """
        self.look()
        target = self.catalogue.target(what)
        if target is None:
            raise NotFound(f"{what.name}: no such channel or group in this sqlite file; declare it first")
        return target.sources
