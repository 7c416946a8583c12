"""B. Publishing: every item has an answer, and the answer is true."""

from __future__ import annotations

import asyncio

import pytest

from atleastonce.channels import Source
from atleastonce.contract import Code, Outgoing, Status
from atleastonce.errors import Closed
from atleastonce.testing.conformance.bench import Bench, log_of
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import DEDUPE, ORDER, OTHER_PROCESSES, SIZE_LIMIT
from atleastonce.testing.conformance.reader import ids
from atleastonce.testing.history import History


class Publishing(Section):
    section = "B. Publishing"

    @requires(OTHER_PROCESSES)
    async def test_09_what_send_confirmed_survives_the_death_of_its_sender(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        child = await bench.child()
        wanted = [(f"d{n}-{bench.tag}", f"k{n % 3}") for n in range(50)]
        statuses = await child.call("send", queue=queue.name, messages=wanted, die=True)
        assert statuses == ["ok"] * 50
        reader = await bench.read(queue)
        await reader.until([id for id, _ in wanted])

    async def test_10_a_batch_larger_than_the_broker_takes_goes_through_whole(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(min(2 * bench.capabilities.max_batch, 2500) + 3, keys=["a", "b", "c"])
        await bench.send(queue, sent)
        reader = await bench.read(queue, window=1000)
        await reader.until([message.id for message in sent])
        for key in "abc":
            await bench.others(reader, key=key)
        assert not log_of(sent, reader).check().duplicates

    @requires(ORDER)
    async def test_10b_a_large_batch_keeps_the_order_of_each_key(self, bench: Bench) -> None:
        queue = bench.queue(**bench.ordered)
        await bench.declare(queue)
        sent = bench.messages(min(2 * bench.capabilities.max_batch, 2500) + 3, keys=["a", "b", "c"])
        await bench.send(queue, sent)
        reader = await bench.read(queue, window=1000)
        await reader.until([message.id for message in sent])
        found = log_of(sent, reader).check()
        assert not found.reordered, found

    async def test_10c_an_empty_batch_is_no_trouble(self, bench: Bench) -> None:
        assert list(await bench.within(bench.adapter.send([]))) == []

    @requires(SIZE_LIMIT)
    async def test_11_each_item_of_a_batch_fails_alone(self, bench: Bench) -> None:
        queue, missing = bench.queue(), bench.queue("missing")
        await bench.declare(queue)
        good = bench.messages(4)
        huge = bench.message(b"x" * ((bench.capabilities.max_message_bytes or 0) + 1))
        batch = [
            Outgoing(queue, good[0]),
            Outgoing(missing, bench.message()),
            Outgoing(queue, good[1]),
            Outgoing(queue, huge),
            Outgoing(queue, good[2]),
            Outgoing(queue, good[3]),
        ]
        outcomes = await bench.within(bench.adapter.send(batch))
        assert [outcome.status for outcome in outcomes] == [
            Status.OK,
            Status.REJECTED,
            Status.OK,
            Status.REJECTED,
            Status.OK,
            Status.OK,
        ]
        reader = await bench.read(queue)
        bench.assert_came(await reader.until([message.id for message in good]), good)

    async def test_12_an_unknown_destination_is_refused_and_the_client_lives_on(self, bench: Bench) -> None:
        queue, missing = bench.queue(), bench.queue("missing")
        await bench.declare(queue)
        (outcome,) = await bench.outcomes(missing, [bench.message()])
        assert outcome.status is Status.REJECTED
        assert outcome.fault is not None
        assert outcome.fault.code in (Code.NOT_FOUND, Code.UNROUTABLE)
        message = bench.message()
        await bench.send(queue, [message])
        assert ids(await (await bench.read(queue)).take(1)) == [message.id]

    async def test_12b_an_unknown_topic_is_refused(self, bench: Bench) -> None:
        (outcome,) = await bench.outcomes(bench.topic("missing"), [bench.message()])
        assert outcome.status is Status.REJECTED
        assert outcome.fault is not None
        assert outcome.fault.code in (Code.NOT_FOUND, Code.UNROUTABLE)

    async def test_13_a_topic_without_groups_keeps_or_refuses_but_never_loses(self, bench: Bench) -> None:
        """A message that nobody is bound to receive is kept for groups to come, or its sender is told."""
        topic = bench.topic()
        await bench.declare(topic)
        message = bench.message()
        (outcome,) = await bench.outcomes(topic, [message])
        if outcome.ok:
            late = Source(topic, "late")
            await bench.declare(late)
            assert ids(await (await bench.read(late)).take(1)) == [message.id]
        else:
            assert outcome.fault is not None
            assert outcome.fault.code is Code.UNROUTABLE

    async def test_14_a_closed_adapter_says_so_and_closes_twice(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        client = await bench.client()
        await bench.within(client.close())
        await bench.within(client.close())
        with pytest.raises(Closed):
            await bench.outcomes(queue, [bench.message()], adapter=client)
        with pytest.raises(Closed):
            await bench.declare(queue, adapter=client)
        with pytest.raises(Closed):
            await bench.read(queue, adapter=client)
        backlog = await bench.within(client.backlog(Source(queue)))
        assert (backlog.waiting, backlog.in_flight, backlog.delayed) == (None, None, None)
        assert backlog.detail

    async def test_14b_closing_flushes_what_is_being_sent(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        client = await bench.client()
        sent = bench.messages(200)
        sending = asyncio.create_task(bench.outcomes(queue, sent, adapter=client))
        await asyncio.sleep(0)  # it has begun
        await asyncio.sleep(0)
        await bench.within(client.close())
        outcomes = await bench.within(sending)
        assert {outcome.status for outcome in outcomes} == {Status.OK}
        await (await bench.read(queue)).until([message.id for message in sent])

    async def test_15_a_cancelled_send_ends_at_once_and_the_client_lives_on(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        history = History()
        for yields in range(8):
            batch = bench.messages(20)
            sending = asyncio.create_task(bench.outcomes(queue, batch))
            for _ in range(yields):
                await asyncio.sleep(0)
            sending.cancel()
            done, _ = await asyncio.wait([sending], timeout=2.0)
            assert done, "a cancelled send did not end within two seconds"
            for message in batch:
                history.sent(message.id, Status.UNKNOWN if sending.cancelled() else Status.OK, key="k")
        after = bench.messages(20)
        await bench.send(queue, after)
        for message in after:
            history.sent(message.id, Status.OK, key="k")
        reader = await bench.read(queue)
        for delivery in await reader.until([each.id for each in history.sends if each.status is Status.OK]):
            history.received(delivery.message.id)
        found = history.check()
        assert found.ok and not found.duplicates, found  # noqa: PT018

    async def test_16_concurrent_sends_of_several_clients_are_all_kept(self, bench: Bench) -> None:
        queue = bench.queue(partitions=bench.harness.partitions)
        await bench.declare(queue)
        clients = [bench.adapter, await bench.client(), await bench.client()]
        sent = [bench.messages(50, keys=[f"k{sender}"]) for sender in range(12)]
        await asyncio.gather(
            *(bench.send(queue, batch, adapter=clients[n % len(clients)]) for n, batch in enumerate(sent))
        )
        reader = await bench.read(queue)
        everything = [message for batch in sent for message in batch]
        await reader.until([message.id for message in everything])
        await bench.others(reader, key="k1")
        found = log_of(everything, reader).check()
        assert found.ok and not found.duplicates, found  # noqa: PT018

    @requires(DEDUPE)
    async def test_17_a_repeated_id_is_delivered_once(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        message = bench.message()
        await bench.send(queue, [message])
        await bench.send(queue, [message])
        reader = await bench.read(queue)
        await reader.until([message.id])
        assert await bench.others(reader) == []
