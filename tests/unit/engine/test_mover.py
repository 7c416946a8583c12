"""Moves: every copy confirmed before the original is settled, failures repeated with back-off, nothing dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from engine_kit import Answer, ScriptedAdapter, copy, deliveries, delivery, until

from atleastonce.channels import Channel, Queue
from atleastonce.contract import ACK, OK, Code, Delivery, Fault, Outcome, Outgoing, Retry, Verdict, rejected, unknown
from atleastonce.engine.decision import Decision
from atleastonce.engine.mover import Mover

TOO_LARGE = rejected(Code.TOO_LARGE, "too large")
AWAY = unknown(Code.UNAVAILABLE, "away")


class Moves:
    """A mover whose waits are over at once, and what it did in order."""

    def __init__(self, *, refuses: bool | Exception = False) -> None:
        self.adapter = ScriptedAdapter()
        self.log: list[tuple[str, str]] = []
        self.verdicts: list[Verdict] = []
        self.waits: list[float] = []
        self.refusals: list[tuple[str, Decision, Fault]] = []
        self.refuses = refuses
        self.held: list[tuple[Delivery, Decision]] = []
        self.hold = False
        self.mover = Mover(self._send, self._settle, self._wait, self._refused)

    async def _send(self, batch: Sequence[Outgoing]) -> Sequence[object]:
        self.log.extend(("send", item.message.id) for item in batch)
        return await self.adapter.send(batch)

    def _settle(self, item: Delivery, verdict: Verdict) -> None:
        self.log.append(("settle", item.message.id))
        self.verdicts.append(verdict)

    def _wait(self, pause: float, item: Delivery, decision: Decision) -> None:
        self.waits.append(pause)
        if self.hold:
            self.held.append((item, decision))
        else:
            self.mover.add(item, decision)

    def _refused(self, item: Delivery, decision: Decision, fault: Fault) -> bool:
        self.refusals.append((item.message.id, decision, fault))
        if isinstance(self.refuses, Exception):
            raise self.refuses
        return self.refuses

    @property
    def settled(self) -> list[str]:
        return [name for what, name in self.log if what == "settle"]


@contextlib.asynccontextmanager
async def moving(moves: Moves) -> AsyncIterator[Moves]:
    task = asyncio.create_task(moves.mover.run())
    try:
        yield moves
        await until(lambda: moves.mover.idle)
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


def move(*names: str, verdict: Verdict = ACK) -> Decision:
    return Decision(verdict, tuple(copy(name) for name in names), name="dead")


async def test_the_copy_is_confirmed_before_the_original_is_settled() -> None:
    async with moving(Moves()) as moves:
        moves.adapter.sending.clear()
        moves.mover.add(delivery("m"), move("c", verdict=Retry(3)))
        await until(lambda: moves.adapter.sends)
        assert not moves.mover.idle
        assert moves.settled == []
        moves.adapter.sending.set()
        await until(lambda: moves.settled)
        assert moves.log == [("send", "c"), ("settle", "m")]
        assert moves.verdicts == [Retry(3)]


async def test_a_list_that_is_confirmed_is_settled_as_one() -> None:
    moves, lists = Moves(), list[list[str]]()

    def settle_all(batch: Sequence[Delivery], verdict: Verdict) -> None:
        lists.append([item.message.id for item in batch])
        assert verdict is ACK

    moves.mover = Mover(moves._send, moves._settle, moves._wait, moves._refused, settle_all)
    async with moving(moves):
        for item in deliveries(3):
            moves.mover.add(item, move(f"c-{item.message.id}"))
        await until(lambda: lists)
        one, two = deliveries(2)
        moves.mover.add(one, move("c1"))
        moves.mover.add(two, move("c2", verdict=Retry(3)))
        await until(lambda: len(moves.settled) == 2)
        moves.adapter.answers.append(lambda _: [OK, AWAY])
        one, two = deliveries(2)
        moves.mover.add(one, move("c3"))
        moves.mover.add(two, move("c4"))
        await until(lambda: len(lists) == 2)
    assert [len(each) for each in lists] == [3, 1]
    assert moves.verdicts == [ACK, Retry(3), ACK]


class Drafts:
    """Copies that are named after their originals, but of ``unread``."""

    destination: Channel[object] = copy("any").destination  # type: ignore[assignment]

    def __init__(self, *unread: Delivery) -> None:
        self.unread = unread
        self.runs: list[list[str]] = []

    def written(self, items: Sequence[Delivery]) -> tuple[list[Outgoing], list[Delivery]]:
        self.runs.append([item.message.id for item in items])
        read = [item for item in items if item not in self.unread]
        return [copy(f"c-{item.message.id}") for item in read], [item for item in items if item in self.unread]


async def test_drafts_are_written_for_a_list_and_a_copy_that_failed_is_sent_again_as_it_was() -> None:
    items, drafts = deliveries(4), Drafts()
    names = [item.message.id for item in items]
    drafted = Decision(name="retried", draft=drafts)
    async with moving(Moves()) as moves:
        moves.adapter.answers.append(lambda _: [OK, OK, AWAY, OK])
        for item, decision in zip(items, (drafted, move("own"), drafted, drafted), strict=True):
            moves.mover.add(item, decision)
        await until(lambda: len(moves.settled) == 4)
        assert moves.adapter.sends == [[f"c-{names[0]}", "own", f"c-{names[2]}", f"c-{names[3]}"], [f"c-{names[2]}"]]
        assert drafts.runs == [[names[0]], [names[2], names[3]]]
        assert moves.refusals == []


@pytest.mark.parametrize("decision", [Decision(name="retried", draft=Drafts()), move("c")], ids=["draft", "copy"])
async def test_a_list_is_added_as_each_of_it_would_be(decision: Decision) -> None:
    items = deliveries(5)
    async with moving(Moves()) as moves:
        moves.adapter.sending.clear()
        moves.mover.add_all(items[:2], decision)
        await until(lambda: moves.adapter.sends)
        moves.mover.add_all(items[2:4], decision)
        moves.mover.add_all(items[4:], decision)
        moves.adapter.sending.set()
        await until(lambda: len(moves.settled) == 5)
    assert moves.settled == [item.message.id for item in items]
    assert [len(call) for call in moves.adapter.sends] == [2, 3]


async def test_a_draft_that_cannot_be_written_ends_otherwise_and_keeps_no_other_waiting() -> None:
    items = deliveries(3)
    drafted = Decision(name="retried", draft=Drafts(items[1]))
    async with moving(Moves(refuses=True)) as moves:
        for item in items:
            moves.mover.add(item, drafted)
        await until(lambda: len(moves.settled) == 2)
    assert moves.settled == [items[0].message.id, items[2].message.id]
    ((name, decision, fault),) = moves.refusals
    assert (name, decision, fault.code) == (items[1].message.id, drafted, Code.INVALID)


async def test_a_draft_that_nobody_decides_about_is_tried_again() -> None:
    (item,) = deliveries(1)
    drafts = Drafts(item)
    moves = Moves()
    moves.hold = True
    async with moving(moves):
        moves.mover.add(item, Decision(name="retried", draft=drafts))
        await until(lambda: moves.held)
        drafts.unread = ()
        moves.mover.add(*moves.held.pop())
        await until(lambda: moves.settled)
    assert moves.adapter.sends == [[f"c-{item.message.id}"]]
    assert not moves.mover.failing


async def test_a_copy_leaves_in_the_next_turn() -> None:
    """Whoever asked waits for it."""
    async with moving(Moves()) as moves:
        await asyncio.sleep(0)
        moves.mover.add(delivery("m"), move("c"))
        await asyncio.sleep(0)
        assert moves.adapter.sends == [["c"]]


async def test_what_comes_in_during_one_call_goes_out_in_the_next() -> None:
    async with moving(Moves()) as moves:
        moves.adapter.sending.clear()
        for item in deliveries(6):
            moves.mover.add(item, move(f"c-{item.message.id}"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        moves.adapter.sending.set()
        await until(lambda: len(moves.settled) == 6)
        assert [len(call) for call in moves.adapter.sends] == [1, 5]


@pytest.mark.parametrize(
    "answer",
    [
        lambda batch: [AWAY] * len(batch),
        lambda _: RuntimeError("bug"),
        lambda _: [],
        lambda batch: [OK] * (len(batch) + 1),
        lambda _: asyncio.CancelledError(),  # a future of the client, not our task
    ],
    ids=["unknown", "raises", "too few", "too many", "cancelled inside"],
)
async def test_a_failing_publish_is_repeated_with_growing_waits_until_it_succeeds(
    answer: Callable[[Sequence[Outgoing]], Answer],
) -> None:
    async with moving(Moves()) as moves:
        moves.adapter.answers.extend([answer] * 5)
        moves.mover.add(delivery("m"), move("c1", "c2"))
        await until(lambda: moves.settled)
        assert moves.adapter.sends == [["c1", "c2"]] * 6
        assert moves.log[-1] == ("settle", "m")
        assert len(moves.waits) == 5
        assert all(later > earlier for earlier, later in zip(moves.waits, moves.waits[1:], strict=False))
        assert moves.mover.failing == 0


async def test_a_destination_that_hangs_keeps_nothing_else_waiting() -> None:
    moves = Moves()
    hangs, there = Queue("hangs"), Queue("there")
    answered = asyncio.Event()

    async def send(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        if hangs in {item.destination for item in batch}:
            await answered.wait()
        return [OK] * len(batch)

    moves.mover = Mover(send, moves._settle, moves._wait, moves._refused)
    async with moving(moves):
        one, *others = deliveries(20)
        moves.mover.add(one, Decision(ACK, (Outgoing(hangs, one.message),)))
        await asyncio.sleep(0)
        for item in others:
            moves.mover.add(item, Decision(ACK, (Outgoing(there, item.message),)))
        await until(lambda: len(moves.settled) == 19)
        assert moves.settled == [item.message.id for item in others]
        assert not moves.mover.idle
        answered.set()
    assert moves.settled[-1] == one.message.id


async def test_a_bug_in_what_settles_ends_the_mover_and_not_one_way_in_silence() -> None:
    moves = Moves()

    def settle(item: Delivery, verdict: Verdict) -> None:
        raise ValueError("a bug")

    mover = Mover(moves.adapter.send, settle, moves._wait, moves._refused)
    task = asyncio.create_task(mover.run())
    mover.add(delivery("m"), move("c"))
    with pytest.raises(ValueError, match="a bug"):
        await asyncio.wait_for(task, 2)


async def test_a_mover_that_is_cancelled_sends_nothing_more() -> None:
    moves = Moves()
    moves.adapter.sending.clear()
    task = asyncio.create_task(moves.mover.run())
    moves.mover.add(delivery("m"), move("c"))
    await until(lambda: moves.adapter.sends)
    task.cancel()
    await asyncio.wait([task])
    moves.adapter.sending.set()
    assert moves.settled == []
    assert moves.mover.idle


async def test_with_several_copies_only_what_is_unconfirmed_is_published_again() -> None:
    """Else a destination that is away for an hour would flood the one that is not."""
    async with moving(Moves()) as moves:
        moves.adapter.answers.append(lambda _: [OK, AWAY, OK])
        moves.adapter.answers.append(lambda _: [AWAY])
        moves.mover.add(delivery("m"), move("a", "b", "c", verdict=Retry(1)))
        await until(lambda: moves.settled)
        assert moves.adapter.sends == [["a", "b", "c"], ["b"], ["b"]]
        assert moves.verdicts == [Retry(1)]


async def test_one_failing_move_affects_no_other_in_its_batch() -> None:
    moves = Moves()
    moves.hold = True
    async with moving(moves):
        moves.adapter.answers.append(lambda _: [OK, AWAY, OK])
        for item in deliveries(3):
            moves.mover.add(item, move("c"))
        await until(lambda: len(moves.settled) == 2)
        assert moves.settled == ["m0", "m2"]
        assert [item.message.id for item, _ in moves.held] == ["m1"]
        assert moves.mover.failing == 1
        moves.mover.forget(moves.held[0][0])
        assert moves.mover.failing == 0


async def test_two_deliveries_of_one_message_back_off_each_for_itself() -> None:
    moves = Moves()
    moves.hold = True
    async with moving(moves):
        first, second = delivery("m"), delivery("m")
        moves.adapter.answers.append(lambda _: [AWAY, OK])
        moves.mover.add(first, move("c"))
        moves.mover.add(second, move("c"))
        await until(lambda: moves.settled)
        moves.adapter.answers.append(lambda _: [AWAY])
        moves.mover.add(*moves.held[0])
        await until(lambda: len(moves.waits) == 2)
        assert moves.waits[1] >= 0.2
        moves.mover.forget(first)


async def test_a_refused_copy_asks_for_another_decision() -> None:
    moves = Moves(refuses=True)
    async with moving(moves):
        moves.adapter.answers.append(lambda _: [OK, TOO_LARGE])
        moves.mover.add(delivery("m"), move("a", "b"))
        await until(lambda: moves.refusals)
        ((name, decision, fault),) = moves.refusals
        assert (name, decision.name, fault.code) == ("m", "dead", Code.TOO_LARGE)
        assert [item.message.id for item in decision.copies] == ["b"]
        assert moves.settled == []
        assert moves.waits == []
        assert moves.mover.failing == 0


@pytest.mark.parametrize("refuses", [False, ValueError("bug in the policy")])
async def test_a_refused_copy_without_another_decision_is_held_and_tried_again(refuses: bool | Exception) -> None:
    moves = Moves(refuses=refuses)
    async with moving(moves):
        moves.adapter.answers.extend([lambda _: [TOO_LARGE]] * 3)
        moves.mover.add(delivery("m"), move("c"))
        await until(lambda: moves.settled)
        assert len(moves.refusals) == 3
        assert len(moves.adapter.sends) == 4
        assert moves.mover.last_fault == TOO_LARGE.fault


async def test_what_is_lost_before_it_is_sent_is_not_copied() -> None:
    """It comes again anyway, and would be copied twice."""
    async with moving(Moves()) as moves:
        gone, here = delivery("gone"), delivery("here")
        gone.lost = True
        moves.mover.add(gone, move("c1"))
        moves.mover.add(here, move("c2"))
        await until(lambda: len(moves.settled) == 2)
        assert moves.adapter.sends == [["c2"]]


async def test_a_cancelled_move_settles_nothing() -> None:
    moves = Moves()
    task = asyncio.create_task(moves.mover.run())
    moves.adapter.sending.clear()
    moves.mover.add(delivery("m"), move("c"))
    await until(lambda: moves.adapter.sends)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert moves.settled == []
    assert moves.mover.idle
