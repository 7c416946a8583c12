"""F. Flow control: nothing piles up, nothing goes stale in a buffer, nothing spins."""

from __future__ import annotations

import asyncio
import time

from atleastonce.context import Context
from atleastonce.contract import ACK, Counting
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import LEASES, SERVICES
from atleastonce.testing.conformance.reader import ids
from atleastonce.testing.conformance.services import EARLY, Calls, running, service_on


class FlowControl(Section):
    section = "F. Flow control"

    async def test_46_no_more_than_the_window_is_out_at_once(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, bench.messages(20))
        reader = await bench.read(queue, window=5)
        held = await reader.take(5, most=5)
        await reader.silence(0.5)
        await reader.settle(held[:2])
        more = await reader.take(2)
        await reader.silence(0.5)
        await reader.settle([*held[2:], *more])
        await reader.take(13, verdict=ACK)

    async def test_47_a_paused_subscription_hands_out_nothing_new_and_resumes_at_once(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        reader = await bench.read(queue)
        await bench.send(queue, [first := bench.message()])
        (held,) = await reader.take(1)
        assert held.message.id == first.id
        early = bench.messages(10)
        await bench.send(queue, early)
        fetched = await reader.take(1, most=1)
        await bench.within(reader.subscription.pause())
        await bench.within(reader.subscription.pause())
        while got := await reader.receive(100, 0.5):  # what had come before
            fetched += got
        sent = bench.messages(10)
        await bench.send(queue, sent)
        await reader.silence(0.5)
        await reader.settle([held, *fetched])  # what is out can still be settled
        await bench.within(reader.subscription.resume())
        await bench.within(reader.subscription.resume())
        resumed = time.monotonic()
        rest = await reader.take(20 - len(fetched), verdict=ACK)
        bench.assert_came([*fetched, *rest], [*early, *sent])
        if bench.capabilities.delivery_count is Counting.EXACT:
            assert {delivery.count for delivery in (*fetched, *rest)} == {1}, "the pause was counted as an attempt"
        assert time.monotonic() - resumed < 2.0, "resuming took too long"
        assert await bench.others(reader) == []

    @requires(LEASES)
    async def test_48_what_waited_too_long_in_a_buffer_is_not_handed_out_with_a_dead_lease(self, bench: Bench) -> None:
        lease = bench.harness.lease
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(10)
        await bench.send(queue, sent)
        reader = await bench.read(queue, adapter=await bench.client(short_lease=True), window=10)
        first = await reader.take(1, most=1)
        await asyncio.sleep(lease * 1.3)  # the lapse of time is what is tested
        handled: set[str] = set()
        deadline = time.monotonic() + bench.patience
        while len(handled) < 10:
            assert time.monotonic() < deadline, f"only {len(handled)} of 10 could be handled"
            for delivery in await reader.receive(1, 1.0):
                assert delivery.lease_until > time.monotonic(), "handed out with a lease that is over"
                await reader.settle([delivery])
                handled.add(delivery.message.id)
        assert handled == {message.id for message in sent}, ids(first)

    async def test_49_receiving_nothing_takes_as_long_as_was_asked_and_no_processor(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        reader = await bench.read(queue)
        await bench.send(queue, [message := bench.message()])
        await reader.until([message.id])
        begun, worked = time.monotonic(), time.process_time()
        assert list(await reader.receive(10, 1.5)) == []
        took, worked = time.monotonic() - begun, time.process_time() - worked
        assert 1.4 <= took < 3.5
        # Idle adapters take some milliseconds, and what earlier cases left to clean up takes some more. One that spins gets a
        # share of even the busiest machine.
        assert worked < 0.4, f"{worked:.2f} s of processor time to wait 1.5 s: something spins"
        begun = time.monotonic()
        assert list(await reader.receive(10, 0)) == []
        assert time.monotonic() - begun < 0.5

    async def test_49b_receive_returns_with_the_first_message_and_waits_for_no_batch(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        reader = await bench.read(queue)
        await bench.send(queue, [warm := bench.message()])
        await reader.until([warm.id])
        receiving = asyncio.create_task(reader.receive(100, 15.0))
        await asyncio.sleep(0)
        begun = time.monotonic()
        await bench.send(queue, [message := bench.message()])
        got = await bench.within(receiving)
        assert time.monotonic() - begun < 3.0
        assert ids(got) == [message.id]
        await reader.settle(got)

    async def test_53_a_cancelled_receive_loses_nothing(self, bench: Bench) -> None:
        """And holds nothing back until a lease ends: the next call gets it."""
        queue = bench.queue()
        await bench.declare(queue)
        reader = await bench.read(queue)
        await bench.send(queue, [warm := bench.message()])
        await reader.until([warm.id])
        sent = bench.messages(40)
        for number, message in enumerate(sent):
            receiving = asyncio.create_task(reader.receive(10, 5.0))
            sending = asyncio.create_task(bench.send(queue, [message]))
            if number % 4 == 3:
                await sending
            for _ in range(number % 7):
                await asyncio.sleep(0)
            receiving.cancel()
            done, _ = await asyncio.wait([receiving], timeout=2.0)
            assert done, "a cancelled receive did not end within two seconds"
            await sending
            if not receiving.cancelled():
                receiving.result()
        missing = {message.id for message in sent} - set(ids(reader.log))
        if missing:
            await reader.until(missing, verdict=None, within=10.0)
        unsettled = [delivery for delivery in reader.log if delivery.message.id != warm.id]
        assert sorted(ids(unsettled)) == sorted(message.id for message in sent)
        await reader.settle(unsettled)
        assert await bench.others(reader) == []

    @requires(SERVICES)
    async def test_50_a_rate_limit_holds(self, bench: Bench) -> None:
        queue = bench.queue()
        service, calls = service_on(bench, "workers"), Calls()

        @service.consumer(queue, rate_limit="20/s", concurrency=10)
        async def handle(_: bytes, ctx: Context) -> None:
            calls.note(ctx)

        sent = bench.messages(30)
        async with running(bench, service):
            await bench.send(queue, sent)
            await bench.eventually(lambda: calls.seen(sent), "all are handled")
        begun = sorted(call.at for call in calls.log)
        for first, later in zip(begun, begun[12:], strict=False):
            # Twelve after one: ten in half a second, and two at once after a silence.
            assert later - first >= 0.5 - EARLY, f"thirteen began within {later - first:.2f} s"
