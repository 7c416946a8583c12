"""E. Ordering: what stays behind what, and who waits for whom."""

from __future__ import annotations

import asyncio

from atleastonce.channels import Source
from atleastonce.contract import ACK, Retry
from atleastonce.testing.conformance.bench import Bench, log_of
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.isolation import Isolation
from atleastonce.testing.conformance.needs import KEY_LOCKS, KEY_ORDER, LEASES, NATIVE_DELAY, ORDER
from atleastonce.testing.conformance.reader import Reader, ids


class OrderOfMessages(Section):
    section = "E. Ordering"

    @requires(ORDER)
    async def test_41_one_consumer_sees_one_keys_messages_in_their_order(self, bench: Bench) -> None:
        queue = bench.queue(**bench.ordered)
        await bench.declare(queue)
        sent = bench.messages(500)
        for start in range(0, 500, 100):
            await bench.send(queue, sent[start : start + 100])
        reader = await bench.read(queue, window=50)
        assert ids(await reader.take(500, verdict=ACK)) == [message.id for message in sent]

    @requires(ORDER)
    async def test_42_one_consumer_sees_every_key_in_its_order(self, bench: Bench) -> None:
        topic = bench.topic(partitions=bench.harness.partitions, **bench.ordered)
        source = Source(topic, "g")
        await bench.declare(source)
        sent = bench.messages(320, keys=[f"k{n}" for n in range(16)])
        for start in range(0, 320, 50):
            await bench.send(topic, sent[start : start + 50])
        reader = await bench.read(source)
        await reader.until([message.id for message in sent])
        found = log_of(sent, reader).check()
        assert found.clean, found

    @requires(KEY_ORDER)
    async def test_42b_several_consumers_see_every_key_in_its_order(self, bench: Bench) -> None:
        """Receipts are logged in one sequence, so that order across consumers is the log's order."""
        topic = bench.topic(partitions=bench.harness.partitions, fifo=True)
        source = Source(topic, "g")
        await bench.declare(source)
        readers = [await bench.read(source, adapter=await bench.client(), window=10) for _ in range(3)]
        await Isolation.all_are_reading(bench, readers[:1], beside=readers[1:])
        sent = bench.messages(320, keys=[f"k{n}" for n in range(16)])
        await bench.send(topic, sent)
        wanted = {message.id for message in sent}
        history = log_of(sent)

        async def work(reader: Reader) -> None:
            while wanted:
                got = await reader.receive(3, 0.5)
                for delivery in got:
                    history.received(delivery.message.id)
                    wanted.discard(delivery.message.id)
                await asyncio.sleep(0)  # let the others in before this one is settled
                await reader.settle(got)

        for reader in readers:
            reader.log.clear()
        await bench.within(asyncio.gather(*map(work, readers)), bench.patience * 2)
        history.receipts = [each for each in history.receipts if each.id in {message.id for message in sent}]
        found = history.check()
        assert found.ok and not found.reordered, found  # noqa: PT018

    @requires(KEY_ORDER, NATIVE_DELAY)
    async def test_43_a_retried_message_holds_back_its_key_and_no_other(self, bench: Bench) -> None:
        queue = bench.queue(fifo=True)
        await bench.declare(queue)
        first, second = bench.message(key="a"), bench.message(key="a")
        others = bench.messages(10, keys=["b", "c"])
        await bench.send(queue, [first, second])
        reader = await bench.read(queue)
        (held,) = await reader.take(1, most=1)
        assert held.message.id == first.id
        await reader.settle([held], Retry(1.0))
        await bench.send(queue, others)
        assert sorted(ids(await reader.take(10, verdict=ACK))) == sorted(message.id for message in others)
        assert ids(await reader.take(1, verdict=ACK)) == [first.id]
        assert ids(await reader.take(1, verdict=ACK)) == [second.id]

    @requires(KEY_ORDER, LEASES)
    async def test_44_a_consumer_that_leaves_its_message_behind_is_not_overtaken(self, bench: Bench) -> None:
        queue = bench.queue(fifo=True, partitions=bench.harness.partitions)
        await bench.declare(queue)
        sent = bench.messages(6, keys=["a"])
        await bench.send(queue, sent)
        leaving = await bench.read(queue, adapter=await bench.client(short_lease=True))
        (left,) = await leaving.take(1, most=1)
        assert left.message.id == sent[0].id
        staying = await bench.read(queue, adapter=await bench.client())
        await leaving.close()
        within = bench.harness.lease + bench.patience
        assert ids(await staying.take(6, verdict=ACK, most=1, within=within)) == [message.id for message in sent]

    @requires(KEY_LOCKS)
    async def test_45_while_one_of_a_key_is_out_no_consumer_gets_the_next(self, bench: Bench) -> None:
        queue = bench.queue(fifo=True, partitions=bench.harness.partitions)
        await bench.declare(queue)
        readers = [await bench.read(queue, adapter=await bench.client()) for _ in range(2)]
        sent = bench.messages(2, keys=["a"])
        await bench.send(queue, sent)

        async def sole_holder() -> Reader | None:
            for reader in readers:
                await reader.receive(1, 0.1)
                if reader.log:
                    return reader
            return None

        await bench.eventually(sole_holder, "one of them gets the first message")
        holder, other = readers if readers[0].log else readers[::-1]
        assert ids(holder.log) == [sent[0].id]
        await other.silence(0.5)
        await holder.settle(holder.log)
        rest = [*await holder.receive(1, 0.5), *await other.receive(1, 0.5)]
        assert ids(rest) == [sent[1].id]
