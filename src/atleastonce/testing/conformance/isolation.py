"""C. Subscribing and isolation: who gets what, and who does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from atleastonce.channels import Source
from atleastonce.contract import ACK, Code, DelayChannel, Delivery, Leasing, Topology
from atleastonce.errors import Closed, NotFound
from atleastonce.message import Message
from atleastonce.testing.conformance.bench import Bench, log_of
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import CONFLICTING
from atleastonce.testing.conformance.reader import Reader, ids


class Isolation(Section):
    section = "C. Subscribing and isolation"

    async def test_18_two_queues_do_not_mix(self, bench: Bench) -> None:
        one, two = bench.queue("one"), bench.queue("two")
        await bench.declare(one, two)
        for_one, for_two = bench.messages(20), bench.messages(20)
        for a, b in zip(for_one, for_two, strict=True):
            await bench.send(one, [a])
            await bench.send(two, [b])
        for queue, sent in ((one, for_one), (two, for_two)):
            reader = await bench.read(queue)
            await reader.until([message.id for message in sent])
            assert await bench.others(reader) == []
            assert set(ids(reader.log)) >= {message.id for message in sent}

    async def test_19_every_group_of_a_topic_gets_everything(self, bench: Bench) -> None:
        topic = bench.topic()
        groups = [Source(topic, "billing"), Source(topic, "shipping")]
        await bench.declare(*groups)
        sent = bench.messages(50)
        await bench.send(topic, sent)
        for group in groups:
            reader = await bench.read(group)
            await reader.until([message.id for message in sent])
            found = log_of(sent, reader).check()
            assert found.ok and not found.duplicates, found  # noqa: PT018

    async def test_19b_one_groups_settlements_are_no_other_groups_business(self, bench: Bench) -> None:
        topic = bench.topic()
        first, second = Source(topic, "first"), Source(topic, "second")
        await bench.declare(first, second)
        sent = bench.messages(10)
        await bench.send(topic, sent)
        await (await bench.read(first)).take(10, verdict=ACK)
        bench.assert_came(await (await bench.read(second)).take(10, verdict=ACK), sent)

    async def test_20_consumers_of_one_group_share_and_get_each_message_once(self, bench: Bench) -> None:
        topic = bench.topic(partitions=bench.harness.partitions)
        source = Source(topic, "workers")
        await bench.declare(source)
        readers = [await bench.read(source, adapter=await bench.client(), window=10) for _ in range(2)]
        await self.all_are_reading(bench, readers)
        sent = bench.messages(200, keys=[f"k{n}" for n in range(32)])
        for reader in readers:
            reader.log.clear()
        await bench.send(topic, sent)
        left = {message.id for message in sent}

        async def work(reader: Reader) -> None:
            while left:
                for delivery in got if (got := await reader.receive(5, 0.5)) else ():
                    left.discard(delivery.message.id)
                if got:
                    await reader.settle(got)

        await bench.within(asyncio.gather(*map(work, readers)))
        found = log_of(sent, *readers).check()
        assert found.ok and not found.duplicates, found  # noqa: PT018
        assert all(reader.log for reader in readers), "one consumer got nothing"

    @staticmethod
    async def all_are_reading(bench: Bench, readers: list[Reader], beside: Sequence[Reader] = ()) -> None:
        """Publish until every reader has got something: then assignments have settled. Leaves the source empty, of which also those
        ``beside`` them may have a part."""
        channel = readers[0].source.channel
        probes: list[Message] = []
        reached: dict[int, list[Delivery]] = {number: [] for number in range(len(readers))}

        async def sweep() -> bool:
            if all(reached.values()):
                return True
            batch = bench.messages(64, keys=[f"k{n}" for n in range(64)])
            probes.extend(batch)
            await bench.send(channel, batch)
            for number, got in enumerate(await asyncio.gather(*(reader.receive(10, 0.3) for reader in readers))):
                reached[number].extend(got)
                await readers[number].outcomes([(delivery, ACK) for delivery in got])
            return False

        async def rest() -> bool:
            everybody = [*readers, *beside]
            found = await asyncio.gather(*(reader.receive(100, 0.1) for reader in everybody))
            for reader, got in zip(everybody, found, strict=True):
                await reader.outcomes([(delivery, ACK) for delivery in got])
            seen = {id for reader in everybody for id in ids(reader.log)}
            return seen.issuperset(message.id for message in probes)

        await bench.eventually(sweep, "every consumer of the group gets messages")
        await bench.eventually(rest, "the group has read all that was published")

    async def test_21_reading_what_does_not_exist_is_told_and_does_not_hang(self, bench: Bench) -> None:
        with pytest.raises(NotFound):
            await bench.read(bench.queue("missing"))

    async def test_22_a_declared_group_gets_what_was_published_before_it_first_read(self, bench: Bench) -> None:
        topic = bench.topic()
        source = Source(topic, "late")
        await bench.declare(source)
        sent = bench.messages(20)
        await bench.send(topic, sent)
        reader = await bench.read(source, adapter=await bench.client())
        bench.assert_came(await reader.take(20, verdict=ACK), sent)

    async def test_23_closing_one_subscription_leaves_the_others_running(self, bench: Bench) -> None:
        one, two = bench.queue("one"), bench.queue("two")
        await bench.declare(one, two)
        first, second = await bench.read(one), await bench.read(two)
        await bench.send(one, [bench.message()])
        held = await first.take(1)
        await bench.send(two, [before := bench.message()])
        await second.until([before.id])
        waiting = asyncio.create_task(first.receive(1, 20.0))
        await asyncio.sleep(0)  # it waits
        await first.close()
        await first.close()
        with pytest.raises(Closed):
            await bench.within(waiting)
        (outcome,) = await first.outcomes([(held[0], ACK)])  # nothing can be settled through it any more
        assert outcome.fault is not None
        assert outcome.fault.code is Code.STALE
        if bench.capabilities.lease is Leasing.EXTENDABLE:
            (outcome,) = await bench.within(first.subscription.extend(held, bench.capabilities.lease_seconds))
            assert outcome.fault is not None
            assert outcome.fault.code is Code.STALE
        await bench.within(first.subscription.pause())
        await bench.within(first.subscription.resume())
        with pytest.raises(Closed):
            await first.receive(1, 0.0)
        await bench.send(two, [after := bench.message()])
        await second.until([after.id])

    async def test_24_declaring_is_idempotent_and_may_happen_at_once(self, bench: Bench) -> None:
        queue, topic = bench.queue(partitions=2), bench.topic(partitions=2)
        everything = (queue, Source(topic, "one"), Source(topic, "two"))
        clients = [bench.adapter, await bench.client(), await bench.client()]
        await asyncio.gather(*(bench.declare(*everything, adapter=client) for client in clients))
        sent = bench.messages(5)
        await bench.send(queue, sent)
        assert list(await bench.declare(*everything)) == []
        await (await bench.read(queue)).until([message.id for message in sent])

    async def test_24b_looking_creates_nothing_and_names_what_is_missing(self, bench: Bench) -> None:
        queue = bench.queue()
        topology = Topology(channels=(queue,), sources=(Source(queue),))
        for _ in range(2):
            drift = await bench.within(bench.adapter.declare(topology, create=False))
            assert any(each.setting == "missing" and queue.name in each.name for each in drift), drift
        (outcome,) = await bench.outcomes(queue, [bench.message()])
        assert not outcome.ok

    @requires(CONFLICTING)
    async def test_24c_other_settings_are_reported_and_nothing_is_changed_or_lost(self, bench: Bench) -> None:
        pair = bench.harness.conflicting(bench.queue().name)
        assert pair is not None
        one, other = pair
        await bench.declare(one)
        await bench.send(one, [message := bench.message()])
        drift = await bench.declare(other)
        assert drift, "a conflict was not reported"
        assert drift[0].wanted != drift[0].found
        assert list(await bench.declare(one)) == [], "declaring a conflict changed the channel"
        await bench.send(one, [after := bench.message()])
        reader = await bench.read(Source(one))
        await reader.until([message.id, after.id])

    async def test_24d_the_channels_of_retries_and_dead_letters_can_be_declared(self, bench: Bench) -> None:
        topic = bench.topic()
        source = Source(topic, "billing")
        delays = [DelayChannel(source.retry_channel(delay), delay, source) for delay in (1.0, 60.0)]
        for _ in range(2):
            drift = await bench.declare(
                source, source.redrive_channel, delays=delays, dead_letters=[source.dead_letter_channel]
            )
            assert list(drift) == []
        dead = bench.message(b"dead")
        await bench.send(source.dead_letter_channel, [dead])
        assert ids(await (await bench.read(source.dead_letter_channel)).take(1, verdict=ACK)) == [dead.id]
