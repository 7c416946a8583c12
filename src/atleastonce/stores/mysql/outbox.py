"""The outbox of the MySQL store: every value a literal, as in `sql`; each relay looks at the time's distance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atleastonce.contract.moves import Outgoing
from atleastonce.errors import MessageTooLarge
from atleastonce.stores.mysql.pool import affected, rows_of
from atleastonce.stores.mysql.sql import LARGEST, NOW, blob
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
    share,
    stored,
)
from atleastonce.stores.pooled import PooledStore
from atleastonce.stores.protocol import SECOND, micros

if TYPE_CHECKING:
    from aiomysql import Connection

# A statement below this is taken by every server: no version's `max_allowed_packet` was smaller unless it was made so.
_ALWAYS = 512 << 10
_COMMAND = 64  # around a statement, in its packet
_FIXED = 16 * 3 + 2 * len(NOW) + 64  # of a row: quotes, commas, the times and numbers
_COLUMNS = ", ".join("`key`" if name == "key" else name for name in FETCHED)


class MySQLOutbox(PooledStore["Connection"]):
    """The part of the store that is the outbox."""

    _prefix: str

    @abstractmethod
    async def _ask(self, *statements: str) -> list[tuple[Any, ...]]: ...

    async def _outbox_change(self, statement: str) -> int:
        async def change(connection: Connection) -> int:
            return int(await connection.query(statement))

        return await self._outbox(lambda: self._run(change))

    # -------------------------------------------------------------------------------------------------------- the user

    async def outbox_append(self, tx: Any, outputs: Sequence[Outgoing]) -> None:
        """``tx``: as in `claim_in`. One statement for each eight megabytes of it.

        Raises:
            MessageTooLarge: one has more than half of what the server takes in a statement (``max_allowed_packet``), for a byte is
                two digits. Nothing was written.
        """
        rows = stored(outputs)
        begin = (
            f"INSERT INTO {self._prefix}_outbox (slot, state, id, destination, settings, `key`, headers, body, created, due) "
            "VALUES "
        )
        sizes = [_size(row) for row in rows]
        largest = LARGEST
        if sum(sizes) + len(begin) > _ALWAYS:
            # What is too large the server answers by closing the connection, as if it had gone away.
            ((allowed,),) = await rows_of(tx, "SELECT @@max_allowed_packet")
            largest = min(LARGEST, int(allowed) - len(begin) - _COMMAND)
            for row, size in zip(rows, sizes, strict=True):
                if size > int(allowed) - len(begin) - _COMMAND:
                    raise MessageTooLarge(
                        f"outbox: {row.id} has {len(row.body) + len(row.headers)} bytes, which are {size} in a statement, and the "
                        f"server takes {allowed}; send a reference to it instead, or raise max_allowed_packet"
                    )
        for some in _portions(rows, sizes, largest):
            values = ", ".join(
                f"({row.slot:d}, {row.state:d}, {blob(row.id)}, {blob(row.destination)}, {_or_null(row.settings)}, "
                f"{_or_null(row.key)}, {blob(row.headers)}, {blob(row.body)}, {NOW}, {NOW} + {micros(row.delay)})"
                for row in some
            )
            await affected(tx, begin + values)

    # ------------------------------------------------------------------------------------------------------- the relay

    async def outbox_hold(self, relay: bytes, name: str, lease: float) -> Holding:
        slot, relays, me = f"{self._prefix}_outbox_slot", f"{self._prefix}_outbox_relay", blob(relay)
        until = f"{NOW} + {micros(lease)}"

        async def hold() -> Holding:
            ((living, mine),) = await self._ask(
                f"INSERT INTO {relays} (relay, name, until) VALUES ({me}, {blob(name)}, {until}) "
                "ON DUPLICATE KEY UPDATE until = VALUES(until)",
                f"DELETE FROM {relays} WHERE until <= {NOW}",
                f"UPDATE {slot} SET until = {until} WHERE relay = {me}",
                f"SELECT (SELECT count(*) FROM {relays}), (SELECT count(*) FROM {slot} WHERE relay = {me})",
            )
            wanted = share(living)
            # A row that another one is just taking is waited for, and then it is not free any more.
            rows = await self._ask(
                f"UPDATE {slot} SET until = {until}, relay = {me} WHERE relay IS NULL OR until <= {NOW} "
                f"ORDER BY slot LIMIT {max(0, wanted - mine):d}",
                f"SELECT slot FROM {slot} WHERE relay = {me}",
            )
            return Holding(frozenset(row[0] for row in rows), wanted)

        return await self._outbox(hold)

    async def outbox_leave(self, relay: bytes, slots: Collection[int] | None = None) -> None:
        where = "" if slots is None else f" AND slot IN ({_numbers(slots)})"
        change = f"UPDATE {self._prefix}_outbox_slot SET relay = NULL WHERE relay = {blob(relay)}{where}"
        await self._outbox_change(change)
        if slots is None:
            await self._outbox_change(f"DELETE FROM {self._prefix}_outbox_relay WHERE relay = {blob(relay)}")

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
        if not slots:
            return []
        outbox, without = f"{self._prefix}_outbox", ""
        if held:
            without += f" AND o.seq NOT IN ({_numbers(held)})"
        if paused:
            without += f" AND o.destination NOT IN ({', '.join(map(blob, paused))})"
        look = " UNION ALL ".join(
            f"(SELECT o.seq AS number, length(o.headers) + length(o.body) AS size FROM {outbox} o "
            f"WHERE o.slot = {slot:d} AND o.state = 0{without} AND NOT EXISTS (SELECT 1 FROM {outbox} p "
            f"WHERE p.slot = {slot:d} AND p.state = 3 AND p.destination = o.destination AND p.`key` = o.`key`) "
            f"AND EXISTS (SELECT 1 FROM {outbox}_slot s WHERE s.slot = {slot:d} AND s.relay = {blob(relay)} AND s.until > {NOW}) "
            f"ORDER BY o.seq LIMIT {limit:d})"
            for slot in slots
        )
        sums = f"SELECT number, size, sum(size) OVER (ORDER BY number) AS total FROM ({look} ORDER BY number LIMIT {most:d}) chosen"
        rows = await self._outbox(
            lambda: self._ask(
                f"SELECT {_COLUMNS} FROM ({sums}) c JOIN {outbox} o ON o.seq = c.number "
                f"WHERE c.total - c.size < {FETCHED_BYTES} ORDER BY o.seq"
            )
        )
        return OutboxRow.of(rows)

    async def outbox_remove(self, rows: Sequence[OutboxRow]) -> None:
        if rows:
            await self._outbox_change(f"DELETE FROM {self._prefix}_outbox WHERE {_these(rows)}")

    async def outbox_park(self, rows: Sequence[Parking], *, blocking: bool) -> None:
        if rows:
            reasons = " ".join(f"WHEN {row.seq:d} THEN {blob(row.reason)}" for row in rows)
            await self._outbox_change(
                f"UPDATE {self._prefix}_outbox SET reason = CASE seq {reasons} END, parked = {NOW}, "
                f"state = IF({blocking:d} AND `key` IS NOT NULL, 3, 2) "
                f"WHERE {_these(rows)} AND state = 0"
            )

    async def outbox_promote(self) -> None:
        await self._outbox_change(f"UPDATE {self._prefix}_outbox SET state = 0 WHERE state = 1 AND due <= {NOW}")

    # ---------------------------------------------------------------------------------------------------------- people

    async def outbox_stats(self) -> OutboxStats:
        outbox = f"{self._prefix}_outbox"
        count = f"(SELECT count(*) FROM {outbox} WHERE state"
        ((waiting, oldest, delayed, parked, relays, blocked),) = await self._outbox(
            lambda: self._ask(
                # By the index of states and due times; by their numbers, in which the table lies, only the first is looked for.
                f"SELECT {count} = 0), (SELECT {NOW} - created FROM {outbox} FORCE INDEX (PRIMARY) WHERE state = 0 ORDER BY seq "
                f"LIMIT 1), {count} = 1), {count} >= 2), "
                f"(SELECT count(*) FROM {outbox}_relay WHERE until > {NOW}), (SELECT count(*) FROM {outbox} WHERE state = 0 "
                f"AND (destination, `key`) IN (SELECT destination, `key` FROM {outbox} WHERE state = 3))"
            )
        )
        age = None if oldest is None else max(0.0, float(oldest) / SECOND)
        return OutboxStats(waiting, age, delayed, parked, relays, blocked)

    async def outbox_parked(self, limit: int = 100) -> list[ParkedRow]:
        rows = await self._outbox(
            lambda: self._ask(
                f"SELECT seq, id, destination, `key`, length(body), reason, state = 3, {NOW} - created, {NOW} - parked "
                f"FROM {self._prefix}_outbox WHERE state IN (2, 3) ORDER BY seq LIMIT {limit:d}"
            )
        )
        return [
            ParkedRow.of(
                seq, id, where, key, size, reason or "", bool(blocking),
                *(float(each) / SECOND for each in ages),
            )
            for seq, id, where, key, size, reason, blocking, *ages in rows
        ]  # fmt: skip

    async def outbox_redrive(self, ids: Sequence[str] | None = None) -> int:
        return await self._outbox_parked_rows("UPDATE", "SET state = 0, reason = NULL, parked = NULL", ids)

    async def outbox_discard(self, ids: Sequence[str]) -> int:
        return await self._outbox_parked_rows("DELETE FROM", "", ids)

    async def _outbox_parked_rows(self, verb: str, values: str, ids: Sequence[str] | None) -> int:
        if ids is not None and not ids:
            return 0
        chosen = "" if ids is None else f" AND id IN ({', '.join(map(blob, ids))})"
        return await self._outbox_change(f"{verb} {self._prefix}_outbox {values} WHERE state IN (2, 3){chosen}")


def _size(row: Stored) -> int:
    """The bytes of ``row`` in a statement, at most."""
    texts = (row.id, row.destination, row.settings or "", row.headers)
    return 2 * (sum(len(text.encode()) for text in texts) + len(row.key or b"") + len(row.body)) + _FIXED


def _portions(rows: Sequence[Stored], sizes: Sequence[int], largest: int) -> Iterator[list[Stored]]:
    """As much as fits in one statement."""
    some, total = list[Stored](), 0
    for row, size in zip(rows, sizes, strict=True):
        if some and total + size > largest:
            yield some
            some, total = [], 0
        some.append(row)
        total += size
    if some:
        yield some


def _or_null(value: bytes | str | None) -> str:
    return "NULL" if value is None else blob(value)


def _these(rows: Sequence[OutboxRow] | Sequence[Parking]) -> str:
    """Two lists and no pairs, of which not every server makes a range of its index. A message of one of these ids in one of these
    rows is one of these messages."""
    numbers = f"seq IN ({_numbers(row.seq for row in rows)})"
    ids = [blob(row.id) for row in rows if row.id is not None]
    return f"{numbers} AND id IN ({', '.join(ids)})" if len(ids) == len(rows) else numbers


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(f"{value:d}" for value in values)
