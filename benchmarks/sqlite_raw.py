"""How fast the SQLite broker's adapter is by itself: publish, receive and settle in batches, end to end, on this disk.

    python benchmarks/sqlite_raw.py [--messages 50000] [--directory DIR] [--json]

A row is one run over a new file: `messages` of 200 bytes in lists of `batch`, each list published, received and settled
before the next. p50 and p99 are of one such round. "processes" is how many consumers in processes of their own drain a
full queue together. The last rows say what one fsync costs here: on a disk that answers in microseconds "full" is free.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from atleastonce.adapters.sqlite import SQLiteAdapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import ACK, Outgoing, Topology, Window
from atleastonce.message import Headers, Message, new_id

QUEUE: Queue[Any] = Queue("bench")
SOURCE = Source(QUEUE)
BODY = json.dumps({"order_id": 7, "customer_id": "c-1", "items": ["x" * 20] * 6}).encode().ljust(200)


class Silent:
    async def drain(self, streams: object, grace: float) -> None: ...
    def lost(self, streams: object) -> None: ...
    def condition(self, state: str, detail: str) -> None: ...


def batch_of(size: int) -> list[Outgoing]:
    ids = [new_id() for _ in range(size)]
    return [Outgoing(QUEUE, Message(id, BODY, headers=Headers({"alo-id": id}))) for id in ids]


async def rounds(folder: Path, synchronous: str, batch: int, messages: int) -> dict[str, Any]:
    adapter = SQLiteAdapter(folder / f"{synchronous}-{batch}.db", synchronous=synchronous)
    await adapter.open()
    await adapter.declare(Topology(sources=(SOURCE,)))
    subscription = await adapter.subscribe(SOURCE, Window(10_000, 2**26), Silent())
    times: list[float] = []
    for _ in range(messages // batch):
        items = batch_of(batch)
        started = time.perf_counter()
        sent = await adapter.send(items)
        got = await subscription.receive(batch, 1)
        settled = await subscription.settle([(delivery, ACK) for delivery in got])
        times.append(time.perf_counter() - started)
        if not (len(got) == batch and all(o.ok for o in sent) and all(o.ok for o in settled)):
            raise SystemExit("a message was not sent, received or settled: no figure")
    await subscription.close()
    await adapter.close()
    times.sort()
    return {
        "synchronous": synchronous,
        "batch": batch,
        "processes": 1,
        "per_second": round(batch * len(times) / sum(times)),
        "p50_ms": round(statistics.median(times) * 1000, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
    }


async def consume(path: str, batch: int) -> None:
    """One competing consumer: prints when it began, when its last settlement was confirmed, and how many it had."""
    adapter = SQLiteAdapter(path)
    await adapter.open()
    subscription = await adapter.subscribe(SOURCE, Window(10_000, 2**26), Silent())
    began = ended = time.time()
    count = 0
    while got := await subscription.receive(batch, 0.5):
        await subscription.settle([(delivery, ACK) for delivery in got])
        count, ended = count + len(got), time.time()
    await subscription.close()
    await adapter.close()
    print(json.dumps([began, ended, count]))


async def competing(folder: Path, processes: int, batch: int, messages: int) -> dict[str, Any]:
    path = folder / f"competing-{processes}.db"
    adapter = SQLiteAdapter(path)
    await adapter.open()
    await adapter.declare(Topology(sources=(SOURCE,)))
    for _ in range(messages // batch):
        await adapter.send(batch_of(batch))
    command = (sys.executable, __file__, "--consume", str(path), "--batch", str(batch))
    children = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE) for _ in range(processes)
    ]
    said = [json.loads((await child.communicate())[0]) for child in children]
    await adapter.close()
    total = sum(count for _, _, count in said)
    if total != messages // batch * batch:
        raise SystemExit(f"{total} messages settled of {messages}: no figure")
    seconds = max(ended for _, ended, _ in said) - min(began for began, _, _ in said)
    return {
        "synchronous": "full",
        "batch": batch,
        "processes": processes,
        "per_second": round(total / seconds),
        "p50_ms": None,
        "p99_ms": None,
    }


def fsync_cost(folder: Path) -> dict[str, float]:
    with (folder / "fsync").open("wb", buffering=0) as file:
        times: list[float] = []
        for _ in range(200):
            file.write(b"x" * 4096)
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    times.sort()
    return {"fsync_p50_ms": round(times[100] * 1000, 3), "fsync_p99_ms": round(times[198] * 1000, 3)}


async def main(arguments: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        for synchronous in ("full", "normal"):
            for batch in (500, 50, 1):
                messages = arguments.messages if batch > 1 else arguments.messages // 25
                rows.append(await rounds(folder, synchronous, batch, messages))
        rows += [await competing(folder, processes, 500, arguments.messages) for processes in (1, 3)]
        disk = fsync_cost(folder)
    if arguments.json:
        print(json.dumps({"rows": rows, **disk}))
        return
    print(f"{'synchronous':12} {'batch':>6} {'processes':>10} {'messages/s':>11} {'p50 ms':>8} {'p99 ms':>8}")
    for row in rows:
        p50, p99 = ("" if row[name] is None else f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms"))
        print(
            f"{row['synchronous']:12} {row['batch']:6} {row['processes']:10} {row['per_second']:11,} {p50:>8} {p99:>8}"
        )
    print(f"fsync of 4 KiB: p50 {disk['fsync_p50_ms']} ms, p99 {disk['fsync_p99_ms']} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--directory", help="where the files lie; default: the system's temporary directory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=500, help=argparse.SUPPRESS)
    given = parser.parse_args()
    asyncio.run(consume(given.consume, given.batch) if given.consume else main(given))
