"""Runs each fault on each store, with real processes and servers, and writes ``docs/guarantees.md``.

    python docs/generate/guarantees.py [--runs 1] [--only postgres mysql]     run, write (about ten minutes)
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

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "chaos"))

import once_faults as faults  # noqa: E402
from once_faults import DIED, SERVERS, STORES, Row, Run  # noqa: E402

from atleastonce.brokers import Running, session  # noqa: E402

PAGE, RESULTS = ROOT / "docs" / "guarantees.md", ROOT / "docs" / "guarantees.json"
COPIES = 10_000

TEXT = """\
# Guarantees, counted

What came of each fault, on each store. Written by `python docs/generate/guarantees.py`, which runs real processes and kills them;
nothing here is written by hand. A broker in an SQLite file gives every message out at least once; each message is published several
times under one id.

- **attempted**, **confirmed**: publishes, of which several carry one id. **effects**: different ones that were had.
- **duplicate deliveries**: beyond the first of each id, from the publisher and from the crash.
- **duplicate effects**: beyond the first. With an inbox there are none, whatever happens. With a lease the effect is outside the
  database, so a process that dies between effect and completion makes a second one possible: that run is told (`ctx.in_doubt`),
  and **unexplained** counts the second effects of runs that were not told.

{tables}
**kill -9** happens at the seventh of twenty messages, four of which run at a time: with a lease, the neighbours that had
their effect and were not completed yet are in doubt as well. **frozen** is SIGSTOP in the handler, after the effect; another
process takes over; then SIGCONT. (An SQLite file with a frozen transaction lets nobody else write: there the others wait.)
**server killed** and **server paused** hit the store's own server in the middle of two hundred deliveries. **writes lost**
is a Redis that forgets everything, as a failover to a replica that was behind forgets the last claims: what it forgot may
run a second time, and nobody can be told.
{notes}"""

HEAD = (
    "| fault | attempted | confirmed | effects | duplicate deliveries | duplicate effects | in doubt | unexplained |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|\n"
)
LOST = "writes lost"


def render(rows: list[Row], missing: dict[str, str]) -> str:
    tables = []
    for mode, stores in STORES.items():
        for store in stores:
            some = [row for row in rows if (row.mode, row.store) == (mode, store)]
            if not some:
                continue
            body = "".join(f"| {' | '.join(_cells(row))} |\n" for row in some)
            named = {"mysql": "MySQL (MariaDB)", "dynamodb": "DynamoDB (an emulator)"}.get(store, store)
            tables.append(f"## {mode.capitalize()}, {named}\n\n{HEAD}{body}")
    notes = "".join(f"\nNot run: {name}, {reason}.\n" for name, reason in missing.items())
    return TEXT.format(tables="\n".join(tables), notes=notes)


def _cells(row: Row) -> list[str]:
    counted = [row.attempted, row.confirmed, row.effects, row.duplicate_deliveries, row.duplicate_effects]
    doubts = [row.in_doubt, row.unexplained] if row.mode == "lease" else ["", ""]
    return [row.fault, *(str(cell) for cell in (*counted, *doubts))]


async def everything(
    running: Any, only: list[str], runs: int, folder: Path, keep: Callable[[list[Row]], None]
) -> list[Row]:
    """All rows; ``keep`` is told after each store, so that a run that is cut short has not been for nothing."""
    rows: list[Row] = []

    async def add(work: Awaitable[Row]) -> None:
        row = await work
        rows.append(row)
        sys.stderr.write(f"{'ok  ' if row.holds or row.fault == LOST else 'FAIL'} {row}\n")

    for mode, stores in STORES.items():
        for store in stores:
            if store not in only or (store in (*SERVERS, "dynamodb") and _server(store) in running.unavailable):
                continue

            def make(mode: str = mode, store: str = store) -> Run:
                return Run(mode, store, _url(running, store, folder), folder)

            for _ in range(runs):
                for fault in DIED:
                    await add(faults.died(make(), fault))
                await add(faults.reply_lost(make()))
                await add(faults.frozen(make()))
                await add(faults.two_at_once(make()))
                if store in SERVERS:
                    for fault, strike in _strikes(running[store], store):
                        await add(faults.server_fault(make(), fault, strike))
            await add(faults.duplicates(make(), COPIES))
            keep(rows)
    return rows


def _server(store: str) -> str:
    return "sqs" if store == "dynamodb" else store


def _url(running: Any, store: str, folder: Path) -> str:
    if store == "sqlite":
        return f"sqlite:///{folder}/{uuid.uuid4().hex}.db"
    url: str = running[_server(store)].url
    return url if store != "dynamodb" else url.replace("sqs://", "dynamodb://test:test@") + f"/g{uuid.uuid4().hex[:8]}"


def _strikes(server: Running, store: str) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    async def killed() -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(1)
        await asyncio.to_thread(server.start)

    async def paused() -> None:
        await asyncio.to_thread(server.pause)
        await asyncio.sleep(4)
        await asyncio.to_thread(server.resume)

    async def lost() -> None:
        from redis.asyncio import Redis

        async with Redis.from_url(server.url) as admin:
            await admin.flushall()

    more = [(LOST, lost)] if store == "redis" else []
    return [("server killed", killed), ("server paused", paused), *more]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["sqlite", *SERVERS, "dynamodb"])
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    if chosen.check:
        kept, missing = msgspec.json.decode(RESULTS.read_bytes(), type=tuple[list[Row], dict[str, str]])
        return 0 if PAGE.read_text() == render(kept, missing) else 1
    servers = [_server(name) for name in chosen.only if name != "sqlite"]
    with session(servers) as running, tempfile.TemporaryDirectory() as folder:
        missing = {name: why.reason for name, why in running.unavailable.items()}

        def keep(rows: list[Row]) -> None:
            RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode((rows, missing)), indent=1) + b"\n")
            PAGE.write_text(render(rows, missing))

        rows = asyncio.run(everything(running, chosen.only, chosen.runs, Path(folder), keep))
    return 0 if all(row.holds or row.fault == LOST for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
