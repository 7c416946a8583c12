"""A message that kills its process ends in the dead letters on every broker, and it alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from atleastonce import Broker, Source, Topic, connect
from atleastonce.contract import Retry, Topology, Window
from atleastonce.patterns.crash_loops import ACCIDENTS, RELEASES
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.patterns.redrive.passage import _Listener

sys.path.insert(0, str(Path(__file__).parent))

from crash_worker import CRASH_LIMIT
from leases import short

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600, func_only=True)]

WORKER = Path(__file__).with_name("crash_worker.py")
MESSAGES = 200
KILLERS = (17, 120)
CREW = 3
DEADLINE = 400.0

# Each broker, and how its processes die here.
BROKERS = [
    ("sqlite", "segfault"),
    ("rabbitmq", "oom"),
    ("kafka", "exit"),
    ("redis", "segfault"),
    ("nats", "exit"),
    ("pubsub", "oom"),
    ("sqs", "exit"),
]


class Crew:
    """Processes that a supervisor starts again whenever one has died."""

    def __init__(self, url: str, topic: str, how: str, directory: Path) -> None:
        self.deaths = 0
        self._journal = directory / "journal"
        self._journal.touch()
        self._command = [sys.executable, str(WORKER), url, topic, how, str(self._journal)]
        self._errors = (directory / "stderr").open("w+")
        self._processes = [self._start() for _ in range(CREW)]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stderr=self._errors, stdin=subprocess.DEVNULL)

    def watch(self) -> None:
        for slot, process in enumerate(self._processes):
            if process.poll() is not None:
                self.deaths += 1
                assert self.deaths < 60, f"they only die:\n{self.said()}"
                self._processes[slot] = self._start()

    def journal(self) -> tuple[Counter[int], Counter[int]]:
        """How often each message was handled, and how often it killed."""
        lines = [line.split() for line in self._journal.read_text().splitlines()]
        of = {word: Counter(int(n) for kind, n in lines if kind == word) for word in ("done", "killed")}
        return of["done"], of["killed"]

    def said(self) -> str:
        self._errors.flush()
        return "\n".join(Path(self._errors.name).read_text().splitlines()[-40:])

    def stop(self) -> list[int]:
        """Exit codes."""
        for process in self._processes:
            process.terminate()
        try:
            return [process.wait(30) for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
            self._errors.close()


async def dead_letters(url: str, topic: Topic[dict[str, object]]) -> list[Letter]:
    """All that are there, left there."""
    async with connect(url) as broker:
        return [letter async for letter in broker.dead_letters(topic, "crew").letters()]


@pytest.mark.parametrize(("name", "how"), BROKERS, ids=[name for name, _ in BROKERS])
async def test_who_kills_its_process_is_a_dead_letter_and_nobody_else_is(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, how: str
) -> None:
    url = f"sqlite:///{tmp_path}/broker.db" if name == "sqlite" else request.getfixturevalue(f"{name}_url")
    topic = Topic(f"jobs.{uuid.uuid4().hex[:8]}", dict[str, object], partitions=3)
    home = Source(topic, "crew")
    async with connect(short(url)) as broker:
        releases = broker.adapter.capabilities.counts_releases
        await broker.adapter.declare(
            Topology(channels=(topic,), sources=(home,), dead_letters=(home.dead_letter_channel,))
        )
        jobs: list[dict[str, object]] = [{"n": n, "kill": n in KILLERS} for n in range(MESSAGES)]
        assert all(outcome.ok for outcome in await broker.publish_many(topic, jobs))
    crew = Crew(short(url), topic.name, how, tmp_path)
    try:
        await until_it_is_over(crew, url, topic)
    finally:
        codes = crew.stop()
    dead = await dead_letters(url, topic)
    done, killed = crew.journal()
    assert set(codes) <= {0, -signal.SIGTERM}  # the latter: it was still starting
    assert set(done) == set(range(MESSAGES)) - set(KILLERS)
    assert {letter.body for letter in dead} == {b'{"n":%d,"kill":true}' % n for n in KILLERS}
    assert {letter.obituary.stage for letter in dead} == {"crash-loop"}
    # On Kafka a reader that died is known by its mark alone, and one is needed to be careful: then one more may die.
    most = ACCIDENTS + CRASH_LIMIT + (name == "kafka") + (RELEASES if releases else 0)
    assert set(killed) == set(KILLERS)
    assert max(killed.values()) <= most, killed


@pytest.mark.parametrize(("name", "how"), [("sqlite", "exit"), ("nats", "exit")])
async def test_a_suspect_that_is_moved_beside_another_killer_is_judged_once(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, how: str
) -> None:
    """Two copies of it would be two suspects, each with a limit of its own."""
    url = f"sqlite:///{tmp_path}/broker.db" if name == "sqlite" else request.getfixturevalue(f"{name}_url")
    topic = Topic(f"jobs.{uuid.uuid4().hex[:8]}", dict[str, object], partitions=3)
    home, (fresh, suspect) = Source(topic, "crew"), KILLERS
    async with connect(short(url)) as broker:
        await broker.adapter.declare(
            Topology(channels=(topic,), sources=(home,), dead_letters=(home.dead_letter_channel,))
        )
        await broker.publish(topic, {"n": suspect, "kill": True})
        await hand_out(broker, home, 12)
        rest = [fresh, *(n for n in range(MESSAGES) if n not in KILLERS)]  # one list has both
        await broker.publish_many(topic, [{"n": n, "kill": n == fresh} for n in rest])
    crew = Crew(short(url), topic.name, how, tmp_path)
    try:
        await until_it_is_over(crew, url, topic)
    finally:
        crew.stop()
    _, killed = crew.journal()
    assert killed[suspect] == CRASH_LIMIT, killed
    assert len(await dead_letters(url, topic)) == len(KILLERS)


async def hand_out(broker: Broker, source: Source, times: int) -> None:
    """Have what waits in ``source`` handed out so often, and given back each time as after a failure."""
    subscription = await broker.adapter.subscribe(source, Window(10, 1 << 20), _Listener())
    try:
        count = 0
        async with asyncio.timeout(30):
            while count < times:
                batch = await subscription.receive(1, 1.0)
                count += len(batch)
                await subscription.settle([(delivery, Retry(0)) for delivery in batch])
    finally:
        await subscription.close()


async def until_it_is_over(crew: Crew, url: str, topic: Topic[dict[str, object]]) -> None:
    """Every innocent message handled, and each killer among the dead letters: nobody dies any more."""
    now = time.monotonic()
    end, look, expected = now + DEADLINE, now, MESSAGES - len(KILLERS)
    while (now := time.monotonic()) < end:
        crew.watch()
        done, killed = crew.journal()
        settled = len(done) == expected and len(killed) == len(KILLERS) and min(killed.values()) >= CRASH_LIMIT
        if settled and now > look:
            look = now + 2.0  # each look takes a part of the machine
            if len({letter.body for letter in await dead_letters(url, topic)}) == len(KILLERS):
                return
        await asyncio.sleep(0.1)  # polling a condition with a deadline
    pytest.fail(
        f"not over within {DEADLINE:g} s: {len(done)} done, killed {killed}, {crew.deaths} deaths\n{crew.said()}"
    )
