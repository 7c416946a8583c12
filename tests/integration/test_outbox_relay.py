"""Relays: what the broker refuses, answers late or never, who is away, who is killed; several at once."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
import time
import uuid
from asyncio.subprocess import PIPE, Process
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, until

from atleastonce import (
    Broker,
    Context,
    Outbox,
    PostgresStore,
    Queue,
    RelayOptions,
    Service,
    SQLiteStore,
    StoreUnavailable,
    connect,
)
from atleastonce.contract import Code, Outcome, Outgoing, rejected, unknown
from atleastonce.patterns.outbox import Relay, counting
from atleastonce.stores import OutboxStore
from atleastonce.stores.outbox import OutboxRow, OutboxStats, slot_of
from atleastonce.testing.brokers import killable

MakeQueue = Callable[[str], Queue[Any]]
CHILD = Path(__file__).parent / "relay_child.py"


def outbox_of(database: Database) -> Outbox:
    store = database.make()
    assert isinstance(store, OutboxStore)
    return Outbox(store)


async def write(outbox: Outbox, channel: Queue[Any], numbers: Sequence[int], keys: int = 3) -> None:
    """One transaction; order ``n`` has id ``m<n>`` and key ``n % keys``."""
    async with outbox.transaction() as tx:
        await outbox.publish_many(
            tx,
            channel,
            [Order(n) for n in numbers],
            id=lambda order: f"m{order.n}",
            key=lambda order: f"{order.n % keys}" if keys else None,
        )


class Reader:
    """Writes down what reaches a queue, in order."""

    def __init__(self, url: str, channel: Queue[Any]) -> None:
        self.seen: list[int] = []
        self.service = Service(f"reader-{uuid.uuid4().hex[:6]}", broker=url)

        @self.service.consumer(channel, concurrency=1)
        async def read(order: Order, ctx: Context) -> None:
            assert ctx.message.id == f"m{order.n}"
            self.seen.append(order.n)

    def ordered(self, keys: int) -> bool:
        """Whether the first arrivals of each key came in order."""
        found = defaultdict(list)
        for n in dict.fromkeys(self.seen):
            found[n % keys].append(n)
        return all(each == sorted(each) for each in found.values())

    @property
    def repeated(self) -> list[int]:
        return [n for n, count in Counter(self.seen).items() if count > 1]


Answer = Callable[[Outgoing], Outcome | None]


def answering(broker: Broker, answer: Answer) -> Callable[[Sequence[Outgoing]], Awaitable[list[Outcome]]]:
    """The broker, some of whose answers are replaced. ``rejected`` ones are not sent; of ``unknown`` ones the reply is lost."""

    async def send(items: Sequence[Outgoing]) -> list[Outcome]:
        said = [answer(item) for item in items]
        sent = [
            item
            for item, each in zip(items, said, strict=True)
            if each is None or each.fault is None or not each.fault.detail
        ]
        real = iter(await broker.send(sent))
        found = []
        for item, each in zip(items, said, strict=True):
            outcome = next(real) if item in sent else None
            found.append(each or outcome or rejected(Code.INTERNAL))
        return found

    return send


NOT_SENT = "not sent"


def number(item: Outgoing) -> int:
    return int(item.message.id[1:])


@pytest.mark.parametrize("blocking", [False, True])
async def test_poison_is_parked_and_its_key_waits_or_goes_on(
    queue: MakeQueue, database: Database, blocking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    channel, url, refused = queue("orders"), f"memory://{uuid.uuid4().hex}", {4, 7}
    reader, options = Reader(url, channel), RelayOptions(poll="20ms", blocking=blocking, batch=5)

    def answer(item: Outgoing) -> Outcome | None:
        return rejected(Code.TOO_LARGE, f"{NOT_SENT}: postgresql://u:secret@h/x") if number(item) in refused else None

    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:
        relay = Relay(outbox.store, answering(broker, answer), options=options)
        await write(outbox, channel, range(12))
        relay.start()
        expected = {*range(12)} - refused - ({7, 10} if blocking else set())
        await until(lambda: set(reader.seen) >= expected and relay.counts["parked"] >= len(refused) - blocking)
        if blocking:  # 4 and 7 have one key: 7 was never tried
            refused.discard(7)
        stats = await outbox.store.outbox_stats()
        assert stats.parked == len(refused)
        parked = await outbox.store.outbox_parked()
        assert [row.id for row in parked] == [f"m{n}" for n in sorted(refused)]
        assert "too-large" in parked[0].reason
        assert "secret" not in parked[0].reason + caplog.text
        assert sorted(reader.seen) == sorted(expected)
        ids = [row.id for row in parked]
        refused.clear()
        assert await outbox.store.outbox_redrive(ids) == len(ids)
        await until(lambda: len(reader.seen) == 12)
        await relay.emptied()
        assert await relay.stop(5)
        if blocking:
            assert reader.ordered(3)


async def test_a_lost_reply_repeats_the_same_message_and_nothing_else(queue: MakeQueue, database: Database) -> None:
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    lost = Counter({5: 2, 11: 1})
    reader = Reader(url, channel)

    def answer(item: Outgoing) -> Outcome | None:
        if lost[number(item)] > 0:
            lost[number(item)] -= 1
            return unknown(Code.TIMEOUT)
        return None

    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:
        relay = Relay(outbox.store, answering(broker, answer), options=RelayOptions(poll="20ms", batch=4))
        relay.start()
        await write(outbox, channel, range(20))
        await until(lambda: len(reader.seen) == 23)
        await relay.emptied()
        await relay.stop(5)
    assert Counter(reader.seen) == Counter([*range(20), 5, 5, 11])
    assert reader.ordered(3)
    assert relay.counts["published"] == 20
    assert relay.counts["repeated"] == 3


async def test_one_that_is_refused_for_a_while_is_not_overtaken_by_its_key(
    queue: MakeQueue, database: Database
) -> None:
    """A queue that is full for a moment takes a later one of the same list: the trap of publishing a key's rows together."""
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    full = Counter(dict.fromkeys((1, 2, 6, 9), 2))
    reader = Reader(url, channel)

    def answer(item: Outgoing) -> Outcome | None:
        if full[number(item)] > 0:
            full[number(item)] -= 1
            return unknown(Code.OVERLOADED, NOT_SENT)
        return None

    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:
        relay = Relay(outbox.store, answering(broker, answer), options=RelayOptions(poll="20ms", batch=50))
        relay.start()
        await write(outbox, channel, range(15))
        await until(lambda: len(reader.seen) == 15)
        await relay.stop(5)
    assert reader.ordered(3)
    assert reader.repeated == []


async def test_one_that_is_to_be_sent_again_is_not_overtaken_by_what_was_being_read(
    queue: MakeQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the table finds the second row while the first is out. Its answer arrives after the first was refused."""
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    reader, read, refused = Reader(url, channel), asyncio.Event(), asyncio.Event()

    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:
        look = outbox.store.outbox_fetch

        async def slow_look(*args: Any, **options: Any) -> list[OutboxRow]:
            rows = await look(*args, **options)
            if not read.is_set() and any(row.outgoing and number(row.outgoing) == 1 for row in rows):
                read.set()
                await until(lambda: relay.counts["repeated"] > 0)
            return rows

        async def send(items: Sequence[Outgoing]) -> list[Outcome]:
            if not refused.is_set():
                refused.set()
                await read.wait()
                return [unknown(Code.OVERLOADED, NOT_SENT) for _ in items]
            return list(await broker.send(items))

        monkeypatch.setattr(outbox.store, "outbox_fetch", slow_look)
        relay = Relay(outbox.store, send, options=RelayOptions(poll="20ms"))
        await write(outbox, channel, [0], keys=1)
        relay.start()
        await asyncio.wait_for(refused.wait(), 20)
        await write(outbox, channel, [1], keys=1)
        await until(lambda: len(reader.seen) == 2)
        await relay.emptied()
        await relay.stop(5)
    assert reader.seen == [0, 1]


async def test_a_broker_that_takes_most_of_each_list_is_not_left_alone_for_longer_and_longer(
    queue: MakeQueue, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    refused = Counter(n for n in range(200) if n % 10 == 7)
    reader = Reader(url, channel)

    def answer(item: Outgoing) -> Outcome | None:
        if refused[number(item)] > 0:
            refused[number(item)] -= 1
            return unknown(Code.OVERLOADED, NOT_SENT)
        return None

    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:
        relay = Relay(outbox.store, answering(broker, answer), options=RelayOptions(poll="20ms", batch=20))
        await write(outbox, channel, range(200), keys=200)
        relay.start()
        await until(lambda: len(reader.seen) == 200, within=40)
        await relay.emptied()
        await relay.stop(5)
    assert relay.counts["repeated"] == 20
    assert "takes not all messages" in caplog.text
    assert {float(each) for each in re.findall(r"trying again in ([\d.]+) s", caplog.text)} == {0.1}


async def test_a_channel_that_is_missing_holds_up_no_other(
    queue: MakeQueue, database: Database, rabbitmq_url: str
) -> None:
    """On a broker where nothing may be created: it waits, and says so; once it is made, all leave, in order."""
    there, missing = queue("there"), queue("missing")
    reader, late = Reader(rabbitmq_url, there), Reader(rabbitmq_url, missing)
    async with outbox_of(database) as outbox, connect(rabbitmq_url, create=False) as broker, reader.service:
        relay = Relay(outbox.store, broker.send, options=RelayOptions(poll="20ms", batch=5))
        relay.start()
        await write(outbox, missing, range(100, 110))
        await write(outbox, there, range(10))
        await until(lambda: len(reader.seen) == 10)
        assert relay.status().state == "waiting"
        assert missing.name in relay.status().detail
        assert (await outbox.store.outbox_stats()).parked == 0
        tries = relay.counts["repeated"]
        await asyncio.sleep(0.5)
        assert relay.counts["repeated"] - tries < 60, "no hot loop"
        async with late.service:
            await until(lambda: len(late.seen) == 10, within=40)
            await relay.emptied()
        assert relay.status().state == "running"
        await relay.stop(5)
    assert late.ordered(3)


async def test_postgresql_wakes_a_relay_that_waits(queue: MakeQueue, postgres_database: Database) -> None:
    """Long before it would look by itself."""
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    reader = Reader(url, channel)
    async with outbox_of(postgres_database) as outbox, connect(url) as broker, reader.service:
        relay = Relay(outbox.store, broker.send, options=RelayOptions(poll="60s"))
        relay.start()
        await relay.started.wait()
        await write(outbox, channel, [0])
        await until(lambda: len(reader.seen) == 1)
        await asyncio.sleep(1.5)  # its waits have grown by now: 10 ms, 20 ms, ... 640 ms
        begun = time.monotonic()
        for n in range(1, 4):
            await write(outbox, channel, [n])
            await until(lambda n=n: len(reader.seen) == n + 1)  # type: ignore[misc]
            await asyncio.sleep(1.5)
        assert time.monotonic() - begun < 20
        await relay.stop(5)


async def test_several_relays_share_the_work_and_keep_each_keys_order(queue: MakeQueue, database: Database) -> None:
    """They come and go while rows are written."""
    channel, url, keys, total = queue("orders"), f"memory://{uuid.uuid4().hex}", 40, 2000
    reader = Reader(url, channel)
    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:

        async def relaying() -> tuple[OutboxStore, Relay]:
            store = database.make()
            assert isinstance(store, OutboxStore)
            await store.open()
            relay = Relay(store, broker.send, options=RelayOptions(poll="20ms", batch=50, lease="1s"))
            relay.start()
            return store, relay

        first = [await relaying(), await relaying(), await relaying()]
        await until(lambda: all(relay.status().slots for _, relay in first))
        for begin in range(0, total, 100):
            await write(outbox, channel, range(begin, begin + 100), keys)
            if begin == 1000:
                store, relay = first.pop()
                assert await relay.stop(5)
                await store.close()
        await until(lambda: len(set(reader.seen)) == total)
        await first[0][1].emptied()
        published = [relay.counts["published"] for _, relay in first]
        for store, relay in first:
            await relay.stop(5)
            await store.close()
    assert reader.repeated == []
    assert reader.ordered(keys)
    assert all(published), "each has done some"
    assert (relay.status().state, relay.status().slots >= 0) == ("stopped", True)


# ------------------------------------------------------------------------------------------------------- killed and away


async def child(database: Database, broker: str, die: int) -> Process:
    store = f"sqlite:///{database.where}" if database.kind == "sqlite" else database.where
    orders = {
        "store": store,
        "options": {"prefix": database.table.replace("effect", "alo")},
        "broker": broker,
        "lease": 1.5,
        "die": die,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), json.dumps(orders), stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
    return process


@pytest.mark.chaos
@pytest.mark.parametrize("backend_url", ["sqlite", "kafka", "rabbitmq"], indirect=True)
async def test_killed_between_publish_and_mark(backend_url: str, queue: MakeQueue, database: Database) -> None:
    """Three relays, two of which kill themselves when the broker has confirmed and the rows are still there. What they had
    published is published again, under the same ids; nothing is lost; no key's first arrivals change their order."""
    queue_ = queue("orders")
    channel: Queue[Any] = Queue(queue_.name, partitions=1)  # so that arrival is one order
    keys, total = 10, 600
    reader = Reader(backend_url, channel)
    async with outbox_of(database) as outbox, reader.service:
        relays = [await child(database, backend_url, die) for die in (4, 6, 0)]
        for begin in range(0, total, 50):
            await write(outbox, channel, range(begin, begin + 50), keys)
        await until(lambda: len(set(reader.seen)) == total, within=60)
        codes = [await asyncio.wait_for(relay.wait(), 60) for relay in relays[:2]]
        assert codes == [-9, -9]
        end = time.monotonic() + 30
        while (await outbox.store.outbox_stats()).waiting:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        last = relays[2]
        assert last.stdin is not None
        last.stdin.close()
        assert await asyncio.wait_for(last.wait(), 30) == 0
        assert (await outbox.store.outbox_stats()).relays <= 2, "the killed ones' leases end by themselves"
    assert sorted(set(reader.seen)) == list(range(total))
    assert 0 < len(reader.repeated) <= 2 * 2 * 20 + 40, "no more than what was under way"
    assert reader.ordered(keys)


@pytest.mark.chaos
async def test_a_store_that_goes_away_is_waited_for(queue: MakeQueue, caplog: pytest.LogCaptureFixture) -> None:
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    reader = Reader(url, channel)
    caplog.set_level(logging.WARNING, "atleastonce")
    async with killable("postgres") as server, connect(url) as broker, reader.service:
        store = PostgresStore(server.url, create=True, timeout="2s", connect_timeout="2s")
        async with Outbox(store) as outbox:
            relay = Relay(store, broker.send, options=RelayOptions(poll="50ms", lease="2s"))
            relay.start()
            await write(outbox, channel, range(30))
            await until(lambda: len(reader.seen) == 30)
            await server.kill()
            await until(lambda: "store" in relay.status().detail)
            assert relay.status().state == "waiting"
            logged = len(caplog.records)
            await asyncio.sleep(1.0)
            assert len(caplog.records) - logged < 10, "no hot loop"
            await server.start()
            await write_when_back(outbox, channel)
            await until(lambda: {*range(30, 60)} <= set(reader.seen), within=40)
            await until(lambda: relay.status().state == "running")
            await relay.emptied()
            assert await relay.stop(5)
    assert set(reader.seen) == {*range(60)}
    assert reader.ordered(3)


async def write_when_back(outbox: Outbox, channel: Queue[Any]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            return await write(outbox, channel, range(30, 60))
        except (StoreUnavailable, psycopg.Error):
            assert time.monotonic() < end
            await asyncio.sleep(0.2)


@pytest.mark.chaos
@pytest.mark.timeout(240)  # RabbitMQ boots twice
async def test_a_broker_that_goes_away_is_waited_for(queue: MakeQueue, tmp_path: Path) -> None:
    """Frozen, then killed and restarted: the relay says so, and nothing is lost."""
    channel = queue("orders")
    outbox = Outbox(SQLiteStore(tmp_path / "shop.db"), relay=RelayOptions(poll="50ms", batch=20))
    async with killable("rabbitmq") as server:
        relaying = Service("relay", broker=server.url, outbox=outbox)
        async with relaying:
            await relaying.broker.declare(channel)
            declared = time.monotonic()
            await write(outbox, channel, range(40))
            await until(lambda: relaying.status()[-1].counts["published"] == 40, relaying)
            await server.pause()
            await write(outbox, channel, range(40, 80))
            await until(lambda: "no confirmation for" in relaying.status()[-1].detail, relaying)
            assert relaying.status()[-1].state == "waiting"
            # RabbitMQ writes down that it has a quorum queue seconds after it was declared; one that is killed before that confirms
            # nothing to the queue after its restart.
            await asyncio.sleep(max(0.0, declared + 9 - time.monotonic()))
            await server.resume()
            await until(lambda: relaying.status()[-1].counts["published"] == 80, relaying, within=60)
            await server.kill()
            await write(outbox, channel, range(80, 120))
            await until(lambda: relaying.status()[-1].state == "waiting", relaying, within=60)
            assert relaying.status()[-1].counts["published"] == 80
            await server.start()
            await until(lambda: relaying.status()[-1].counts["published"] == 120, relaying, within=90)
        reader = Reader(server.url, channel)
        async with reader.service:
            await until(lambda: set(reader.seen) == {*range(120)}, reader.service)
    assert reader.ordered(3)


async def test_rows_that_are_given_to_nobody_are_told(
    queue: MakeQueue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's SQL has written a slot that there is not. A relay is never given such rows, and must not look as if all were
    well."""
    monkeypatch.setattr(counting, "_COUNT_SECONDS", 0.1)
    outbox, channel = outbox_of(database), queue("orders")
    broker = connect(f"memory://{uuid.uuid4().hex}")
    async with outbox, broker:
        await write(outbox, channel, range(3))
        table = database.table.replace("effect", "alo") + "_outbox"
        database.query(f"UPDATE {table} SET slot = 99")
        relay = Relay(outbox.store, broker.send, options=RelayOptions(poll="20ms"))
        relay.start()
        try:
            await until(lambda: relay.status().state == "waiting")
            assert "3 rows wait" in relay.status().detail
            assert "gives this relay none" in relay.status().detail
            database.query(f"UPDATE {table} SET slot = 0")
            await until(lambda: relay.status().state == "running" and relay.status().counts["published"] == 3)
        finally:
            await relay.stop(5)


async def test_a_count_that_takes_long_costs_no_slots(queue: MakeQueue, tmp_path: Path) -> None:
    """Of a long backlog the count takes longer than the slots' lease, and the relay needs to renew that."""
    database = Database("sqlite", str(tmp_path / "shop.db"))
    outbox, channel = outbox_of(database), queue("orders")
    store, url = outbox.store, f"memory://{uuid.uuid4().hex}"
    table = database.table.replace("effect", "alo") + "_outbox_slot"

    async def stats() -> Any:
        await asyncio.Event().wait()

    store.outbox_stats = stats  # type: ignore[method-assign]
    reader = Reader(url, channel)
    async with outbox, connect(url) as broker, reader.service:
        relay = Relay(store, broker.send, options=RelayOptions(poll="20ms", lease="1s"))
        relay.start()
        try:
            leases: set[int] = set()

            def renewed() -> bool:
                leases.add(database.query(f"SELECT max(until) FROM {table}")[0][0])
                return len(leases) > 4

            await until(renewed)  # more than one lease
            await write(outbox, channel, range(3))
            await until(lambda: len(reader.seen) == 3, reader.service)
        finally:
            await relay.stop(5)


async def test_a_row_whose_text_is_none_holds_up_no_other(queue: MakeQueue, tmp_path: Path) -> None:
    """SQLite keeps whatever somebody's SQL writes, also what is no UTF-8."""
    database = Database("sqlite", str(tmp_path / "shop.db"))
    outbox, channel, url = outbox_of(database), queue("orders"), f"memory://{uuid.uuid4().hex}"
    table, reader = database.table.replace("effect", "alo") + "_outbox", Reader(url, channel)
    async with outbox, connect(url) as broker, reader.service:
        await write(outbox, channel, range(6))
        for seq, column in enumerate(("id", "destination", "headers"), 1):
            database.query(f"UPDATE {table} SET {column} = CAST(x'5bff' AS TEXT) WHERE seq = {seq}")
        relay = Relay(outbox.store, broker.send, options=RelayOptions(poll="20ms"))
        relay.start()
        try:
            await until(lambda: sorted(reader.seen) == [3, 4, 5], reader.service)
            await until(lambda: relay.status().counts["parked"] == 3)
        finally:
            await relay.stop(5)
        parked = await outbox.store.outbox_parked()
        assert [row.seq for row in parked] == [1, 2, 3]
        assert all("cannot be read" in row.reason for row in parked)


async def test_on_sqlite_a_count_that_takes_long_holds_up_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of millions of rows it takes seconds."""
    begun, go_on, relay = threading.Event(), threading.Event(), b"r" * 16

    def slow(*counts: Any) -> OutboxStats:
        begun.set()
        go_on.wait(30)
        return OutboxStats(*counts)

    monkeypatch.setattr("atleastonce.stores.sqlite.outbox.OutboxStats", slow)
    async with Outbox(store := SQLiteStore(tmp_path / "shop.db")) as outbox:
        await write(outbox, Queue("orders"), [0])
        await store.outbox_hold(relay, "relay", 60)
        counting = asyncio.create_task(store.outbox_stats())
        try:
            await until(begun.is_set)
            rows = await asyncio.wait_for(store.outbox_fetch(relay, range(8), 10, held=(), paused=()), 10)
            await asyncio.wait_for(store.outbox_remove(rows), 10)
        finally:
            go_on.set()
        assert ([row.id for row in rows], (await counting).waiting) == (["m0"], 1)


async def test_a_long_backlog_of_one_key_leaves_the_others_their_turn(queue: MakeQueue, database: Database) -> None:
    """Its rows come first by number, and leave one at a time: of each look they have a part. Not those of its own slot."""
    channel, url = queue("orders"), f"memory://{uuid.uuid4().hex}"
    reader, hot, where = Reader(url, channel), range(300), f"queue:{channel.name}"
    others = [n for n in range(300, 530) if slot_of(where, b"%d" % n) != slot_of(where, b"hot")]
    async with outbox_of(database) as outbox, connect(url) as broker, reader.service:
        relay = Relay(outbox.store, broker.send, options=RelayOptions(poll="20ms", batch=20))
        async with outbox.transaction() as tx:
            await outbox.publish_many(
                tx,
                channel,
                [Order(n) for n in (*hot, *others)],
                id=lambda order: f"m{order.n}",
                key=lambda order: "hot" if order.n in hot else f"{order.n}",
            )
        relay.start()
        await until(lambda: set(others) <= set(reader.seen), within=60)
        before = len([n for n in reader.seen if n in hot])
        await until(lambda: len(reader.seen) == len(hot) + len(others), within=60)
        await relay.stop(5)
    assert before < 150
    assert [n for n in reader.seen if n in hot] == list(hot)
