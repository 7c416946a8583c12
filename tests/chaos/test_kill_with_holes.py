"""kill -9 of a Kafka consumer that is far ahead of what it is not done with: what its commit had no room for is handled again, and
nothing else."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from atleastonce import connect
from atleastonce.offsets import METADATA_LIMIT, decode

sys.path.insert(0, str(Path(__file__).parent))

from holes_worker import work

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(180, func_only=True)]

DEADLINE = 90.0


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        await asyncio.sleep(0.1)  # polling a condition with a deadline


def committed(url: str, name: str) -> TopicPartition:
    reader = Consumer({"bootstrap.servers": url.removeprefix("kafka://"), "group.id": name})
    try:
        return reader.committed([TopicPartition(name, 0)], timeout=10.0)[0]
    finally:
        reader.close()


def handled(ledger: Path) -> Counter[int]:
    return Counter(map(int, ledger.read_bytes().rpartition(b"\n")[0].split()))


SCATTERED = set(random.Random(7).sample(range(60_000), 3000)) | {0}


@pytest.mark.parametrize(
    ("total", "stuck", "fits"),
    [
        pytest.param(20_000, {0}, True, id="one slow message, and thousands done ahead of it"),
        pytest.param(20_000, set(range(0, 20_000, 25)), True, id="800 holes, which a commit has room for"),
        pytest.param(60_000, SCATTERED, False, id="3000 holes, which it has not"),
    ],
)
async def test_what_a_killed_consumer_had_done_ahead_comes_again_only_beyond_what_a_commit_holds(
    kafka_url: str, tmp_path: Path, total: int, stuck: set[int], fits: bool
) -> None:
    name, ledger, never, nothing = f"holes.{uuid.uuid4().hex[:8]}", tmp_path / "l", tmp_path / "n", tmp_path / "none"
    ledger.touch()
    nothing.touch()
    never.write_text("\n".join(map(str, stuck)))
    url = f"{kafka_url}?session.timeout.ms=6000"
    async with connect(kafka_url) as broker:
        outcomes = await broker.publish_many(work(name), range(total))
    assert all(outcome.ok for outcome in outcomes)

    async def start(stays: Path) -> Process:
        script = (sys.executable, str(Path(__file__).with_name("holes_worker.py")), url, name, str(ledger), str(stays))
        return await asyncio.create_subprocess_exec(*script, stderr=DEVNULL)

    running = [await start(never)]
    try:
        await until(lambda: len(handled(ledger)) == total - len(stuck), "all but the stuck ones are handled")
        await asyncio.sleep(3.0)  # nothing but time shows that the last commit is made
        running[0].kill()
        await running[0].wait()
        stored = await asyncio.to_thread(committed, kafka_url, name)
        assert len(stored.metadata) <= METADATA_LIMIT
        assert stored.offset == 0
        known = decode(stored.metadata, stored.offset)
        assert known is not None
        told = {n for begin, end in known for n in range(begin, end)}
        assert not told & stuck, "what is not done must not be skipped"
        assert (len(told) == total - len(stuck)) is fits
        assert fits or len(told) > 24_000, "so much fits whatever the pattern"
        before = handled(ledger)
        assert set(before.values()) == {1}
        running.append(await start(nothing))
        await until(lambda: set(handled(ledger)) == set(range(total)), "everything is handled")
        await until(lambda: committed(kafka_url, name).offset == total, "and committed")
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()
    repeated = {n for n, times in handled(ledger).items() if times > 1}
    assert repeated == set(range(total)) - stuck - told
    assert max(handled(ledger).values()) <= 2
    print(f"{total} messages, {len(stuck)} stuck; {len(stored.metadata)} characters; {len(repeated)} handled again")
