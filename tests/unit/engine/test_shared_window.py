"""One window of several readers: together never over it, each sure of its part, and what is asked for counts already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest
from engine_kit import LEASED, Rig, ScriptedAdapter, deliveries, running, until

from atleastonce.contract import Delivery, Window
from atleastonce.engine.decision import Decision
from atleastonce.engine.shared_window import PartMeter, SharedWindow

MIB = 2**20
NEVER = 4e9  # seconds since the epoch


def window(messages: int, size: int = MIB, readers: int = 3) -> tuple[SharedWindow, list[PartMeter], list[int]]:
    """With the meters, that of the source first, and how often each was told that there is room again."""
    shared, told = SharedWindow(Window(messages, size), readers), [0] * readers

    def again(number: int) -> Callable[[], None]:
        def count() -> None:
            told[number] += 1

        return count

    others = [shared.of_other(again(number)) for number in range(1, readers)]
    return shared, [shared.of_source(again(0)), *others], told


def fill(meter: PartMeter, most: int = 10**6, size: int = 10) -> int:
    """Receive until there is no room or ``most`` have come."""
    came = 0
    while came < most and (room := meter.room()):
        batch = min(room, most - came)
        meter.ask(room)
        meter.answer(batch)
        meter.take(batch, batch * size, size)
        came += batch
    return came


def test_the_source_has_all_but_one_for_each_other_reader_while_nothing_waits_there() -> None:
    _, (source, first, second), _ = window(30)
    assert fill(source) == 28
    assert fill(first) == 1
    assert fill(second) == 1


def test_what_waits_until_it_is_due_leaves_the_others_their_part() -> None:
    _, (source, first, second), _ = window(30)
    assert fill(first) == 10
    assert fill(second) == 10
    assert fill(source) == 10


def test_who_waits_within_its_part_goes_before_who_has_more() -> None:
    _, (source, first, _), told = window(30)
    fill(source)
    fill(first)
    first.waits = True
    source.give(5, 50)
    assert told[1] == 1
    assert source.room() == 0, "these are kept"
    assert fill(first) == 5
    first.waits = False
    source.give(20, 200)
    assert source.room() > 0
    first.waits = True
    source.waits = True
    first.give(6, 60)
    assert told[0] == 1
    assert fill(source) > 0, "what it has less than its part is given up for nobody"


def test_what_is_asked_for_in_vain_is_in_nobodys_way() -> None:
    """A receive may take seconds to find that nothing comes."""
    _, (source, first, second), _ = window(30)
    for meter in (source, first, second):
        meter.ask(meter.room())
    source.answer(1)
    source.take(1, 10, 10)
    assert fill(source) == 27
    first.answer(1)
    first.take(1, 10, 10)
    assert first.messages + second.messages + source.messages == 29, "and one is asked for"


def test_an_idle_source_keeps_nobody_from_its_part() -> None:
    _, (source, first, second), _ = window(30)
    fill(source)
    source.give(28, 280)
    source.ask(source.room())
    assert (fill(first), fill(second)) == (10, 10)


def test_a_window_with_less_than_one_message_for_each_has_one_for_each() -> None:
    _, meters, _ = window(1)
    assert [fill(meter) for meter in meters] == [1, 1, 1]


def test_a_message_larger_than_a_part_stops_nobody() -> None:
    _, (source, first, _), _ = window(30, 3000)
    first.ask(first.room())
    first.answer(1)
    assert first.take(1, 5000, 5000)
    assert source.room() == 1
    assert first.room() == 0


def test_near_the_memory_limit_all_of_it_shrinks() -> None:
    _, meters, _ = window(300)
    for meter in meters:
        meter.share = 0.1
    assert sum(fill(meter) for meter in meters) == 30


@pytest.mark.parametrize("seed", range(100))
def test_whatever_comes_and_goes_together_they_are_never_over(seed: int) -> None:
    chance = Random(seed)
    readers, messages, largest = chance.randint(2, 5), chance.randint(5, 60), chance.randint(1, 50)
    size = readers * largest + chance.randint(0, 20 * largest)
    shared, meters, _ = window(messages, size, readers)
    out: list[list[int]] = [[] for _ in meters]
    waiting: list[list[int]] = [[] for _ in meters]
    asked = [0] * readers

    def let_in(number: int) -> None:
        meter, line = meters[number], waiting[number]
        while line and (meter.fits(1, line[0]) or meter.fits_alone(line[0])):
            out[number].append(each := line.pop(0))
            meter.take(1, each, each)
        meter.held_up = bool(line)
        if line:
            meter.line_up(line[0])

    for number, meter in enumerate(meters):
        meter.again = lambda number=number: let_in(number)  # type: ignore[misc]
    came = 0
    for _ in range(600):
        number = chance.randrange(readers)
        meter, mine = meters[number], out[number]
        if asked[number]:
            batch = [chance.randint(0, largest) for _ in range(chance.randint(0, asked[number]))]
            if batch and chance.random() < 0.05:
                batch[0] = chance.randint(largest, 2 * size)
            asked[number] = 0
            meter.answer(len(batch))
            waiting[number] += batch
            came += len(batch)
            let_in(number)
        elif mine and chance.random() < 0.5:
            back = [mine.pop() for _ in range(chance.randint(1, len(mine)))]
            meter.give(len(back), sum(back))
            let_in(number)
        elif room := meter.room():
            meter.waits = False
            meter.ask(room)
            asked[number] = room
        else:
            meter.waits = True
            assert mine or meter.held_up, "who has nothing always has room"
        assert sum(map(len, out)) <= messages
        assert sum(map(sum, out)) <= size or sum(map(len, out)) == 1
    assert came > 20
    for _ in range(came):  # all of it ends: nobody waits for ever
        for number, meter in enumerate(meters):
            if out[number]:
                meter.give(1, out[number].pop())
                let_in(number)
    assert waiting == out == [[] for _ in meters]
    assert (shared.whole.messages, shared.whole.bytes) == (messages, size)


async def test_two_workers_share_a_window_and_the_backlog_of_one_lets_the_other_in() -> None:
    shared = SharedWindow(Window(20, MIB), 2)
    gate = asyncio.Semaphore(0)

    async def slow(item: Delivery) -> Decision:
        await gate.acquire()
        return Decision()

    async def quick(item: Delivery) -> Decision:
        return Decision()

    source = Rig(slow, adapter=ScriptedAdapter(LEASED), concurrency=2, make_meter=shared.of_source)
    retries = Rig(quick, adapter=ScriptedAdapter(LEASED), due=lambda _: NEVER, make_meter=shared.of_other)
    async with running(source, grace=0.0), running(retries, grace=0.0):
        source.feed(deliveries(100))
        await until(lambda: source.worker.in_flight == 19)
        retries.feed(deliveries(100, prefix="r"))
        await until(lambda: retries.worker.in_flight == 1)
        for let in range(1, 60):
            gate.release()
            await until(lambda let=let: source.worker.counts["done"] == let)  # type: ignore[misc]
            assert source.worker.in_flight + retries.worker.in_flight <= 20
        assert retries.worker.in_flight == 10, "its part"
        assert 7 <= source.worker.in_flight <= 10, "it asks anew once a quarter is free"
