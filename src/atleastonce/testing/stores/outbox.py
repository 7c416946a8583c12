"""Cases for an `OutboxStore`. Each has tables of its own, for relays share all that is in them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atleastonce.channels import Channel, Queue, Topic
from atleastonce.contract import Outgoing
from atleastonce.errors import ConfigurationError
from atleastonce.message import Headers, Message
from atleastonce.stores import open_store
from atleastonce.stores.outbox import SLOTS, OutboxRow, OutboxStore, Parking, share
from atleastonce.testing.stores import relaying
from atleastonce.testing.stores.bench import Base, Spawn, StoreHarness, until

ORDERS: Topic[Any] = Topic("orders")
ONE, TWO, THREE = b"one".ljust(16), b"two".ljust(16), b"three".ljust(16)
ALL = range(SLOTS)


class _Undone(Exception):
    pass


def out(id: str, key: bytes | None = None, channel: Channel[Any] = ORDERS, delay: float = 0.0) -> Outgoing:
    return Outgoing(channel, Message(id, b"body of " + id.encode(), key, Headers([("alo-id", id)])), delay)


async def append(store: OutboxStore, *outputs: Outgoing) -> None:
    async with store.transaction() as tx:
        await store.outbox_append(tx, outputs)


async def fetch(store: OutboxStore, relay: bytes = ONE, limit: int = 1000, **more: Any) -> list[OutboxRow]:
    asked = {"held": (), "paused": (), **more}
    return await store.outbox_fetch(relay, ALL, limit, **asked)


def ids(rows: Sequence[OutboxRow]) -> list[str]:
    return [row.outgoing.message.id for row in rows if row.outgoing is not None]


class OutboxSuite(Base):
    """Subclass it beside `StoreSuite`, and override ``harness``. The store must take ``prefix=`` and ``create=``."""

    @pytest.fixture
    def own(self, harness: StoreHarness) -> StoreHarness:
        """The store under test with tables of this case alone."""
        return replace(harness, options={**harness.options, "prefix": f"o{uuid.uuid4().hex[:12]}", "create": True})

    @pytest_asyncio.fixture
    async def store(self, own: StoreHarness) -> AsyncIterator[OutboxStore]:
        store = own.store()
        assert isinstance(store, OutboxStore)
        async with store:
            yield store

    @pytest_asyncio.fixture
    async def held(self, store: OutboxStore) -> OutboxStore:
        """The store, with all slots held by relay `ONE`."""
        assert (await store.outbox_hold(ONE, "one", 60)).slots == frozenset(ALL)
        return store

    # ---------------------------------------------------------------------------------------------------------- append

    async def test_a_row_comes_back_as_it_was_given(self, held: OutboxStore) -> None:
        headers = Headers([("a", "ä"), ("raw", b"\x00\xff"), ("null", None), ("a", "twice")])
        wanted = [
            Outgoing(Topic("t"), Message("1", b"\x00\xff" * 9, b"k\x00\xff", headers)),
            Outgoing(Queue("q", partitions=3, fifo=True, single_active=True), Message("2", b"", b"", headers)),
            Outgoing(Topic("t", partitions=8, single_active=True), Message("5", b"", b"k")),
            Outgoing(Topic("t", options={"kafka": {"retention.ms": "1"}}), Message("3", "漢".encode(), None)),
            Outgoing(Queue("t"), Message("4", b"large" * 50_000, None)),
        ]
        await append(held, *wanted)
        found = [row.outgoing for row in await fetch(held)]
        assert found == wanted
        options = [each.destination.options for each in found if each]  # type: ignore[union-attr]
        assert options == [{}, {}, {}, {"kafka": {"retention.ms": "1"}}, {}]

    async def test_what_is_rolled_back_never_leaves(self, held: OutboxStore) -> None:
        async def fail() -> None:
            async with held.transaction() as tx:
                await held.outbox_append(tx, [out("undone")])
                raise _Undone

        with pytest.raises(_Undone):
            await fail()
        await append(held)
        await append(held, out("done"))
        assert ids(await fetch(held)) == ["done"]

    async def test_bad_output_is_refused_before_anything(self, held: OutboxStore) -> None:
        async with held.transaction() as tx:
            with pytest.raises(ConfigurationError):
                await held.outbox_append(
                    tx, [out("good"), out("bad", channel=Topic("t", options={"x": {"y": object()}}))]
                )
            await held.outbox_append(tx, [out("better")])
        assert ids(await fetch(held)) == ["better"]

    # ----------------------------------------------------------------------------------------------------------- fetch

    async def test_rows_come_in_order_and_until_they_are_removed(self, held: OutboxStore) -> None:
        names = [f"{number}" for number in range(40)]
        await append(held, *(out(name, name[-1:].encode()) for name in names[:25]))
        await append(held, *(out(name, name[-1:].encode()) for name in names[25:]))
        rows = await fetch(held)
        assert ids(rows) == names
        assert ids(await fetch(held)) == names, "reading changes nothing"
        assert ids(await fetch(held, held=[row.seq for row in rows[:10]])) == names[10:]
        await held.outbox_remove(rows[5:])
        await held.outbox_remove([rows[5]])
        await held.outbox_remove([])
        assert ids(await fetch(held)) == names[:5]

    async def test_the_limit_is_of_each_slot_and_takes_the_first(self, held: OutboxStore) -> None:
        await append(
            held, *(out(f"a{number}", b"a") for number in range(9)), *(out(f"b{number}", b"bb") for number in range(9))
        )
        assert {*ids(await fetch(held, limit=2))} in ({"a0", "a1", "b0", "b1"}, {"a0", "a1"})

    async def test_of_all_slots_together_the_first_rows_are_given(self, held: OutboxStore) -> None:
        """Then what a relay holds has no holes, however its rows are spread."""
        names = [f"m{number:02}" for number in range(40)]
        await append(held, *(out(name, name.encode()) for name in names))
        rows = await fetch(held, most=15)
        assert ids(rows) == names[:15]
        assert ids(await fetch(held, most=15, held=[row.seq for row in rows])) == names[15:30]

    async def test_paused_destinations_hold_up_nobody(self, held: OutboxStore) -> None:
        await append(held, out("a", channel=Topic("away")), out("b", channel=Queue("away")), out("c"))
        assert ids(await fetch(held, paused=["topic:away"])) == ["b", "c"]

    async def test_a_row_that_becomes_visible_late_is_not_passed_over(
        self, held: OutboxStore, own: StoreHarness
    ) -> None:
        """Two transactions: the one that began first, and has the lower number, commits last."""
        other = own.store()
        assert isinstance(other, OutboxStore)
        first = asyncio.Event()
        go_on = asyncio.Event()

        async def slow() -> None:
            async with other, other.transaction() as tx:
                await other.outbox_append(tx, [out("early number")])
                first.set()
                await go_on.wait()

        task = asyncio.create_task(slow())
        await first.wait()
        writing = asyncio.create_task(append(held, out("late number")))
        if held.scheme != "sqlite":  # which has one writer at a time
            await writing
            rows = await fetch(held)
            assert ids(rows) == ["late number"]
            await held.outbox_remove(rows)
        go_on.set()
        await asyncio.gather(task, writing)
        assert "early number" in ids(await fetch(held))

    async def test_a_row_that_cannot_be_read_is_given_with_its_flaw(self, held: OutboxStore, own: StoreHarness) -> None:
        await append(held, out("x"), out("y"), out("good"))
        prefix = own.options["prefix"]
        async with held.transaction() as tx:
            for change in ("headers = 'nonsense' WHERE id = 'x'", "destination = 'nowhere' WHERE id = 'y'"):
                await _execute(tx, f"UPDATE {prefix}_outbox SET {change}")  # noqa: S608
        rows = await fetch(held)
        assert [row.outgoing is None for row in rows] == [True, True, False]
        assert all("cannot be read" in row.flaw for row in rows[:2])

    # ----------------------------------------------------------------------------------------------------------- relays

    async def test_relays_share_the_slots(self, store: OutboxStore) -> None:
        assert await store.outbox_fetch(ONE, ALL, 10, held=(), paused=()) == []
        first = await store.outbox_hold(ONE, "one", 60)
        assert (len(first.slots), first.share) == (SLOTS, share(1))
        second = await store.outbox_hold(TWO, "two", 60)
        assert (len(second.slots), second.share) == (0, share(2))
        first = await store.outbox_hold(ONE, "one", 60)
        assert (len(first.slots), first.share) == (SLOTS, share(2))
        given = sorted(first.slots)[share(2) :]
        await store.outbox_leave(TWO, given)
        assert not (await store.outbox_hold(TWO, "two", 60)).slots, "nobody gives back what is another's"
        await store.outbox_leave(ONE, given)
        second = await store.outbox_hold(TWO, "two", 60)
        assert second.slots == frozenset(given)
        assert (await store.outbox_hold(ONE, "one", 60)).slots == first.slots - second.slots
        assert (await store.outbox_stats()).relays == 2
        await store.outbox_leave(ONE)
        assert (await store.outbox_hold(TWO, "two", 60)).slots == frozenset(ALL)

    async def test_many_that_come_at_once_each_get_others(self, store: OutboxStore, own: StoreHarness) -> None:
        async def come(number: int) -> frozenset[int]:
            other = own.store()
            assert isinstance(other, OutboxStore)
            async with other:
                await other.outbox_hold(bytes([number]) * 16, f"{number}", 60)
                return (await other.outbox_hold(bytes([number]) * 16, f"{number}", 60)).slots

        found = await asyncio.gather(*map(come, range(5)))
        assert sum(map(len, found)) == len(frozenset().union(*found)), "no slot has two holders"

    async def test_a_dead_relays_slots_are_taken_when_its_lease_is_over(
        self, store: OutboxStore, own: StoreHarness
    ) -> None:
        await store.outbox_hold(ONE, "one", own.lease)
        await append(store, out("a"))
        await store.outbox_hold(TWO, "two", 60)
        assert await fetch(store, TWO) == []

        async def taken() -> bool:
            return len((await store.outbox_hold(TWO, "two", 60)).slots) == SLOTS

        await until(taken)
        assert await fetch(store, ONE) == [], "whoever lost its slots reads nothing more"
        assert ids(await fetch(store, TWO)) == ["a"]
        assert (await store.outbox_hold(ONE, "one", 60)).slots == frozenset()

    async def test_whoever_renews_keeps_its_slots(self, store: OutboxStore, own: StoreHarness) -> None:
        for _ in range(6):
            assert len((await store.outbox_hold(ONE, "one", own.lease)).slots) == SLOTS
            assert not (await store.outbox_hold(TWO, "two", own.lease)).slots
            await asyncio.sleep(own.lease / 3)

    # ------------------------------------------------------------------------------------------------------------- time

    async def test_a_delayed_row_waits_and_holds_up_nobody(self, held: OutboxStore, own: StoreHarness) -> None:
        await append(held, out("later", b"k", delay=own.lease), out("never", b"k", delay=3600), out("now", b"k"))
        await held.outbox_promote()
        assert ids(await fetch(held)) == ["now"]
        assert (await held.outbox_stats()).delayed == 2

        async def due() -> bool:
            await held.outbox_promote()
            return ids(await fetch(held)) == ["later", "now"]

        await until(due)

    async def test_a_number_that_was_given_again_is_another_row(self, held: OutboxStore) -> None:
        """As after a failover that has lost commits: what a relay has still to remove or park is gone, and new rows have its
        numbers."""
        await append(held, out("a"), out("b"))
        rows = await fetch(held)
        lost = [msgspec.structs.replace(row, id=f"lost {row.id}") for row in rows]
        await held.outbox_remove(lost)
        await held.outbox_park([Parking(row.seq, row.id, "why") for row in lost], blocking=False)
        assert ids(await fetch(held)) == ["a", "b"]

    async def test_the_lag_is_counted(self, held: OutboxStore) -> None:
        stats = await held.outbox_stats()
        assert (stats.waiting, stats.oldest, stats.delayed, stats.parked, stats.relays) == (0, None, 0, 0, 1)
        await append(held, out("a"), out("b", delay=3600), out("c"))
        rows = await fetch(held)
        await held.outbox_park([Parking(rows[0].seq, rows[0].id, "why")], blocking=False)
        await asyncio.sleep(0.05)
        stats = await held.outbox_stats()
        assert (stats.waiting, stats.delayed, stats.parked) == (1, 1, 1)
        assert stats.oldest is not None
        assert 0.04 <= stats.oldest < 60

    async def test_a_waiting_relay_looks_again(self, held: OutboxStore) -> None:
        """Woken by the append, or by the time: never later than asked, and at once where the store can tell."""
        loop = asyncio.get_running_loop()
        await held.outbox_wait(0.05)
        begun = loop.time()
        waiting = asyncio.create_task(held.outbox_wait(3.0))
        await asyncio.sleep(0.3)
        await append(held, out("a"))
        await waiting
        assert loop.time() - begun < 10

    # ---------------------------------------------------------------------------------------------------------- parking

    async def test_a_parked_row_waits_for_people(self, held: OutboxStore) -> None:
        await append(held, out("bad", b"k"), out("next", b"k"), out("other", b"l"))
        (bad, *_) = await fetch(held)
        await held.outbox_park([Parking(bad.seq, bad.id, "too large: 9 MB\0")], blocking=False)
        await held.outbox_park([Parking(bad.seq, bad.id, "told twice")], blocking=True)
        assert ids(await fetch(held)) == ["next", "other"]
        (parked,) = await held.outbox_parked()
        assert (parked.id, parked.destination, parked.key, parked.size) == ("bad", "topic:orders", "k", 11)
        assert (parked.reason.rstrip("\0"), parked.blocking) == ("too large: 9 MB", False)
        assert await held.outbox_redrive(["next", "unknown"]) == 0
        assert await held.outbox_redrive(["bad"]) == 1
        assert ids(await fetch(held)) == ["bad", "next", "other"], "at its old place"
        assert await held.outbox_redrive() == 0
        assert await held.outbox_discard(["bad"]) == 0, "only what is parked"

    async def test_a_blocking_row_holds_its_key_alone(self, held: OutboxStore) -> None:
        await append(held, out("bad", b"k"), out("keyless"), out("next", b"k"), out("other", b"l"))
        await append(held, out("elsewhere", b"k", Queue("orders")))
        rows = await fetch(held)
        await held.outbox_park(
            [Parking(rows[0].seq, rows[0].id, "no"), Parking(rows[1].seq, rows[1].id, "no")], blocking=True
        )
        await append(held, out("more", b"k"), out("keyless too"))
        assert ids(await fetch(held)) == ["other", "elsewhere", "keyless too"]
        assert [row.blocking for row in await held.outbox_parked()] == [True, False]
        stats = await held.outbox_stats()
        assert (stats.waiting, stats.parked, stats.blocked) == (5, 2, 2), "next and more wait for bad"
        assert await held.outbox_redrive() == 2
        assert ids(await fetch(held))[:3] == ["bad", "keyless", "next"]

    async def test_a_discarded_row_unblocks_its_key(self, held: OutboxStore) -> None:
        await append(held, out("bad", b"k"), out("next", b"k"))
        rows = await fetch(held)
        await held.outbox_park([Parking(rows[0].seq, rows[0].id, "no")], blocking=True)
        assert await fetch(held) == []
        assert await held.outbox_discard(["bad", "next"]) == 1
        assert ids(await fetch(held)) == ["next"]

    # ------------------------------------------------------------------------------------------------------- the schema

    async def test_without_its_tables_it_says_so(
        self, harness: StoreHarness, own: StoreHarness, store: OutboxStore
    ) -> None:
        """As after an update of the library: the other tables are there."""
        prefix = own.options["prefix"]
        async with store.transaction() as tx:
            for table in ("outbox", "outbox_slot", "outbox_relay"):
                await _execute(tx, f"DROP TABLE {prefix}_{table}")
        with pytest.raises(ConfigurationError, match=r"init\(\)"):
            await store.outbox_hold(ONE, "one", 60)
        await store.init()
        assert (await store.outbox_hold(ONE, "one", 60)).slots == frozenset(ALL)
        await append(store, out("a"))
        await store.init()
        assert ids(await fetch(store)) == ["a"], "making it again removes nothing"

    # ------------------------------------------------------------------------------------------------ random sequences

    async def test_any_sequence_of_calls_is_answered_as_the_model_does(self, own: StoreHarness) -> None:
        loop = asyncio.get_running_loop()

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(_STEPS)
        def check(steps: list[Any]) -> None:
            asyncio.run_coroutine_threadsafe(_compare(own, steps), loop).result()

        await asyncio.to_thread(check)

    # ------------------------------------------------------------------------------------------------------ many relays

    async def test_relays_may_come_stop_and_die_at_any_moment(self, own: StoreHarness) -> None:
        """Nothing is lost, no key's first arrivals change their order, and nothing is repeated without a reason."""
        loop = asyncio.get_running_loop()

        @settings(max_examples=8, deadline=None, phases=_NO_SHRINKING, suppress_health_check=list(HealthCheck))
        @given(st.lists(_HAPPENINGS, min_size=3, max_size=10))
        def check(steps: list[tuple[str, int]]) -> None:
            asyncio.run_coroutine_threadsafe(_happen(own, steps), loop).result()

        await asyncio.to_thread(check)

    async def test_killed_between_publish_and_removal(
        self, own: StoreHarness, store: OutboxStore, tmp_path: Path, spawn: Spawn
    ) -> None:
        """kill -9, of two relays of three."""
        if not own.shared:
            pytest.skip("this store lives in one process")
        file, written = tmp_path / "published", list[tuple[str, bytes | None]]()
        orders = {"url": own.url, "options": {**own.options}, "file": str(file), "lease": 1.0}
        *doomed, survivor = await asyncio.gather(*(spawn("relaying", {**orders, "die": die}) for die in (2, 3, 0)))

        async def died() -> bool:
            """There is work for each until then: one alone may have done all of it before the others had any slots."""
            if (await store.outbox_stats()).waiting < 100:
                some = [(f"m{number}", b"%d" % (number % 49)) for number in range(len(written), len(written) + 50)]
                await append(store, *(out(id, key) for id, key in some))
                written.extend(some)
            return all(each.returncode is not None for each in doomed)

        async def empty() -> bool:
            return not (await store.outbox_stats()).waiting

        await until(died, patience=60)
        assert [each.returncode for each in doomed] == [-9, -9]
        await until(empty, patience=60)
        assert survivor.stdin is not None
        survivor.stdin.close()
        assert await asyncio.wait_for(survivor.wait(), 60) == 0
        lines = [line.split(b" ") for line in file.read_bytes().splitlines()]
        arrived = [(id.decode(), key) for id, key in lines if id != b"late"]
        # Of each that died or was late: what was published since its last removal, three batches of twenty at most.
        relaying.check(arrived, written, allowed=60 * (2 + len(lines) - len(arrived)))
        assert len(arrived) > len(written), "something was under way"


# An example takes seconds and depends on time: many attempts at a smaller one would end in a timeout, which hides the failure.
_NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
_HAPPENINGS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 12)),
    st.tuples(st.sampled_from(["start", "stop", "kill", "pause", "lost", "refused"]), st.integers(1, 3)),
)


async def _happen(own: StoreHarness, steps: list[tuple[str, int]]) -> None:
    options = {**own.options, "prefix": f"r{uuid.uuid4().hex[:12]}"}
    sink = relaying.Sink()
    flock = relaying.Flock(own.url, options, sink)
    written: list[tuple[str, bytes | None]] = []
    allowed = 0
    store = open_store(own.url, options)
    assert isinstance(store, OutboxStore)
    async with store:
        for step, count in steps:
            if step == "append":
                some = [(f"m{len(written) + number}", [b"a", b"b", b"c", None][number % 4]) for number in range(count)]
                await append(store, *(out(id, key) for id, key in some))
                written += some
            elif step == "start":
                await flock.start()
            elif step == "stop":
                await flock.stop()
            elif step == "kill":
                await flock.kill()
                allowed += 12  # three batches of four: under way, and published and not removed
            elif step == "pause":
                await asyncio.sleep(0.01 * count)
            else:
                sink.trouble += [step] * count
                allowed += count
        last = await flock.start()
        await asyncio.wait_for(last.emptied(), 30)
        await flock.end()
        relaying.check(sink.taken, written, allowed + 12 * flock.late)


_KEYS = st.sampled_from([None, b"a", b"b"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.tuples(_KEYS, st.booleans()), max_size=5)),
        st.tuples(st.sampled_from(["remove", "park", "block"]), st.lists(st.integers(0, 9), max_size=3)),
        st.tuples(st.sampled_from(["redrive", "discard"]), st.integers(0, 3)),
        st.tuples(st.just("hold"), st.booleans()),
    ),
    max_size=12,
)


async def _compare(own: StoreHarness, steps: list[Any]) -> None:
    """Against a list of rows in memory: [id, key, state], with the states of the test's own words."""
    store = open_store(own.url, {**own.options, "prefix": f"m{uuid.uuid4().hex[:12]}"})
    assert isinstance(store, OutboxStore)
    rows: list[list[Any]] = []
    async with store:
        await store.outbox_hold(ONE, "one", 60)
        for step, what in steps:
            found = await fetch(store)
            blocked = {key for _, key, state in rows if state == "block"}
            assert ids(found) == [id for id, key, state in rows if state == "ready" and key not in blocked]
            parked = await store.outbox_parked()
            assert [row.id for row in parked] == [id for id, _, state in rows if state in ("park", "block")]
            if step == "append":
                new = [[uuid.uuid4().hex, key, "late" if late else "ready"] for key, late in what]
                await append(store, *(out(id, key, delay=3600 if state == "late" else 0) for id, key, state in new))
                rows += new
            elif step == "hold":
                await store.outbox_hold(ONE, "one", 60)
            elif step in ("redrive", "discard"):
                chosen = [row.id for row in parked[:what]]
                assert await getattr(store, f"outbox_{step}")(chosen) == len(chosen)
                rows = [
                    [id, key, "ready" if id in chosen else state]
                    for id, key, state in rows
                    if step == "redrive" or id not in chosen
                ]
            else:
                picked = [found[number] for number in dict.fromkeys(what) if number < len(found)]
                if step == "remove":
                    await store.outbox_remove(picked)
                    rows = [row for row in rows if row[0] not in ids(picked)]
                else:
                    await store.outbox_park(
                        [Parking(row.seq, row.id, "why") for row in picked], blocking=step == "block"
                    )
                    for row in rows:
                        if row[0] in ids(picked):
                            row[2] = step if row[1] is not None else "park"


async def _execute(tx: Any, sql: str) -> None:
    done = (getattr(tx, "execute", None) or tx.query)(sql)  # aiomysql's connections have the latter
    if hasattr(done, "__await__"):
        await done
