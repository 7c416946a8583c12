"""What there is no room for waits, on no account: in its order, with its lease, until what ends has made room."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from engine_kit import LEASED, ByKey, Rig, ScriptedAdapter, deliveries, delivery, ids, running, until

from atleastonce.contract import RELEASE, Delivery, Window
from atleastonce.engine.decision import DONE, Decision
from atleastonce.engine.lanes import KeyedLanes
from atleastonce.engine.shared_window import SharedWindow

WINDOW = Window(20, 1000)


def sized(name: str, size: int, **more: object) -> Delivery:
    item = delivery(name, body=b"x" * size, **more)  # type: ignore[arg-type]
    item.size = size
    return item


def small_before(rig: Rig) -> Rig:
    """``rig``, which has seen small messages, and so asks for many."""
    rig.worker.meter.take(1, 10, 10)
    rig.worker.meter.give(1, 10)
    return rig


class Gated:
    """Handlers that end when they are let, and who has begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = asyncio.Semaphore(0)

    async def run(self, item: Delivery) -> Decision:
        self.begun.append(item.message.id)
        await self.gate.acquire()
        return DONE


async def test_what_is_larger_than_all_before_waits_until_it_fits_and_nothing_overtakes_it() -> None:
    handlers = Gated()
    rig = small_before(Rig(handlers.run, window=WINDOW, concurrency=10))
    async with running(rig):
        rig.feed([sized("a", 300), sized("b", 300), sized("large", 600), sized("c", 10)])
        await until(lambda: len(handlers.begun) == 2)
        worker = rig.worker
        assert (worker.in_flight, worker.meter.bytes) == (2, 600)
        rig.feed([sized("d", 10)])
        await asyncio.sleep(0.05)  # time in which something could overtake it
        assert handlers.begun == ["a", "b"]
        handlers.gate.release()
        await until(lambda: worker.counts["done"] == 1)
        await until(lambda: len(handlers.begun) == 4)
        assert (worker.in_flight, worker.meter.bytes) == (3, 910)
        for _ in range(4):
            handlers.gate.release()
        await rig.ended()
        assert handlers.begun == ["a", "b", "large", "c", "d"]


async def test_what_is_larger_than_the_window_runs_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers = Gated()
    rig = small_before(Rig(handlers.run, window=WINDOW, concurrency=10))
    async with running(rig):
        rig.feed([sized("a", 10), sized("huge", 1001), sized("b", 10)])
        for begun in (["a"], ["a", "huge"], ["a", "huge", "b"]):
            await until(lambda begun=begun: handlers.begun == begun)  # type: ignore[misc]
            assert rig.worker.in_flight == 1
            handlers.gate.release()
        await rig.ended()
    assert "a message of 1001 bytes came" in caplog.text


async def test_its_lease_is_kept_while_it_waits() -> None:
    handlers = Gated()
    adapter = ScriptedAdapter(LEASED)
    rig = small_before(Rig(handlers.run, adapter=adapter, window=WINDOW))
    async with running(rig):
        until_ = time.monotonic() + LEASED.lease_seconds  # type: ignore[operator]
        large = sized("large", 900, lease_until=until_)
        rig.feed([sized("a", 300, lease_until=until_), large])
        await until(lambda: large.lease_until > until_ + 0.2)
        assert handlers.begun == ["a"]
        for _ in range(2):
            handlers.gate.release()
        await rig.ended()
    assert handlers.begun == ["a", "large"]


async def test_what_waits_is_given_back_by_a_stop_and_by_a_drain_of_its_stream() -> None:
    handlers = Gated()
    rig = small_before(Rig(handlers.run, window=WINDOW))
    async with running(rig, grace=0.0):
        rig.feed([sized("a", 600, stream="s"), sized("b", 700, stream="t"), sized("c", 300), sized("d", 800)])
        await until(lambda: handlers.begun == ["a"])
        await rig.worker.drain(["t"], 1.0)
        assert rig.subscription.verdicts() == {"b": RELEASE}
        await until(lambda: handlers.begun == ["a", "c"])
    assert rig.subscription.verdicts()["d"] == RELEASE


async def test_what_waits_behind_its_key_is_given_back_after_what_runs_of_it() -> None:
    handlers = Gated()
    rig = small_before(Rig(handlers.run, window=WINDOW, lanes=KeyedLanes(ByKey())))
    async with running(rig):
        rig.feed(
            [sized("a", 600, key=b"k"), sized("b", 10, key=b"k"), sized("c", 700, key=b"k"), sized("d", 1, key=b"k")]
        )
        await until(lambda: handlers.begun == ["a"])
        draining = asyncio.create_task(rig.worker.drain(["s"], 2.0))
        await asyncio.sleep(0.05)  # time in which something could be given back
        assert rig.subscription.settled == []
        handlers.gate.release()
        await draining
        assert [name for name, _ in rig.subscription.settled] == ["a", "b", "c", "d"]


async def test_what_waits_and_is_lost_never_begins() -> None:
    handlers = Gated()
    rig = small_before(Rig(handlers.run, window=WINDOW))
    async with running(rig):
        rig.feed([sized("a", 600, stream="s"), sized("b", 700, stream="t"), sized("c", 300)])
        await until(lambda: handlers.begun == ["a"])
        rig.worker.lost(["t"])
        await until(lambda: handlers.begun == ["a", "c"])
        handlers.gate.release()
        handlers.gate.release()
        await rig.ended()


def pair(handlers: Gated, due: dict[str, float], limit: Window = WINDOW) -> tuple[Rig, Rig]:
    """A source, and a reader of what is due later."""
    shared = SharedWindow(limit, 2)
    source = small_before(Rig(handlers.run, make_meter=shared.of_source))
    retries = Rig(handlers.run, due=lambda item: due.get(item.message.id, 0.0), make_meter=shared.of_other)
    return source, retries


async def test_what_is_held_until_it_is_due_makes_room_for_what_may_run() -> None:
    handlers, later = Gated(), time.time() + 1.0
    source, retries = pair(handlers, {"r1": later, "r2": later + 0.01})
    async with running(source), running(retries):
        retries.feed([sized("r1", 200), sized("r2", 200)])
        await until(lambda: retries.worker.in_flight == 2)
        source.feed([sized("large", 700)])
        await until(lambda: handlers.begun == ["large"])
        assert (source.worker.in_flight, retries.worker.in_flight) == (1, 1), "the latest due has left"
        handlers.gate.release()
        await until(lambda: retries.worker.in_flight == 2)
        assert time.time() < later, "it is held again"
        await until(lambda: handlers.begun == ["large", "r1", "r2"])
        handlers.gate.release()
        handlers.gate.release()
        await retries.ended()


async def test_what_is_larger_than_its_readers_part_stands_in_nobodys_way_until_it_is_due() -> None:
    handlers, later = Gated(), time.time() + 0.5
    source, retries = pair(handlers, {"late": later})
    async with running(source), running(retries):
        retries.feed([sized("late", 5000)])
        await until(lambda: retries.worker.in_flight == 1)
        source.feed([sized("a", 900)])
        await until(lambda: handlers.begun == ["a"])
        assert (retries.worker.in_flight, retries.worker.meter.bytes) == (0, 0)
        await asyncio.sleep(0.6)  # it is due, and waits for its turn
        source.feed([sized("b", 10)])
        await asyncio.sleep(0.05)  # time in which that could go before it
        assert handlers.begun == ["a"]
        handlers.gate.release()
        await until(lambda: handlers.begun == ["a", "late"])
        assert (source.worker.in_flight, retries.worker.in_flight) == (0, 1)
        handlers.gate.release()
        await until(lambda: handlers.begun == ["a", "late", "b"])
        handlers.gate.release()
        await source.ended()
        await retries.ended()


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_comes_together_they_are_never_over_and_all_of_it_ends(seed: int) -> None:
    chance = Random(seed)
    limit = Window(chance.randint(3, 30), 10_000)
    shared = SharedWindow(limit, 3)
    over: list[tuple[int, int]] = []
    rigs: list[Rig] = []
    due: dict[str, float] = {}

    def look() -> None:
        messages = sum(rig.worker.in_flight for rig in rigs)
        size = sum(rig.worker.meter.bytes for rig in rigs)
        if messages > limit.messages or (size > limit.bytes and messages > 1):
            over.append((messages, size))

    async def work(item: Delivery) -> Decision:
        look()
        await asyncio.sleep(chance.choice((0, 0, 0.001, 0.003)))
        look()
        if item.tries < 2 and chance.random() < 0.1:
            return Decision(again=0.002, name="again")
        return DONE

    rigs.append(Rig(work, window=limit, make_meter=shared.of_source))
    rigs += [Rig(work, due=lambda item: due.get(item.message.id, 0.0), make_meter=shared.of_other) for _ in range(2)]

    def some(rig: int, batch: int) -> list[Delivery]:
        found = []
        for n in range(chance.randint(1, 30)):
            size = chance.choice((1, 10, 100, 1000)) if chance.random() < 0.95 else chance.randint(4000, 12_000)
            found.append(sized(f"m-{rig}-{batch}-{n}", size))
            if rig and chance.random() < 0.7:
                due[found[-1].message.id] = time.time() + chance.random()
        return found

    async with running(rigs[0]), running(rigs[1]), running(rigs[2]):
        for batch in range(12):
            for number, rig in enumerate(rigs):
                rig.feed(some(number, batch))
            await asyncio.sleep(0.01)
            look()
        while any(rig.subscription.waiting or rig.worker.in_flight for rig in rigs):
            look()
            await asyncio.sleep(0)
        for rig in rigs:
            await until(lambda rig=rig: rig.worker.counts["done"] == rig.worker.counts["received"])  # type: ignore[misc]
    assert over == []


async def test_a_stop_while_something_waits_leaves_nothing_behind() -> None:
    rig = small_before(Rig(Gated().run, window=WINDOW))
    async with running(rig, grace=0.0):
        rig.feed([sized("a", 600), *[sized(f"m{n}", 500) for n in range(5)]], deliveries(5))
        await until(lambda: rig.worker.counts["received"] == 6)
    assert set(ids(rig.worker._out)) == set()
