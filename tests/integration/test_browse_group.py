"""Looking at what waits for one group of a topic, on every broker that can look without taking."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from atleastonce import Broker, ConfigurationError, NotFound, Queue, Source, Topic, connect
from atleastonce.cli.target import Alone
from atleastonce.contract import ACK, RELEASE, Browses, Delivery, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, Message
from atleastonce.parts import part_number

DEADLINE = 20.0


@pytest.fixture
async def broker(backend_url: str) -> AsyncIterator[Broker]:
    async with connect(backend_url) as broker:
        if not isinstance(broker.adapter, Browses):
            pytest.skip(f"{broker.adapter.scheme} does not browse")
        yield broker


async def groups_of(broker: Broker, **settings: object) -> tuple[Source, Source]:
    topic = Topic[object](f"browsed.{uuid.uuid4().hex[:8]}", **{"partitions": 1, **settings})  # type: ignore[arg-type]
    one, other = Source(topic, "one"), Source(topic, "other")
    await broker.declare(Topology(channels=(topic,), sources=(one, other)))
    return one, other


async def send(
    broker: Broker, to: Topic[object] | Source, numbers: Sequence[int], keys: Sequence[str] = ("k",)
) -> None:
    items = [
        Outgoing(to, Message(f"m{n}", b"%d" % n, keys[n % len(keys)].encode(), Headers({"alo-id": f"m{n}"})))
        for n in numbers
    ]
    assert all(outcome.ok for outcome in await broker.adapter.send(items))


async def took(subscription: Subscription, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    end = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} came"
        found += await subscription.receive(count - len(found), 1.0)
    return found


async def handle(broker: Broker, source: Source, count: int) -> None:
    """As a consumer that takes no more than that."""
    subscription = await broker.adapter.subscribe(source, Window(count, 1 << 24), Alone())
    try:
        for delivery in await took(subscription, count):
            await subscription.settle([(delivery, ACK)])
    finally:
        await subscription.close()


async def shown(broker: Broker, source: Source, limit: int = 100) -> list[int]:
    assert isinstance(broker.adapter, Browses)
    return [int(each.message.body) for each in await broker.adapter.browse(source.channel, limit, source.group)]


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        await asyncio.sleep(0.02)  # a broker is asked, with a deadline


async def test_a_group_is_shown_what_it_has_not_settled_and_nothing_is_taken(broker: Broker) -> None:
    one, other = await groups_of(broker)
    topic = one.channel
    assert isinstance(topic, Topic)
    assert await shown(broker, one) == []
    await send(broker, topic, range(10))
    await handle(broker, one, 5)

    async def half() -> bool:
        return await shown(broker, one) == [5, 6, 7, 8, 9]

    await until(half, "half is shown")
    assert await shown(broker, one, 2) == [5, 6]
    assert await shown(broker, other) == list(range(10))
    await handle(broker, one, 5)
    await handle(broker, other, 10)

    async def nothing() -> bool:
        return await shown(broker, one) == [] == await shown(broker, other)

    await until(nothing, "nothing is shown any more")


async def test_what_is_settled_ahead_of_what_is_held_is_not_shown(broker: Broker) -> None:
    one, other = await groups_of(broker)
    topic = one.channel
    assert isinstance(topic, Topic)
    await send(broker, topic, range(20))
    subscription = await broker.adapter.subscribe(one, Window(6, 1 << 24), Alone())
    try:
        held = await took(subscription, 6)
        assert [int(each.message.body) for each in held] == [0, 1, 2, 3, 4, 5]
        assert all(outcome.ok for outcome in await subscription.settle([(held[n], ACK) for n in (1, 3, 5)]))

        async def without() -> bool:
            return not {1, 3, 5} & set(await shown(broker, one))

        await until(without, "what is done is not shown")
        found = await shown(broker, one)
        assert set(range(12, 20)) <= set(found)  # NATS hands out more as soon as there is room
        assert set(found) <= {0, 2, 4, *range(6, 20)}
        assert found == sorted(found)
    finally:
        await subscription.close()
    assert await shown(broker, other) == list(range(20))


async def test_what_comes_again_is_shown(broker: Broker) -> None:
    one, _ = await groups_of(broker)
    topic = one.channel
    assert isinstance(topic, Topic)
    await send(broker, topic, range(4))
    subscription = await broker.adapter.subscribe(one, Window(4, 1 << 24), Alone())
    held = await took(subscription, 4)
    assert all(outcome.ok for outcome in await subscription.settle([(each, RELEASE) for each in held]))
    await subscription.close()

    async def all_of_them() -> bool:
        return await shown(broker, one) == [0, 1, 2, 3]

    await until(all_of_them, "what was given back is shown")


async def test_what_is_for_another_group_alone_is_not_shown(broker: Broker) -> None:
    if not broker.adapter.capabilities.addresses_groups:
        pytest.skip(f"{broker.adapter.scheme} does not address groups")
    one, other = await groups_of(broker)
    topic = one.channel
    assert isinstance(topic, Topic)
    await send(broker, topic, [0, 1])
    await send(broker, other, [2])
    await send(broker, one, [3])
    await send(broker, topic, [4])
    assert await shown(broker, one) == [0, 1, 3, 4]
    assert await shown(broker, other) == [0, 1, 2, 4]
    subscription = await broker.adapter.subscribe(one, Window(4, 1 << 24), Alone())
    held = await took(subscription, 4)
    settled = [(each, RELEASE if n else ACK) for n, each in enumerate(held)]
    assert all(outcome.ok for outcome in await subscription.settle(settled))
    await subscription.close()

    async def the_rest() -> bool:
        return await shown(broker, one) == [1, 3, 4]

    await until(the_rest, "what was given back is shown, over another group's")


async def test_who_has_no_groups_and_which_are_missing(broker: Broker) -> None:
    assert isinstance(broker.adapter, Browses)
    one, _ = await groups_of(broker)
    with pytest.raises(ConfigurationError, match="no groups"):
        await broker.adapter.browse(Queue("work"), 10, "one")
    with pytest.raises(NotFound):
        await broker.adapter.browse(Topic(f"missing.{uuid.uuid4().hex}"), 10, "one")
    if broker.adapter.scheme == "kafka":  # a group is not made: one that never committed begins at the start
        await send(broker, one.channel, [0])  # type: ignore[arg-type]
        assert await shown(broker, Source(one.channel, "nobody")) == [0]
    else:
        with pytest.raises(NotFound):
            await broker.adapter.browse(one.channel, 10, "nobody")


async def test_of_a_channel_in_parts_the_oldest_of_all_parts_are_shown(broker: Broker) -> None:
    if not broker.adapter.capabilities.parts:
        pytest.skip(f"{broker.adapter.scheme} has no parts")
    one, other = await groups_of(broker, partitions=4, single_active=True)
    topic = one.channel
    assert isinstance(topic, Topic)
    keys = [f"k{n}" for n in range(8)]
    assert len({part_number(key.encode(), 4) for key in keys}) > 1
    for n in range(16):  # one by one: the parts' clocks are the server's, in milliseconds on Redis
        await send(broker, topic, [n], keys)
        await asyncio.sleep(0.002)
    assert isinstance(broker.adapter, Browses)
    assert [int(each.body) for each in await broker.adapter.browse(topic, 6)] == [0, 1, 2, 3, 4, 5]
    assert await shown(broker, one, 6) == [0, 1, 2, 3, 4, 5]
    assert await shown(broker, other) == list(range(16))
