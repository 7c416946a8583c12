"""An outbox in which much waits: what a look and a removal cost does not grow with it, and what it says of itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from once_kit import Database

from atleastonce import Outbox, PostgresStore, Queue
from atleastonce.stores.outbox import SLOTS, OutboxRow, OutboxStats, OutboxStore, Parking

WAITING = 60_000


@pytest.mark.parametrize("known", [False, True], ids=["without statistics", "with statistics"])
async def test_postgres_reads_no_more_than_it_gives_and_removes(postgres_database: Database, known: bool) -> None:
    """What the planner believes of the table is far off after a burst, and of the places of rows at any time. In blocks, of which
    the table has more than two thousand: each row is one, and some are for the index."""
    store, relay, read = postgres_database.make(), b"r" * 16, list[int]()
    assert isinstance(store, PostgresStore)
    asked = store._outbox_rows

    async def explained(statement: str, given: Sequence[Any] | Mapping[str, Any] = (), **how: bool | None) -> list[Any]:
        ((plan,),) = await asked(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", given, **how)  # type: ignore[arg-type]
        read.append(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])
        return []

    async def look(held: Collection[int]) -> list[int]:
        found = await store.outbox_fetch(relay, range(SLOTS), 170, held=held, paused=[], most=1000)
        rows[:] = found or rows
        return [row.seq for row in found]

    rows: list[OutboxRow] = []
    middle = range(WAITING // 2, WAITING // 2 + 1000)
    async with store:
        postgres_database.query(
            f"INSERT INTO {store._prefix}_outbox (slot, state, id, destination, key, headers, body, created, due) "
            f"SELECT n % {SLOTS}, 0, 'm' || n, 'queue:out', md5(n::text)::bytea, '[]', repeat('b', 260)::bytea, now(), now() "
            f"FROM generate_series(1, {WAITING}) n"
        )
        if known:
            postgres_database.query(f"VACUUM ANALYZE {store._prefix}_outbox")
        await store.outbox_hold(relay, "relay", 60)
        assert await look(middle) == [*range(1, 1001)]
        store._outbox_rows = explained  # type: ignore[method-assign]
        for held in (middle, [], range(1, 3000)):
            await look(held)
        await store.outbox_remove(rows)  # which is explained by being done
        store._outbox_rows = asked  # type: ignore[method-assign]
        assert [each < 4000 for each in read] == [True] * 4, read
        assert await look([*middle, 1005]) == [*range(1001, 1005), *range(1006, 2002)]


async def test_what_waits_is_counted_beside_what_is_delayed_or_parked(inbox_database: Database) -> None:
    """The oldest of what waits is behind both of them."""
    store, out, relay = inbox_database.make(), Queue("out"), b"r" * 16
    assert isinstance(store, OutboxStore)
    outbox, begun = Outbox(store), time.monotonic()
    async with store:
        async with outbox.transaction() as tx:
            await outbox.publish(tx, out, b"delayed", delay="1h")
            await outbox.publish_many(tx, out, [b"parked", b"first", b"second"])
        await store.outbox_hold(relay, "relay", 60)
        parked, *waiting = await store.outbox_fetch(relay, range(SLOTS), 10, held=[], paused=[])
        await store.outbox_park([Parking(parked.seq, parked.id, "too large")], blocking=False)
        found = await store.outbox_stats()
        assert (found.waiting, found.delayed, found.parked, found.relays, found.blocked) == (2, 1, 1, 1, 0)
        assert found.oldest is not None
        assert 0 <= found.oldest <= time.monotonic() - begun + 0.1
        await store.outbox_remove(waiting)
        assert await store.outbox_stats() == OutboxStats(0, None, 1, 1, 1)
