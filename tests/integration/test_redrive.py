"""Dead letters and their way back, alike on every broker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from atleastonce import (
    Broker,
    Context,
    DeadLetterPolicy,
    DeadLetters,
    FailurePolicy,
    NotFound,
    Queue,
    Selection,
    Service,
    Source,
    Topic,
    connect,
)
from atleastonce.contract import Deletes, Outgoing, Topology
from atleastonce.message import Headers, Message
from atleastonce.patterns.redrive.audit import AuditLine

DEADLINE = 40.0


class World:
    """A topic with a group whose messages fail by what their body says, and its dead letters."""

    def __init__(self, url: str, topic: Topic[Any]) -> None:
        self.url = url
        self.orders = topic
        self.failing = True
        self.done: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.service = Service("billing", broker=url)
        policy = FailurePolicy(in_place=None, dead_letter=DeadLetterPolicy(max_share=None, max_consecutive=None))

        @self.service.consumer(topic, failure=policy)
        async def charge(order: dict[str, Any], context: Context) -> None:
            if self.failing or order.get("never"):
                raise (ValueError if order["n"] % 2 else KeyError)(f"order {order['n']}")
            self.done[context.message.id] += 1

        self.other = Service("shipping", broker=url)

        @self.other.consumer(topic, failure=policy)
        async def ship(order: dict[str, Any], context: Context) -> None:
            self.others[context.message.id] += 1

    @property
    def broker(self) -> Broker:
        return self.service.broker

    @property
    def dead(self) -> DeadLetters:
        return self.broker.dead_letters(self.orders, "billing")

    async def die(self, count: int, **fields: Any) -> None:
        """Publish ``count`` orders and wait until billing has given them up."""
        before = await self.waiting()
        payloads = [{"n": n, **fields} for n in range(count)]
        for n, payload in enumerate(payloads):
            assert await self.broker.publish(self.orders, payload, id=f"m{before + n}", key=f"k{n % 7}")
        await self.until(lambda: self.waiting(), before + count)

    async def waiting(self) -> int:
        count = await self.dead.count()
        if count is None:  # Pub/Sub does not say; looking through them does
            return sum(group.count for group in await self.dead.groups())
        return count

    async def until(self, ask: Callable[[], Any], wanted: Any) -> None:
        end = time.monotonic() + DEADLINE
        while (found := await ask()) != wanted:
            assert time.monotonic() < end, f"{found}, not {wanted}, after {DEADLINE:g} s"
            await asyncio.sleep(0.05)

    async def handled(self, count: int) -> None:
        async def so_far() -> int:
            return len(self.done)

        await self.until(so_far, count)


# Pub/Sub neither says how many letters wait nor lets anybody look without taking them: each look holds all of them under a
# lease for seconds. These show that the tools work there; the others count too often for that.
ON_PUBSUB = ("test_list_groups_by_what_failed", "test_what_is_chosen_goes_back_to_its_group_alone_and_the_rest_stays")


@pytest.fixture
async def world(
    request: pytest.FixtureRequest, backend_url: str, topic: Callable[[str], Topic[Any]]
) -> AsyncIterator[World]:
    if backend_url.startswith("pubsub") and request.node.originalname not in ON_PUBSUB:
        pytest.skip("Pub/Sub: it does not say how many letters wait, and this test asks all the time")
    made = World(backend_url, topic("redriven"))
    async with made.other, made.service:
        yield made


async def test_list_groups_by_what_failed(world: World) -> None:
    begun = time.time() - 60
    await world.die(9)
    rows = await world.dead.groups()
    assert [(row.count, row.error_type, row.stage) for row in rows] == [
        (5, "KeyError", "handler"),
        (4, "ValueError", "handler"),
    ]
    for row in rows:
        assert (row.channel, row.group) == (world.orders.name, "billing")
        assert row.first_failed is not None
        assert row.last_failed is not None
        assert begun < row.first_failed <= row.last_failed < time.time() + 60
        assert row.example_id in {f"m{n}" for n in range(9)}
    found = [letter async for letter in world.dead.letters()]  # each stays what it is when all have been given back
    assert {letter.json["n"] for letter in found} == set(range(9))
    assert Counter(letter.obituary.error_type for letter in found) == {"KeyError": 5, "ValueError": 4}
    only = await world.dead.groups(Selection(error_type=["ValueError"], where="n > `4`", newer_than="10m"))
    assert [(row.count, row.fingerprint) for row in only] == [(2, rows[1].fingerprint)]
    assert await world.waiting() == 9


async def test_what_is_chosen_goes_back_to_its_group_alone_and_the_rest_stays(world: World) -> None:
    await world.die(60)
    world.failing = False
    audit: list[AuditLine] = []
    rehearsed = await world.dead.redrive(Selection(error_type=["ValueError"]), dry_run=True)
    assert (rehearsed.matched, rehearsed.redriven, rehearsed.skipped, rehearsed.dry_run) == (30, 0, 30, True)
    done = await world.dead.redrive(Selection(error_type=["ValueError"]), audit=audit.extend)
    assert (done.matched, done.redriven, done.skipped, done.failed, done.stopped) == (30, 30, 30, 0, "")
    await world.handled(30)
    await world.until(world.waiting, 30)
    assert {row.error_type: row.count for row in await world.dead.groups()} == {"KeyError": 30}
    assert set(world.done) == {f"m{n}" for n in range(1, 60, 2)} == {line.id for line in audit}
    assert {(line.outcome, line.redrives, line.error_type) for line in audit} == {("redriven", 1, "ValueError")}
    rest = await world.dead.redrive(limit=10)
    assert (rest.matched, rest.redriven) == (10, 10)
    await world.handled(40)
    await world.until(world.waiting, 20)
    again = await world.dead.redrive()
    assert again.redriven == 20
    await world.handled(60)
    assert set(world.others.values()) == {1}, "redrive reached another group"


async def test_what_fails_again_waits_for_the_next_run_and_does_not_go_round_for_ever(world: World) -> None:
    await world.die(20)
    for number in range(1, 4):
        done = await world.dead.redrive(max_redrives=3)
        assert (done.matched, done.redriven, done.looped) == (20, 20, 0), number
        await world.until(world.waiting, 20)
    kept = await world.dead.redrive(max_redrives=3)
    assert (kept.matched, kept.redriven, kept.skipped, kept.looped) == (0, 0, 20, 20)
    assert await world.waiting() == 20
    assert {letter.obituary.redrives async for letter in world.dead.letters()} == {3}


async def test_a_run_stops_when_too_much_dies_again(world: World) -> None:
    await world.die(200)
    done = await world.dead.redrive(abort_if_refailed=0.05, rate="20/s")  # a busy machine is slow to let them die again
    assert "died again" in done.stopped
    assert done.refailed > 2
    assert done.redriven < 200
    await world.until(world.waiting, 200)
    world.failing = False
    done = await world.dead.redrive(abort_if_refailed=0.05, max_redrives=9)
    assert (done.redriven, done.refailed, done.stopped) == (200, 0, "")
    await world.handled(200)


async def test_two_at_once_lose_nothing_and_double_nothing_for_an_idempotent_consumer(world: World) -> None:
    await world.die(300)
    world.failing = False
    one, two = await asyncio.gather(world.dead.redrive(), world.dead.redrive())
    left = await world.dead.redrive()  # what one of them held while it left
    await world.handled(300)
    assert one.redriven + two.redriven + left.redriven >= 300
    await world.until(world.waiting, 0)
    assert set(world.done) == {f"m{n}" for n in range(300)}


async def test_a_rate_is_kept(world: World) -> None:
    await world.die(40)
    world.failing = False
    begun = time.monotonic()
    done = await world.dead.redrive(rate="40/s")
    assert done.redriven == 40
    assert time.monotonic() - begun > 0.8
    await world.handled(40)


async def test_purge_removes_what_is_chosen_and_then_everything(world: World) -> None:
    await world.die(30)
    account = await world.dead.purge(Selection(error_type=["KeyError"]), dry_run=True)
    assert (account.matched, account.purged, account.dry_run) == (15, 0, True)
    lines: list[AuditLine] = []
    account = await world.dead.purge(Selection(error_type=["KeyError"]), audit=lines.extend)
    assert (account.matched, account.purged, account.skipped) == (15, 15, 15)
    assert {line.action for line in lines} == {"purge"}
    assert len(lines) == 15
    await world.until(world.waiting, 15)
    assert {letter.obituary.error_type async for letter in world.dead.letters()} == {"ValueError"}
    await world.dead.purge()
    await world.until(world.waiting, 0)


async def test_one_body_is_mended_and_its_original_kept(world: World) -> None:
    await world.die(3, never=True)
    world.failing = False
    audit: list[AuditLine] = []
    done = await world.dead.redrive(Selection(id=["m1"]), change=lambda _: b'{"n":1}', audit=audit.extend)
    assert (done.matched, done.redriven) == (1, 1)
    await world.handled(1)
    assert set(world.done) == {"m1"}
    assert audit[0].original == "eyJuIjoxLCJuZXZlciI6dHJ1ZX0="  # {"n":1,"never":true}
    await world.until(world.waiting, 2)


async def test_letters_of_nobody_we_know_are_shown_and_go_back(world: World) -> None:
    """Nothing of ours in them; forged fields; fields of other libraries."""
    queue = world.dead.queue
    forged = {
        "alo-redrives": "99999",
        "alo-group": "nobody",
        "alo-error-at": "99999999999999999999",
        "alo-fingerprint": "\x1b[2J",
    }
    spring = {
        "kafka_dlt-original-topic": "orders",
        "kafka_dlt-exception-fqcn": "com.acme.Broken",
        "kafka_dlt-exception-message": "no such sku",
    }
    for id, headers in (("bare", {}), ("forged", forged), ("spring", spring)):
        message = Message(id, b'{"n":5}', b"k", Headers({"alo-id": id, **headers}))
        assert all(outcome.ok for outcome in await world.broker.adapter.send([Outgoing(queue, message)]))
    await world.until(world.waiting, 3)
    found = {letter.id: letter.obituary async for letter in world.dead.letters()}
    assert set(found) == {"bare", "forged", "spring"}
    assert found["bare"].fingerprint
    assert found["spring"].error_type.endswith("Broken")
    assert all(each.fingerprint.isprintable() for each in found.values())
    done = await world.dead.redrive()
    assert (done.matched, done.redriven) == (3, 3)
    await world.until(world.waiting, 3)
    # The marks of the way back are ours: what came back without any is known again, and counted.
    assert {letter.obituary.redrives async for letter in world.dead.letters()} == {1}


async def test_missing_queues_are_named_and_nothing_moves(world: World) -> None:
    missing = world.broker.dead_letters(world.orders, "billing", queue=Queue("missing.queue"))
    with pytest.raises(NotFound, match="missing"):
        await missing.groups()
    with pytest.raises(NotFound, match="missing"):
        await missing.redrive()
    await world.die(3)
    with pytest.raises(NotFound, match="sandbox"):
        await world.dead.redrive(to=Queue("sandbox.missing"))
    assert await world.waiting() == 3


async def test_an_origin_that_is_gone_leaves_its_dead_alone(world: World) -> None:
    await world.die(3)
    way = Source(world.orders, "billing")
    async with connect(world.url) as broker:
        await world.service.stop()
        assert isinstance(broker.adapter, Deletes)
        direct = broker.adapter.capabilities.addresses_groups
        await broker.adapter.delete(Topology(sources=(way,)) if direct else Topology(channels=(way.redrive_channel,)))
        dead = broker.dead_letters(world.orders, "billing")
        with pytest.raises(NotFound, match="start the consumer"):
            await dead.redrive()
        assert await dead.count() == 3
        sandbox = Queue[Any](f"sandbox.{world.orders.name}")
        await broker.declare(sandbox)
        assert (await dead.redrive(to=sandbox)).redriven == 3
        assert (await broker.backlog(sandbox)).waiting == 3
