"""Reading from a real RabbitMQ: settlements, counts, lost channels, windows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pika
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

from atleastonce.channels import Queue, Source
from atleastonce.contract import ACK, RELEASE, STALE, Code, DelayChannel, Outgoing, Reject, Retry, Topology, Window
from atleastonce.errors import Closed, ConnectionLost, NotFound

Sources = Callable[..., Source]


async def test_a_stale_tag_is_not_sent_and_the_new_delivery_of_that_tag_stays(
    rabbitmq_url: str, source: Sources
) -> None:
    """Delivery tags start at 1 on every channel: sent late, an old one acknowledges somebody else's message."""
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url) as adapter:
        queue, listener = source(), Listening()
        await prepared(adapter, queue)
        first, second = message(b"1"), message(b"2")
        await adapter.send([Outgoing(queue, first)])
        subscription = await reading(adapter, queue, listener=listener)
        (old,) = await take(subscription, 1)
        proxy.cut()
        with pytest.raises(ConnectionLost):
            await subscription.receive(1, PATIENCE)
        assert old.lost
        assert listener.losses == [None]
        assert listener.conditions[-1][0] == "disconnected"
        await adapter.send([Outgoing(queue, second)])
        again = await reading(adapter, queue)
        new = await take(again, 2)
        assert {delivery.token for delivery in new} == {1, 2}
        assert old.token == 1
        assert await subscription.settle([(old, ACK)]) == [STALE]
        assert await again.settle([(old, ACK)]) == [STALE]
        assert again.stale == 1  # type: ignore[attr-defined]
        await again.close()
        ids = {delivery.message.id for delivery in await all_of(adapter, queue)}
        assert ids == {first.id, second.id}, "a stale tag acknowledged a message"


async def test_a_second_verdict_is_not_sent(rabbitmq_url: str, source: Sources) -> None:
    """A second ack of one tag closes the channel."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue, 4))
        subscription = await reading(adapter, queue)
        one, two, *_ = await take(subscription, 4)
        pairs = [(one, ACK), (one, ACK), (two, RELEASE), (two, ACK), (one, RELEASE)]
        assert all(outcome.ok for outcome in await subscription.settle(pairs))
        assert all(outcome.ok for outcome in await subscription.settle(pairs))
        (again,) = await take(subscription, 1)  # the channel lives
        assert again.message.id == two.message.id


async def test_an_error_on_one_channel_ends_that_subscription_alone(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        sick, well = source("sick"), source("well")
        await prepared(adapter, sick, well)
        patient, neighbour = await reading(adapter, sick), await reading(adapter, well)
        patient._channel.pika.basic_ack(4711)  # type: ignore[attr-defined]
        with pytest.raises(ConnectionLost, match="unknown delivery tag"):
            await patient.receive(1, PATIENCE)
        with pytest.raises(NotFound, match="no queue"):  # 404 closes a channel, too
            await reading(adapter, source("missing"))
        sent = outgoing(well, 3)
        await adapter.send(sent)
        assert [d.message.id for d in await take(neighbour, 3, ack=True)] == [item.message.id for item in sent]
        await patient.close()
        await adapter.send(outgoing(sick))
        await take(await reading(adapter, sick), 1, ack=True)


async def test_a_queue_deleted_under_its_reader_is_reported(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue, other = source(), source("other")
        await prepared(adapter, queue, other)
        subscription, neighbour = await reading(adapter, queue), await reading(adapter, other)
        await adapter.send(outgoing(queue))
        (held,) = await take(subscription, 1)
        await raw(rabbitmq_url, lambda channel: channel.queue_delete(queue.name))
        with pytest.raises(NotFound, match=queue.name):
            await subscription.receive(1, PATIENCE)
        assert await subscription.settle([(held, ACK)]) == [STALE]
        await subscription.close()
        await adapter.send(outgoing(other))
        await take(neighbour, 1, ack=True)


async def test_acknowledging_out_of_order_leaves_just_the_holes(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue, 200))
        subscription = await reading(adapter, queue, 200)
        got = await take(subscription, 200)
        holes = {3, 4, 77, 198}
        rest = [delivery for number, delivery in enumerate(got) if number not in holes]
        for some in (rest[100:], rest[:50][::-1], rest[50:100]):
            assert all(outcome.ok for outcome in await subscription.settle([(d, ACK) for d in some]))
        await subscription.close()
        left = [delivery.message.id for delivery in await all_of(adapter, queue)]
        assert left == [got[number].message.id for number in sorted(holes)]


async def test_give_backs_count_as_the_version_counts_and_rejects_always(rabbitmq_url: str, source: Sources) -> None:
    """On 4.3 nack(requeue) does not count; before, it does. reject(requeue) counts on all."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue))
        subscription = await reading(adapter, queue)
        counts = []
        for verdict in (Retry(0.0), Retry(0.0), RELEASE, RELEASE, RELEASE):
            (delivery,) = await take(subscription, 1)
            counts.append(delivery.count)
            assert (await subscription.settle([(delivery, verdict)]))[0].ok
        (delivery,) = await take(subscription, 1)
        counts.append(delivery.count)
        assert adapter._reading.current is not None
        uncounted = adapter._reading.current.version >= (4, 3)
        assert counts == ([1, 2, 3, 3, 3, 3] if uncounted else [1, 2, 3, 4, 5, 6])
        (later,) = await subscription.settle([(delivery, Retry(5.0))])
        assert later.fault is not None
        assert later.fault.code is Code.INVALID


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_a_count_that_a_producer_wrote_is_not_the_brokers(rabbitmq_url: str, source: Sources, kind: str) -> None:
    """As of a program that sends messages on with all the header fields that they had."""
    classic = {"rabbitmq": {"x-queue-type": "classic"}}
    queue = source(options=classic if kind == "classic" else {})
    copied = pika.BasicProperties(headers={"x-delivery-count": 9})
    async with opened(rabbitmq_url) as adapter:
        await prepared(adapter, queue)
        await raw(rabbitmq_url, lambda channel: channel.basic_publish("", queue.name, b"m", copied))
        subscription = await reading(adapter, queue)
        counts = []
        for _ in range(3):
            (delivery,) = await take(subscription, 1)
            counts.append(delivery.count)
            assert (await subscription.settle([(delivery, Retry(0.0))]))[0].ok
        assert counts == ([1, 0, 0] if kind == "classic" else [1, 2, 3])
        await subscription.close()


async def test_what_kills_its_consumers_falls_into_the_net(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url, delivery_limit=2) as adapter:
        queue = source()
        await prepared(adapter, queue, dead_letters=(queue.dead_letter_channel,))
        sent = outgoing(queue, body=b"poison", key=b"k", headers=[("b", "1"), ("a", "2")])
        await adapter.send(sent)
        for expected in (1, 2, 3):
            async with opened(rabbitmq_url) as victim:
                subscription = await reading(victim, queue)
                (delivery,) = await take(subscription, 1)
                assert delivery.count == expected
        (dead,) = await take(await reading(adapter, Source(queue.dead_letter_channel)), 1)
        assert (dead.message.body, dead.message.key) == (b"poison", b"k")
        assert dead.message.headers == sent[0].message.headers
        assert dead.message.id == sent[0].message.id
        assert (await adapter.backlog(queue)).waiting == 0


async def test_the_net_keeps_what_falls_into_it_until_there_is_a_dead_letter_queue(
    rabbitmq_url: str, source: Sources
) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        sent = outgoing(queue)
        await adapter.send(sent)
        subscription = await reading(adapter, queue)
        (delivery,) = await take(subscription, 1)
        assert (await subscription.settle([(delivery, Reject("no good"))]))[0].ok
        assert await subscription.receive(1, 0.2) == []
        await adapter.declare(Topology(dead_letters=(queue.dead_letter_channel,)))
        # The broker tries again by itself, in intervals of its own (3 minutes); a message on the way makes it look now.
        await adapter.send(outgoing(queue))
        (other,) = await take(subscription, 1)
        await subscription.settle([(other, Reject(""))])
        dead = await take(await reading(adapter, Source(queue.dead_letter_channel)), 1)
        assert {d.message.id for d in dead} <= {sent[0].message.id, other.message.id}


async def test_no_more_is_out_than_the_window_has(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue, 30))
        subscription = await reading(adapter, queue, 7)
        got = await take(subscription, 7)
        assert await subscription.receive(30, 0.2) == []
        await subscription.settle([(d, ACK) for d in got[2:5]])
        assert len(await take(subscription, 3)) == 3
        assert await subscription.receive(30, 0.2) == []


async def test_large_messages_shrink_the_prefetch(rabbitmq_url: str, source: Sources) -> None:
    """AMQP bounds what is out in messages; the window has bytes as well."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        sent = [Outgoing(queue, message(bytes(200_000))) for _ in range(60)]
        await adapter.send(sent)
        subscription = await reading(adapter, queue, 100, 1_000_000)
        got = []
        held: list[int] = []
        while len(got) < 60:
            some = await take(subscription, 1)
            held.append(subscription._tags.bytes)  # type: ignore[attr-defined]
            await subscription.settle([(d, ACK) for d in some])
            got += some
        assert [d.message.id for d in got] == [item.message.id for item in sent]
        assert max(held) <= 1_200_000


async def test_large_messages_after_small_ones_shrink_it_again(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        subscription = await reading(adapter, queue, 60, 1_000_000)
        await adapter.send(outgoing(queue, 300))
        for _ in range(30):
            await take(subscription, 10, ack=True)
        sent = [Outgoing(queue, message(bytes(200_000))) for _ in range(120)]
        await adapter.send(sent)
        held: list[int] = []
        came: set[str] = set()
        for _ in sent:
            (delivery,) = await take(subscription, 1)
            came.add(delivery.message.id)
            held.append(subscription._tags.bytes)  # type: ignore[attr-defined]
            await subscription.settle([(delivery, ACK)])
        # Not in order: what is on its way to a consumer as it is taken away comes again later.
        assert came == {item.message.id for item in sent}
        # The first of them may overshoot: how far depends on how many the broker had sent when the first one showed its size.
        assert max(held[-40:]) <= 1_300_000


async def test_small_messages_fill_the_window(rabbitmq_url: str, source: Sources) -> None:
    """What is known of sizes grows with what was seen: the first portion is careful, the rest is not."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue, 600))
        subscription = await reading(adapter, queue, 500, 8 * 2**20)
        got = await take(subscription, 500)
        assert await subscription.receive(100, 0.2) == []
        await subscription.settle([(d, ACK) for d in got])
        assert len(await take(subscription, 100)) == 100


async def test_pause_keeps_what_is_out_and_resume_fetches_at_once(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue, 3))
        subscription = await reading(adapter, queue)
        held = await take(subscription, 3)
        await subscription.pause()
        await subscription.pause()
        await adapter.send(outgoing(queue))
        assert await subscription.receive(1, 0.2) == []
        assert all(outcome.ok for outcome in await subscription.settle([(d, ACK) for d in held]))
        await subscription.resume()
        await subscription.resume()
        await take(subscription, 1, ack=True)
        await subscription.close()
        assert await all_of(adapter, queue) == []


async def test_a_release_reaches_a_peer_quickly(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as one, opened(rabbitmq_url) as two:
        queue = source()
        await prepared(one, queue)
        first, second = await reading(one, queue), await reading(two, queue)
        await one.send(outgoing(queue))
        (delivery,) = await first.receive(1, PATIENCE) or await second.receive(1, PATIENCE)
        holder, peer = (first, second) if delivery.epoch == first._epoch else (second, first)  # type: ignore[attr-defined]
        await holder.pause()
        began = time.monotonic()
        await holder.settle([(delivery, RELEASE)])
        (again,) = await peer.receive(1, PATIENCE)
        assert time.monotonic() - began < 1.0
        assert again.message.id == delivery.message.id


async def test_closing_gives_back_what_was_never_handed_out(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        sent = outgoing(queue, 20)
        await adapter.send(sent)
        subscription = await reading(adapter, queue)
        got = await take(subscription, 5, ack=True)
        await eventually(lambda: len(subscription._buffer) == 15, "the others are in the buffer")  # type: ignore[attr-defined]
        await subscription.close()
        await subscription.close()
        with pytest.raises(Closed):
            await subscription.receive(1, 0)
        left = await all_of(adapter, queue)
        assert [d.message.id for d in got + left] == [item.message.id for item in sent]
        assert adapter._reading.current is not None
        # Closing the channel would give them back as well, and count it on every version.
        uncounted = adapter._reading.current.version >= (4, 3)
        assert {delivery.count for delivery in left} == {1 if uncounted else 2}


async def test_one_of_several_is_active_where_that_was_asked_for(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source(single_active=True)
        await prepared(adapter, queue)
        first, second = await reading(adapter, queue), await reading(adapter, queue)
        await adapter.send(outgoing(queue, 20))
        assert len(await take(first, 20)) == 20
        assert await second.receive(1, 0.2) == []
        await first.pause()  # does not hand over: ours are not settled
        await adapter.send(outgoing(queue))
        assert await second.receive(1, 0.2) == []
        await first.close()
        assert len(await take(second, 21, ack=True)) == 21


async def test_a_cancelled_receive_loses_nothing(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        subscription = await reading(adapter, queue)
        for _ in range(20):
            waiting = asyncio.create_task(subscription.receive(1, PATIENCE))
            await asyncio.sleep(0)
            await adapter.send(outgoing(queue))
            waiting.cancel()
            done = await asyncio.gather(waiting, return_exceptions=True)
            if isinstance(done[0], asyncio.CancelledError):
                await take(subscription, 1, ack=True)
            else:
                await subscription.settle([(d, ACK) for d in done[0]])  # type: ignore[union-attr]
        await subscription.close()
        assert await all_of(adapter, queue) == []


async def test_messages_that_were_being_settled_when_the_connection_went_are_unknown(
    rabbitmq_url: str, source: Sources
) -> None:
    async with Proxy(rabbitmq_url) as proxy, opened(proxy.url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue))
        subscription = await reading(adapter, queue)
        (delivery,) = await take(subscription, 1)
        proxy.hold()
        settling = asyncio.create_task(subscription.settle([(delivery, ACK)]))
        await asyncio.sleep(0.05)
        assert not settling.done(), "answered before the broker had read it"
        proxy.cut()
        proxy.release()
        (outcome,) = await settling
        assert outcome.fault is not None
        assert outcome.fault.code is Code.UNAVAILABLE
        assert outcome.fault.retryable


async def test_the_backlog_tells_what_is_known(rabbitmq_url: str, rabbitmq_broker: object, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        await adapter.send(outgoing(queue, 5))
        subscription = await reading(adapter, queue, 2)
        await take(subscription, 2)
        backlog = await adapter.backlog(queue)
        assert (backlog.waiting, backlog.in_flight) == (3, None)
        missing = await adapter.backlog(source("missing"))
        assert missing.waiting is None
        assert "no queue" in missing.detail
        room = DelayChannel(queue.retry_channel(60), 60, queue)
        await prepared(adapter, queue, delays=(room,))
        await adapter.send(outgoing(room.channel, 4))

        async def delayed() -> bool:
            return (await adapter.backlog(queue)).delayed == 4

        await eventually(delayed, "the backlog tells what waits in rooms")
        assert await adapter.purge(Queue(queue.name)) == 3
        await adapter.delete(Topology(sources=(queue,)))
        await adapter.delete(Topology(sources=(queue,)))
        assert (await adapter.backlog(queue)).waiting is None


async def test_a_subscription_of_a_closed_adapter_is_over(rabbitmq_url: str, source: Sources) -> None:
    before = asyncio.all_tasks()
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        subscription = await reading(adapter, queue)
        await adapter.close()
        with pytest.raises(Closed):
            await subscription.receive(1, PATIENCE)
        with pytest.raises(Closed):
            await adapter.subscribe(queue, Window(1, 1), Listening())
    assert asyncio.all_tasks() == before


async def test_what_the_active_one_leaves_behind_comes_in_its_order_before_all_else(
    rabbitmq_url: str, source: Sources
) -> None:
    """Regression: the consumer was cancelled first, and the next one began with what came after the prefetch; what was given back
    one by one came behind it."""
    async with opened(rabbitmq_url) as adapter:
        queue = source(single_active=True)
        await prepared(adapter, queue)
        first, second = await reading(adapter, queue), await reading(adapter, queue)
        sent = outgoing(queue, 310)  # more than the prefetch
        await adapter.send(sent)
        got = await take(first, 50)
        await first.settle([(delivery, RELEASE) for delivery in got[20:30]])
        await first.settle([(delivery, ACK) for delivery in got[:10]])
        await first.settle([(delivery, ACK) for delivery in got[20:30]])  # released: the first verdict holds
        assert await second.receive(1, 0.2) == []
        await first.close()
        came = [delivery.message.id for _ in range(6) for delivery in await take(second, 50, ack=True)]
        places = {item.message.id: place for place, item in enumerate(sent)}
        assert [places[each] for each in came] == list(range(10, 310))
