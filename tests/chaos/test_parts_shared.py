"""Processes that share a channel in parts: each that joins gets its share of them, one that is killed leaves them to the others,
and no key is overtaken or with two of them at a time."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from atleastonce import connect
from atleastonce.contract import Status
from atleastonce.parts import part_number
from atleastonce.testing.history import History

sys.path.insert(0, str(Path(__file__).parent))

from ordered_worker import Step, steps
from test_ordered_storm import Fleet, read

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(200, func_only=True)]

KEYS = 64
EACH = 250
PARTS = 8
DEADLINE = 90.0


@pytest.mark.parametrize("backend", ["rabbitmq", "redis"])
async def test_parts_are_shared_out_and_order_is_kept_though_one_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    url = request.getfixturevalue(f"{backend}_url") + ("?lease=5s" if backend == "redis" else "")
    name, ledger, history = f"shared.{uuid.uuid4().hex[:8]}", tmp_path / "ledger", History()
    ledger.touch()
    # So slow that all parts are busy until the end, and quick enough for one that leaves.
    fleet = Fleet(url, name, str(ledger), "", "0.25")
    sent = [Step(f"k{n % KEYS}", n // KEYS) for n in range(KEYS * EACH)]
    assert {part_number(f"k{n}".encode(), PARTS) for n in range(KEYS)} == set(range(PARTS))
    begun = time.monotonic()
    try:
        await fleet.join()
        async with connect(url) as broker:
            outcomes = await broker.publish_many(steps(name), sent, key=lambda step: step.key)
        assert all(outcome.ok for outcome in outcomes)
        for step in sent:
            history.sent(f"{step.key}/{step.n}", Status.OK, key=step.key)
        await _until(ledger, lambda held: len(held) == 1)
        await fleet.join()
        await fleet.join()
        await _until(ledger, lambda held: sorted(map(len, held.values())) == [2, 3, 3])
        shared = time.monotonic() - begun
        killed = fleet.running.pop()
        killed.kill()
        await killed.wait()
        await _until(ledger, lambda held: sorted(map(len, held.values())) == [4, 4], but=str(killed.pid))
        again = time.monotonic() - begun - shared
    finally:
        await fleet.stop()
    print(f"{backend}: shared by three after {shared:.1f} s, by two {again:.1f} s after the kill")
    history.receipts = read(ledger)
    found = history.check()
    assert not found.reordered, found
    assert not found.overlaps, found
    assert not found.ghosts, found
    assert not [loss for loss in found.lost if loss.where != "postfix"], found  # they were stopped before the end


def _held(ledger: Path, but: str) -> dict[str, set[int]]:
    """The parts of which each process began something in the last second and a half, and nobody else did later."""
    since, last = time.monotonic() - 1.5, dict[int, str]()
    for run in read(ledger):
        if run.started > since:
            last[part_number(run.id.partition("/")[0].encode(), PARTS)] = run.consumer
    held: dict[str, set[int]] = defaultdict(set)
    for part, consumer in last.items():
        if consumer != but:
            held[consumer].add(part)
    return held


async def _until(ledger: Path, condition: Callable[[dict[str, set[int]]], bool], but: str = "") -> None:
    end = time.monotonic() + DEADLINE
    while not condition(_held(ledger, but)):
        assert time.monotonic() < end, f"not in time: {_held(ledger, but)}"
        await asyncio.sleep(0.2)
