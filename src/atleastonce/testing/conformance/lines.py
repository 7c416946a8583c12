"""E. Ordering, continued: order per key as handlers see it, with failures and with processes that leave."""

from __future__ import annotations

import asyncio
import time

import msgspec

from atleastonce.channels import Queue, Source
from atleastonce.context import Context
from atleastonce.contract import ACK, Status
from atleastonce.errors import DeadLetter
from atleastonce.message import Message
from atleastonce.patterns.failure import FailurePolicy, RetryChain
from atleastonce.patterns.obituary import read_obituary
from atleastonce.patterns.ordering import Ordered
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import KEPT_ORDER, SERVICES
from atleastonce.testing.conformance.services import running, service_on
from atleastonce.testing.history import History

_POLICY = FailurePolicy(in_place=None, chain=RetryChain("50ms", "100ms"))


class Job(msgspec.Struct):
    """The payload of these cases."""

    key: str
    n: int
    do: str = ""


class Runs:
    """What ran when, and how often each job was begun."""

    def __init__(self) -> None:
        self.history = History()
        self.begun: list[tuple[str, int, int]] = []

    async def run(self, job: Job, ctx: Context, *, fails: bool) -> None:
        """One run, which takes a little."""
        began = time.monotonic()
        self.begun.append((job.key, job.n, ctx.attempt))
        try:
            await asyncio.sleep(0.001)
            if fails:
                raise ValueError("not yet")
        finally:
            self.history.received(ctx.message.id, started=began, ended=time.monotonic())

    def of(self, key: str) -> list[tuple[int, int]]:
        return [(n, attempt) for each, n, attempt in self.begun if each == key]


def ordered_queue(bench: Bench) -> Queue[Job]:
    """A queue of which the broker keeps order per key across processes, in whichever way it does that."""
    return bench.queue(fifo=True, single_active=True, partitions=bench.harness.partitions)


def jobs(bench: Bench, runs: Runs, keys: int, each: int, **do: str) -> list[Message]:
    made = []
    for number in range(keys * each):
        key, n = f"k{number % keys}", number // keys
        made.append(message := bench.message(msgspec.json.encode(Job(key, n, do.get(f"{key}_{n}", ""))), key=key))
        runs.history.sent(message.id, Status.OK, key=key)
    return made


class OrderOfKeys(Section):
    section = "E. Ordering"

    @requires(SERVICES, KEPT_ORDER)
    async def test_43b_each_key_keeps_its_order_though_every_seventh_message_fails_twice(self, bench: Bench) -> None:
        queue, runs = ordered_queue(bench), Runs()
        service = service_on(bench, "lines")

        @service.consumer(queue, ordered=True, failure=_POLICY, concurrency=8)
        async def handle(job: Job, ctx: Context) -> None:
            await runs.run(job, ctx, fails=job.n % 7 == 3 and ctx.attempt < 3)

        sent = jobs(bench, runs, 8, 14)
        async with running(bench, service):
            await bench.send(queue, sent)
            await bench.eventually(lambda: len(runs.begun) == 8 * (14 + 2 * 2), "all are handled")
        found = runs.history.check()
        assert found.ok, found
        assert not found.reordered, found
        assert not found.overlaps, found
        assert runs.of("k5")[2:7] == [(2, 1), (3, 1), (3, 2), (3, 3), (4, 1)]

    @requires(SERVICES, KEPT_ORDER)
    async def test_43c_what_follows_a_message_that_was_given_up_goes_on_or_follows_it_as_asked(
        self, bench: Bench
    ) -> None:
        queue, runs = ordered_queue(bench), Runs()
        service = service_on(bench, "lines")

        @service.consumer(queue, ordered=Ordered(by="key", park=True), failure=_POLICY)
        async def handle(job: Job, ctx: Context) -> None:
            await runs.run(job, ctx, fails=job.do == "fail")
            if job.do == "dead":
                raise DeadLetter("unknown sku")

        sent = jobs(bench, runs, 2, 5, k0_1="fail", k1_4="dead")
        async with running(bench, service):
            await bench.send(queue, sent)
            dead = await bench.read(Source(queue).dead_letter_channel)
            kept = await dead.take(5, verdict=ACK)
        stages: dict[str, list[tuple[int, str]]] = {"k0": [], "k1": []}
        for delivery in kept:
            job = msgspec.json.decode(delivery.body, type=Job)
            stages[job.key].append((job.n, read_obituary(delivery).stage))
        assert runs.of("k0") == [(0, 1), (1, 1), (1, 2), (1, 3)]
        assert sorted(stages["k0"]) == [(1, "handler"), (2, "parked"), (3, "parked"), (4, "parked")]
        assert runs.of("k1") == [(n, 1) for n in range(5)]
        assert stages["k1"] == [(4, "handler")]

    @requires(SERVICES, KEPT_ORDER)
    async def test_44b_no_key_is_overtaken_or_handled_twice_at_a_time_when_a_process_leaves(self, bench: Bench) -> None:
        queue, runs = ordered_queue(bench), Runs()
        services = [service_on(bench, "lines") for _ in range(2)]
        for service in services:

            @service.consumer(queue, ordered=True, failure=_POLICY, concurrency=8, max_in_flight=50)
            async def handle(job: Job, ctx: Context) -> None:
                await runs.run(job, ctx, fails=job.n % 7 == 3 and ctx.attempt < 3)

        sent = jobs(bench, runs, 8, 28)
        staying, leaving = services
        async with running(bench, staying):
            await bench.within(leaving.start(url=bench.harness.url))
            await bench.send(queue, sent[:112])
            await bench.eventually(lambda: len(runs.begun) > 40, "somebody handles them")
            assert await bench.within(leaving.stop()), "what had begun did not end"
            await bench.send(queue, sent[112:])
            await bench.eventually(
                lambda: len({(key, n) for key, n, _ in runs.begun}) == len(sent), "all are handled", bench.patience * 2
            )
        found = runs.history.check()
        assert found.ok, found
        assert not found.reordered, found
        assert not found.overlaps, found
