"""A process that ends at any step of a hop, of a dead letter's move or of its way back: nothing is lost, the copies are
accounted for, and an idempotent consumer has one effect for each message."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from atleastonce import BrokerUnavailable, connect

sys.path.insert(0, str(Path(__file__).parent))

from crash_points import CRASHED, Order, channel, make
from leases import short

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

DEADLINE = 90.0
ORDERS = 20
DEAD = ORDERS // 2
COPYING = ["kafka", "rabbitmq"]
DELAYING = ["sqlite", "redis", "nats", "sqs", "pubsub"]
COPY = ["before the copy", "after the copy"]
SETTLEMENT = ["before the settlement", "after the settlement"]
# Where the broker delays by itself a hop makes no copy.
CASES = [
    (name, step, point)
    for step in ("dead", "redrive")
    for name in COPYING + DELAYING
    for point in COPY + SETTLEMENT[1:]
]
CASES += [(name, "hop", point) for name in COPYING for point in COPY + SETTLEMENT[1:]]
CASES += [(name, "hop", point) for name in DELAYING for point in SETTLEMENT]


class Scene:
    """One queue, and the database in which its consumer keeps its effects."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.name = f"work.{uuid.uuid4().hex[:8]}"
        self.database = str(directory / "shop.db")
        self.copies = Counter[bytes]()
        self._query("CREATE TABLE effect (n int)")

    def _query(self, sql: str) -> list[tuple[int]]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as shop, shop:
            return shop.execute(sql).fetchall()

    def effects(self) -> Counter[int]:
        return Counter(n for (n,) in self._query("SELECT n FROM effect"))

    async def publish(self) -> None:
        async with connect(self.url) as broker:
            assert all(await broker.publish_many(channel(self.name), [Order(n) for n in range(ORDERS)]))

    async def crash(self, step: str, point: str) -> None:
        script = str(Path(__file__).with_name("crash_points.py"))
        arguments = (script, self.url, self.name, self.database, step, point)
        child = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        try:
            assert await asyncio.wait_for(child.wait(), DEADLINE) == CRASHED
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def until_dead(self) -> None:
        """Run the consumer until the odd ones have had their effect and the even ones are dead letters."""
        service = make(self.url, self.name, self.database)
        async with service:
            letters = service.broker.dead_letters(channel(self.name))
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:
                idle = all(status.in_flight == 0 for status in service.status())
                if idle and len(self.effects()) == ORDERS - DEAD:
                    found = [letter async for letter in letters.letters()]
                    self.copies = Counter(letter.body for letter in found)
                    if len(self.copies) == DEAD:
                        break
                await asyncio.sleep(0.1)  # polling a condition with a deadline
        assert {letter.obituary.stage for letter in found} <= {"handler", "crash-loop"}

    async def until_back(self) -> None:
        """Send them all back, to a consumer that is mended, until nothing is dead; what a killed run held comes back first."""
        service = make(self.url, self.name, self.database, mended=True)
        async with service:
            letters = service.broker.dead_letters(channel(self.name))
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:
                with contextlib.suppress(BrokerUnavailable):  # in the hands of the run that was killed
                    await letters.redrive()
                if len(self.effects()) == ORDERS and not [letter async for letter in letters.letters()]:
                    return
                await asyncio.sleep(0.2)  # polling a condition with a deadline
        pytest.fail(f"not back within {DEADLINE:g} s: {self.effects()}")


@pytest.mark.parametrize(("backend", "step", "point"), CASES, ids=lambda value: str(value).replace(" ", "-"))
async def test_a_crash_at_any_step_loses_nothing_and_has_no_second_effect(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str, step: str, point: str
) -> None:
    sqlite = f"sqlite:///{tmp_path}/broker.db"
    scene = Scene(short(sqlite if backend == "sqlite" else request.getfixturevalue(f"{backend}_url")), tmp_path)
    await scene.publish()
    if step != "redrive":
        await scene.crash(step, point)
    await scene.until_dead()
    assert scene.effects() == Counter(range(1, ORDERS, 2))
    assert set(scene.copies) == {b'{"n":%d}' % n for n in range(0, ORDERS, 2)}
    # Kafka's commits are made now and then, in each channel for itself: what a crash repeats, it may repeat in both.
    most = (3 if backend == "kafka" else 2) if step != "redrive" else 1
    assert max(scene.copies.values()) <= most, "more copies than one crash explains"
    if step == "redrive":
        await scene.crash(step, point)
    elif max(scene.copies.values()) == 1:
        return  # nothing is there twice that could have a second effect
    await scene.until_back()
    assert scene.effects() == Counter(range(ORDERS))
