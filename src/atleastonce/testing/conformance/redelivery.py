"""D. Settlement, continued: leases, counts and delays."""

from __future__ import annotations

import time

from atleastonce.channels import Source
from atleastonce.contract import ACK, Code, DelayChannel, Delivery, Retry, Status
from atleastonce.testing.conformance.bench import Bench, assert_same
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import (
    ANY_COUNT,
    DELAY_CHANNELS,
    EXACT_COUNT,
    LEASES,
    NATIVE_DELAY,
    PUBLISH_DELAY,
)
from atleastonce.testing.conformance.reader import Reader, ids

EARLY = 0.05
"""Seconds by which a clock may be read too early. A delay that is shorter than asked for is broken; a longer one is
only late."""


async def _comes_again(bench: Bench, *readers: Reader) -> list[tuple[Reader, Delivery]]:
    """Who of ``readers`` gets what nobody holds any more, and what that is. A broker that is asked in the background may hand it to
    the one who let it go."""
    came: list[tuple[Reader, Delivery]] = []

    async def one_came() -> bool:
        for reader in readers:
            came.extend((reader, delivery) for delivery in await reader.receive(1, 0.5))
            if came:  # nobody else is asked: a short lease may end meanwhile
                return True
        return False

    await bench.eventually(one_came, "it comes again", bench.harness.lease + bench.patience)
    return came


class Redelivery(Section):
    section = "D. Settlement"

    @requires(LEASES)
    async def test_26_an_unsettled_message_comes_again_after_its_lease_and_not_before(self, bench: Bench) -> None:
        lease = bench.harness.lease
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [message := bench.message()])
        holder = await bench.read(queue, adapter=await bench.client(short_lease=True))
        waiting = await bench.read(queue, adapter=await bench.client(short_lease=True))
        asked = time.monotonic()
        (held,) = await holder.take(1)
        assert asked < held.lease_until <= time.monotonic() + lease * 1.5
        ((reader, again),) = await _comes_again(bench, waiting, holder)
        assert again.message.id == message.id
        assert time.monotonic() >= held.lease_until - max(EARLY, lease * 0.1), "redelivered during the lease"
        await reader.settle([again])

    @requires(LEASES)
    async def test_31_an_acknowledgement_after_the_lease_is_stale_and_the_subscription_lives_on(
        self, bench: Bench
    ) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [message := bench.message()])
        holder = await bench.read(queue, adapter=await bench.client(short_lease=True))
        (held,) = await holder.take(1)
        heir = await bench.read(queue, adapter=await bench.client())
        came = await _comes_again(bench, heir, holder)
        (outcome,) = await holder.outcomes([(held, ACK)])
        assert outcome.status is Status.REJECTED
        assert outcome.fault is not None
        assert outcome.fault.code is Code.STALE
        for reader, again in came:
            await reader.settle([again])
        await heir.close()
        await bench.send(queue, [after := bench.message()])
        assert ids(await holder.take(1, verdict=ACK)) == [after.id]
        assert message.id not in await bench.others(holder)

    @requires(LEASES)
    async def test_32_one_stale_item_of_a_batch_harms_no_other(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [bench.message()])
        holder = await bench.read(queue, adapter=await bench.client(short_lease=True))
        (old,) = await holder.take(1)
        heir = await bench.read(queue, adapter=await bench.client())
        for reader, again in await _comes_again(bench, heir, holder):
            await reader.settle([again])
        await heir.close()
        await bench.send(queue, bench.messages(4))
        fresh = await holder.take(4)
        outcomes = await holder.outcomes(
            [(fresh[0], ACK), (fresh[1], ACK), (old, ACK), (fresh[2], ACK), (fresh[3], ACK)]
        )
        ok, refused = Status.OK, Status.REJECTED
        assert [outcome.status for outcome in outcomes] == [ok, ok, refused, ok, ok]
        assert await bench.others(holder) == []

    @requires(LEASES)
    async def test_35_an_extended_lease_holds_and_an_abandoned_one_does_not(self, bench: Bench) -> None:
        lease = bench.harness.lease
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [message := bench.message()])
        holder = await bench.read(queue, adapter=await bench.client(short_lease=True))
        other = await bench.read(queue, adapter=await bench.client())
        (held,) = await holder.take(1)
        for _ in range(6):
            before = held.lease_until
            (outcome,) = await bench.within(holder.subscription.extend([held], lease))
            assert outcome.ok
            assert held.lease_until > before
            await other.silence(lease / 2)
        ((reader, again),) = await _comes_again(bench, other, holder)
        assert again.message.id == message.id
        await reader.settle([again])
        (late,) = await bench.within(holder.subscription.extend([held], lease))
        assert late.status is Status.REJECTED, "a lost lease was extended"

    @requires(NATIVE_DELAY)
    async def test_28c_a_retry_counts_up_from_one(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [message := bench.message(headers=[("h", "v")])])
        reader = await bench.read(queue)
        for expected in (1, 2, 3):
            (delivery,) = await reader.take(1, verdict=Retry(0.0))
            assert_same(delivery.message, message)
            if bench.capabilities.delivery_count.value == "exact":
                assert delivery.count == expected
        await reader.take(1, verdict=ACK)
        assert await bench.others(reader) == []

    @requires(ANY_COUNT)
    async def test_28d_a_first_delivery_counts_one(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, bench.messages(5))
        reader = await bench.read(queue)
        assert [delivery.count for delivery in await reader.take(5, verdict=ACK)] == [1] * 5

    @requires(EXACT_COUNT)
    async def test_28e_a_lost_consumer_counts(self, bench: Bench) -> None:
        """Without it a message that kills its consumers kills them for ever."""
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [bench.message()])
        for expected in (1, 2, 3):
            client = await bench.client(short_lease=True)
            reader = await bench.read(queue, adapter=client)
            (delivery,) = await reader.take(1, within=bench.patience + client.capabilities.lease_seconds)
            assert delivery.count == expected
            await reader.close()
            await bench.within(client.close())

    @requires(NATIVE_DELAY)
    async def test_29_a_delayed_retry_waits_and_holds_up_nobody(self, bench: Bench) -> None:
        delay = 1.0
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [slow := bench.message(headers=[("h", "v")])])
        reader = await bench.read(queue)
        (first,) = await reader.take(1)
        given = time.monotonic()
        await reader.settle([first], Retry(delay))
        sent = bench.messages(20)
        await bench.send(queue, sent)
        bench.assert_came(await reader.take(20, verdict=ACK), sent)
        (again,) = await reader.take(1, verdict=ACK, within=delay + bench.patience)
        assert time.monotonic() - given >= delay - EARLY, "redelivered too early"
        assert_same(again.message, slow)

    @requires(NATIVE_DELAY)
    async def test_29b_a_delay_survives_the_consumer_that_asked_for_it(self, bench: Bench) -> None:
        delay = 1.0
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [message := bench.message()])
        reader = await bench.read(queue, adapter=await bench.client())
        given = time.monotonic()
        await reader.take(1, verdict=Retry(delay))
        await reader.close()
        other = await bench.read(queue)
        (again,) = await other.take(1, verdict=ACK, within=delay + bench.patience)
        assert again.message.id == message.id
        assert time.monotonic() - given >= delay - EARLY, "redelivered too early"

    @requires(DELAY_CHANNELS)
    async def test_29c_a_delay_channel_returns_messages_when_they_are_due(self, bench: Bench) -> None:
        delay = 1.0
        source = Source(bench.topic(), "billing")
        other = Source(source.channel, "shipping")
        room = DelayChannel(source.retry_channel(delay), delay, source)
        await bench.declare(source, other, delays=[room])
        sent = [bench.message(b"later", headers=[("h", "v")]) for _ in range(5)]
        began = time.monotonic()
        await bench.send(room.channel, sent)
        received = await (await bench.read(source)).take(5, verdict=ACK, within=delay + bench.patience)
        assert time.monotonic() - began >= delay - EARLY, "returned too early"
        for delivery, message in zip(received, sent, strict=True):
            assert_same(delivery.message, message)
        assert await bench.others(await bench.read(other)) == [], "the delay of one group reached another"

    @requires(PUBLISH_DELAY)
    async def test_29d_a_delayed_publish_waits(self, bench: Bench) -> None:
        delay = 1.0
        queue = bench.queue()
        await bench.declare(queue)
        began = time.monotonic()
        await bench.send(queue, [later := bench.message()], delay=delay)
        await bench.send(queue, [now := bench.message()])
        reader = await bench.read(queue)
        assert ids(await reader.take(1, verdict=ACK)) == [now.id]
        assert ids(await reader.take(1, verdict=ACK, within=delay + bench.patience)) == [later.id]
        assert time.monotonic() - began >= delay - EARLY, "delivered too early"
