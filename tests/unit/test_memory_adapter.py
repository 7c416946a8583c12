"""The memory broker through its adapter: URLs, sharing, groups, windows, and waking without polling."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import pytest

from atleastonce.adapters import open_adapter
from atleastonce.adapters.memory import MemoryAdapter, forget
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    Adapter,
    Backlog,
    Browses,
    Code,
    Deletes,
    Delivery,
    Drift,
    Outgoing,
    Purges,
    Reject,
    Retry,
    Status,
    Subscription,
    Topology,
    Window,
)
from atleastonce.errors import Closed, ConfigurationError, NotFound
from atleastonce.message import Headers, Message, new_id

WIDE = Window(1000, 2**26)


class Silent:
    """A listener that has nothing to do."""

    async def drain(self, streams: Collection[str], grace: float) -> None: ...
    def lost(self, streams: Collection[str] | None) -> None: ...
    def condition(self, state: str, detail: str) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def outgoing(
    channel: Channel[object] | Source, *bodies: str, key: bytes | None = None, delay: float = 0.0
) -> list[Outgoing]:
    return [Outgoing(channel, Message(new_id(), body.encode(), key), delay) for body in bodies]


def bodies(deliveries: Collection[Delivery]) -> list[str]:
    return [delivery.message.body.decode() for delivery in deliveries]


@asynccontextmanager
async def memory(*sources: Source, clock: Callable[[], float] | None = None) -> AsyncIterator[MemoryAdapter]:
    adapter = MemoryAdapter(clock=clock)
    await adapter.open()
    await adapter.declare(Topology(sources=sources))
    yield adapter
    await adapter.close()


async def read(adapter: Adapter, source: Source, window: Window = WIDE) -> Subscription:
    return await adapter.subscribe(source, window, Silent())


QUEUE: Queue[object] = Queue("q")
Q = Source(QUEUE)
TOPIC: Topic[object] = Topic("t")

# ---------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memory://?leese=3s", 'unknown option "leese"; memory has clock, lease, max_message_bytes'),
        ("memory://a,b", "write memory:// or memory://name"),
        ("memory://name:80", "write memory:// or memory://name"),
        ("memory:///path", "write memory:// or memory://name"),
        ("memory://?lease=0s", "memory lease"),
        ("memory://?lease=soon", '"soon" is no duration'),
        ("memory://?max_message_bytes=none", '"none" is no size'),
    ],
)
def test_a_bad_url_is_one_precise_line(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_adapter(url)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_reach_the_capabilities() -> None:
    adapter = open_adapter("memory://?lease=2s", {"max_message_bytes": "1KiB"})
    assert adapter.capabilities.lease_seconds == 2.0
    assert adapter.capabilities.max_message_bytes == 1024
    for ability in (Purges, Deletes, Browses):
        assert isinstance(adapter, ability)


async def test_a_name_is_shared_and_no_name_is_private() -> None:
    name = f"shared-{secrets.token_hex(4)}"
    one, two, other = (open_adapter(url) for url in (f"memory://{name}", f"memory://{name}", "memory://"))
    for adapter in (one, two, other):
        await adapter.open()
    await one.declare(Topology(sources=(Q,)))
    await one.send(outgoing(QUEUE, "x"))
    assert (await two.backlog(Q)).waiting == 1
    assert (await other.backlog(Q)).waiting is None
    await one.close()
    assert (await two.backlog(Q)).waiting == 1  # it outlives the one who made it

    forget(name)
    fresh = open_adapter(f"memory://{name}")
    await fresh.open()
    assert (await fresh.backlog(Q)).waiting is None


async def test_before_open_and_after_close_it_says_so() -> None:
    adapter = MemoryAdapter()
    with pytest.raises(Closed):
        await adapter.send(outgoing(QUEUE, "x"))
    await adapter.open()
    await adapter.declare(Topology(sources=(Q,)))
    subscription = await read(adapter, Q)
    await subscription.close()
    await subscription.close()
    with pytest.raises(Closed):
        await subscription.receive(1, 0)
    assert (await adapter.backlog(Q)).waiting == 0
    await adapter.close()
    backlog = await adapter.backlog(Q)
    assert (backlog.waiting, backlog.detail) == (None, "this memory adapter is not open")


# ------------------------------------------------------------------------------------------------------------ topology


async def test_a_topic_keeps_messages_for_its_first_group_and_later_groups_start_new() -> None:
    first, second = Source(TOPIC, "first"), Source(TOPIC, "second")
    async with memory() as adapter:
        await adapter.declare(Topology(channels=(TOPIC,)))
        await adapter.send(outgoing(TOPIC, "early"))
        await adapter.declare(Topology(sources=(first,)))
        await adapter.declare(Topology(sources=(second,)))
        await adapter.send(outgoing(TOPIC, "late"))
        assert bodies(await (await read(adapter, first)).receive(10, 0)) == ["early", "late"]
        assert bodies(await (await read(adapter, second)).receive(10, 0)) == ["late"]


async def test_a_message_can_be_sent_to_one_group_alone() -> None:
    first, second = Source(TOPIC, "first"), Source(TOPIC, "second")
    async with memory(first, second) as adapter:
        assert await adapter.send(outgoing(second, "for second")) == [OK]
        assert await (await read(adapter, first)).receive(10, 0) == ()
        assert bodies(await (await read(adapter, second)).receive(10, 0)) == ["for second"]
        [outcome] = await adapter.send(outgoing(Source(TOPIC, "nobody"), "x"))
        assert outcome.fault is not None
        assert outcome.fault.code is Code.NOT_FOUND


async def test_drift_is_told_and_nothing_changed() -> None:
    async with memory(Q) as adapter:
        assert await adapter.declare(Topology(channels=(QUEUE, QUEUE), sources=(Q,))) == []
        found = await adapter.declare(
            Topology(channels=(Topic("q"), Queue("q", fifo=True), Queue("single", single_active=True)))
        )
        assert [(drift.name, drift.setting, drift.breaks) for drift in found] == [
            ("q", "kind", True),
            ("q", "fifo", True),
            ("single", "single_active", True),
        ]
        assert await adapter.declare(Topology(channels=(Queue("new"),)), create=False) == [
            Drift("new", "missing", "queue", "", breaks=True)
        ]
        with pytest.raises(ConfigurationError, match="memory has no channel options"):
            await adapter.declare(Topology(channels=(Queue("o", options={"memory": {"ttl": 3}}),)))


async def test_reading_what_was_deleted_raises_even_in_the_middle_of_waiting() -> None:
    async with memory(Q) as adapter:
        subscription = await read(adapter, Q)
        await adapter.send(outgoing(QUEUE, "x"))
        [delivery] = await subscription.receive(1, 0)
        waiting = asyncio.create_task(subscription.receive(1, 30))
        await asyncio.sleep(0)
        await adapter.delete(Topology(sources=(Q,)))
        with pytest.raises(NotFound):
            await waiting
        assert (await subscription.settle([(delivery, ACK)]))[0].status is Status.REJECTED
        with pytest.raises(NotFound):
            await read(adapter, Q)


# -------------------------------------------------------------------------------------------------------------- waking


async def test_a_waiting_reader_wakes_at_a_publish_at_a_due_time_and_at_a_leases_end() -> None:
    adapter = MemoryAdapter(lease=0.15)
    await adapter.open()
    await adapter.declare(Topology(sources=(Q,)))
    subscription = await read(adapter, Q)
    started = time.monotonic()

    waiting = asyncio.create_task(subscription.receive(1, 30))
    await asyncio.sleep(0.01)
    await adapter.send(outgoing(QUEUE, "published"))
    assert bodies(await waiting) == ["published"]
    [redelivered] = await subscription.receive(1, 30)
    assert redelivered.count == 2
    assert 0.15 <= time.monotonic() - started < 5
    assert await subscription.settle([(redelivered, Retry(0.1))]) == [OK]
    [retried] = await subscription.receive(1, 30)
    assert retried.count == 3
    assert time.monotonic() - started >= 0.25


async def test_a_reader_that_waits_for_nothing_wakes_for_another_readers_shorter_wait() -> None:
    async with memory(Q) as adapter:
        first, second = await read(adapter, Q), await read(adapter, Q)
        await adapter.send(outgoing(QUEUE, "x"))
        [held] = await first.receive(1, 0)
        waiting = asyncio.create_task(second.receive(1, 30))
        await asyncio.sleep(0.01)
        await first.settle([(held, Retry(0.05))])
        assert bodies(await asyncio.wait_for(waiting, 5)) == ["x"]


async def test_it_waits_without_looking_again_and_again() -> None:
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic()

    async with memory(Q, clock=clock) as adapter:
        subscription = await read(adapter, Q)
        before = looks
        assert await subscription.receive(1, 0.2) == ()
        assert looks - before <= 3


async def test_an_injected_clock_moves_time_without_sleeping() -> None:
    clock = Clock()
    async with memory(Q, clock=clock) as adapter:
        subscription = await read(adapter, Q)
        await adapter.send(outgoing(QUEUE, "tomorrow", delay=86_400))
        waiting = asyncio.create_task(subscription.receive(1, 30))
        await asyncio.sleep(0)
        clock.now += 86_400
        adapter.broker.wake()
        assert bodies(await waiting) == ["tomorrow"]
        assert (await adapter.backlog(Q)) == Backlog(waiting=0, in_flight=1, delayed=0)


async def test_another_thread_with_a_loop_of_its_own_may_publish() -> None:
    name = f"threads-{secrets.token_hex(4)}"
    adapter = open_adapter(f"memory://{name}")
    await adapter.open()
    await adapter.declare(Topology(sources=(Q,)))
    subscription = await read(adapter, Q)

    async def publish() -> None:
        other = open_adapter(f"memory://{name}")
        await other.open()
        for number in range(100):
            await other.send(outgoing(QUEUE, str(number)))

    thread = threading.Thread(target=lambda: asyncio.run(publish()))
    thread.start()
    got: list[str] = []
    while len(got) < 100:
        found = await subscription.receive(1000, 5)
        assert found
        got += bodies(found)
    thread.join()
    assert got == [str(number) for number in range(100)]


# ------------------------------------------------------------------------------------------------- leases and windows


async def test_the_window_bounds_messages_and_bytes_and_settling_makes_room() -> None:
    async with memory(Q) as adapter:
        await adapter.send(outgoing(QUEUE, *"abcdefgh"))
        narrow = await read(adapter, Q, Window(3, 2**20))
        held = await narrow.receive(10, 0)
        assert bodies(held) == ["a", "b", "c"]
        assert await narrow.receive(10, 0) == ()
        waiting = asyncio.create_task(narrow.receive(10, 5))
        await asyncio.sleep(0)
        await narrow.settle([(held[1], ACK)])
        assert bodies(await waiting) == ["d"]

        tight = await read(adapter, Q, Window(100, 2))
        assert bodies(await tight.receive(10, 0)) == ["e", "f"]
        assert await tight.receive(10, 0) == ()


async def test_ended_leases_count_against_no_window() -> None:
    clock = Clock()
    async with memory(Q, clock=clock) as adapter:
        await adapter.send(outgoing(QUEUE, "a", "b"))
        narrow = await read(adapter, Q, Window(2, 2**20))
        assert bodies(await narrow.receive(10, 0)) == ["a", "b"]
        clock.now += 31
        assert [(d.message.body, d.count) for d in await narrow.receive(10, 0)] == [(b"a", 2), (b"b", 2)]


async def test_a_lease_that_went_to_another_is_stale_and_marked_lost() -> None:
    clock = Clock()
    async with memory(Q, clock=clock) as adapter:
        await adapter.send(outgoing(QUEUE, "x", "y"))
        first, second = await read(adapter, Q), await read(adapter, Q)
        x, y = await first.receive(2, 0)
        clock.now += 31
        assert await first.settle([(y, ACK)]) == [OK]  # over, but nobody else has it: still ours
        [again] = await second.receive(5, 0)
        [outcome] = await first.settle([(x, ACK)])
        assert outcome.fault is not None
        assert outcome.fault.code is Code.STALE
        assert x.lost
        assert not (await first.extend([x], 10))[0].ok
        assert await second.settle([(again, ACK)]) == [OK]
        assert (await adapter.backlog(Q)).waiting == 0


async def test_a_reject_is_refused_because_there_is_no_net_and_the_lease_stays() -> None:
    async with memory(Q) as adapter:
        await adapter.send(outgoing(QUEUE, "x"))
        subscription = await read(adapter, Q)
        [delivery] = await subscription.receive(1, 0)
        [outcome] = await subscription.settle([(delivery, Reject("no"))])
        assert outcome.status is Status.REJECTED
        assert not delivery.lost
        assert await subscription.settle([(delivery, ACK)]) == [OK]


async def test_a_released_message_returns_to_its_place_uncounted() -> None:
    async with memory(Q) as adapter:
        await adapter.send(outgoing(QUEUE, "a", "b", "c"))
        subscription = await read(adapter, Q)
        [a] = await subscription.receive(1, 0)
        await subscription.settle([(a, RELEASE)])
        again = await subscription.receive(5, 0)
        assert bodies(again) == ["a", "b", "c"]
        assert [delivery.count for delivery in again] == [1, 1, 1]


async def test_purge_leaves_what_is_held_and_counts_the_rest() -> None:
    async with memory(Q) as adapter:
        await adapter.send([*outgoing(QUEUE, "held", "waiting"), *outgoing(QUEUE, "delayed", delay=60)])
        subscription = await read(adapter, Q)
        [held] = await subscription.receive(1, 0)
        assert await adapter.purge(QUEUE) == 2
        assert await subscription.settle([(held, ACK)]) == [OK]
        with pytest.raises(NotFound):
            await adapter.purge(Queue("nothing"))


async def test_browse_takes_nothing() -> None:
    first, second = Source(TOPIC, "first"), Source(TOPIC, "second")
    async with memory(first, second) as adapter:
        await adapter.send(outgoing(TOPIC, "a", "b", "c"))
        [a] = await (await read(adapter, first)).receive(1, 0)
        assert bodies(await adapter.browse(TOPIC, 10)) == ["a", "b", "c"]  # `second` still has "a"
        assert bodies(await adapter.browse(TOPIC, 2)) == ["a", "b"]
        assert a.count == 1
        assert (await adapter.backlog(second)).waiting == 3


async def test_it_forgets_what_is_settled() -> None:
    """Settled messages leave nothing behind in heaps and lanes, however long the leases."""
    fifo: Queue[object] = Queue("fifo", fifo=True)
    async with memory(Q, Source(fifo)) as adapter:
        for channel in (QUEUE, fifo):
            subscription = await read(adapter, Source(channel))
            for _ in range(50):
                await adapter.send([item for n in range(100) for item in outgoing(channel, "x", key=b"%d" % n)])
                await subscription.settle([(d, ACK) for d in await subscription.receive(100, 0)])
            state = adapter.broker.state(Source(channel))
            await subscription.receive(1, 0)
            assert len(state._timed) + len(state._ready) + len(state._lanes) + len(state._live) < 500


async def test_an_id_in_the_headers_is_the_messages_id() -> None:
    async with memory(Q) as adapter:
        await adapter.send(
            [
                Outgoing(QUEUE, Message("outer", b"", headers=Headers({"alo-id": "inner"}))),
                Outgoing(QUEUE, Message("plain", b"", b"")),
            ]
        )
        named, plain = await (await read(adapter, Q)).receive(2, 0)
        assert (named.message.id, plain.message.id) == ("inner", "plain")
        assert named.message.key is None
        assert plain.message.key == b""
        assert abs((plain.message.published_at or 0) - time.time()) < 5
