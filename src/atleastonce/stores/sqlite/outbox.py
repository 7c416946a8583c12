"""The outbox of the SQLite store. Its relay has connections of its own: to look, to count, and to write, whose commits need not
survive a power cut. With one, each removal would wait for the look before it, and looks for a count; in WAL mode they are in
nobody's way."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from atleastonce.contract.moves import Outgoing
from atleastonce.contract.outcomes import Code
from atleastonce.errors import ConfigurationError, MessageTooLarge
from atleastonce.stores.outbox import (
    FETCHED_ROWS,
    Holding,
    OutboxRow,
    OutboxStats,
    OutboxStore,
    ParkedRow,
    Parking,
    State,
    share,
    stored,
)
from atleastonce.stores.protocol import SECOND, micros
from atleastonce.stores.sqlite import schema
from atleastonce.stores.sqlite.desk import NOW, Desk
from atleastonce.stores.sqlite.look import Look
from atleastonce.stores.sqlite.users import ensure_begun

_T = TypeVar("_T")

# Bytes of one row: with what a look brings before it, it must fit in a text of SQLite, which has 1 000 000 000 at most.
_LARGEST = 450_000_000

_encode = msgspec.json.Encoder().encode


class SQLiteOutbox(OutboxStore):
    """The part of the store that is the outbox."""

    path: Path
    _prefix: str
    _patience: float

    def __init__(self) -> None:
        super().__init__()
        self._outbox_desks: dict[str, Desk] = {}
        self._outbox_opening = asyncio.Lock()

    async def _outbox_close(self) -> None:
        desks, self._outbox_desks = self._outbox_desks, {}
        for desk in desks.values():
            await desk.close()

    async def _at_outbox(self, use: str) -> Desk:
        self._check_open()
        async with self._outbox_opening:
            desk = self._outbox_desks.get(use)
            if desk is None:
                desk = self._outbox_desks[use] = await Desk.open(self._outbox_connect, f"sqlite outbox {use}")
            return desk

    def _outbox_connect(self) -> sqlite3.Connection:
        connection = schema.connect(self.path, self._patience)
        # No fsync for each commit: at worst a power cut brings back what was removed. Others' commits are as safe as before.
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    async def _outbox_write(self, work: Callable[[sqlite3.Connection, int], _T]) -> _T:
        desk = await self._at_outbox("writes")
        return await self._outbox_asked(lambda: desk.write(work))

    async def _outbox_change(self, statement: str, given: Sequence[Any]) -> None:
        """One statement, which is a transaction by itself: Python gives up its lock for each."""
        desk = await self._at_outbox("writes")
        await self._outbox_asked(lambda: desk.read(lambda connection: connection.execute(statement, given)))

    async def _outbox_read(self, work: Callable[[sqlite3.Connection], _T], use: str = "looks") -> _T:
        desk = await self._at_outbox(use)
        return await self._outbox_asked(lambda: desk.read(work))

    async def _outbox_asked(self, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await self._persist(call)
        except sqlite3.Error as error:
            raise self._outbox_error(error) from None

    def _outbox_error(self, error: sqlite3.Error) -> Exception:
        if self.classify(error).code is Code.NOT_FOUND:
            return ConfigurationError(
                f"sqlite store {self.path}: there are no tables of an outbox yet; call the store's init()"
            )
        return schema.as_error(error, self.path)

    # -------------------------------------------------------------------------------------------------------- the user

    async def outbox_append(self, tx: Any, outputs: Sequence[Outgoing]) -> None:
        """``tx``: a ``sqlite3.Connection`` or an ``aiosqlite.Connection``.

        Raises:
            MessageTooLarge: one has more than 450 000 000 bytes. Nothing was written.
        """
        rows = stored(outputs)
        if not rows:
            return
        for row in rows:
            if (size := len(row.body) + len(row.headers) + len(row.key or b"")) > _LARGEST:
                raise MessageTooLarge(
                    f"outbox: {row.id} has {size} bytes and may have {_LARGEST}; send a reference to it instead"
                )
        await ensure_begun(tx, f"{self._prefix}_outbox")
        done = tx.executemany(
            f"INSERT INTO {self._prefix}_outbox (slot, state, id, destination, settings, key, headers, body, created, due) "
            f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, {NOW}, {NOW} + ?)",
            [(*row[:2], *row[3:], micros(row.delay)) for row in rows],
        )
        if hasattr(done, "__await__"):
            await done

    # ------------------------------------------------------------------------------------------------------- the relay

    async def outbox_hold(self, relay: bytes, name: str, lease: float) -> Holding:
        slot, relays = f"{self._prefix}_outbox_slot", f"{self._prefix}_outbox_relay"

        def work(connection: sqlite3.Connection, now: int) -> Holding:
            until = now + micros(lease)
            connection.execute(f"INSERT OR REPLACE INTO {relays} VALUES (?, ?, ?)", (relay, name, until))
            connection.execute(f"DELETE FROM {relays} WHERE until <= ?", (now,))
            wanted = share(connection.execute(f"SELECT count(*) FROM {relays}").fetchone()[0])
            mine = connection.execute(f"UPDATE {slot} SET until = ? WHERE relay = ? RETURNING slot", (until, relay))
            slots = {row[0] for row in mine.fetchall()}
            taken = connection.execute(
                f"UPDATE {slot} SET relay = ?, until = ? WHERE slot IN (SELECT slot FROM {slot} "
                "WHERE relay IS NULL OR until <= ? ORDER BY slot LIMIT ?) RETURNING slot",
                (relay, until, now, max(0, wanted - len(slots))),
            )
            slots.update(row[0] for row in taken.fetchall())
            return Holding(frozenset(slots), wanted)

        return await self._outbox_write(work)

    async def outbox_leave(self, relay: bytes, slots: Collection[int] | None = None) -> None:
        def work(connection: sqlite3.Connection, _: int) -> None:
            connection.execute(
                f"UPDATE {self._prefix}_outbox_slot SET relay = NULL WHERE relay = ? "
                "AND (? OR slot IN (SELECT value FROM json_each(?)))",
                (relay, slots is None, json.dumps(sorted(slots or ()))),
            )
            if slots is None:
                connection.execute(f"DELETE FROM {self._prefix}_outbox_relay WHERE relay = ?", (relay,))

        await self._outbox_write(work)

    async def outbox_fetch(
        self,
        relay: bytes,
        slots: Collection[int],
        limit: int,
        *,
        held: Collection[int],
        paused: Collection[str],
        most: int = FETCHED_ROWS,
    ) -> list[OutboxRow]:
        look = Look(f"{self._prefix}_outbox", relay, slots, limit, held, paused, most)
        return await self._outbox_read(look.rows)

    async def outbox_remove(self, rows: Sequence[OutboxRow]) -> None:
        # Number by number with its id: a list of ids to compare with would be a tree, and a search in it for each row.
        outbox = f"{self._prefix}_outbox"
        sql = (
            f"DELETE FROM {outbox} WHERE seq IN (SELECT o.seq FROM json_each(?) j CROSS JOIN {outbox} o "
            "ON o.seq = CAST(j.key AS INTEGER) WHERE CAST(o.id AS TEXT) = j.value)"
        )
        await self._outbox_change(sql, (_encode({row.seq: row.id for row in rows}).decode(),))

    async def outbox_park(self, rows: Sequence[Parking], *, blocking: bool) -> None:
        def work(connection: sqlite3.Connection, now: int) -> None:
            connection.executemany(
                f"UPDATE {self._prefix}_outbox SET state = CASE WHEN ? AND key IS NOT NULL THEN 3 ELSE 2 END, "
                "reason = ?, parked = ? WHERE seq = ? AND CAST(id AS TEXT) = coalesce(?, CAST(id AS TEXT)) AND state = 0",
                [(blocking, row.reason, now, row.seq, row.id) for row in rows],
            )

        await self._outbox_write(work)

    async def outbox_promote(self) -> None:
        outbox = f"{self._prefix}_outbox"
        due = f"state = {State.DELAYED:d} AND due <= {NOW}"
        if await self._outbox_read(lambda c: c.execute(f"SELECT 1 FROM {outbox} WHERE {due} LIMIT 1").fetchone()):
            await self._outbox_write(lambda c, _: c.execute(f"UPDATE {outbox} SET state = 0 WHERE {due}"))

    # --------------------------------------------------------------------------------------------------------- people

    async def outbox_stats(self) -> OutboxStats:
        outbox = f"{self._prefix}_outbox"
        # The oldest is the first in the table as it lies: by the index it would be a search for each row.
        sql = f"""SELECT n.t, (SELECT count(*) FROM {outbox} WHERE state = 0),
            (SELECT created FROM {outbox} NOT INDEXED WHERE state = 0 ORDER BY seq LIMIT 1),
            (SELECT count(*) FROM {outbox} WHERE state = 1), (SELECT count(*) FROM {outbox} WHERE state >= 2),
            (SELECT count(*) FROM {outbox}_relay WHERE until > n.t),
            (SELECT count(*) FROM {outbox} WHERE state = 0 AND EXISTS (SELECT 1 FROM {outbox} WHERE state = 3)
                AND (destination, key) IN (SELECT destination, key FROM {outbox} WHERE state = 3)) FROM (SELECT {NOW} AS t) n"""

        def work(connection: sqlite3.Connection) -> OutboxStats:
            now, waiting, oldest, delayed, parked, relays, blocked = connection.execute(sql).fetchone()
            age = None if oldest is None else max(0.0, (now - oldest) / SECOND)
            return OutboxStats(waiting, age, delayed, parked, relays, blocked)

        return await self._outbox_read(
            work, "counts"
        )  # of a long backlog they take time, in which the relay looks and removes

    async def outbox_parked(self, limit: int = 100) -> list[ParkedRow]:
        def work(connection: sqlite3.Connection) -> list[ParkedRow]:
            rows = connection.execute(
                "SELECT seq, CAST(id AS BLOB), CAST(destination AS BLOB), key, length(body), reason, state = 3, "
                "(n.t - created) / 1e6, (n.t - parked) / 1e6 "
                f"FROM {self._prefix}_outbox, (SELECT {NOW} AS t) n WHERE state >= 2 ORDER BY seq LIMIT ?",
                (limit,),
            )
            return [ParkedRow.of(*row) for row in rows.fetchall()]

        return await self._outbox_read(work)

    async def outbox_redrive(self, ids: Sequence[str] | None = None) -> int:
        return await self._outbox_parked_rows(
            f"UPDATE {self._prefix}_outbox SET state = 0, reason = NULL, parked = NULL", ids
        )

    async def outbox_discard(self, ids: Sequence[str]) -> int:
        return await self._outbox_parked_rows(f"DELETE FROM {self._prefix}_outbox", ids)

    async def _outbox_parked_rows(self, change: str, ids: Sequence[str] | None) -> int:
        sql = f"{change} WHERE state >= 2 AND (? OR id IN (SELECT value FROM json_each(?)))"
        given = (ids is None, json.dumps(list(ids or ())))
        return await self._outbox_write(lambda connection, _: connection.execute(sql, given).rowcount)
