"""Hot keys of what waits: which have a name, of how many their shares are, how often a look is made, and how they are printed."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from rich.console import Console

from atleastonce import Message, Queue, Service, Source, connect
from atleastonce.adapters.memory import MemoryAdapter
from atleastonce.channels import Channel
from atleastonce.cli.lag_report import report
from atleastonce.contract import Delivery, Outgoing, Topology
from atleastonce.errors import BrokerUnavailable
from atleastonce.lag import Lag, Looks, Place, Sample, measure, named, places
from atleastonce.patterns.hot_keys import KeyShare, hot_among, standing_out
from atleastonce.patterns.ordering import message_key


class Order(msgspec.Struct):
    customer: str


class Asked(MemoryAdapter):
    """A memory broker that notes how often it is looked at, takes its time for it, and may be in trouble."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.limits: list[int] = []
        self.takes = 0.0
        self.trouble: Exception | None = None
        self.opening = asyncio.Event()
        self.opening.set()

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        self.limits.append(limit)
        await self.opening.wait()
        self.clock.now += self.takes
        if self.trouble is not None:
            raise self.trouble
        return await super().browse(channel, limit, group)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


WORK = Queue[Any]("work")
MAIN = Place(Source(WORK), None, "main", message_key)


@asynccontextmanager
async def asked(keys: Sequence[str | None], body: bytes = b"{}") -> AsyncIterator[tuple[Asked, Clock]]:
    clock = Clock()
    adapter = Asked(clock)
    await adapter.open()
    await adapter.declare(Topology(channels=(WORK,), sources=(Source(WORK),)))
    await adapter.send([Outgoing(WORK, Message(f"m{n}", body, key and key.encode())) for n, key in enumerate(keys)])
    yield adapter, clock
    await adapter.close()


# ------------------------------------------------------------------------------------------------------------- the rule


def test_a_key_stands_out_from_a_fiftieth_on_and_five_have_a_name() -> None:
    assert standing_out([("a", 0.019), ("b", 0.02), ("c", 0.5)]) == ["c", "b"]
    assert standing_out((str(n), n / 100) for n in range(2, 12)) == ["11", "10", "9", "8", "7"]


def test_shares_are_of_all_messages_with_and_without_keys() -> None:
    keys = [b"hot"] * 40 + [b"warm"] * 3 + [b"cold"] * 1 + [None] * 50 + [b"%d" % n for n in range(6)]
    assert hot_among(keys) == [KeyShare("b'hot'", 0.4), KeyShare("b'warm'", 0.03)]
    assert hot_among([None] * 10) == []
    assert hot_among([]) == []


def test_of_a_few_messages_not_every_key_is_hot() -> None:
    assert hot_among([b"a", b"b", b"c"]) == []
    assert hot_among([b"a", b"b", b"a"]) == [KeyShare("b'a'", 0.667)]


# --------------------------------------------------------------------------------------------------------------- a look


@pytest.mark.parametrize(
    ("ordered", "hot"),
    [(None, "b'key'"), (True, "b'key'"), ("customer", "'field'"), (lambda o: o.customer.upper(), "'FIELD'")],
)
async def test_the_key_is_that_by_which_the_consumer_keeps_order(ordered: Any, hot: str) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    service = Service("worker", broker=url)
    work = Queue[Any]("work", Order, fifo=True, partitions=1)

    @service.consumer(work, ordered=ordered)
    async def handle(order: Order) -> None: ...

    async with connect(url) as broker:
        (consumer,) = service.consumers
        await broker.declare(consumer.topology(broker.adapter.capabilities))
        await broker.publish_many(work, [Order("field")] * 30, key=lambda _: "key")
        await broker.publish_many(work, [Order(f"f{n}") for n in range(30)], key=lambda order: f"k-{order.customer}")
        where = places(consumer, broker.adapter.capabilities)
        looks = Looks(broker.adapter, where)
        main, *others = await looks.known(None)
    assert main is not None
    assert main.hot == [KeyShare(hot, 0.5)]
    assert main.messages == 60
    assert others == [None] * len(others)


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
async def test_a_message_whose_key_cannot_be_read_has_none(error: type[BaseException]) -> None:
    def fails(delivery: Delivery) -> Any:
        if delivery.key == b"bad":
            raise error
        return delivery.key

    async with asked(["bad"] * 10 + ["good"] * 10) as (adapter, clock):
        (sample,) = await Looks(adapter, [Place(Source(WORK), None, "main", fails)], clock).known(None)
    assert sample == Sample([KeyShare("b'good'", 0.5)], 20, 1000.0)


async def test_a_thousand_are_looked_at_of_small_ones_and_fewer_of_large_ones() -> None:
    async with asked(["a"] * 1500) as (adapter, clock):
        (sample,) = await Looks(adapter, [MAIN], clock).known(None)
        assert sample is not None
        assert sample.messages == 1000
        assert adapter.limits == [100, 1000]
    async with asked(["a"] * 300, b"x" * 100_000) as (adapter, clock):
        (sample,) = await Looks(adapter, [MAIN], clock).known(None)
        assert sample is not None
        assert 100 < sample.messages < 170
    async with asked(["a"] * 50) as (adapter, clock):  # all that waits: no second look
        await Looks(adapter, [MAIN], clock).known(None)
        assert adapter.limits == [100]


async def test_looking_takes_a_fiftieth_of_the_time() -> None:
    async with asked(["a"] * 10) as (adapter, clock):
        looks = Looks(adapter, [MAIN], clock)
        adapter.takes = 2.0
        await looks.known(None)
        clock.now += 99.0
        await looks.known(None)
        assert len(adapter.limits) == 1
        clock.now += 1.0
        adapter.takes, adapter.trouble = 60.0, BrokerUnavailable("no answer")
        (sample,) = await looks.known(None)
        assert len(adapter.limits) == 2
        assert sample is not None
        assert (sample.hot, sample.detail) == (None, "hot keys of work: no answer")
        clock.now += 299.0
        await looks.known(None)
        assert len(adapter.limits) == 2
        clock.now += 1.0
        adapter.trouble = None
        (sample,) = await looks.known(None)
        assert sample is not None
        assert sample.hot == [KeyShare("b'a'", 1.0)]


async def test_counts_do_not_wait_for_a_look_that_takes_long() -> None:
    async with asked(["a"] * 10) as (adapter, clock):
        looks = Looks(adapter, [MAIN], clock)
        adapter.opening.clear()
        (sample,) = await looks.known(0.01)
        assert sample is not None
        assert (sample.hot, sample.detail) == (None, "still looking for hot keys")
        (row,) = named(await measure(adapter, [MAIN]), [sample], clock())
        assert (row.waiting, row.hot_keys, row.detail) == (10, None, "still looking for hot keys")
        adapter.opening.set()
        (sample,) = await looks.known(None)
        assert sample is not None
        assert sample.hot == [KeyShare("b'a'", 1.0)]
        assert len(adapter.limits) == 1
        await looks.close()
        adapter.opening.clear()
        clock.now += 1000
        await looks.known(0.01)
        await looks.close()  # also one that is under way


async def test_a_row_tells_of_how_many_and_how_long_ago() -> None:
    row = Lag("work", None, "main", 5000, detail="counts are late")
    sample = Sample([KeyShare("b'a'", 0.5)], 1000, 10.0)
    (found,) = named([row], [sample], 12.5)
    assert (found.hot_keys, found.sampled, found.sampled_age_s) == ([KeyShare("b'a'", 0.5)], 1000, 2.5)
    assert found.detail == "counts are late"
    (found,) = named([row], [Sample(detail="cannot look")], 12.5)
    assert (found.hot_keys, found.sampled, found.sampled_age_s) == (None, None, None)
    assert found.detail == "counts are late; cannot look"
    assert named([row], [None], 12.5) == [row]


# ------------------------------------------------------------------------------------------------------------- on paper


def printed(rows: Sequence[Lag], samples: Sequence[Sample | None], now: float = 0.0) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False, markup=False, emoji=False).print(report(rows, samples, now))
    return out.getvalue()


def test_keys_are_printed_safely() -> None:
    class Evil:
        def __repr__(self) -> str:
            return "\x1b[2J\nred"

    keys = [b"\x1b[31mred\x07"] * 3 + ["[bold]x[/y]\u202e"] * 3 + [b"k" * 1_000_000] * 3
    evil = Evil()
    text = printed([Lag("work", None, "main", 12)], [Sample(hot_among([*keys, evil, evil, evil]), 12)])
    assert all(c == "\n" or c.isprintable() for c in text)
    assert "[bold]x[/y]" in text
    assert max(map(len, text.splitlines())) <= 200
    assert r"\x1b[2J\nred" in text
    assert "the oldest 12" in text
    assert "25.0%" in text


def test_what_is_said_where_there_is_no_key_to_name() -> None:
    rows = [
        Lag("orders", "billing", "main", 7),
        Lag("audit", None, "main", 0),
        Lag("orders.billing.dlq", "billing", "dead-letter", 0),
    ]
    text = printed(rows, [Sample([], 7, 0.0), Sample([], 0, 0.0), None], now=40.0)
    assert "orders (billing): no key stands out among the oldest 7, 40s ago" in text
    assert text.count("stands out") == 1
    text = printed(rows, [Sample(detail="rabbitmq does not show"), Sample(detail="rabbitmq does not show"), None])
    assert text.count("rabbitmq does not show") == 1
