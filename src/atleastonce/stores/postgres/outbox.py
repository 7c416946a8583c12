"""The outbox of the PostgreSQL store: lists as arrays, one statement each; relays are woken by ``NOTIFY``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atleastonce.contract.moves import Outgoing
from atleastonce.stores.outbox import (
    FETCHED,
    FETCHED_BYTES,
    FETCHED_ROWS,
    Holding,
    OutboxRow,
    OutboxStats,
    ParkedRow,
    Parking,
    Stored,
    gaps,
    share,
    stored,
)
from atleastonce.stores.pooled import PooledStore
from atleastonce.stores.postgres.pool import rows_of

if TYPE_CHECKING:
    from atleastonce.stores.postgres.unhurried import Connection

_NOW = "clock_timestamp()"
_LEASE = f"{_NOW} + %s * interval '1 second'"


class PostgresOutbox(PooledStore["Connection"]):
    """The part of the store that is the outbox."""

    _prefix: str
    _notify: bool

    def __init__(self) -> None:
        super().__init__()
        self._ear: Connection | None = None

    async def _outbox_rows(
        self,
        statement: str,
        given: Sequence[Any] | Mapping[str, Any] = (),
        *,
        prepare: bool | None = None,
        unhurried: bool = False,
    ) -> list[Any]:
        async def ask(connection: Connection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            connection.unhurried = unhurried
            try:
                await cursor.execute(statement.encode(), given, prepare=prepare)
            finally:
                connection.unhurried = False
            return await cursor.fetchall() if cursor.description else [cursor.rowcount]

        return await self._outbox(lambda: self._run(ask))

    # -------------------------------------------------------------------------------------------------------- the user

    async def outbox_append(self, tx: Any, outputs: Sequence[Outgoing]) -> None:
        """``tx``: a psycopg 3 connection or cursor, async or sync (a sync one blocks the loop that awaits this)."""
        if not outputs:
            return
        columns = ", ".join(f"{name}" for name in Stored._fields if name != "delay")
        rows = f"""
INSERT INTO {self._prefix}_outbox ({columns}, created, due)
SELECT {columns}, {_NOW}, {_NOW} + delay * interval '1 second'
FROM unnest(%s::smallint[], %s::smallint[], %s::float8[], %s::text[], %s::text[], %s::text[], %s::bytea[], %s::text[], %s::bytea[])
    WITH ORDINALITY AS a({", ".join(Stored._fields)}, position) ORDER BY position RETURNING 1"""
        told = f"pg_notify('{self._prefix}_outbox', '')" if self._notify else "1"
        await rows_of(
            tx,
            f"WITH rows AS ({rows}) SELECT {told} FROM rows LIMIT 1",
            [list(each) for each in zip(*stored(outputs), strict=True)],
        )

    # ------------------------------------------------------------------------------------------------------- the relay

    async def outbox_hold(self, relay: bytes, name: str, lease: float) -> Holding:
        slot, relays = f"{self._prefix}_outbox_slot", f"{self._prefix}_outbox_relay"

        async def work(connection: Connection) -> Holding:
            async with connection.transaction():
                await connection.execute(
                    f"INSERT INTO {relays} VALUES (%s, %s, {_LEASE}) "
                    "ON CONFLICT (relay) DO UPDATE SET until = excluded.until".encode(),
                    (relay, name, lease),
                )
                # SKIP LOCKED: two whose leases have ended, and who come at once, would each wait to delete the other.
                await connection.execute(
                    f"DELETE FROM {relays} WHERE relay IN "
                    f"(SELECT relay FROM {relays} WHERE until <= {_NOW} FOR UPDATE SKIP LOCKED)".encode()
                )
                living = await connection.execute(f"SELECT count(*) FROM {relays}".encode())
                wanted = share((await living.fetchone() or (1,))[0])
                mine = await connection.execute(
                    f"UPDATE {slot} SET until = {_LEASE} WHERE relay = %s RETURNING slot".encode(), (lease, relay)
                )
                slots = {row[0] for row in await mine.fetchall()}
                if len(slots) < wanted:
                    # SKIP LOCKED: of two that come at once each takes others, and neither waits.
                    taken = await connection.execute(
                        f"UPDATE {slot} SET relay = %s, until = {_LEASE} WHERE slot IN (SELECT slot FROM {slot} WHERE relay IS "
                        f"NULL OR until <= {_NOW} ORDER BY slot LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING slot".encode(),
                        (relay, lease, wanted - len(slots)),
                    )
                    slots.update(row[0] for row in await taken.fetchall())
                return Holding(frozenset(slots), wanted)

        return await self._outbox(lambda: self._run(work))

    async def outbox_leave(self, relay: bytes, slots: Collection[int] | None = None) -> None:
        await self._outbox_rows(
            f"UPDATE {self._prefix}_outbox_slot SET relay = NULL WHERE relay = %s AND (%s OR slot = ANY(%s::smallint[]))",
            (relay, slots is None, list(slots or ())),
        )
        if slots is None:
            await self._outbox_rows(f"DELETE FROM {self._prefix}_outbox_relay WHERE relay = %s", (relay,))

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
        between, others = gaps(held)
        free = " AND o.seq <> ALL(%(others)s::bigint[])" if others else ""
        columns, size = ", ".join(FETCHED), "(octet_length(headers) + octet_length(body))"
        # What lies between the runs that are held is looked for run by run. Asked for what is not in any of them, the planner
        # reads all that waits and sorts it.
        rows = await self._outbox_rows(
            f"""
SELECT {columns} FROM (SELECT {columns}, sum({size}) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - {size} AS before FROM (
SELECT o.* FROM {outbox}_slot s CROSS JOIN LATERAL (
    SELECT o.* FROM unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) AS g(first, last) CROSS JOIN LATERAL (
        SELECT {columns} FROM {outbox} o
        WHERE o.slot = s.slot AND o.state = 0 AND o.seq >= g.first AND o.seq <= g.last{free}
            AND o.destination <> ALL(%(paused)s::text[]) AND (NOT EXISTS (SELECT 1 FROM {outbox} WHERE state = 3) OR NOT EXISTS
                (SELECT 1 FROM {outbox} p WHERE p.state = 3 AND p.destination = o.destination AND p.key = o.key))
        ORDER BY o.seq LIMIT %(limit)s) o
    ORDER BY o.seq LIMIT %(limit)s) o
WHERE s.slot = ANY(%(slots)s::smallint[]) AND s.relay = %(relay)s AND s.until > {_NOW} ORDER BY o.seq LIMIT %(most)s
) c) d WHERE before < {FETCHED_BYTES} ORDER BY seq""",
            {
                "firsts": _numbers(first for first, _ in between),
                "lasts": _numbers(last for _, last in between),
                "others": _numbers(others),
                "paused": list(paused),
                "limit": limit,
                "most": most,
                "slots": list(slots),
                "relay": relay,
            },
            # Prepared at once: to plan a look costs as much as a fifth of it. But a plan for all lists compares each row with
            # each number.
            prepare=not others,
            unhurried=True,  # the line is full enough for a while
        )
        return OutboxRow.of(rows)

    async def outbox_remove(self, rows: Sequence[OutboxRow]) -> None:
        # The commit need not wait for the disk: at worst a power cut brings back what was removed. Lists that the planner sees,
        # and no join: that was a walk through the whole table for each list, and ids of a prepared statement are compared one by
        # one. A message of one of these ids is one of these messages.
        await self._outbox_rows(
            f"DELETE FROM {self._prefix}_outbox WHERE seq = ANY(%s::bigint[]) AND id = ANY(%s::text[]) "
            "AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL",
            (_numbers([row.seq for row in rows]), _texts([row.id or "" for row in rows])),
            prepare=False,
        )

    async def outbox_park(self, rows: Sequence[Parking], *, blocking: bool) -> None:
        await self._outbox_rows(
            f"UPDATE {self._prefix}_outbox o SET state = CASE WHEN %s AND o.key IS NOT NULL THEN 3 ELSE 2 END, reason = a.reason, "
            f"parked = {_NOW} FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS a(seq, id, reason) "
            "WHERE o.seq = a.seq AND o.id = coalesce(a.id, o.id) AND o.state = 0",
            (
                blocking,
                [row.seq for row in rows],
                [row.id for row in rows],
                [row.reason.replace("\0", "") for row in rows],
            ),
        )

    async def outbox_promote(self) -> None:
        await self._outbox_rows(f"UPDATE {self._prefix}_outbox SET state = 0 WHERE state = 1 AND due <= {_NOW}")

    async def outbox_wait(self, within: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        if self._notify and self.is_open:
            try:
                async with asyncio.timeout(within + 1.0):
                    ear = self._ear or await self._listen()
                    async for _ in ear.notifies(timeout=within, stop_after=1):
                        return
            except Exception:  # noqa: BLE001 - whoever waits looks by itself
                await self._outbox_close()
            except BaseException:
                await self._outbox_close()
                raise
        await asyncio.sleep(max(0.0, end - loop.time()))

    async def _listen(self) -> Connection:
        ear = await self._pool.make()
        try:
            await ear.execute(f'LISTEN "{self._prefix}_outbox"'.encode())
        except BaseException:
            await ear.close()
            raise
        self._ear = ear
        return ear

    async def _outbox_close(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            with contextlib.suppress(Exception):
                await ear.close()

    # ---------------------------------------------------------------------------------------------------------- people

    async def outbox_stats(self) -> OutboxStats:
        outbox = f"{self._prefix}_outbox"
        # Each by its index; and the oldest is the first, which is all that is read of the table where it has been vacuumed.
        ((waiting, oldest, delayed, parked, relays, blocked),) = await self._outbox_rows(
            f"SELECT (SELECT count(*) FROM {outbox} WHERE state = 0), (SELECT extract(epoch FROM {_NOW} - created)::float8 "
            f"FROM {outbox} WHERE state = 0 ORDER BY seq LIMIT 1), (SELECT count(*) FROM {outbox} WHERE state = 1), "
            f"(SELECT count(*) FROM {outbox} WHERE state >= 2), (SELECT count(*) FROM {outbox}_relay WHERE until > {_NOW}), "
            f"(SELECT count(*) FROM {outbox} WHERE state = 0 "
            f"AND (destination, key) IN (SELECT destination, key FROM {outbox} WHERE state = 3))"
        )
        return OutboxStats(waiting, None if oldest is None else max(0.0, oldest), delayed, parked, relays, blocked)

    async def outbox_parked(self, limit: int = 100) -> list[ParkedRow]:
        rows = await self._outbox_rows(
            "SELECT seq, id, destination, key, length(body), reason, state = 3, extract(epoch FROM "
            f"{_NOW} - created)::float8, extract(epoch FROM {_NOW} - parked)::float8 "
            f"FROM {self._prefix}_outbox WHERE state >= 2 ORDER BY seq LIMIT %s",
            (limit,),
        )
        return [ParkedRow.of(*row) for row in rows]

    async def outbox_redrive(self, ids: Sequence[str] | None = None) -> int:
        return await self._outbox_parked_rows("UPDATE", "SET state = 0, reason = NULL, parked = NULL", ids)

    async def outbox_discard(self, ids: Sequence[str]) -> int:
        return await self._outbox_parked_rows("DELETE FROM", "", ids)

    async def _outbox_parked_rows(self, verb: str, values: str, ids: Sequence[str] | None) -> int:
        (count,) = await self._outbox_rows(
            f"{verb} {self._prefix}_outbox {values} WHERE state >= 2 AND (%s OR id = ANY(%s::text[]))",
            (ids is None, list(ids or ())),
        )
        return int(count)


# Lists as PostgreSQL writes them: psycopg makes each element by itself, which costs more than the row does that it is of.
def _numbers(numbers: Iterable[int]) -> str:
    return f"{{{str(list(numbers))[1:-1]}}}"


def _texts(texts: Sequence[str]) -> str:
    if not texts:
        return "{}"
    joined = "\0".join(texts)  # no text in PostgreSQL has one
    escaped = joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    return f'{{"{escaped}"}}'
