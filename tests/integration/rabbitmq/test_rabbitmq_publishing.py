"""Publishing to a real RabbitMQ: confirms, returns, limits, lost connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from rabbitmq_kit import (
    PATIENCE,
    Listening,
    Proxy,
    all_of,
    eventually,
    message,
    opened,
    outgoing,
    prepared,
    raw,
    reading,
    take,
)

from atleastonce import Context, FailurePolicy, RetryChain, Service, wire
from atleastonce.adapters.rabbitmq import RabbitMQAdapter
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import Code, Outgoing, Status
from atleastonce.errors import Closed

Sources = Callable[..., Source]
BLOCKED = b"\x00\x0a\x00\x3c\x0alow memory"
UNBLOCKED = b"\x00\x0a\x00\x3d"


async def test_a_thousand_confirms_are_pipelined(rabbitmq_url: str, source: Sources) -> None:
    """All of a window reaches the broker before the first confirm comes back, and no more than that."""
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url) as adapter, opened(rabbitmq_url) as direct:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue))
        proxy.hold()
        batch = outgoing(queue, 5000)
        sending = asyncio.create_task(adapter.send(batch))
        await eventually(lambda: waiting_in(direct, queue, 1001), "a thousand are there without a confirm")
        assert not sending.done()
        assert (await direct.backlog(queue)).waiting == 1001
        proxy.release()
        assert all(outcome.ok for outcome in await sending)
        got = await all_of(direct, queue)
        assert [d.message.id for d in got[1:]] == [item.message.id for item in batch]


async def test_what_no_queue_gets_is_unroutable_and_its_neighbours_go(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        there, gone = source(), source("gone")
        lonely = Topic(gone.name + ".topic")
        await prepared(adapter, there, lonely)
        twin = message(id="twin")
        batch = [
            Outgoing(there, twin),
            Outgoing(gone, twin),  # the same id: told apart by the route
            *outgoing(there, 50),
            Outgoing(gone.channel, twin),  # the same route, too
            *outgoing(lonely),
            *outgoing(there, 50),
        ]
        outcomes = await adapter.send(batch)
        lost = [number for number, outcome in enumerate(outcomes) if not outcome.ok]
        assert lost == [1, 52, 53]
        for number in lost:
            fault = outcomes[number].fault
            assert outcomes[number].status is Status.REJECTED
            assert fault is not None
            assert fault.code is Code.UNROUTABLE
        assert len(await all_of(adapter, there)) == 101


async def test_headers_too_large_for_a_frame_are_refused_and_the_connection_lives(
    rabbitmq_url: str, source: Sources
) -> None:
    """140 kB of headers end an AMQP connection with 501 FRAME_ERROR."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        connection = adapter._control.current
        many = [(f"h{number}", "v") for number in range(16_000)]  # small in names and values, large on the wire
        batch = [
            *outgoing(queue),
            *outgoing(queue, headers=[("h", "v" * 140_000)]),
            *outgoing(queue, headers=many),
            *outgoing(queue, headers=[("h", "€" * 41_000)]),
            *outgoing(queue, headers=[("h", "v" * 100_000)]),
            *outgoing(queue),
        ]
        outcomes = await adapter.send(batch)
        assert [outcome.ok for outcome in outcomes] == [True, False, False, False, True, True]
        assert {o.fault.code for o in outcomes if o.fault} == {Code.TOO_LARGE}
        assert adapter._control.current is connection
        assert connection is not None
        assert connection.closed is None


async def test_what_the_broker_writes_may_not_be_sent(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue, other = source(), source("other")
        await prepared(adapter, queue, other)
        refused = outgoing(queue, headers=[("x-death", "none")]) + outgoing(queue, headers=[("alo-key", "k")])
        assert [outcome.fault.code for outcome in await adapter.send(refused) if outcome.fault] == [Code.INVALID] * 2
        # RabbitMQ sends copies to the queues named in CC; as text it closes the channel.
        copied = outgoing(queue, headers=[("CC", other.name), ("BCC", other.name)])
        assert (await adapter.send(copied))[0].ok
        (delivery,) = await all_of(adapter, queue)
        assert delivery.message.headers == copied[0].message.headers
        assert await all_of(adapter, other) == []


async def test_an_exchange_deleted_under_us_is_found_out_and_its_neighbours_go(
    rabbitmq_url: str, source: Sources
) -> None:
    """Publishing to a missing exchange closes the channel with 404, under everything else that is on it."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        topic = Topic(queue.name + ".topic")
        await prepared(adapter, queue, Source(topic, "g"))
        assert (await adapter.send(outgoing(topic)))[0].ok
        await raw(rabbitmq_url, lambda channel: channel.exchange_delete(topic.name))
        batch = [*outgoing(queue, 5), *outgoing(topic), *outgoing(queue, 5)]
        left = dict(enumerate(batch))
        ended: dict[int, Status] = {}
        for _ in range(5):
            outcomes = await adapter.send(list(left.values()))
            for (number, _item), outcome in zip(list(left.items()), outcomes, strict=True):
                if outcome.status is not Status.UNKNOWN:
                    ended[number] = outcome.status
                    del left[number]
            if not left:
                break
        assert ended == {number: Status.REJECTED if number == 5 else Status.OK for number in range(11)}
        ids = [delivery.message.id for delivery in await all_of(adapter, queue)]
        assert set(ids) == {item.message.id for item in batch[:5] + batch[6:]}


async def test_what_offends_is_found_by_sending_it_alone(rabbitmq_url: str, source: Sources) -> None:
    """The check before the publish can know nothing of an exchange that goes between check and publish."""
    async with opened(rabbitmq_url) as adapter:
        queue, ghost = source(), Topic(f"ghost.{source('x').name}")
        await prepared(adapter, queue)
        batch = [*outgoing(queue, 3), *outgoing(ghost), *outgoing(queue, 3)]
        seen: list[list[Status]] = []
        for _ in range(8):
            adapter._routes.learn(ghost.name)  # believed to be there, each time
            outcomes = await adapter.send(batch)
            seen.append([outcome.status for outcome in outcomes])
            batch = [item for item, outcome in zip(batch, outcomes, strict=True) if outcome.status is Status.UNKNOWN]
            if not batch:
                break
        assert batch == []
        assert sum(statuses.count(Status.REJECTED) for statuses in seen) == 1
        assert len({d.message.id for d in await all_of(adapter, queue)}) == 6


async def test_a_cut_connection_leaves_the_unconfirmed_unknown_and_nothing_lost(
    rabbitmq_url: str, source: Sources
) -> None:
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url) as adapter, opened(rabbitmq_url) as direct:
        queue = source()
        await prepared(direct, queue)
        batch = outgoing(queue, 3000)
        assert (await adapter.send(batch[:1]))[0].ok
        proxy.hold()  # confirms of what comes now never arrive
        sending = asyncio.create_task(adapter.send(batch))
        await eventually(lambda: waiting_in(direct, queue, 2), "the broker has some of them")
        proxy.cut()
        proxy.release()
        outcomes = await asyncio.wait_for(sending, PATIENCE)
        assert {outcome.status for outcome in outcomes} == {Status.UNKNOWN}, "a confirm was invented"
        again = await adapter.send(batch)
        assert all(outcome.ok for outcome in again)
        got = [delivery.message.id for delivery in await all_of(direct, queue)]
        assert set(got) == {item.message.id for item in batch}
        # After the duplicates, the list is in its order.
        assert got[-len(batch) :] == [item.message.id for item in batch]


async def waiting_in(adapter: RabbitMQAdapter, queue: Source, at_least: int) -> bool:
    backlog = await adapter.backlog(queue)
    return (backlog.waiting or 0) >= at_least


async def test_while_the_broker_is_away_sends_end_unknown_in_time(rabbitmq_url: str, source: Sources) -> None:
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url, send_timeout=1.0) as adapter:
        queue = source()
        await prepared(adapter, queue)
        proxy.refusing = True
        proxy.cut()
        began = time.monotonic()
        (outcome,) = await adapter.send(outgoing(queue))
        assert time.monotonic() - began < 4
        assert outcome.status is Status.UNKNOWN
        assert outcome.fault is not None
        assert outcome.fault.code is Code.UNAVAILABLE
        proxy.refusing = False
        (outcome,) = await adapter.send(outgoing(queue))
        assert outcome.ok, "it did not connect again"


async def test_a_broker_that_answers_nothing_ends_in_a_timeout(rabbitmq_url: str, source: Sources) -> None:
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url, send_timeout=0.5) as adapter:
        queue = source()
        await prepared(adapter, queue)
        assert (await adapter.send(outgoing(queue)))[0].ok
        proxy.hold()
        outcomes = await adapter.send(outgoing(queue, 10))
        assert {o.fault.code for o in outcomes if o.fault} == {Code.TIMEOUT}
        assert {o.status for o in outcomes} == {Status.UNKNOWN}
        proxy.release()
        # Late confirms of the abandoned ones end nobody else's.
        assert all(outcome.ok for outcome in await adapter.send(outgoing(queue, 10)))


async def test_a_blocked_connection_is_told_and_its_sends_end_overloaded(rabbitmq_url: str, source: Sources) -> None:
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url, send_timeout=0.5) as adapter:
        queue, listener = source(), Listening()
        await prepared(adapter, queue)
        await reading(adapter, queue, listener=listener)
        proxy.say(BLOCKED)
        await eventually(lambda: ("blocked", "publishing: low memory") in listener.conditions, "it is told")
        (outcome,) = await adapter.send(outgoing(queue))
        assert outcome.status is Status.UNKNOWN
        assert outcome.fault is not None
        assert outcome.fault.code is Code.OVERLOADED
        waiting = asyncio.create_task(adapter.send(outgoing(queue)))
        await asyncio.sleep(0.05)
        proxy.say(UNBLOCKED)
        assert (await waiting)[0].ok
        assert ("unblocked", "") in listener.conditions


async def test_a_full_queue_refuses_and_the_next_of_its_list_do_not_overtake(
    rabbitmq_url: str, source: Sources
) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source(options={"rabbitmq": {"x-max-length": 5}})
        await prepared(adapter, queue)
        statuses: list[Status] = []
        while Status.UNKNOWN not in statuses:  # the limit of a quorum queue is not exact
            outcomes = await adapter.send(outgoing(queue))
            statuses += [outcome.status for outcome in outcomes]
            assert len(statuses) < 1000
        assert outcomes[0].fault is not None
        assert outcomes[0].fault.code is Code.OVERLOADED


async def test_large_bodies_take_turns_in_the_window(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url, publish_window_bytes="1MiB") as adapter:
        queue = source()
        await prepared(adapter, queue)
        bodies = [bytes([number]) * 700_000 for number in range(8)]
        batch = [Outgoing(queue, message(body)) for body in bodies]
        assert all(outcome.ok for outcome in await adapter.send(batch))
        assert [d.message.body for d in await all_of(adapter, queue)] == bodies


async def test_a_delayed_publish_waits_in_a_room_of_its_delay(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        topic = Topic(queue.name + ".topic")
        group = Source(topic, "g")
        await prepared(adapter, queue, group)
        began = time.monotonic()
        later = [Outgoing(queue, message(b"q"), 0.3), Outgoing(topic, message(b"t"), 0.3)]
        missing = Outgoing(source("missing"), message(), 0.3)
        outcomes = await adapter.send([*later, missing])
        assert [outcome.ok for outcome in outcomes] == [True, True, False]
        for place, item in ((queue, later[0]), (group, later[1])):
            (delivery,) = await take(await reading(adapter, place), 1, ack=True)
            assert delivery.message.id == item.message.id
            assert delivery.message.headers == item.message.headers
        assert 0.3 <= time.monotonic() - began < 5


async def test_a_group_is_addressed_alone(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        topic = Topic(source().name)
        one, two = Source(topic, "one"), Source(topic, "two")
        await prepared(adapter, one, two)
        to_all, to_one = outgoing(topic), outgoing(one)
        assert all(outcome.ok for outcome in await adapter.send(to_all + to_one))
        assert [d.message.id for d in await all_of(adapter, one)] == [i.message.id for i in to_all + to_one]
        assert [d.message.id for d in await all_of(adapter, two)] == [i.message.id for i in to_all]


async def test_closing_waits_for_confirms_and_takes_no_more(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        sending = asyncio.create_task(adapter.send(outgoing(queue, 2000)))
        await asyncio.sleep(0)
        await adapter.close()
        assert all(outcome.ok for outcome in await sending)
        with pytest.raises(Closed):
            await adapter.send(outgoing(queue))


async def test_a_name_longer_than_amqp_takes_is_refused(rabbitmq_url: str) -> None:
    async with opened(rabbitmq_url) as adapter:
        long = Source(Topic("t" * 150), "g" * 150)
        (outcome,) = await adapter.send(outgoing(long))
        assert outcome.fault is not None
        assert outcome.fault.code is Code.INVALID
        assert (await adapter.send(outgoing(Queue("q" * 200))))[0].status is Status.REJECTED


async def test_the_largest_message_that_is_taken_is_retried_and_buried(rabbitmq_url: str, source: Sources) -> None:
    """The header fields of a retry made it too large: it went to the dead letters at its first failure."""
    queue = source()
    attempts: list[int] = []
    size = 4000 - len("alo-id") - 32
    service = Service("big", broker=f"{rabbitmq_url}?max_message_bytes=4000")

    @service.consumer(queue.channel, failure=FailurePolicy(in_place=None, chain=RetryChain("100ms", "100ms")))
    async def handle(body: bytes, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError(f"attempt {context.attempt}")

    async with service:
        (outcome,) = await service.broker.adapter.send([Outgoing(queue.channel, message(b"x" * size, id="i" * 32))])
        assert outcome.ok
        home = service.consumers[0].home
        dead = await take(await reading(service.broker.adapter, Source(home.dead_letter_channel)), 1, ack=True)
    assert attempts == [1, 2, 3]
    assert len(dead[0].body) == size
    assert "attempt 3" in str(dead[0].message.headers.get(wire.ERROR_MESSAGE))
