"""An inbox in PostgreSQL (or MySQL, or SQLite): a service with a batch handler beside loops written by hand, in one run; and what
ten million rows in its table change.

    python benchmarks/inbox.py [--store postgres] [--messages 20000] [--batch 500] [--rows 0] [--json]

All sides read the same messages, record their ids, write one row for each, and commit: *one by one* a message in a
transaction, as a loop without a library does; *batched by hand* a list in a transaction, with the duplicates taken out;
*service* the same through `batch_consumer` and `Inbox`. All read from the memory broker, the loops with the adapter alone,
and with the store's statements and connections: the difference is the service's. ``--rows 10000000`` fills the inbox first,
and compares the claims' 99th percentile with that of ten thousand rows (PostgreSQL).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from typing import Any

import msgspec

from atleastonce import Context, Inbox, Queue, Service, Source, connect
from atleastonce.brokers import session
from atleastonce.cli.target import Alone
from atleastonce.contract import ACK, Window
from atleastonce.stores import Entry, TransactionalStore, open_store, scope_key

PRINT = b"\x01" * 32
CLAIMS = 400  # of `--rows`: lists whose time is taken


class Effects:
    """A table beside the inbox, written as its driver does it best."""

    def __init__(self, kind: str) -> None:
        self.kind, self.table = kind, f"effect_{uuid.uuid4().hex[:8]}"
        self._insert = f"INSERT INTO {self.table} VALUES ({'?' if kind == 'sqlite' else '%s'})"

    async def create(self, store: TransactionalStore) -> None:
        async with store.transaction() as tx:
            await self.run(tx, f"CREATE TABLE {self.table} (n bigint)")

    async def run(self, tx: Any, sql: str) -> None:
        done = tx.query(sql) if self.kind == "mysql" else tx.execute(sql)
        if hasattr(done, "__await__"):
            await done

    async def write(self, tx: Any, numbers: list[int]) -> None:
        rows = [(n,) for n in numbers]
        if self.kind == "sqlite":
            tx.executemany(self._insert, rows)
        else:
            async with tx.cursor() as cursor:
                await cursor.executemany(self._insert, rows)


async def by_hand(store: TransactionalStore, effects: Effects, messages: int, size: int) -> float:
    """Messages a second, ``size`` in a transaction: received, decoded, recorded, written, committed, settled."""
    queue, scope = Queue[Any](f"hand.{uuid.uuid4().hex[:8]}", int), scope_key("hand", uuid.uuid4().hex, "h")
    async with connect(f"memory://{uuid.uuid4().hex}") as broker:
        await broker.publish_many(queue, list(range(messages)))
        await broker.declare(Source(queue))
        reader = await broker.adapter.subscribe(Source(queue), Window(size * 4, 1 << 26), Alone())
        begin, done = time.perf_counter(), 0
        while done < messages:
            batch = await reader.receive(size, 1.0)
            numbers = [msgspec.json.decode(each.body, type=int) for each in batch]
            async with store.transaction() as tx:
                ids = [each.message.id for each in batch]
                entries = await store.claim_in(tx, scope, ids, [PRINT] * len(ids))
                await effects.write(tx, [n for n, entry in zip(numbers, entries, strict=True) if entry is Entry.NEW])
            await reader.settle([(each, ACK) for each in batch])
            done += len(batch)
        spent = time.perf_counter() - begin
        await reader.close()
    return messages / spent


async def by_service(store: TransactionalStore, effects: Effects, messages: int, size: int) -> float:
    """Messages a second through a service: all are in the broker before it starts."""
    queue = Queue[Any](f"bench.{uuid.uuid4().hex[:8]}", int)
    service = Service("bench", broker=f"memory://{uuid.uuid4().hex}")
    done, over = 0, asyncio.Event()

    @service.batch_consumer(queue, idempotency=Inbox(store), max_messages=size, max_wait="20ms")
    async def handle(batch: list[int], contexts: list[Context]) -> None:
        nonlocal done
        await effects.write(contexts[0].tx, batch)
        done += len(batch)
        if done >= messages:
            over.set()

    async with service.make_broker() as broker:
        await broker.publish_many(queue, list(range(messages)))
        begin = time.perf_counter()
        async with service:
            await asyncio.wait_for(over.wait(), 300)
            while any(status.in_flight for status in service.status()):  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0.001)
            return messages / (time.perf_counter() - begin)


async def measure(name: str, url: str, messages: int, size: int) -> dict[str, object]:
    options = {"create": True}
    store = open_store(url, options)
    assert isinstance(store, TransactionalStore)
    rates: dict[str, list[float]] = {"one": [], "hand": [], "service": []}
    async with store:
        effects = Effects(name)
        await effects.create(store)
        for _ in range(3):
            rates["one"].append(await by_hand(store, effects, max(300, messages // 20), 1))
            rates["hand"].append(await by_hand(store, effects, messages, size))
            rates["service"].append(await by_service(store, effects, messages, size))
    one, hand, service = (statistics.median(rates[key]) for key in ("one", "hand", "service"))
    return {
        "store": name, "batch": size, "one_by_one_per_s": round(one), "batched_by_hand_per_s": round(hand),
        "service_per_s": round(service), "over_one_by_one": round(service / one, 1), "of_by_hand": round(service / hand, 2),
    }  # fmt: skip


async def grown(url: str, rows: int) -> dict[str, object]:
    """The 99th percentile of lists of 100 new ids, with 10 000 rows and with ``rows``."""
    store: Any = open_store(url, {"create": True, "prefix": "grown", "timeout": 600})
    found: dict[str, object] = {"rows": rows}
    async with store:
        for name, first, last in (("10 000", 0, 10_000), (f"{rows}", 10_000, rows)):
            async with store.transaction() as tx:
                # Without its indexes it is filled in a minute, and they are as good as new, which is no worse than grown.
                await tx.execute("SET LOCAL maintenance_work_mem = '256MB'")
                await tx.execute("ALTER TABLE grown_inbox DROP CONSTRAINT grown_inbox_pkey")
                await tx.execute("DROP INDEX grown_inbox_expires")
                await tx.execute(
                    "INSERT INTO grown_inbox SELECT 'bench/filled/h', md5(n::text), decode(repeat('01', 32), 'hex'), "
                    f"now(), now() + interval '7 days' + n * interval '1 ms' FROM generate_series({first + 1}, {last}) n"
                )
                await tx.execute("ALTER TABLE grown_inbox ADD CONSTRAINT grown_inbox_pkey PRIMARY KEY (scope, id)")
                await tx.execute("CREATE INDEX grown_inbox_expires ON grown_inbox (expires)")
            await tx.execute("VACUUM ANALYZE grown_inbox")
            await tx.execute("CHECKPOINT")
            times = []
            for turn in range(CLAIMS + 20):
                ids = [uuid.uuid4().hex for _ in range(100)]
                begin = time.perf_counter()
                async with store.transaction() as tx:
                    await store.claim_in(tx, "bench/filled/h", ids, [PRINT] * 100)
                if turn >= 20:
                    times.append((time.perf_counter() - begin) * 1000)
            found[f"p50_ms_{name}"] = round(statistics.median(times), 2)
            found[f"p99_ms_{name}"] = round(sorted(times)[int(len(times) * 0.99)], 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--store", choices=["postgres", "mysql", "sqlite"], default="postgres")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with (
        session([] if chosen.store == "sqlite" else [chosen.store]) as running,
        tempfile.TemporaryDirectory() as folder,
    ):
        if chosen.store in running.unavailable:
            raise SystemExit(running.unavailable[chosen.store].reason)
        url = f"sqlite:///{folder}/bench.db" if chosen.store == "sqlite" else running[chosen.store].url
        if chosen.rows:
            report = asyncio.run(grown(url, chosen.rows))
        else:
            report = asyncio.run(measure(chosen.store, url, chosen.messages, chosen.batch))
    print(json.dumps(report) if chosen.json else "\n".join(f"{key:24} {value}" for key, value in report.items()))


if __name__ == "__main__":
    main()
