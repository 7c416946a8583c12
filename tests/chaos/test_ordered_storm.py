"""Processes that come and go while an ordered queue is full: no key is overtaken, and none is with two of them at a time."""

from __future__ import annotations

# ruff: noqa: ASYNC110 - the ledger is a file that others write
import asyncio
import contextlib
import signal
import sys
import time
import uuid
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from atleastonce import connect
from atleastonce.contract import Status
from atleastonce.testing.history import History, Received

sys.path.insert(0, str(Path(__file__).parent))

from ordered_worker import FAILS, Step, steps

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(200, func_only=True)]

BACKENDS = ["kafka", "rabbitmq", "redis", "sqs", "pubsub", "nats", "sqlite"]
EVERY = 2.0
LEAVES = 5
KEYS = 12
RATE = 60
DEADLINE = 120.0
EACH = 12


class Fleet:
    """The processes that run."""

    def __init__(self, *arguments: str) -> None:
        self._script = (sys.executable, str(Path(__file__).with_name("ordered_worker.py")), *arguments)
        self.running: list[Process] = []
        self.ended: list[Process] = []

    async def join(self) -> None:
        self.running.append(await asyncio.create_subprocess_exec(*self._script, stderr=DEVNULL))

    def leave(self, process: Process) -> None:
        self.running.remove(process)
        with contextlib.suppress(ProcessLookupError):  # it could not start: the others are enough
            process.send_signal(signal.SIGTERM)
        self.ended.append(process)

    async def storm(self, ledger: Path, every: float) -> None:
        """Every two seconds, or so often, somebody comes or goes: once there are three, the first of them that has handled
        something, so that it has something to leave behind."""
        end = time.monotonic() + DEADLINE
        while len(self.ended) < LEAVES and time.monotonic() < end:
            await asyncio.sleep(every)
            if len(self.running) < 3:
                await self.join()
                continue
            at_it = {run.consumer for run in read(ledger)}
            if process := next((each for each in self.running if str(each.pid) in at_it), None):
                self.leave(process)

    async def stop(self) -> None:
        while self.running:
            self.leave(self.running[0])
        for process in self.ended:
            try:
                await asyncio.wait_for(process.wait(), 30)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def read(ledger: Path) -> list[Received]:
    whole = ledger.read_bytes().rpartition(b"\n")[0]  # what is being written just now is no line yet
    history = History.load(whole.splitlines())
    return sorted(history.receipts, key=lambda run: run.started)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_no_key_is_overtaken_or_with_two_processes_while_they_come_and_go(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    url = f"sqlite:///{tmp_path}/broker.db" if backend == "sqlite" else request.getfixturevalue(f"{backend}_url")
    await _storm(backend, url, tmp_path, every=EVERY)


async def test_nor_while_busy_parts_go_from_one_to_another(rabbitmq_url: str, tmp_path: Path) -> None:
    """With little to do one process keeps all parts until it leaves: only where they are busy does who joins get some."""
    runs = await _storm("rabbitmq", rabbitmq_url, tmp_path, every=2 * EVERY, longest="0.4")
    spans: dict[str, tuple[float, float]] = {}
    for run in runs:
        first, last = spans.get(run.consumer, (run.started, run.started))
        spans[run.consumer] = (min(first, run.started), max(last, run.started))
    at_once = sum(
        any(min(last, until) - max(first, begin) > 1.0 for other, (begin, until) in spans.items() if other != one)
        for one, (first, last) in spans.items()
    )
    assert at_once >= 2, f"so many worked beside another: {at_once} of {len(spans)}"


async def _storm(backend: str, url: str, tmp_path: Path, *, every: float, longest: str = "0.005") -> list[Received]:
    name, ledger, history = f"storm.{uuid.uuid4().hex[:8]}", tmp_path / "ledger", History()
    ledger.touch()
    work, fleet, sent = steps(name), Fleet(url, name, str(ledger), "", longest), 0

    async def publish() -> None:
        nonlocal sent
        async with connect(url) as broker:
            while not storm.done():
                batch = [Step(f"k{(sent + n) % KEYS}", (sent + n) // KEYS) for n in range(RATE // 10)]
                for step, outcome in zip(
                    batch, await broker.publish_many(work, batch, key=lambda step: step.key), strict=True
                ):
                    assert outcome.ok
                    history.sent(f"{step.key}/{step.n}", Status.OK, key=step.key)
                sent += len(batch)
                await asyncio.sleep(0.1)

    try:
        await fleet.join()
        storm = asyncio.create_task(fleet.storm(ledger, every))
        await publish()
        await storm
        end = time.monotonic() + DEADLINE
        while len({run.id for run in read(ledger) if not _failed(run)}) < sent and time.monotonic() < end:
            await asyncio.sleep(0.2)  # polling a condition with a deadline
    finally:
        await fleet.stop()

    runs = read(ledger)
    assert len({run.consumer for run in runs}) >= LEAVES, "too few came or went"
    history.receipts = runs
    found = history.check()
    assert found.ok, found
    assert not found.reordered, found
    assert not found.overlaps, found
    handled = Counter(run.id for run in runs if not _failed(run))
    codes = sorted(process.returncode or 0 for process in fleet.ended)
    repeated = sum(times - 1 for times in handled.values())
    print(f"{backend}: {sent} messages, {len(runs)} runs, {repeated} repeated, {len(fleet.ended)} processes, {codes}")
    assert repeated <= sent * 0.01, f"{repeated} of {sent} were handled again"
    return runs


async def test_a_kill_repeats_what_was_open_and_not_what_was_done_beyond_it(kafka_url: str, tmp_path: Path) -> None:
    """One key stands still, and the others of its partition go on: what they did is known to the next process, from the commit's
    metadata. It holds less than its partition's share of the window: with more it would stop its partition."""
    url = f"{kafka_url}?session.timeout.ms=6000"
    name, ledger, history = f"kill.{uuid.uuid4().hex[:8]}", tmp_path / "ledger", History()
    ledger.touch()
    sent = [Step(f"k{n % 16}", n // 16) for n in range(16 * EACH)]
    async with connect(kafka_url) as broker:
        outcomes = await broker.publish_many(steps(name), sent, key=lambda step: step.key)
    assert all(outcome.ok for outcome in outcomes)
    for step in sent:
        history.sent(f"{step.key}/{step.n}", Status.OK, key=step.key)
    first, second = Fleet(url, name, str(ledger), "k3"), Fleet(url, name, str(ledger))
    try:
        await first.join()
        await _until(lambda: len({run.id for run in read(ledger) if not _failed(run)}) == len(sent) - EACH + 1)
        await asyncio.sleep(3.0)  # nothing but time shows that the last commit is made
        first.running[0].kill()
        await first.running[0].wait()
        await second.join()
        await _until(lambda: len({run.id for run in read(ledger) if not _failed(run)}) == len(sent))
    finally:
        await first.stop()
        await second.stop()
    history.receipts = read(ledger)
    found = history.check()
    assert found.ok, found
    assert not found.reordered, found
    assert not found.overlaps, found
    handled = Counter(run.id for run in history.receipts if not _failed(run))
    assert max(handled.values()) == 1, f"handled again: {[id for id, times in handled.items() if times > 1]}"


async def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.1)


def _failed(run: Received) -> bool:
    return int(run.id.rpartition("/")[2]) % FAILS == 0 and run.count < 3
