"""I. For operators and tools: looking, purging, deleting, addressing. (H, the patterns, are 61 to 68.)"""

from __future__ import annotations

from typing import cast

from atleastonce.channels import Source
from atleastonce.contract import ACK, Browses, Code, Deletes, Outgoing, Purges, Topology
from atleastonce.testing.conformance.bench import Bench, assert_same
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import BROWSES, DELETES, GROUP_ADDRESSES, PURGES
from atleastonce.testing.conformance.reader import ids


class Tools(Section):
    section = "I. Looking and tools"

    async def test_69_the_backlog_counts_what_waits_or_says_why_it_cannot(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        source = Source(queue)
        await bench.send(queue, bench.messages(7))

        async def counted(waiting: int) -> bool:
            backlog = await bench.within(bench.adapter.backlog(source))
            if backlog.waiting is None:
                assert backlog.detail, "unknown without a reason"
                return True
            return bool(backlog.waiting == waiting)

        await bench.eventually(lambda: counted(7), "seven messages wait")
        reader = await bench.read(queue)
        await reader.take(7, verdict=ACK)
        await bench.eventually(lambda: counted(0), "no message waits")

    async def test_69b_the_backlog_of_what_does_not_exist_is_unknown_and_not_zero(self, bench: Bench) -> None:
        backlog = await bench.within(bench.adapter.backlog(Source(bench.queue("missing"))))
        assert backlog.waiting is None
        assert backlog.in_flight is None
        assert backlog.detail

    @requires(PURGES)
    async def test_70_purging_empties_a_queue_and_leaves_it_usable(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, bench.messages(9))
        assert await bench.within(cast(Purges, bench.adapter).purge(queue)) in (9, -1)
        assert await bench.others(await bench.read(queue)) == []

    @requires(BROWSES)
    async def test_71_browsing_shows_the_oldest_first_and_takes_nothing(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = [bench.message(b"%d" % n, headers=[("n", str(n))]) for n in range(10)]
        await bench.send(queue, sent)
        seen = await bench.within(cast(Browses, bench.adapter).browse(queue, 5))
        assert ids(seen) == [message.id for message in sent[:5]]
        for delivery, message in zip(seen, sent, strict=False):
            assert_same(delivery.message, message)
        assert sorted(ids(await bench.within(cast(Browses, bench.adapter).browse(queue, 100)))) == sorted(
            m.id for m in sent
        )
        assert sorted(ids(await (await bench.read(queue)).take(10, verdict=ACK))) == sorted(m.id for m in sent)
        await self._browse_for_a_group(bench)

    async def _browse_for_a_group(self, bench: Bench) -> None:
        browser, topic = cast(Browses, bench.adapter), bench.topic()
        one, other = Source(topic, "one"), Source(topic, "other")
        await bench.declare(one, other)
        sent = [bench.message(b"%d" % n) for n in range(10)]
        await bench.send(topic, sent)
        reader = await bench.read(one)
        done = ids(await reader.take(4, verdict=ACK))
        await reader.close()
        left = [message.id for message in sent if message.id not in done]

        async def shown(limit: int, group: str) -> list[str]:
            return ids(await bench.within(browser.browse(topic, limit, group)))

        async def just_the_rest() -> bool:
            return sorted(await shown(100, "one")) == sorted(left)

        await bench.eventually(just_the_rest, "a group is shown what it has not settled, and nothing else")
        assert await shown(3, "one") == left[:3]
        assert sorted(await shown(100, "other")) == sorted(message.id for message in sent)
        for delivery in await bench.within(browser.browse(topic, 100, "one")):
            assert_same(delivery.message, next(message for message in sent if message.id == delivery.message.id))
        assert sorted(ids(await (await bench.read(one)).take(6, verdict=ACK))) == sorted(left)
        assert sorted(ids(await (await bench.read(other)).take(10, verdict=ACK))) == sorted(m.id for m in sent)

    @requires(GROUP_ADDRESSES)
    async def test_72_a_message_to_one_group_reaches_no_other(self, bench: Bench) -> None:
        topic = bench.topic()
        one, other = Source(topic, "one"), Source(topic, "other")
        await bench.declare(one, other)
        message = bench.message()
        (outcome,) = await bench.within(bench.adapter.send([Outgoing(one, message)]))
        assert outcome.ok
        assert ids(await (await bench.read(one)).take(1, verdict=ACK)) == [message.id]
        assert await bench.others(await bench.read(other)) == []

    @requires(DELETES)
    async def test_73_deleting_removes_and_may_be_repeated(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [bench.message()])
        topology = Topology(channels=(queue,), sources=(Source(queue),))
        for _ in range(2):
            await bench.within(cast(Deletes, bench.adapter).delete(topology))

        async def gone() -> bool:
            drift = await bench.adapter.declare(topology, create=False)
            return any(each.setting == "missing" for each in drift)

        await bench.eventually(gone, "the queue is gone")

    @requires(DELETES)
    async def test_73b_deleting_a_group_leaves_its_topic_to_the_others(self, bench: Bench) -> None:
        topic = bench.topic()
        leaving, staying = Source(topic, "leaving"), Source(topic, "staying")
        await bench.declare(leaving, staying)
        await bench.send(topic, [before := bench.message()])
        await bench.within(cast(Deletes, bench.adapter).delete(Topology(sources=(leaving,))))
        await bench.send(topic, [after := bench.message()])
        bench.assert_came(await (await bench.read(staying)).take(2, verdict=ACK), [before, after])

    async def test_74_an_unknown_error_is_internal_and_not_retried(self, bench: Bench) -> None:
        fault = bench.adapter.classify(ZeroDivisionError("not the broker's"))
        assert fault.code is Code.INTERNAL
        assert not fault.retryable
