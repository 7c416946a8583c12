"""Runs each fault on each store, with real processes and servers, and writes ``docs/guarantees.md``.

    python docs/generate/guarantees.py [--runs 1] [--only postgres mysql]     run, write (a quarter of an hour)
    python docs/generate/guarantees.py --failovers                            only the failovers; the other rows stay
    python docs/generate/guarantees.py --check                                only compare the page with docs/guarantees.json

Exit code 1 if a promise was broken, or the page is stale.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "chaos"))

import once_faults as faults  # noqa: E402
import replica  # noqa: E402
import small_disk  # noqa: E402
import throttle  # noqa: E402
from once_faults import DIED, LOST, SERVERS, STORES, Row, Run  # noqa: E402
from once_worker import TIMEOUT  # noqa: E402

from atleastonce.brokers import Running, session  # noqa: E402
from atleastonce.testing.proxy import FaultProxy  # noqa: E402
from atleastonce.urls import BrokerUrl  # noqa: E402

PAGE, RESULTS = ROOT / "docs" / "guarantees.md", ROOT / "docs" / "guarantees.json"
COPIES = 10_000
SLOW, TOO_SLOW = 0.04, 2.0
"""Seconds each way: with the first a call of the store, of several round trips, ends in time; with the second none does."""
PATIENT = "30s"
"""The broker's lease in runs whose processes live: that a busy machine stops them for a second is no fault of their store's."""

TEXT = """\
# Guarantees, counted

What came of each fault, on each store. Written by `python docs/generate/guarantees.py`, which runs real processes and kills them;
nothing here is written by hand. A broker in an SQLite file gives every message out at least once; each message is published several
times under one id.

- **attempted**, **confirmed**: publishes, of which several carry one id. **effects**: different ones that were had.
- **duplicate deliveries**: beyond the first of each id, from the publisher and from the crash.
- **duplicate effects**: beyond the first. With an inbox there are none, whatever happens. With a lease the effect is outside the
  database, so a process that dies between effect and completion makes a second one possible: the next run is told (`ctx.in_doubt`),
  and it is logged. **in doubt** counts what was logged, **unexplained** the second effects of messages of which nothing was.

{tables}
**kill -9** happens at the seventh of twenty messages, four of which run at a time, or when the first settlement is about to be
sent: with a lease, all that had their effect and whose completion was still under way are in doubt (a store that is slow to commit
has many such: all twenty handlers may be through before it has answered once). What was completed runs no second time: that is
looked at one by one. **frozen** is SIGSTOP in the handler, after the effect; another process takes over; then SIGCONT. (An SQLite
file with a frozen transaction lets nobody else write: there the others wait.) **relay** is the outbox's: two hundred rows, one
relay killed between the broker's confirmation and the removal, a second one that goes on.

**network slow** adds {slow} ms each way until all are settled, which a call of the store, of several round trips, bears within its
limit of {limit} s; **store slower than its limit** adds {too_slow} s each way, and **network silent** swallows everything, both
until the consumer says that it waits for its store. **disk full** is a file system of 32 MiB that holds the store's tables (of a
server: not its log; of Redis: its append-only file, with `appendfsync everysec`), **memory full** a `maxmemory` below what a
Redis uses, and **writes throttled** a proxy that answers each write as DynamoDB does where the capacity is used up, for no
emulator has a capacity; all while messages come, until the consumer says that it waits. **server killed** and **server paused**
hit the store's own server in the middle of four hundred deliveries, half of which come while it is away. In all of these no
attempt of any message is burnt: a run in which one was is no row.

**failover with lost writes** puts a copy of the database in its place that was taken before the last hundred messages came, as a
failover to a replica that was behind does (of a server: all of its files; Redis forgets everything instead), in the middle of
them; then all two hundred are published once more. With an inbox the effects are lost together with the memory of them, and are had
once more when their messages come again: each is there once. Whether they come again is the publisher's affair, for a message that
was settled is gone from the broker. With a lease the effects are elsewhere and stay: what the store forgot runs a second time when
it comes again, and nobody can be told. Of DynamoDB's other refusals, `ItemCollectionSizeLimitExceeded` needs a local
secondary index, which the table has not; a table that is gone is in `tests/chaos/test_store_faults.py`.
{notes}"""

HEAD = (
    "| fault | attempted | confirmed | effects | duplicate deliveries | duplicate effects | in doubt | unexplained |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|\n"
)
NAMES = {
    "sqlite": "SQLite",
    "postgres": "PostgreSQL",
    "mysql": "MySQL (MariaDB)",
    "redis": "Redis",
    "dynamodb": "DynamoDB (an emulator)",
}
Kept = tuple[list[Row], dict[str, str]]


def render(rows: list[Row], missing: dict[str, str]) -> str:
    tables = []
    for mode, stores in STORES.items():
        for store in stores:
            some = [row for row in rows if (row.mode, row.store) == (mode, store)]
            if not some:
                continue
            body = "".join(f"| {' | '.join(_cells(row))} |\n" for row in some)
            named = NAMES[store]
            tables.append(f"## {mode.capitalize()}, {named}\n\n{HEAD}{body}")
    notes = "".join(f"\nNot run: {name}, {reason}.\n" for name, reason in missing.items())
    words = {"slow": f"{1000 * SLOW:g}", "too_slow": f"{TOO_SLOW:g}", "limit": f"{TIMEOUT:g}"}
    return TEXT.format(tables="\n".join(tables), notes=notes, **words)


def _cells(row: Row) -> list[str]:
    counted = [row.attempted, row.confirmed, row.effects, row.duplicate_deliveries, row.duplicate_effects]
    doubts = [row.in_doubt, row.unexplained] if row.mode == "lease" else ["", ""]
    return [row.fault, *(str(cell) for cell in (*counted, *doubts))]


async def everything(
    running: Any, only: list[str], runs: int, folder: Path, keep: Callable[[list[Row]], None], *, failovers: bool
) -> list[Row]:
    """All rows; ``keep`` is told after each store, so that a run that is cut short has not been for nothing.

    Raises:
        SystemExit: what could not be counted; the rest was kept.
    """
    rows: list[Row] = []
    failures: list[str] = []

    async def add(work: Awaitable[Row]) -> None:
        try:
            rows.append(row := await work)
        except (TimeoutError, AssertionError) as error:
            # Its fault did not happen, did not end, or cost an effect: no row, and no success.
            failures.append(f"{mode}, {store}: {error}")
            sys.stderr.write(f"FAIL {failures[-1]}\n")
            return
        sys.stderr.write(f"{'ok  ' if row.holds else 'FAIL'} {row}\n")

    for mode, stores in STORES.items():
        for store in stores:
            if store not in only or (store in (*SERVERS, "dynamodb") and _server(store) in running.unavailable):
                continue

            def make(mode: str = mode, store: str = store, **more: str) -> Run:
                return Run(mode, store, _url(running, store, folder), folder, **more)

            for _ in range(runs):
                await failover(mode, store, running, folder, add)
                if failovers:
                    continue
                for fault in DIED:
                    await add(faults.died(make(), fault))
                await add(faults.reply_lost(make()))
                await add(faults.frozen(make()))
                await add(faults.two_at_once(make()))
                if mode == "inbox":
                    await add(faults.relay_died(make()))
                await room(mode, store, running, folder, add)
                if store != "sqlite":
                    await network(mode, store, running, folder, add)
                if store in SERVERS:
                    for fault, strike in _strikes(running[store]):
                        await add(faults.server_fault(make(lease=PATIENT), fault, strike))
            if not failovers:
                await add(faults.duplicates(make(), COPIES))
            keep(rows)
    if failures:
        raise SystemExit("\n".join(failures))
    return rows


Add = Callable[[Awaitable[Row]], Awaitable[None]]


async def failover(mode: str, store: str, running: Any, folder: Path, add: Add) -> None:
    """To a replica that is behind, where there can be one."""
    if store == "dynamodb":  # a service of its own, whose failovers are its own affair
        return
    url = _url(running, store, folder)
    made: faults.Replica
    if store == "sqlite":
        made = replica.FileReplica(Path(BrokerUrl.parse(url).path))
    elif store == "redis":
        made = replica.Forgetful(url)
    else:
        made = replica.ServerReplica(running[store], folder / uuid.uuid4().hex)
    await add(faults.failed_over(Run(mode, store, url, folder, lease=PATIENT), made))


async def room(mode: str, store: str, running: Any, folder: Path, add: Add) -> None:
    """No disk any more, no memory, no capacity."""

    async def full(url: str, at: faults.Room, fault: str = "disk full", name: str = "") -> None:
        await add(faults.full(Run(mode, store, url, folder, name, lease=PATIENT), at, fault))

    place = folder / uuid.uuid4().hex
    try:
        if store == "sqlite":
            with small_disk.mounted(place) as disk:
                await full(f"sqlite:///{disk.place}/shop.db", disk)
        elif store == "postgres":
            with small_disk.mounted(place) as disk, small_disk.postgres_on(disk, running[store].url) as url:
                await full(url, disk)
        elif store == "mysql":
            name = f"g{uuid.uuid4().hex[:10]}"
            with small_disk.mounted(place) as disk, small_disk.mysql_on(disk, running[store].url, name):
                await full(running[store].url, disk, name=name)
        elif store == "redis":
            with small_disk.redis_on(place, running[store], sync="everysec") as disk:
                await full(running[store].url, disk)
    except small_disk.NoDisk as why:
        sys.stderr.write(f"no full disk: {why}\n")
    if store == "redis":
        await full(running[store].url, small_disk.Memory(running[store]), "memory full")
    elif store == "dynamodb":
        parts = urlsplit(_url(running, store, folder))
        with throttle.throttled(f"{parts.hostname}:{parts.port}") as proxy:
            await full(parts._replace(netloc=f"test:test@{proxy.address}").geturl(), proxy, "writes throttled")


async def network(mode: str, store: str, running: Any, folder: Path, add: Add) -> None:
    """Through a proxy, if there is one."""
    if "toxiproxy" in running.unavailable:
        return
    parts = urlsplit(_url(running, store, folder))
    user, at, _ = parts.netloc.rpartition("@")
    async with FaultProxy(running["toxiproxy"].url, f"{parts.hostname}:{parts.port}") as proxy:
        url = parts._replace(netloc=f"{user}{at}{proxy.address}").geturl()
        troubles = (
            ("network slow", lambda: proxy.slow(SLOW), False),
            ("store slower than its limit", lambda: proxy.slow(TOO_SLOW), True),
            ("network silent", proxy.black_hole, True),
        )
        for fault, trouble, pauses in troubles:
            await add(faults.network(Run(mode, store, url, folder, lease=PATIENT), fault, trouble, pauses=pauses))


def _server(store: str) -> str:
    return "sqs" if store == "dynamodb" else store


def _url(running: Any, store: str, folder: Path) -> str:
    if store == "sqlite":
        return f"sqlite:///{folder}/{uuid.uuid4().hex}.db"
    url: str = running[_server(store)].url
    return url if store != "dynamodb" else url.replace("sqs://", "dynamodb://test:test@") + f"/g{uuid.uuid4().hex[:8]}"


def _strikes(server: Running) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    async def killed() -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(1)
        await asyncio.to_thread(server.start)

    async def paused() -> None:
        await asyncio.to_thread(server.pause)
        await asyncio.sleep(4)
        await asyncio.to_thread(server.resume)

    return [("server killed", killed), ("server paused", paused)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["sqlite", *SERVERS, "dynamodb"])
    parser.add_argument("--failovers", action="store_true")
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    if chosen.check:
        kept, missing = msgspec.json.decode(RESULTS.read_bytes(), type=Kept)
        return 0 if PAGE.read_text() == render(kept, missing) else 1
    servers = [*(_server(name) for name in chosen.only if name != "sqlite"), "toxiproxy"]
    with session(servers) as running, tempfile.TemporaryDirectory() as folder:
        missing = {name: why.reason for name, why in running.unavailable.items()}

        # What was counted of other stores, another time, stays.
        known, before = msgspec.json.decode(RESULTS.read_bytes(), type=Kept) if RESULTS.exists() else ([], {})
        others = [
            row
            for row in known
            if row.store not in chosen.only or (chosen.failovers and row.fault not in (LOST, "writes lost"))
        ]
        missing = {name: why for name, why in before.items() if name not in servers} | missing

        def keep(rows: list[Row]) -> None:
            rows = others + rows
            RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode((rows, missing)), indent=1) + b"\n")
            PAGE.write_text(render(rows, missing))

        rows = asyncio.run(
            everything(running, chosen.only, chosen.runs, Path(folder), keep, failovers=chosen.failovers)
        )
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
