"""Suspects on every backend: none is lost, none stops the others for ever, and what ends the process by itself has an end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from once_kit import counts, until

from atleastonce import (
    CircuitBreaker,
    DeadLetterPolicy,
    FailurePolicy,
    Queue,
    RetryChain,
    Service,
    Source,
    connect,
    wire,
)
from atleastonce.contract import Window
from atleastonce.engine import quarantine
from atleastonce.patterns.crash_loops import ACCIDENTS_IN_ORDER, RELEASES_IN_ORDER

MakeQueue = Callable[[str], Queue[Any]]

# Brokers that keep order with `fifo`, and not by one active reader.
_BY_FIFO = ("memory", "sqlite", "pubsub", "sqs", "gcp")

POLICY = FailurePolicy(in_place=None, chain=RetryChain("200ms"), crash_limit=2)


class Quiet:
    async def drain(self, streams: object, grace: float) -> None: ...

    def lost(self, streams: object) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...


def service_on(
    url: str,
    jobs: Queue[Any],
    handle: Callable[[int], Any],
    *,
    concurrency: int = 10,
    policy: FailurePolicy = POLICY,
) -> Service:
    service = Service("s", broker=url, drain="1s")

    @service.consumer(jobs, failure=policy, concurrency=concurrency)
    async def run(job: dict[str, int]) -> None:
        await handle(job["n"])

    return service


async def put_among_the_suspects(url: str, service: Service, jobs: Queue[Any], n: int) -> None:
    """As if it had been suspected before."""
    async with service:  # declares
        pass
    async with connect(url) as broker:
        await broker.publish(Queue(Source(jobs).suspects_channel.name), {"n": n})


async def test_a_suspect_that_is_given_back_again_and_again_is_still_there(backend_url: str, queue: MakeQueue) -> None:
    """Its copies are the same message with the same history: no broker may take one for a repetition of another."""
    jobs = queue("jobs")
    begun: list[int] = []
    done: list[int] = []

    async def hangs(n: int) -> None:
        begun.append(n)
        await asyncio.sleep(3600)

    async def works(n: int) -> None:
        done.append(n)

    keep = connect(backend_url)  # a broker in memory lives as long as somebody has it
    async with keep:
        await put_among_the_suspects(backend_url, service_on(backend_url, jobs, works), jobs, 7)
        for round_ in range(3):
            service = service_on(backend_url, jobs, hangs)
            starting = asyncio.create_task(service.start())
            await until(lambda enough=round_ + 1: len(begun) >= enough, service)  # type: ignore[misc]
            await starting
            await service.stop(0)
        async with service_on(backend_url, jobs, works) as service:
            await until(lambda: done == [7], service)


async def test_a_suspect_that_hangs_stops_nobody_for_ever(
    backend_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_ALONE_SECONDS", 0.5)
    jobs = queue("jobs")
    done: Counter[int] = Counter()

    async def hangs_on_seven(n: int) -> None:
        if n == 7:
            await asyncio.sleep(3600)
        done[n] += 1

    async with connect(backend_url) as broker:
        service = service_on(backend_url, jobs, hangs_on_seven)
        await put_among_the_suspects(backend_url, service, jobs, 7)
        await broker.publish_many(jobs, [{"n": 100 + n} for n in range(20)])
        async with service_on(backend_url, jobs, hangs_on_seven) as service:
            await until(lambda: set(done) == set(range(100, 120)), service)
            assert 7 not in done


async def test_a_handler_that_always_exits_ends_in_the_dead_letters(backend_url: str, queue: MakeQueue) -> None:
    """The message is known to have ended the service: it counts like a death, also where the broker counts nothing."""
    jobs = queue("jobs")
    runs: Counter[int] = Counter()

    async def exits_on_seven(n: int) -> None:
        runs[n] += 1
        if n == 7:
            raise SystemExit(3)

    async with connect(backend_url) as broker:
        async with service_on(backend_url, jobs, exits_on_seven):
            pass
        await broker.publish_many(jobs, [{"n": n} for n in range(10)])
        for _ in range(POLICY.crash_limit):
            with pytest.raises(SystemExit):
                await service_on(
                    backend_url, jobs, exits_on_seven
                ).serve()  # not in a task: asyncio ends the loop for it
        async with service_on(backend_url, jobs, exits_on_seven) as service:
            dead = Source(jobs, None).dead_letter_channel
            subscription = await broker.adapter.subscribe(Source(dead), Window(10, 1 << 20), Quiet())
            found = await subscription.receive(1, 30.0)
            await subscription.close()
            await until(lambda: set(runs) == set(range(10)), service)
        assert [each.message.headers.get(wire.ERROR_STAGE) for each in found] == ["crash-loop"]
        assert runs[7] == POLICY.crash_limit


async def test_a_handler_in_order_that_always_exits_ends_in_the_dead_letters(
    backend_url: str, queue: MakeQueue
) -> None:
    """It comes again in its place, and each time counts as an end, also where a stop in good order counts nothing."""
    jobs = Queue[Any](queue("jobs").name, fifo=True, single_active=not backend_url.startswith(_BY_FIFO), partitions=2)
    runs: Counter[int] = Counter()
    done: list[int] = []

    def make() -> Service:
        service = Service("s", broker=backend_url, drain="1s")

        @service.consumer(jobs, failure=POLICY, ordered=True)
        async def run(job: dict[str, int]) -> None:
            runs[n := job["n"]] += 1
            if n == 4:
                raise SystemExit(3)
            done.append(n)

        return service

    async def stop_when_over(service: Service) -> None:
        await until(lambda: set(done) == set(range(10)) - {4} and counts(service)["dead"] == 1, service)
        service.request_stop()

    async with connect(backend_url) as broker:
        async with make():
            pass
        releases = RELEASES_IN_ORDER if broker.adapter.capabilities.counts_releases else 0
        in_place = ACCIDENTS_IN_ORDER + releases
        await broker.publish_many(jobs, [{"n": n} for n in range(10)], key=lambda job: f"k{job['n'] % 2}")
        while True:
            service = make()
            watching = asyncio.create_task(stop_when_over(service))
            try:
                await service.serve()  # not in a task: asyncio ends the loop for it
                break
            except SystemExit:
                assert runs[4] <= in_place + POLICY.crash_limit
                if runs[4] < ACCIDENTS_IN_ORDER:  # nothing of its key has gone by it
                    assert {6, 8}.isdisjoint(done)
            finally:
                watching.cancel()
        found = [letter async for letter in broker.dead_letters(jobs).letters()]
    assert [letter.obituary.stage for letter in found] == ["crash-loop"]
    assert ACCIDENTS_IN_ORDER <= runs[4] <= in_place + POLICY.crash_limit


async def test_suspects_that_meet_an_outage_are_no_dead_letters(backend_url: str, queue: MakeQueue) -> None:
    """Two crashes made suspects of a window, and what they need is down: the flood guard holds for them, too."""
    jobs = queue("jobs")
    limits = DeadLetterPolicy(max_share=None, max_consecutive=5, probe_after="300ms")
    policy = FailurePolicy(in_place=None, dead_letter=limits)
    down, done = True, set[int]()

    async def works(n: int) -> None:
        if down:
            raise ConnectionError("gateway")
        done.add(n)

    async with connect(backend_url) as broker:
        async with service_on(backend_url, jobs, works, policy=policy):  # declares
            pass
        suspects = Queue[Any](Source(jobs).suspects_channel.name)
        await broker.publish_many(suspects, [{"n": n} for n in range(20)])
        async with service_on(backend_url, jobs, works, policy=policy) as service:

            def told(name: str) -> int:
                return sum(status.counts.get(name, 0) for status in service.status())

            await until(lambda: told("dead") + told("released") >= 20, service)
            assert told("dead") == 5
            down = False
            await until(lambda: len(done) == 15, service)
            assert told("dead") == 5


async def test_a_list_whose_handler_exits_has_an_end_too(backend_url: str, queue: MakeQueue) -> None:
    """Nobody knows which of them did it, and no broker counts such an end: all run alone, and it is found."""
    jobs = queue("jobs")
    alone: Counter[int] = Counter()
    lists: list[int] = []
    done: set[int] = set()

    def make() -> Service:
        service = Service("s", broker=backend_url, drain="1s")

        @service.batch_consumer(jobs, failure=POLICY, max_messages=10, max_wait="500ms")
        async def run(batch: list[dict[str, int]]) -> None:
            numbers = [job["n"] for job in batch]
            if len(numbers) > 1:
                lists.append(len(numbers))
            if 7 in numbers:
                alone[7] += len(numbers) == 1
                raise SystemExit(3)
            done.update(numbers)

        return service

    async with connect(backend_url) as broker:
        async with make():
            pass
        await broker.publish_many(jobs, [{"n": n} for n in range(10)])
        for _ in range(1 + POLICY.crash_limit):
            with pytest.raises(SystemExit):
                await make().serve()
        async with make() as service:
            dead = Source(jobs, None).dead_letter_channel
            subscription = await broker.adapter.subscribe(Source(dead), Window(10, 1 << 20), Quiet())
            found = await subscription.receive(1, 30.0)
            await subscription.close()
            await until(lambda: done == set(range(10)) - {7}, service)
        assert [each.message.headers.get(wire.ERROR_STAGE) for each in found] == ["crash-loop"]
        assert alone[7] == POLICY.crash_limit


@pytest.mark.parametrize("backend_url", ["rabbitmq", "redis", "nats", "sqs", "pubsub"], indirect=True)
async def test_a_stop_counts_what_it_gives_back_once_at_most(backend_url: str, queue: MakeQueue) -> None:
    """What is given back while more is asked for comes to the same process again, and is counted again."""
    jobs = queue("jobs")
    begun: list[int] = []

    async def hangs(n: int) -> None:
        begun.append(n)
        await asyncio.sleep(3600)

    service = service_on(backend_url, jobs, hangs, concurrency=1)
    await service.start()
    async with connect(backend_url) as broker:
        await broker.publish_many(jobs, [{"n": n} for n in range(50)])
        await until(lambda: service.status()[0].in_flight == 50 and bool(begun), service)
        await service.stop(0.5)
        subscription = await broker.adapter.subscribe(Source(jobs), Window(1000, 1 << 24), Quiet())
        counts: dict[str, int] = {}
        try:
            for _ in range(100):
                for each in await subscription.receive(100, 1.0):
                    counts[each.message.id] = each.count
                if len(counts) == 50:
                    break
        finally:
            await subscription.close()
    assert len(counts) == 50
    assert max(counts.values()) <= 2, Counter(counts.values())


class Outage:
    """A consumer whose circuit opens after ``failures``, since what its handler calls is down; and so many suspects.

    Attributes:
        down: until the test says otherwise.
        begun: how often each message was run.
        done: those that were run with success.
    """

    def __init__(self, url: str, jobs: Queue[Any], *, failures: int, suspects: int) -> None:
        self.down = True
        self.begun: Counter[int] = Counter()
        self.done: set[int] = set()
        self.service = Service("s", broker=url, drain="1s")
        self._url, self._jobs, self._suspects = url, jobs, suspects
        circuit = CircuitBreaker(failures=failures, within="60s", open_for="300ms")
        self.service.consumer(jobs, failure=FailurePolicy(in_place=None), circuit=circuit)(self.run)

    async def run(self, job: dict[str, int]) -> None:
        self.begun[job["n"]] += 1
        if self.down:
            raise ConnectionError("away")
        self.done.add(job["n"])

    @asynccontextmanager
    async def met(self, others: Sequence[int] = ()) -> AsyncIterator[None]:
        """The consumer runs, and found the suspects and ``others``."""
        channel = Queue[Any](Source(self._jobs).suspects_channel.name)
        async with connect(self._url) as broker:
            await broker.declare(Source(self._jobs), channel)
            await broker.publish_many(channel, [{"n": n} for n in range(self._suspects)])
            await broker.publish_many(self._jobs, [{"n": n} for n in others])
            async with self.service:
                yield


async def test_no_suspect_runs_while_a_circuit_is_open(backend_url: str, queue: MakeQueue) -> None:
    """They are read before anything else, and what they call is down: three notice it, and the last of these and all others keep
    their attempt."""
    outage = Outage(backend_url, queue("jobs"), failures=3, suspects=20)
    service, begun = outage.service, outage.begun
    async with outage.met(range(20, 30)):
        await until(lambda: any(status.state == "paused" for status in service.status()), service)
        await until(lambda: sum(begun[n] for n in range(20, 30)) >= 3, service)  # probes
        assert sum(begun[n] for n in range(20)) <= 6, f"so many suspects ran: {begun}"
        outage.down = False
        await until(lambda: len(outage.done) + counts(service)["dead"] == 30, service, within=60)
        assert counts(service)["dead"] == 2


async def test_a_suspect_is_the_probe_where_nothing_else_comes(backend_url: str, queue: MakeQueue) -> None:
    """Else an open circuit and a channel of suspects would wait for each other."""
    outage = Outage(backend_url, queue("jobs"), failures=1, suspects=5)
    async with outage.met():
        await until(lambda: outage.begun.total() >= 2, outage.service, within=60)  # the one that opens it, and a probe
        outage.down = False
        await until(lambda: len(outage.done) == 5, outage.service, within=60)
        assert not counts(outage.service)["dead"]
