"""The outbox of the SQLite store. Its relay has connections of its own: to look, to count, and to write, whose commits need not
survive a power cut. With one, each removal would wait for the look before it, and looks for a count; in WAL mode they are in
nobody's way."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from atleastonce.contract.moves import Outgoing
from atleastonce.contract.outcomes import Code
from atleastonce.errors import ConfigurationError, MessageTooLarge
from atleastonce.stores.outbox import (
    FETCHED_BYTES,
    FETCHED_ROWS,
    Holding,
    OutboxRow,
    OutboxStats,
    OutboxStore,
    ParkedRow,
    Parking,
    State,
    runs,
    share,
    stored,
)
from atleastonce.stores.protocol import SECOND, micros
from atleastonce.stores.sqlite import schema
from atleastonce.stores.sqlite.desk import NOW, Desk
from atleastonce.stores.sqlite.users import ensure_begun

_T = TypeVar("_T")

# Bytes of one row: with what a look brings before it, it must fit in a text of SQLite, which has 1 000 000 000 at most.
_LARGEST = 450_000_000


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[tuple[int, int, str, str | None, str, int | None, int, int]]).decode
# All rows as one: keys, header fields and bodies end to end, and how long each is. To write bytes as JSON costs more.
_JOINED = (
    "SELECT (SELECT encoding FROM pragma_encoding), json_group_array(json_array(seq, slot, CAST(destination AS TEXT), "
    "CAST(settings AS TEXT), CAST(id AS TEXT), length(CAST(key AS BLOB)), length(CAST(headers AS BLOB)), "
    "length(CAST(body AS BLOB)))), CAST(group_concat(key, '') AS BLOB), CAST(group_concat(headers, '') AS BLOB), "
    "CAST(group_concat(body, '') AS BLOB) "
)


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
        outbox = f"{self._prefix}_outbox"
        long, others = runs(held)
        free = "".join(f"AND seq NOT BETWEEN {first:d} AND {last:d} " for first, last in long)
        if others:
            free += "AND seq NOT IN (SELECT value FROM json_each(:others)) "
        given = {
            "others": json.dumps(others),
            "paused": json.dumps(list(paused)),
            "relay": relay,
            "limit": limit,
            "most": most,
        }
        if paused:
            free += "AND destination NOT IN (SELECT value FROM json_each(:paused)) "
        some = [
            f"SELECT * FROM (SELECT seq, length(headers) + length(body) AS size FROM {outbox} o WHERE slot = {slot:d} "
            f"AND state = 0 {free}"
            # Whether anything blocks at all is asked once, and not for each row.
            f"AND (NOT EXISTS (SELECT 1 FROM {outbox} WHERE state = 3) OR NOT EXISTS "
            f"(SELECT 1 FROM {outbox} p WHERE p.state = 3 AND p.destination = o.destination AND p.key = o.key)) "
            f"AND EXISTS (SELECT 1 FROM {outbox}_slot s WHERE s.slot = {slot:d} AND s.relay = :relay AND s.until > {NOW}) "
            "ORDER BY seq LIMIT :limit)"
            for slot in sorted(slots)
        ]
        # One statement, and all rows as one row: Python gives up its lock for each statement and each row, and gets it back up to
        # 5 ms later while the loop's thread is busy.
        first = f"WITH first AS MATERIALIZED (SELECT * FROM ({' UNION ALL '.join(some)}) ORDER BY +seq LIMIT :most) "
        # What is so long has an end, at 1 000 000 000 bytes, and so has memory: what does not fit is for the next look. Sums row by
        # row cost as much as all else, and are made only where all together are too many.
        chosen = (
            f"FROM {outbox} WHERE seq IN (SELECT seq FROM first WHERE (SELECT sum(size) FROM first) < {FETCHED_BYTES} OR seq IN "
            "(SELECT seq FROM (SELECT seq, sum(size) OVER (ORDER BY seq) - size AS before FROM first) "
            f"WHERE before < {FETCHED_BYTES}))"
        )

        def one_by_one(connection: sqlite3.Connection, text: str) -> list[OutboxRow]:
            texts = (f"CAST({name} AS {text})" for name in ("destination", "settings", "id"))
            columns = f"{', '.join(texts)}, CAST(key AS BLOB), CAST(headers AS {text}), CAST(body AS BLOB)"
            return OutboxRow.of(connection.execute(f"{first}SELECT seq, slot, {columns} {chosen} ORDER BY seq", given))

        def work(connection: sqlite3.Connection) -> list[OutboxRow]:
            if not some:
                return []
            try:
                encoding, numbers, *joined = connection.execute(first + _JOINED + chosen, given).fetchone()
                found = _rows(_decode(numbers), *(each or b"" for each in joined))
            except (sqlite3.OperationalError, msgspec.DecodeError) as error:
                if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                    raise
                # Columns whose text is none, as somebody's SQL may have written them: the row that has it is told by its flaw.
                return one_by_one(connection, "BLOB")
            # Bytes that were joined as text of another encoding have been converted.
            return OutboxRow.of(found) if encoding == "UTF-8" else one_by_one(connection, "TEXT")

        return await self._outbox_read(work)

    async def outbox_remove(self, rows: Sequence[OutboxRow]) -> None:
        sql = (
            f"DELETE FROM {self._prefix}_outbox WHERE seq IN (SELECT value FROM json_each(?)) "
            "AND CAST(id AS TEXT) IN (SELECT value FROM json_each(?))"  # a message of one of these ids is one of these messages
        )
        gone = (_encode([row.seq for row in rows]).decode(), _encode([row.id for row in rows]).decode())
        await self._outbox_change(sql, gone)

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


def _rows(
    found: list[tuple[int, int, str, str | None, str, int | None, int, int]], keys: bytes, headers: bytes, bodies: bytes
) -> list[tuple[Any, ...]]:
    """The rows that `_JOINED` gave, by number."""
    fields: str | bytes = headers.decode() if headers.isascii() else headers  # as nearly always
    rows, key_at, field_at, body_at = [], 0, 0, 0
    for seq, slot, destination, settings, id, key_size, field_size, body_size in found:
        key = None
        if key_size is not None:
            key = keys[key_at : key_at + key_size]
            key_at += key_size
        field_end, body_end = field_at + field_size, body_at + body_size
        rows.append((seq, slot, destination, settings, id, key, fields[field_at:field_end], bodies[body_at:body_end]))
        field_at, body_at = field_end, body_end
    rows.sort(key=itemgetter(0))
    return rows
