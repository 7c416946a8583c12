"""Publishing within bounds: what leaves when, who waits, who is told what."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from itertools import chain

import pytest
from front_kit import Sender, outgoing, until

from atleastonce.contract import OK, Code, Outcome, Status, Window, rejected, unknown
from atleastonce.engine.publisher import Publisher
from atleastonce.engine.rate import TokenBucket
from atleastonce.errors import Closed, Overloaded

LONG = 10.0


@contextlib.asynccontextmanager
async def publishing(
    messages: int = 100, size: int = 1000, *, max_batch: int = 50
) -> AsyncIterator[tuple[Publisher, Sender]]:
    sender = Sender()
    publisher = Publisher(sender, Window(messages, size), max_batch=max_batch)
    before = asyncio.all_tasks()
    yield publisher, sender
    sender.gate.set()
    async with asyncio.timeout(LONG):
        await publisher.close()
    assert publisher.pending == 0
    assert publisher._bytes == 0
    assert not publisher._waiting
    assert not publisher._pending
    assert asyncio.all_tasks() == before


def start(publisher: Publisher, name: str, size: int = 1, within: float = LONG) -> asyncio.Task[object]:
    return asyncio.create_task(publisher.publish(outgoing(name, size), within=within))  # type: ignore[arg-type]


async def test_a_lone_publish_leaves_at_once() -> None:
    async with publishing() as (publisher, sender):
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while not sender.calls:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        assert await publisher.publish(outgoing("a"), within=LONG) is OK
        await counting
        assert sender.calls == [["a"]]
        assert turns <= 5, "a few turns of the loop, and no timer"


async def test_what_comes_in_during_a_round_trip_makes_up_the_next_batch() -> None:
    async with publishing(max_batch=50) as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "first")
        await until(lambda: sender.out == 1)
        rest = [start(publisher, f"m{n}") for n in range(70)]
        await until(lambda: publisher.pending == 71)
        sender.gate.set()
        outcomes = await asyncio.gather(first, *rest)
        assert outcomes == [OK] * 71
        assert [len(call) for call in sender.calls] == [1, 50, 20]
        assert list(chain(*sender.calls)) == ["first", *(f"m{n}" for n in range(70))], "in order"


async def test_each_gets_its_own_outcome() -> None:
    async with publishing() as (publisher, sender):
        sender.gate.clear()
        start(publisher, "first")
        await until(lambda: sender.out == 1)
        answers = [OK, rejected(Code.TOO_LARGE), unknown(Code.TIMEOUT)]
        sender.answers.extend([lambda batch: [OK] * len(batch), lambda _: answers])
        tasks = [start(publisher, f"m{n}") for n in range(3)]
        await until(lambda: publisher.pending == 4)
        sender.gate.set()
        assert await asyncio.gather(*tasks) == answers


@pytest.mark.parametrize("answer", [RuntimeError("boom"), [OK, OK, OK], [], asyncio.CancelledError()])
async def test_an_adapter_that_raises_or_miscounts_leaves_unknown_and_a_publisher_that_goes_on(answer: object) -> None:
    async with publishing() as (publisher, sender):
        sender.answers.append(lambda _: answer)  # type: ignore[arg-type, return-value]
        outcome = await publisher.publish(outgoing("a"), within=LONG)
        assert outcome.status is Status.UNKNOWN
        assert await publisher.publish(outgoing("b"), within=LONG) is OK
        sender.answers.append(lambda _: answer)  # type: ignore[arg-type, return-value]
        outcomes = await publisher.publish_many([outgoing("c"), outgoing("d")], within=LONG)
        assert [outcome.status for outcome in outcomes] == [Status.UNKNOWN] * 2
        assert await publisher.publish(outgoing("e"), within=LONG) is OK


async def test_an_adapter_that_is_not_open_is_closed_to_everyone() -> None:
    async with publishing() as (publisher, sender):
        sender.answers.extend([lambda _: Closed("not open")] * 2)
        with pytest.raises(Closed, match="not open"):
            await publisher.publish(outgoing("a"), within=LONG)
        with pytest.raises(Closed, match="not open"):
            await publisher.publish_many([outgoing("a")], within=LONG)
        assert await publisher.publish(outgoing("b"), within=LONG) is OK


async def test_what_is_posted_is_told_its_outcome_whatever_happens() -> None:
    told: list[Outcome] = []
    async with publishing() as (publisher, sender):
        sender.answers.extend(
            [lambda _: [rejected(Code.TOO_LARGE)], lambda _: Closed("not open"), lambda _: RuntimeError()]
        )
        for number in range(4):
            await publisher.post(outgoing("a"), told.append, within=LONG)
            await until(lambda number=number: len(told) > number)  # type: ignore[misc]
            assert publisher.pending == 0
    faults = [outcome.fault and outcome.fault.code for outcome in told]
    assert faults == [Code.TOO_LARGE, Code.CLOSED, Code.INTERNAL, None]
    assert told[-1] is OK


@pytest.mark.parametrize(("messages", "size"), [(3, 1000), (100, 3)])
async def test_a_full_window_is_overload_after_the_time_and_nothing_is_sent(messages: int, size: int) -> None:
    async with publishing(messages, size) as (publisher, sender):
        sender.gate.clear()
        tasks = [start(publisher, f"m{n}") for n in range(3)]
        await until(lambda: publisher.pending == 3)
        with pytest.raises(
            Overloaded, match=r"3 publishes are pending, .* within 0.01 s; publish less, or wait longer"
        ):
            await publisher.publish(outgoing("late"), within=0.01)
        with pytest.raises(Overloaded):
            await publisher.publish(outgoing("at once"), within=0)
        with pytest.raises(Overloaded):
            await publisher.publish_many([outgoing("many")], within=0.01)
        sender.gate.set()
        await asyncio.gather(*tasks)
        assert {name for call in sender.calls for name in call} == {"m0", "m1", "m2"}


async def test_room_for_many_wakes_many() -> None:
    async with publishing(messages=4) as (publisher, sender):
        sender.gate.clear()
        many = asyncio.create_task(publisher.publish_many([outgoing(f"a{n}") for n in range(4)], within=LONG))
        await until(lambda: sender.out == 1)
        tasks = [start(publisher, f"m{n}") for n in range(4)]
        await until(lambda: len(publisher._waiting) == 4)
        sender.gate.set()
        await many
        sender.gate.clear()
        await until(lambda: publisher.pending == 4, what="one leaving list makes room for four")
        sender.gate.set()
        await asyncio.gather(*tasks)


async def test_a_woken_waiter_that_is_cancelled_hands_its_room_on() -> None:
    async with publishing(messages=1) as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "first")
        await until(lambda: sender.out == 1)
        gone, next_ = start(publisher, "gone"), start(publisher, "next")
        await until(lambda: len(publisher._waiting) == 2)
        sender.gate.set()
        while len(publisher._waiting) == 2:  # noqa: ASYNC110 - until the very turn in which the room was given to it
            await asyncio.sleep(0)
        gone.cancel()
        async with asyncio.timeout(LONG):
            assert await next_ is OK
            await first
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert ["gone"] not in sender.calls


async def test_a_large_item_that_gives_up_lets_those_behind_it_pass() -> None:
    async with publishing(size=10) as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "first", 5)
        await until(lambda: sender.out == 1)
        large = start(publisher, "large", 8)
        await until(lambda: len(publisher._waiting) == 1)
        small = start(publisher, "small", 2)
        await until(lambda: len(publisher._waiting) == 2)
        assert not small.done(), "the large one is not passed for ever"
        large.cancel()
        await until(lambda: publisher.pending == 2)
        sender.gate.set()
        assert await asyncio.gather(first, small) == [OK, OK]


async def test_who_waits_first_enters_first_and_newcomers_do_not_pass() -> None:
    async with publishing(size=10) as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "first", 6)
        await until(lambda: sender.out == 1)
        tasks = [start(publisher, "large", 9)]
        await until(lambda: len(publisher._waiting) == 1)
        tasks += [start(publisher, f"small{n}", 1) for n in range(5)]
        await until(lambda: len(publisher._waiting) == 6)
        sender.gate.set()
        await asyncio.gather(first, *tasks)
        assert list(chain(*sender.calls))[:2] == ["first", "large"]
        assert sender.most[1] <= 10


async def test_what_is_larger_than_the_window_goes_alone() -> None:
    async with publishing(size=10) as (publisher, sender):
        assert await publisher.publish(outgoing("huge", 50), within=LONG) is OK
        items = [outgoing("a", 4), outgoing("b", 4), outgoing("huge", 99), outgoing("c", 4), outgoing("d", 7)]
        assert await publisher.publish_many(items, within=LONG) == [OK] * 5
        assert sender.calls == [["huge"], ["a", "b"], ["huge"], ["c"], ["d"]]


async def test_a_list_leaves_in_batches_that_fit() -> None:
    async with publishing(messages=30, size=10_000, max_batch=50) as (publisher, sender):
        assert await publisher.publish_many([outgoing(f"m{n}") for n in range(70)], within=LONG) == [OK] * 70
        assert [len(call) for call in sender.calls] == [30, 30, 10]
        assert await publisher.publish_many([], within=LONG) == []
    async with publishing(messages=1000, size=10_000, max_batch=50) as (publisher, sender):
        await publisher.publish_many([outgoing(f"m{n}") for n in range(100)], within=LONG)
        assert [len(call) for call in sender.calls] == [50, 50]


async def test_a_list_that_was_sent_in_part_says_so() -> None:
    async with publishing(messages=2) as (publisher, sender):
        sender.gate.clear()
        many = asyncio.create_task(publisher.publish_many([outgoing(f"m{n}") for n in range(6)], within=0.02))
        await until(lambda: sender.out == 1)
        other = asyncio.create_task(publisher.publish_many([outgoing("o1"), outgoing("o2")], within=LONG))
        await until(lambda: len(publisher._waiting) == 1)
        sender.gate.set()
        await asyncio.sleep(0)  # the first call returns in this turn
        sender.gate.clear()  # the other list has the window now, and keeps it
        outcomes = await many
        assert outcomes[:2] == [OK, OK]
        assert [outcome.status for outcome in outcomes[2:]] == [Status.UNKNOWN] * 4
        assert all(outcome.fault and outcome.fault.code is Code.OVERLOADED for outcome in outcomes[2:])
        assert "not sent" in str(outcomes[2].fault)
        sender.gate.set()
        assert await other == [OK, OK]
        assert sender.calls == [["m0", "m1"], ["o1", "o2"]]


async def test_no_more_leave_at_once_than_the_rate_grants() -> None:
    """However many are pending: to save them all up and let them go together is no rate."""
    sender = Sender()
    publisher = Publisher(sender, Window(200, 1000), max_batch=50, rate=TokenBucket(200.0))
    single = [start(publisher, f"single {n}") for n in range(60)]
    outcomes = await publisher.publish_many([outgoing(f"list {n}") for n in range(60)], within=LONG)
    assert outcomes == [OK] * 60
    assert await asyncio.gather(*single) == [OK] * 60
    assert sender.most[0] <= 20, "a tenth of a second's worth"
    assert Counter(chain(*sender.calls)) == Counter([f"{kind} {n}" for kind in ("single", "list") for n in range(60)])
    await publisher.close()
    assert publisher.pending == 0


async def test_a_close_waits_so_long_for_what_the_rate_holds_and_tells_the_rest_that_it_was_not_sent() -> None:
    """At one in an hour the last of them would leave in two days."""
    sender = Sender()
    sender.gate.clear()
    publisher = Publisher(sender, Window(60, 1000), max_batch=50, rate=TokenBucket(1 / 3600))
    singles = [start(publisher, f"s{n}") for n in range(40)]
    await until(lambda: sender.out == 1)
    told: list[Outcome] = []
    await publisher.post(outgoing("posted"), told.append, within=LONG)
    listed = asyncio.create_task(publisher.publish_many([outgoing(f"l{n}") for n in range(10)], within=LONG))
    await until(lambda: publisher.pending == 51)
    sender.gate.set()
    async with asyncio.timeout(LONG):
        await asyncio.gather(publisher.close(0.05), publisher.close(0.05))
    answers = await asyncio.gather(*singles, listed, return_exceptions=True)
    assert answers[0] is OK
    assert all(isinstance(answer, Closed) and "not sent" in str(answer) for answer in answers[1:])
    assert [(outcome.status, outcome.fault and outcome.fault.code) for outcome in told] == [
        (Status.UNKNOWN, Code.CLOSED)
    ]
    assert sender.calls == [["s0"]]
    assert publisher.pending == 0


async def test_what_may_leave_within_the_time_of_a_close_does() -> None:
    sender = Sender()
    publisher = Publisher(sender, Window(60, 1000), max_batch=50, rate=TokenBucket(100.0))
    singles = [start(publisher, f"s{n}") for n in range(40)]
    await until(lambda: len(sender.calls) == 1)
    await publisher.close(LONG)
    assert await asyncio.gather(*singles) == [OK] * 40


async def test_a_list_of_which_a_part_has_left_says_of_the_rest_that_it_was_not_sent() -> None:
    sender = Sender()
    publisher = Publisher(sender, Window(60, 1000), max_batch=50, rate=TokenBucket(1 / 3600))
    listed = asyncio.create_task(publisher.publish_many([outgoing(f"l{n}") for n in range(5)], within=LONG))
    await until(lambda: sender.calls == [["l0"]])
    async with asyncio.timeout(LONG):
        await publisher.close(0.0)
    first, *rest = await listed
    assert first is OK
    assert [(outcome.status, outcome.fault and outcome.fault.code) for outcome in rest] == [
        (Status.UNKNOWN, Code.CLOSED)
    ] * 4


async def test_a_list_at_a_rate_that_was_sent_in_part_says_so() -> None:
    sender = Sender()
    publisher = Publisher(sender, Window(100, 1000), max_batch=50, rate=TokenBucket(100.0))
    sender.answers.extend([lambda batch: [OK] * len(batch), lambda _: Closed("not open")])
    outcomes = await publisher.publish_many([outgoing(str(n)) for n in range(30)], within=LONG)
    assert outcomes[:10] == [OK] * 10
    assert {outcome.fault and outcome.fault.code for outcome in outcomes[10:]} == {Code.CLOSED}
    assert len(outcomes) == 30
    await publisher.close()


async def test_what_is_withdrawn_before_it_left_does_not_leave_and_makes_room() -> None:
    told: list[Outcome] = []
    async with publishing(messages=2) as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "a")
        await until(lambda: sender.out == 1)
        posted = await publisher.post(outgoing("b"), told.append, within=LONG)
        posted.withdraw()
        posted.withdraw()
        assert publisher.pending == 1
        last = start(publisher, "c")
        sender.gate.set()
        await asyncio.gather(first, last)
        assert told == []
        assert sender.calls == [["a"], ["c"]]
        gone = await publisher.post(outgoing("d"), told.append, within=LONG)
        await until(lambda: told == [OK])
        gone.withdraw()
        assert publisher.pending == 0


async def test_close_during_a_list_ends_it_with_outcomes() -> None:
    async with publishing(messages=2) as (publisher, sender):
        sender.gate.clear()
        many = asyncio.create_task(publisher.publish_many([outgoing(f"m{n}") for n in range(6)], within=LONG))
        await until(lambda: sender.out == 1)
        closing = asyncio.create_task(publisher.close())
        await asyncio.sleep(0)
        assert not closing.done(), "what is being sent is waited for"
        sender.gate.set()
        await closing
        outcomes = await many
        assert outcomes[:2] == [OK, OK]
        assert [outcome.fault.code for outcome in outcomes[2:] if outcome.fault] == [Code.CLOSED] * 4
        assert sender.calls == [["m0", "m1"]]


async def test_a_cancelled_publish_that_has_not_left_is_not_sent_and_gives_its_room_back() -> None:
    async with publishing(messages=2) as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "first")
        await until(lambda: sender.out == 1)
        for n in range(50):
            task = start(publisher, f"gone{n}")
            await until(lambda: publisher.pending == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert publisher.pending == 1
        sender.gate.set()
        assert await first is OK
        assert await publisher.publish(outgoing("after"), within=LONG) is OK
        assert sender.calls == [["first"], ["after"]]


async def test_a_cancelled_publish_that_is_being_sent_ends_at_once_and_harms_no_neighbour() -> None:
    async with publishing() as (publisher, sender):
        sender.gate.clear()
        first = start(publisher, "first")
        await until(lambda: sender.out == 1)
        second, third = start(publisher, "second"), start(publisher, "third")
        await until(lambda: publisher.pending == 3)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        sender.gate.set()
        assert await asyncio.gather(second, third) == [OK, OK]


async def test_close_waits_for_what_is_sent_and_refuses_the_rest() -> None:
    async with publishing(messages=2) as (publisher, sender):
        sender.gate.clear()
        tasks = [start(publisher, "sent")]
        await until(lambda: sender.out == 1)
        tasks.append(start(publisher, "pending"))
        await until(lambda: publisher.pending == 2)
        waiting = start(publisher, "waiting")
        await until(lambda: len(publisher._waiting) == 1)
        closing = [asyncio.create_task(publisher.close()) for _ in range(2)]
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(Closed):
            await publisher.publish(outgoing("late"), within=LONG)
        with pytest.raises(Closed):
            await publisher.publish_many([outgoing("late")], within=LONG)
        assert not any(task.done() for task in (*closing, *tasks))
        sender.gate.set()
        assert await asyncio.gather(*tasks) == [OK, OK], "nobody who was sending is cut off"
        await asyncio.gather(*closing)
        await publisher.close()
        assert sender.calls == [["sent"], ["pending"]]


async def test_under_load_the_window_holds_and_nobody_is_forgotten() -> None:
    async with publishing(messages=7, size=60, max_batch=5) as (publisher, sender):
        top = (0, 0)

        async def one(n: int) -> object:
            nonlocal top
            if n % 10 == 3:
                return await publisher.publish_many([outgoing(f"l{n}-{i}", 3 + n % 20) for i in range(4)], within=LONG)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.0005 if n % 7 == 0 else LONG):
                    outcome = await publisher.publish(outgoing(f"m{n}", n % 30), within=LONG)
                    top = (max(top[0], publisher.pending), max(top[1], publisher._bytes))
                    return outcome
            return None

        async with asyncio.timeout(LONG):
            results = await asyncio.gather(*(one(n) for n in range(400)))
        assert top[0] <= 7
        assert top[1] <= 60 + 30
        sent = list(chain(*sender.calls))
        assert len(sent) == len(set(sent)), "nothing twice"
        for n, result in enumerate(results):
            if result is OK:
                assert f"m{n}" in sent
