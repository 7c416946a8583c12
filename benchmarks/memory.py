#!/usr/bin/env python3
"""Resident memory of a consumer over a million messages, with more waiting than it can take: it must follow the window.

The consumer is slower than what waits for it, so that there is a backlog from the first to the last message. Its process
samples its own resident memory after every hundredth of the messages; "flat" means that the end is within a tenth and
16 MiB of where it stood after the first 10 000 messages.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import report
from loops.common import Job, Order, body

BROKERS = ("sqlite", "kafka", "rabbitmq", "nats", "redis", "memory")
_BATCH = 500
_WARM = 10_000
_PAUSE = 0.005  # seconds for each batch of 500: 10 µs a message, slower than every producer here
_LIST = 5_000
_BACKLOG = 100_000  # for the memory broker, whose messages are in the process that is measured: fed while it reads
_SECONDS = 900


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# --------------------------------------------------------------------------------------------- in the child


async def consume(job: Job) -> dict[str, Any]:
    """Read all of the channel; the samples."""
    from loops.ours import channel_of, declare

    from atleastonce import Service, connect

    service = Service(job.group, broker=job.url)
    finished = asyncio.Event()
    samples: list[tuple[int, float]] = []
    seen, step = 0, max(_BATCH, job.messages // 100)
    begin = time.perf_counter()

    @service.batch_consumer(channel_of(job), max_messages=_BATCH)
    async def handle(orders: list[Order]) -> None:
        nonlocal seen
        before, seen = seen, seen + len(orders)
        if before // step != seen // step or (before < _WARM <= seen):
            samples.append((seen, resident()))
        if seen >= job.messages:
            finished.set()
        await asyncio.sleep(_PAUSE)

    async def feed() -> None:
        async with connect(job.url) as broker:
            sent = 0
            while sent < job.messages:
                while sent - seen > _BACKLOG:  # noqa: ASYNC110 - the consumer is what is measured, and told nothing
                    await asyncio.sleep(0.01)
                await broker.publish_many(channel_of(job), [_order(n) for n in range(sent, sent + _LIST)])
                sent += _LIST

    if job.broker == "memory":
        async with connect(job.url):  # keeps the broker of this process
            await declare(job)
            feeding = asyncio.create_task(feed())
            async with service:
                await finished.wait()
            await feeding
    else:
        async with service:
            await finished.wait()
    return {"seconds": round(time.perf_counter() - begin), "samples": samples}


def _order(number: int) -> Order:
    import msgspec

    return msgspec.json.decode(body(number), type=Order)


# -------------------------------------------------------------------------------------------- in the parent


def load(job: Job) -> None:
    """Fill the channel in this process, so that none of it shows in the consumer's."""
    from loops.ours import channel_of, declare

    from atleastonce import connect

    if job.broker == "kafka":
        from loops import kafka

        kafka.load(job.address, job.channel, job.messages)
        return

    async def fill() -> None:
        await declare(job)
        async with connect(job.url) as broker:
            for begin in range(0, job.messages, _LIST):
                await broker.publish_many(channel_of(job), [_order(n) for n in range(begin, begin + _LIST)])

    asyncio.run(fill())


def measure(job: Job) -> dict[str, Any]:
    """One row."""
    import msgspec

    if job.broker != "memory":
        load(job)
    command = [sys.executable, __file__, "--child", msgspec.json.encode(job).decode()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"{job.broker}: {(done.stderr.strip().splitlines() or ['no result'])[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    samples = found["samples"]
    start = next(size for count, size in samples if count >= min(_WARM, job.messages))
    end, peak = samples[-1][1], max(size for _, size in samples)
    return {
        "broker": job.broker,
        "messages": job.messages,
        "start_mib": round(start, 1),
        "peak_mib": round(peak, 1),
        "end_mib": round(end, 1),
        "seconds": found["seconds"],
        "flat": end <= start * 1.1 + 16 and peak <= start * 1.25 + 16,
        "samples_mib": [[count, round(size, 1)] for count, size in samples[:: max(1, len(samples) // 20)]],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", default=",".join(BROKERS), help="default: all that are measured")
    options.add_argument("--messages", type=int, default=1_000_000)
    options.add_argument("--save", action="store_true", help="write benchmarks/results/ and docs/benchmarks.md")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--child", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        import msgspec

        print(json.dumps(asyncio.run(consume(msgspec.json.decode(given.child, type=Job)))))
        return
    if not Path("/proc/self/statm").exists():
        raise SystemExit("resident memory is read from /proc: Linux only")
    if given.messages < 2 * _WARM or given.messages % _LIST:
        options.error(f"--messages must be at least {2 * _WARM} and a multiple of {_LIST}")
    from arena import Arena

    rows = []
    with tempfile.TemporaryDirectory(prefix="atleastonce-memory-") as folder:
        for name in given.broker.split(","):
            arena = Arena.for_broker(name)
            if isinstance(arena, str):
                print(f"{name}: not run: {arena}", file=sys.stderr)
                continue
            job = Job(scenario="memory", contender="ours", broker=name, url=arena.url, messages=given.messages)
            job.channel, job.address, job.group = f"memory-{secrets.token_hex(4)}", arena.address, "memory"
            if name == "sqlite":
                job.url = f"sqlite:///{Path(folder) / 'orders.db'}"
            row = measure(job)
            rows.append(row)
            if name == "kafka":
                from loops import kafka

                kafka.delete(job.address, job.channel)
            if not given.json:
                print(
                    f"{row['broker']:>8}: start {row['start_mib']} MiB, peak {row['peak_mib']}, end {row['end_mib']}, "
                    f"{row['seconds']} s, {'flat' if row['flat'] else 'NOT FLAT'}",
                    flush=True,
                )
    found = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "messages": given.messages,
        "rows": rows,
    }
    if given.json:
        print(json.dumps(found))
    if given.save:
        report.RESULTS.mkdir(exist_ok=True)
        path = report.RESULTS / "memory-use.json"
        measured = {row["broker"] for row in rows}
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        found["rows"] = [row for row in before if row["broker"] not in measured] + rows
        path.write_text(json.dumps(found, indent=1) + "\n")
        report.write_page()
    if not rows or not all(row["flat"] for row in rows):
        raise SystemExit("memory is not flat" if rows else "no broker could be had")


if __name__ == "__main__":
    main()
