"""D. Settlement: what was done stays done, what was not done comes again, and no verdict hits the wrong message."""

from __future__ import annotations

import time

from atleastonce.channels import Source
from atleastonce.contract import ACK, RELEASE, Code, Delivery, Leasing, Reject, Status
from atleastonce.contract import Settlement as Settling
from atleastonce.testing.conformance.bench import Bench, assert_same
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import DEAD_LETTER, OTHER_PROCESSES, STORED_WHEN_ANSWERED
from atleastonce.testing.conformance.reader import Reader, ids


class Settlement(Section):
    section = "D. Settlement"

    async def test_27_what_was_acknowledged_does_not_come_again(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(20)
        await bench.send(queue, sent)
        client = await bench.client(short_lease=True)
        reader = await bench.read(queue, adapter=client)
        await reader.take(20, verdict=ACK)
        await reader.close()
        await bench.within(client.close())
        await bench.leases_end()
        assert await bench.others(await bench.read(queue)) == []

    async def _acknowledged_by_the_dead(self, bench: Bench, *, at_once: bool) -> list[str]:
        """What comes again after another process has acknowledged twenty messages and was killed."""
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, bench.messages(20))
        child = await bench.child()
        await child.call("subscribe", queue=queue.name, window=20)
        got: list[str] = []
        while len(got) < 20:
            got += [id for id, _ in await child.call("receive", most=20, wait=bench.patience)]
        assert set(await child.call("settle", ids=got, verdict="ack", die=at_once)) == {"ok"}
        if not at_once:
            await bench.settled()
        await child.kill()
        await bench.leases_end()
        return await bench.others(await bench.read(queue))

    @requires(OTHER_PROCESSES)
    async def test_27b_what_was_acknowledged_survives_the_death_of_the_consumer(self, bench: Bench) -> None:
        assert await self._acknowledged_by_the_dead(bench, at_once=False) == []

    @requires(OTHER_PROCESSES, STORED_WHEN_ANSWERED)
    async def test_27c_an_acknowledgement_is_stored_when_it_is_answered(self, bench: Bench) -> None:
        assert await self._acknowledged_by_the_dead(bench, at_once=True) == []

    async def test_28_a_released_message_comes_again_at_once(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        message = bench.message(headers=[("h", "v")])
        await bench.send(queue, [message])
        reader = await bench.read(queue)
        for _ in range(3):
            (delivery,) = await reader.take(1, verdict=RELEASE, within=5.0)
            assert_same(delivery.message, message)
        assert ids(await reader.take(1, verdict=ACK, within=5.0)) == [message.id]
        assert await bench.others(reader) == []

    async def test_28b_releasing_some_of_a_batch_brings_back_just_those(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(20)
        await bench.send(queue, sent)
        reader = await bench.read(queue)
        batch = await reader.take(20)
        released = {delivery.message.id for delivery in batch[::3]}
        outcomes = await reader.outcomes([(d, RELEASE if d.message.id in released else ACK) for d in batch])
        assert {outcome.status for outcome in outcomes} == {Status.OK}
        again = await reader.take(len(released), verdict=ACK, within=5.0)
        assert sorted(ids(again)) == sorted(released)
        assert await bench.others(reader) == []

    async def test_30_settling_twice_is_fine_and_the_first_verdict_wins(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, bench.messages(3))
        reader = await bench.read(queue)
        acked, acked_first, released_first = await reader.take(3)
        pairs: list[Settling] = [(acked, ACK), (acked, ACK), (acked_first, ACK), (acked_first, RELEASE)]
        assert {outcome.status for outcome in await reader.outcomes(pairs)} == {Status.OK}
        pairs = [(acked, ACK), (acked_first, RELEASE), (released_first, RELEASE), (released_first, ACK)]
        assert {outcome.status for outcome in await reader.outcomes(pairs)} == {Status.OK}
        (again,) = await reader.take(1, within=5.0)
        assert again.message.id == released_first.message.id
        # A late second verdict on the first hand-out says nothing about this one.
        await reader.settle([released_first], ACK)
        await reader.settle([again], RELEASE)
        assert ids(await reader.take(1, verdict=ACK, within=5.0)) == [released_first.message.id]
        assert await bench.others(reader) == []

    async def test_31b_a_delivery_of_an_ended_subscription_is_stale_on_the_next(self, bench: Bench) -> None:
        """On some brokers an old token names another message by now: it must never be sent."""
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(2)
        await bench.send(queue, sent)
        client = await bench.client(short_lease=True)
        first = await bench.read(queue, adapter=client)
        old = await first.take(2)
        await first.settle(old[1:], RELEASE)
        await first.close()
        second = await bench.read(queue, adapter=client)
        new = await self._hold(bench, second, 2)
        stale, good = await second.outcomes([(old[0], ACK), (new[sent[1].id], ACK)])
        assert good.ok
        assert stale.status is Status.REJECTED
        assert stale.fault is not None
        assert stale.fault.code is Code.STALE
        await second.settle([new[sent[0].id]], RELEASE)
        assert ids(await second.take(1, verdict=ACK)) == [sent[0].id], "a stale token settled a message"

    @staticmethod
    async def _hold(bench: Bench, reader: Reader, count: int) -> dict[str, Delivery]:
        """``count`` messages, the first of them kept until the last has come: some come only when another lease has ended."""
        held: dict[str, Delivery] = {}
        seconds = bench.capabilities.lease_seconds
        deadline = time.monotonic() + bench.patience + seconds
        while len(held) < count:
            assert time.monotonic() < deadline, f"{sorted(held)} came, and not {count}"
            for delivery in await reader.receive(count, seconds / 4 or 1.0):
                held[delivery.message.id] = delivery
            if held and bench.capabilities.lease is Leasing.EXTENDABLE:
                await bench.within(reader.subscription.extend(list(held.values()), seconds))
        return held

    async def test_33_acknowledging_out_of_order_leaves_just_the_hole(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(30)
        await bench.send(queue, sent)
        client = await bench.client(short_lease=True)
        reader = await bench.read(queue, adapter=client)
        batch = await reader.take(30)
        holes = {batch[7].message.id, batch[8].message.id, batch[20].message.id}
        done = [delivery for delivery in batch if delivery.message.id not in holes]
        await reader.settle(done[::-1])
        await reader.close()
        await bench.within(client.close())
        again = await bench.read(queue)
        came = await again.until(holes, within=bench.patience + client.capabilities.lease_seconds)
        rest = await bench.others(again)
        assert sorted(ids(came) + rest) == sorted(holes)

    @requires(OTHER_PROCESSES)
    async def test_33b_the_hole_and_nothing_else_comes_back_after_a_crash(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(30)
        await bench.send(queue, sent)
        child = await bench.child()
        await child.call("subscribe", queue=queue.name, window=30)
        got: list[str] = []
        while len(got) < 30:
            got += [id for id, _ in await child.call("receive", most=30, wait=bench.patience)]
        holes = {got[3], got[17]}
        done = [id for id in got[:25] if id not in holes]
        assert set(await child.call("settle", ids=done[::-1], verdict="ack")) == {"ok"}
        await bench.settled()
        await child.kill()
        again = await bench.read(queue)
        left = holes | set(got[25:])
        came = await again.until(left, within=bench.patience + bench.harness.lease)
        rest = await bench.others(again)
        assert sorted(ids(came) + rest) == sorted(left)

    async def test_34_a_slow_message_of_one_key_does_not_undo_the_others(self, bench: Bench) -> None:
        topic = bench.topic(partitions=bench.harness.partitions)
        source = Source(topic, "g")
        await bench.declare(source)
        keys = [f"k{n}" for n in range(10)]
        sent = bench.messages(100, keys=keys)
        await bench.send(topic, sent)
        client = await bench.client(short_lease=True)
        reader = await bench.read(source, adapter=client)
        batch = await reader.take(100)
        slow = batch[0].message
        await reader.settle(batch[1:])
        await reader.close()
        again = await bench.read(source)
        came = await again.until([slow.id], within=bench.patience + client.capabilities.lease_seconds)
        assert ids(came) == [slow.id]
        assert await bench.others(again, key=slow.key) == []

    @requires(DEAD_LETTER)
    async def test_37_a_rejected_message_goes_to_the_brokers_net_and_never_comes_again(self, bench: Bench) -> None:
        queue = bench.queue()
        dead = Source(queue).dead_letter_channel
        await bench.declare(queue, dead, dead_letters=[dead])
        message = bench.message(b"poison", headers=[("h", "v")])
        await bench.send(queue, [message])
        reader = await bench.read(queue)
        await reader.take(1, verdict=Reject("poison"))
        (delivery,) = await (await bench.read(dead)).take(1, verdict=ACK)
        assert delivery.message.body == message.body
        assert delivery.message.id == message.id
        assert delivery.message.headers.get("h") == "v"
        assert await bench.others(reader) == []

    async def test_39_a_release_reaches_another_consumer_quickly(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(10)
        await bench.send(queue, sent)
        leaving = await bench.read(queue, adapter=await bench.client())
        batch = await leaving.take(10)
        await leaving.settle(batch, RELEASE)
        await leaving.close()
        staying = await bench.read(queue, adapter=await bench.client())
        again = await staying.take(10, verdict=ACK, within=self.quickly(bench))
        assert sorted(ids(again)) == sorted(ids(batch))

    async def test_39b_closing_gives_back_what_was_fetched_and_never_handed_out(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(50)
        await bench.send(queue, sent)
        leaving = await bench.read(queue, adapter=await bench.client(), window=50)
        handed_out = await leaving.take(1, verdict=ACK, most=1)
        await leaving.close()
        staying = await bench.read(queue, adapter=await bench.client())
        left = {message.id for message in sent} - set(ids(handed_out))
        came = await staying.until(left, within=self.quickly(bench))
        assert sorted(ids(came)) == sorted(left)

    @staticmethod
    def quickly(bench: Bench) -> float:
        """Seconds in which a peer must get what was given back: well before any lease would end by itself."""
        lease = bench.capabilities.lease_seconds
        return min(bench.patience, lease / 2) if lease else min(bench.patience, 10.0)
