"""G. Lifecycle and faults, continued: services that stop with work in hand."""

from __future__ import annotations

import asyncio
import time

from atleastonce.channels import Source
from atleastonce.context import Context
from atleastonce.contract import Status
from atleastonce.message import Message
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import SERVICES
from atleastonce.testing.conformance.services import Calls, running, service_on
from atleastonce.testing.history import History


def sent_log(messages: list[Message]) -> History:
    """The history of ``messages``, all of them confirmed."""
    history = History()
    for message in messages:
        history.sent(message.id, Status.OK, key=(message.key or b"").decode())
    return history


class Draining(Section):
    section = "G. Lifecycle and faults"

    @requires(SERVICES)
    async def test_51_a_graceful_stop_ends_what_runs_and_leaves_the_rest_to_the_next_once(self, bench: Bench) -> None:
        queue = bench.queue()
        first, second = service_on(bench, "first"), service_on(bench, "second")
        calls, ended = Calls(), 0

        async def handle(_: bytes, ctx: Context) -> None:
            nonlocal ended
            calls.note(ctx)
            await asyncio.sleep(0.01)
            ended += 1

        first.consumer(queue, concurrency=4)(handle)
        second.consumer(queue, concurrency=16)(handle)
        sent = bench.messages(120)
        async with running(bench, first):
            await bench.send(queue, sent)
            await bench.eventually(lambda: ended >= 20, "twenty are handled")
            assert await bench.within(first.stop()), "the drain was cut short"
            assert ended == len(calls.log), "a handler that ran was not let to its end"
            assert len(calls.log) < len(sent), "there was nothing left to leave to the next"
        async with running(bench, second):
            await bench.eventually(lambda: calls.seen(sent), "the next one handles what is left")
        found = calls.into(sent_log(sent)).check()
        assert found.ok and not found.duplicates, found  # noqa: PT018

    @requires(SERVICES)
    async def test_51b_a_stop_does_not_wait_for_a_batch_to_fill_and_loses_none_of_it(self, bench: Bench) -> None:
        queue = bench.queue()
        first, second = service_on(bench, "first"), service_on(bench, "second")
        calls = Calls()

        async def handle(_: list[bytes], contexts: list[Context]) -> None:
            for context in contexts:
                calls.note(context)

        first.batch_consumer(queue, max_messages=1000, max_wait="1h")(handle)
        second.batch_consumer(queue, max_messages=1000, max_wait="10ms")(handle)
        sent = bench.messages(10)
        async with running(bench, first):
            await bench.send(queue, sent)
            await bench.eventually(lambda: first.status()[0].in_flight == 10, "ten wait for a batch to fill")
            begun = time.monotonic()
            assert await bench.within(first.stop()), "the drain was cut short"
            assert time.monotonic() - begun < bench.patience / 2
        async with running(bench, second):
            await bench.eventually(lambda: calls.seen(sent), "the batch is handled")
        found = calls.into(sent_log(sent)).check()
        assert found.ok and not found.duplicates, found  # noqa: PT018

    @requires(SERVICES)
    async def test_52_a_stop_that_runs_out_of_time_gives_back_what_runs_and_buries_nothing(self, bench: Bench) -> None:
        queue = bench.queue()
        first, second = service_on(bench, "first"), service_on(bench, "second")
        calls, cancelled = Calls(), 0

        @first.consumer(queue, concurrency=3)
        async def hang(_: bytes, ctx: Context) -> None:
            nonlocal cancelled
            calls.note(ctx)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise

        @second.consumer(queue)
        async def handle(_: bytes, ctx: Context) -> None:
            calls.note(ctx)

        sent = bench.messages(10)
        async with running(bench, first):
            await bench.send(queue, sent)
            await bench.eventually(lambda: len(calls.log) == 3, "three run")
            assert not await bench.within(first.stop(grace=0.1)), "a drain that was cut short says it was whole"
            assert cancelled == 3
            started = calls.counts
        async with running(bench, second):
            await bench.eventually(
                lambda: all(calls.counts[message.id] == 1 + started[message.id] for message in sent), "another has all"
            )
            assert await bench.others(await bench.read(Source(queue).dead_letter_channel)) == []
        found = calls.into(sent_log(sent)).check()
        assert found.ok, found
        assert found.duplicates.keys() == started.keys(), "what had not started was handed out twice"
