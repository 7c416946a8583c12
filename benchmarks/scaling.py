#!/usr/bin/env python3
"""What a join and a leave cost: one service from 1 to 8 processes and back to 1, while messages come at a constant rate.

    python benchmarks/scaling.py [--only kafka-ordered redis] [--json] [--save]

Each process writes what it handles into a ledger, which `atleastonce.testing.history` checks afterwards: nothing lost, how much
twice, and where order was asked for no key overtaken and none with two at a time. Leaves are SIGTERM to the process that is there
for longest. `--save` writes benchmarks/results/scaling.json and the tables of docs/scaling.md, and copies into them
what docs/benchmarks.md says of one process.
"""

# ruff: noqa: ASYNC110 - the ledger is a file that others write
from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import datetime as dt
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from asyncio.subprocess import Process
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from report import _cpu
from scaling_page import NAMES, RESULTS, costs, write_page
from scaling_worker import Step, channel

from atleastonce import Source, __version__, connect
from atleastonce.brokers import up
from atleastonce.contract import Status, Topology
from atleastonce.testing.history import History, Received

MOST = 8
RATE = 100
KEYS = 64
EVERY = 3.0
# A classic group takes two rounds for a join, and members hear of each at their heartbeat, every 3 s.
EVERY_KAFKA = 5.0
TICK = 0.05
DEADLINE = 30.0
OPTIONS = {
    "1s": "?heartbeat.interval.ms=1000",
    "848": "?group.protocol=consumer",
    "range": "?partition.assignment.strategy=range",
}


class Fleet:
    """The processes that run, and when somebody came or went."""

    def __init__(self, ledger: Path, every: float, *arguments: str) -> None:
        script = str(Path(__file__).with_name("scaling_worker.py"))
        self._script = (sys.executable, script, *arguments)
        self._ledger = ledger
        self.every = every
        self.running: list[Process] = []
        self.joins: list[tuple[float, str]] = []
        self.leaves: list[tuple[float, float]] = []
        self.codes: list[int] = []

    async def join(self) -> None:
        """One more; returns when its interpreter is up, which is the time of the join."""
        process = await asyncio.create_subprocess_exec(
            *self._script, env=_environment(), stderr=asyncio.subprocess.DEVNULL
        )
        self.running.append(process)
        end = time.monotonic() + DEADLINE
        while not (found := [run.started for run in read(self._ledger) if _is(run, "up", process.pid)]):
            if process.returncode is not None or time.monotonic() > end:
                raise SystemExit("a process did not start")
            await asyncio.sleep(0.1)
        self.joins.append((found[0], str(process.pid)))

    async def leave(self) -> None:
        process, began = self.running.pop(0), time.monotonic()
        process.terminate()
        self.leaves.append((began, began))
        try:
            await asyncio.wait_for(process.wait(), DEADLINE)
        except TimeoutError:
            process.kill()
            await process.wait()
        self.leaves[-1] = (began, time.monotonic())
        self.codes.append(process.returncode or 0)

    async def up_and_down(self) -> None:
        """A step at a time: the next begins when the last has had `every` seconds to show what it costs."""
        await self.join()
        end = time.monotonic() + DEADLINE
        while not any(run.id != "up" for run in read(self._ledger)) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        await asyncio.sleep(self.every)
        for _ in range(MOST - 1):
            await self.join()
            await asyncio.sleep(self.every)
        for _ in range(MOST - 1):
            await self.leave()
            await asyncio.sleep(self.every)

    async def stop(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.running:
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


def _environment() -> dict[str, str]:
    """Bytecode is kept: a join is not the compilation of a client's source, which takes seconds."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _is(run: Received, what: str, pid: int) -> bool:
    return run.id == what and run.consumer == str(pid)


def read(ledger: Path) -> list[Received]:
    whole = ledger.read_bytes()
    return History.load(whole[: whole.rfind(b"\n") + 1].splitlines()).receipts


async def measure(what: str, url: str) -> dict[str, Any]:
    """One row: one broker, one kind of queue."""
    kind = "ordered" if what.endswith("-ordered") else "plain"
    name, history, sent = f"scaling.{uuid.uuid4().hex[:8]}", History(), 0
    with tempfile.TemporaryDirectory(prefix="atleastonce-scaling-") as folder:
        if url == "sqlite":
            url = f"sqlite:///{folder}/broker.db"
        ledger = Path(folder) / "ledger"
        ledger.touch()
        queue, fleet = (
            channel(name, kind),
            Fleet(ledger, EVERY_KAFKA if what.startswith("kafka") else EVERY, url, name, str(ledger), kind),
        )

        async with connect(url) as broker:
            await broker.declare(Topology(channels=(queue,), sources=(Source(queue),)))
            steps = asyncio.create_task(fleet.up_and_down())
            try:
                begun = time.monotonic()
                while not steps.done():
                    batch = []
                    while sent < (time.monotonic() - begun) * RATE:
                        batch.append(Step(f"k{sent % KEYS}", sent // KEYS))
                        sent += 1
                    at = time.monotonic()
                    if batch:
                        outcomes = await broker.publish_many(queue, batch, key=lambda step: step.key)
                        for step, outcome in zip(batch, outcomes, strict=True):
                            status = Status.OK if outcome.ok else Status.UNKNOWN
                            history.sent(f"{step.key}/{step.n}", status, key=step.key, at=at)
                    await asyncio.sleep(TICK)
                await steps
                end = time.monotonic() + DEADLINE
                while len({run.id for run in read(ledger)}) <= sent and time.monotonic() < end:
                    await asyncio.sleep(0.2)
            finally:
                steps.cancel()
                await fleet.stop()
            with contextlib.suppress(Exception):  # what is left behind is a queue of a development broker
                admin: Any = broker.adapter
                await admin.delete(Topology(channels=(queue,), sources=(Source(queue),)))
        history.receipts = sorted((run for run in read(ledger) if run.id != "up"), key=lambda run: run.started)
    return {"what": what, **judge(history, fleet, kind == "ordered")}


def judge(history: History, fleet: Fleet, ordered: bool) -> dict[str, Any]:
    """What the two logs show."""
    found, runs = history.check(), history.receipts
    first: dict[str, float] = {}
    for run in runs:
        first.setdefault(run.consumer, run.started)
    joins = fleet.joins[1:]
    times = [at for at, _ in joins] + [began for began, _ in fleet.leaves]
    stops, waits = _stops(runs, times), _waits(history, times)
    most = len(joins)
    eight = Counter(run.consumer for run in runs if times[most - 1] + fleet.every / 3 <= run.started < times[most])
    calm = [gap for gap, step in stops if step < 0]
    return {
        "every_s": fleet.every,
        "messages": len({send.id for send in history.sends}),
        "runs": len(runs),
        "lost": len(found.lost),
        "repeated": sum(found.duplicates.values()),
        "reordered": len(found.reordered) if ordered else None,
        "overlaps": len(found.overlaps) if ordered else None,
        "calm_stop_s": _most(calm),
        "join_stop_s": _most(gap for gap, step in stops if 0 <= step < most),
        "leave_stop_s": _most(gap for gap, step in stops if step >= most),
        "join_stops_s": _each(stops, range(most)),
        "leave_stops_s": _each(stops, range(most, len(times))),
        "calm_wait_s": _most(wait for wait, step in waits if step < 0),
        "join_wait_s": _most(wait for wait, step in waits if 0 <= step < most),
        "leave_wait_s": _most(wait for wait, step in waits if step >= most),
        # Within the time that a step has: who gets its first message when somebody leaves is a stand-by.
        "first_message_s": [
            round(first[who] - at, 2) if who in first and first[who] < at + fleet.every + 2 else None
            for at, who in joins
        ],
        "shares_at_8": sorted((round(count / max(1, eight.total()), 3) for count in eight.values()), reverse=True),
        "exit_s": round(statistics.median(ended - began for began, ended in fleet.leaves), 2),
        "exit_most_s": _most(ended - began for began, ended in fleet.leaves),
        "exit_codes": sorted(set(fleet.codes)),
    }


def _stops(runs: list[Received], times: list[float]) -> list[tuple[float, int]]:
    """Each time in which no run began, with the number of the last step before its end; -1 before the first step."""
    starts = [run.started for run in runs]
    return [(b - a, bisect.bisect(times, b) - 1) for a, b in itertools.pairwise(starts)]


def _waits(history: History, times: list[float]) -> list[tuple[float, int]]:
    """How long each message waited for its first run, with the number of the last step before that run."""
    sent, seen = {send.id: send.at for send in history.sends}, set()
    waits, ready = [], history.receipts[0].started  # what was sent before the first process read waited for it
    for run in history.receipts:
        if run.id not in seen and sent[run.id] >= ready:
            waits.append((run.started - sent[run.id], bisect.bisect(times, run.started) - 1))
        seen.add(run.id)
    return waits


def _most(values: Any) -> float:
    return round(max(values, default=0.0), 2)


def _each(stops: list[tuple[float, int]], steps: range) -> list[float]:
    return [_most(gap for gap, step in stops if step == number) for number in steps]


def _url(what: str) -> tuple[str, str] | str:
    """The broker's address and version, or why it cannot be had."""
    name = what.split("-")[0]
    if name == "sqlite":
        import sqlite3

        return "sqlite", sqlite3.sqlite_version
    found = up([name])
    if name not in found:
        return str(found.unavailable[name])
    more = next((option for part, option in OPTIONS.items() if part in what.split("-")), "")
    return found[name].url + more, found[name].version or "given"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=list(NAMES), default=list(NAMES), metavar="WHAT")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument(
        "--save", action="store_true", help="write benchmarks/results/scaling.json and docs/scaling.md"
    )
    given = options.parse_args()
    report: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "atleastonce": __version__,
        "rate": RATE,
        "keys": KEYS,
        "rows": [],
    }
    for what in given.only:
        where = _url(what)
        if isinstance(where, str):
            print(f"{what}: not run: {where}", file=sys.stderr)
            continue
        row = asyncio.run(measure(what, where[0]))
        row |= {"version": where[1], "load_average": round(os.getloadavg()[0], 1)}
        report["rows"].append(row)
        print(json.dumps(row), file=sys.stderr)
        if given.save:  # after each, so that a run that is cut short has not been for nothing
            known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
            rows = {each["what"]: each for each in known} | {each["what"]: each for each in report["rows"]}
            kept = report | {"costs": costs(), "rows": [rows[name] for name in NAMES if name in rows]}
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            write_page()
    if given.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
