"""D. Settlement, continued: what becomes of a message is what its handler, and the policy, said."""

from __future__ import annotations

import threading

import msgspec

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.context import Context
from atleastonce.contract import ACK
from atleastonce.errors import DeadLetter, Discard, RetryLater
from atleastonce.message import Message
from atleastonce.patterns.failure import FailurePolicy, RetryChain
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import SERVICES
from atleastonce.testing.conformance.reader import ids
from atleastonce.testing.conformance.services import Calls, running, service_on, warnings_logged


class Task(msgspec.Struct):
    """The payload of these cases: what its handler shall do."""

    do: str


def task(bench: Bench, do: str) -> Message:
    return bench.message(msgspec.json.encode(Task(do)), headers=[("tenant", do)])


class Handlers(Section):
    section = "D. Settlement"

    @requires(SERVICES)
    async def test_36_a_handler_that_never_ends_is_reported_and_its_message_goes_to_another(self, bench: Bench) -> None:
        queue = bench.queue()
        stuck, free = service_on(bench, "stuck", short_lease=True), service_on(bench, "free")
        let_go, calls = threading.Event(), Calls()

        @stuck.consumer(queue)
        def hang(_: bytes, ctx: Context) -> None:
            calls.note(ctx)
            let_go.wait(bench.patience * 3)

        @free.consumer(queue)
        async def handle(_: bytes, ctx: Context) -> None:
            calls.note(ctx)

        try:
            async with running(bench, stuck):
                await bench.send(queue, [message := bench.message()])
                await bench.eventually(lambda: calls.of(message), "the handler runs")
                (reader,) = stuck.status()
                assert (reader.in_flight, reader.source) == (1, queue.name)
                with warnings_logged() as told:
                    assert not await bench.within(stuck.stop(grace=0.1)), "a drain that was cut short says it was whole"
            assert any(message.id in line and queue.name in line for line in told), f"not reported: {told}"
            async with running(bench, free):
                within = bench.patience + bench.harness.lease
                await bench.eventually(lambda: len(calls.of(message)) == 2, "another gets the message", within)
        finally:
            let_go.set()

    @requires(SERVICES)
    async def test_38_a_message_that_always_fails_runs_as_often_as_the_policy_says_and_no_more(
        self, bench: Bench
    ) -> None:
        queue = bench.queue()
        service, calls = service_on(bench, "workers"), Calls()
        chain = RetryChain("100ms", "200ms")

        @service.consumer(queue, failure=FailurePolicy(in_place=None, chain=chain))
        async def handle(job: Task, ctx: Context) -> None:
            calls.note(ctx)
            if job.do == "fail":
                raise ValueError("always")

        bad, good = [task(bench, "fail") for _ in range(3)], [task(bench, "nothing") for _ in range(5)]
        async with running(bench, service):
            await bench.send(queue, [*bad, *good])
            dead = await bench.read(Source(queue).dead_letter_channel)
            kept = await dead.take(3, verdict=ACK)
            await bench.send(queue, [last := task(bench, "nothing")])
            await bench.eventually(lambda: calls.seen([*good, last]), "the others are handled")
            assert await bench.others(dead) == []
        assert sorted(ids(kept)) == sorted(message.id for message in bad)
        assert [[call.attempt for call in calls.of(message)] for message in bad] == [[1, 2, 3]] * 3
        assert all(calls.counts[message.id] == 1 for message in [*good, last])

    @requires(SERVICES)
    async def test_40_every_kind_of_failure_ends_as_its_kind_says(self, bench: Bench) -> None:
        queue = bench.queue()
        service, calls = service_on(bench, "workers"), Calls()
        policy = FailurePolicy(in_place=None, chain=RetryChain("100ms"), give_up_on=(KeyError,))

        @service.consumer(queue, failure=policy)
        async def handle(job: Task, ctx: Context) -> None:
            first = calls.note(ctx).attempt == 1
            if job.do == "fail once" and first:
                raise ValueError("a passing trouble")
            if job.do == "ask for later" and first:
                raise RetryLater("100ms")
            if job.do == "give up":
                raise KeyError("no repetition mends that")
            if job.do == "dead letter":
                raise DeadLetter("unknown sku")
            if job.do == "discard":
                raise Discard("stale price")

        sent = {
            do: task(bench, do) for do in ("succeed", "fail once", "ask for later", "give up", "dead letter", "discard")
        }
        sent["poison"] = bench.message(b'{"do": ', headers=[("tenant", "poison")])
        runs = {
            "succeed": 1,
            "fail once": 2,
            "ask for later": 2,
            "give up": 1,
            "dead letter": 1,
            "discard": 1,
            "poison": 0,
        }
        async with running(bench, service):
            await bench.send(queue, list(sent.values()))
            dead = await bench.read(Source(queue).dead_letter_channel)
            kept = {delivery.message.id: delivery.message for delivery in await dead.take(3, verdict=ACK)}
            await bench.eventually(
                lambda: all(len(calls.of(message)) >= runs[do] for do, message in sent.items()), "all have run"
            )
            assert await bench.others(dead) == []
        assert {do: len(calls.of(message)) for do, message in sent.items()} == runs
        stages = {"give up": "handler", "dead letter": "handler", "poison": "decode"}
        assert kept.keys() == {sent[do].id for do in stages}
        for do, stage in stages.items():
            copy = kept[sent[do].id]
            assert (copy.body, copy.key, copy.headers.get("tenant")) == (sent[do].body, sent[do].key, do)
            assert copy.headers.get(wire.ERROR_STAGE) == stage
        assert "unknown sku" in (kept[sent["dead letter"].id].headers.get(wire.ERROR_MESSAGE) or "")
