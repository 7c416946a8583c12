"""``transactions=True`` under ``kill -9``: whoever reads what is committed sees every result, hop and dead letter once, whatever
step the process dies at."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import Consumer, TopicPartition

from atleastonce import connect

sys.path.insert(0, str(Path(__file__).parent))

from transfer import DEAD, DEADLY, DIED, HOP, Order, make, names

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(200, func_only=True)]

ORDERS = 200
DEADLINE = 60.0


def committed(url: str, topic: str) -> list[int]:
    """The numbers in all of ``topic`` that is committed; only what is before the first open transaction."""
    client = Consumer(
        {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "group.id": "reader",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    partitions = list(client.list_topics(topic, timeout=10).topics[topic].partitions)
    client.assign([TopicPartition(topic, number, 0) for number in partitions])
    found: list[int] = []
    ends = 0
    while ends < len(partitions):
        record = client.poll(10)
        assert record is not None, "no end of the partitions was told"
        if record.error() is not None:
            ends += 1
        else:
            found.append(json.loads(record.value() or b"")["n"])
    client.close()
    return found


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            return  # the comparison that follows says what is missing
        await asyncio.sleep(0.1)


CASES = [
    pytest.param("async", "one", "sent", 2, id="async-sent"),
    pytest.param("async", "one", "offsets", 1, id="async-offsets"),
    pytest.param("async", "one", "committed", 2, id="async-committed"),
    pytest.param("sync", "one", "offsets", 3, id="sync-offsets"),
    pytest.param("batch", "one", "offsets", 2, id="batch-offsets"),
    pytest.param("async", "", "offsets", 2, id="async-offsets-unnamed"),
]


@pytest.mark.parametrize(("kind", "member", "point", "number"), CASES)
async def test_a_killed_process_leaves_nothing_twice_and_nothing_out(
    kafka_url: str, kind: str, member: str, point: str, number: int
) -> None:
    run = uuid.uuid4().hex[:8]
    source, onward = names(run)
    async with connect(kafka_url) as broker:
        await broker.publish_many(source, [Order(n) for n in range(ORDERS)])
    service = make(kafka_url, run, kind, member)
    home = service.consumers[0].home
    async with connect(kafka_url) as broker:
        await broker.declare(onward)
    script = str(Path(__file__).with_name("transfer.py"))
    child = await asyncio.create_subprocess_exec(
        sys.executable, script, kafka_url, run, kind, member, point, str(number)
    )
    try:
        assert await asyncio.wait_for(child.wait(), DEADLINE) == -signal.SIGKILL
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()

    results = {n for n in range(ORDERS) if n % 10 != DEAD}
    hops = {n for n in range(ORDERS) if n % 10 == HOP}
    letters = {n for n in range(ORDERS) if n % 10 == DEAD}
    async with service:
        await until(
            lambda: (
                set(committed(kafka_url, onward.name)) >= results
                and set(committed(kafka_url, home.dead_letter_channel.name)) >= letters
            )
        )
        await until(lambda: all(status.in_flight == 0 for status in service.status()))
    for topic, wanted in (
        (onward.name, results),
        (home.retry_channel(0.2).name, hops),
        (home.dead_letter_channel.name, letters),
    ):
        found = Counter(committed(kafka_url, topic))
        assert set(found) == wanted, topic
        assert max(found.values()) == 1, f"{topic}: {[n for n, count in found.items() if count > 1]} twice"


@pytest.mark.slow
async def test_a_message_that_ends_its_process_is_one_letter_and_the_others_are_done_once(kafka_url: str) -> None:
    run = uuid.uuid4().hex[:8]
    source, onward = names(run)
    dead = make(kafka_url, run, "deadly", "one").consumers[0].home.dead_letter_channel
    async with connect(kafka_url) as broker:
        await broker.declare(onward)
        await broker.publish_many(source, [Order(n) for n in range(ORDERS)])
    script = str(Path(__file__).with_name("transfer.py"))
    results = {n for n in range(ORDERS) if n % 10 != DEAD} - {DEADLY}
    letters = {n for n in range(ORDERS) if n % 10 == DEAD} | {DEADLY}

    def is_over() -> bool:
        return set(committed(kafka_url, onward.name)) >= results and set(committed(kafka_url, dead.name)) >= letters

    deaths = 0
    while True:
        child = await asyncio.create_subprocess_exec(
            sys.executable, script, kafka_url, run, "deadly", "one", "never", "1"
        )
        try:
            over = False
            while child.returncode is None and not over:
                over = await asyncio.to_thread(is_over)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if over:
            break
        assert child.returncode == DIED
        deaths += 1
        assert deaths < 12, "it goes on for ever"
    assert deaths >= 3
    for topic, wanted in ((onward.name, results), (dead.name, letters)):
        found = Counter(committed(kafka_url, topic))
        assert set(found) == wanted, topic
        assert max(found.values()) == 1, f"{topic}: {[n for n, count in found.items() if count > 1]} twice"
