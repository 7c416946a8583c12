"""The checker must catch every kind of violation that is planted in a history, name it, and blame nothing else."""

import random

import msgspec
import pytest

from atleastonce.contract import Status
from atleastonce.testing.history import Findings, History, Lost, Overlap, Reordered

KEYS = ("a", "b", "c")


def perfect(count: int = 60) -> History:
    """``count`` messages over three keys, all confirmed, each handled once, in order, one at a time per key."""
    history = History()
    for number in range(count):
        history.sent(f"m{number}", Status.OK, key=KEYS[number % 3], at=number / 100)
    for number in range(count):
        history.received(f"m{number}", consumer="c1", started=1 + number, ended=1.9 + number, count=1)
    return history


def test_a_perfect_history_is_clean() -> None:
    found = perfect().check()
    assert found == Findings()
    assert found.clean
    assert str(found) == "clean"


@pytest.mark.parametrize(
    ("missing", "where"),
    [("m0", "prefix"), ("m30", "middle"), ("m57", "postfix")],
)
def test_a_lost_message_is_found_and_placed_within_its_key(missing: str, where: str) -> None:
    history = perfect()
    history.receipts = [each for each in history.receipts if each.id != missing]
    found = history.check()
    assert found.lost == (Lost(missing, "a", where),)  # type: ignore[arg-type]
    assert not found.ok
    assert where in str(found)
    assert msgspec.structs.replace(found, lost=()) == Findings()


def test_a_key_of_which_nothing_arrived_is_lost_from_its_beginning() -> None:
    history = perfect(9)
    history.receipts = [each for each in history.receipts if each.id not in {"m1", "m4", "m7"}]
    assert [loss.where for loss in history.check().lost] == ["prefix"] * 3


def test_a_message_nobody_sent_is_a_ghost() -> None:
    history = perfect()
    history.received("stranger", started=99, ended=100)
    found = history.check()
    assert found.ghosts == ("stranger",)
    assert not found.ok


def test_a_refused_message_that_arrives_is_a_ghost() -> None:
    history = perfect()
    history.sent("refused", Status.REJECTED, key="a")
    assert history.check().clean
    history.received("refused", started=99, ended=100)
    assert history.check().ghosts == ("refused",)


def test_a_refused_message_that_is_sent_again_and_confirmed_is_no_ghost() -> None:
    history = perfect(3)
    history.sent("again", Status.REJECTED)
    history.sent("again", Status.OK)
    history.received("again")
    assert history.check().ok


def test_repeats_are_counted_and_are_no_loss() -> None:
    history = perfect()
    history.received("m7", started=99, ended=100)
    history.received("m7", started=101, ended=102)
    found = history.check()
    assert found.duplicates == {"m7": 2}
    assert found.ok
    assert not found.clean
    assert not found.reordered


def test_a_message_first_seen_after_a_later_one_of_its_key_is_reordered() -> None:
    history = perfect()
    first, later = (next(i for i, r in enumerate(history.receipts) if r.id == id) for id in ("m3", "m9"))
    history.receipts[first], history.receipts[later] = history.receipts[later], history.receipts[first]
    found = history.check()
    # m3, m6 and m9 have one key; seen as m9, m6, m3.
    assert found.reordered == (Reordered("a", "m6", "m9"), Reordered("a", "m3", "m9"))
    assert found.ok


def test_other_keys_may_pass_each_other() -> None:
    history = perfect()
    history.receipts.sort(key=lambda each: (int(each.id[1:]) % 3, int(each.id[1:])))
    assert not history.check().reordered


def test_two_handlings_of_one_key_at_a_time_overlap() -> None:
    history = perfect()
    history.receipts[3] = msgspec.structs.replace(history.receipts[3], ended=7.5)  # m3 still runs when m6 begins at 7.0
    assert history.check().overlaps == (Overlap("a", "m3", "m6"),)


def test_a_long_handling_overlaps_with_all_that_begin_during_it() -> None:
    history = perfect()
    history.receipts[0] = msgspec.structs.replace(history.receipts[0], ended=11.0)
    assert [each.second for each in history.check().overlaps] == ["m3", "m6", "m9"]


def test_messages_without_a_key_may_overlap() -> None:
    history = History()
    for id in ("x", "y"):
        history.sent(id, Status.OK)
        history.received(id, started=1, ended=5)
    assert history.check().clean


def test_a_send_without_an_answer_may_arrive_or_not() -> None:
    history = perfect()
    history.sent("maybe1", Status.UNKNOWN, key="a")
    history.sent("maybe2", Status.UNKNOWN, key="a")
    history.received("maybe1", started=99, ended=100)
    found = history.check()
    assert found.clean
    assert (found.unknown_arrived, found.unknown_missing) == (1, 1)


def test_a_repeated_send_counts_with_its_best_answer() -> None:
    history = perfect()
    history.sent("retried", Status.UNKNOWN, key="a")
    history.sent("retried", Status.OK, key="a")
    assert [loss.id for loss in history.check().lost] == ["retried"]


def test_a_history_survives_its_file() -> None:
    history = perfect()
    history.sent("refused", Status.REJECTED)
    lines = list(history.lines())
    again = History.load([*lines, b"\n"])
    assert again.sends == history.sends
    assert again.receipts == history.receipts
    with pytest.raises(msgspec.DecodeError):
        History.load([*lines, b'{"type":"sent"}'])


@pytest.mark.parametrize("seed", range(20))
def test_violations_planted_at_random_are_all_found_and_nothing_else(seed: int) -> None:
    choose = random.Random(seed)
    history = perfect(300)
    lost = set(choose.sample([f"m{n}" for n in range(300)], 5))
    doubled = set(choose.sample([f"m{n}" for n in range(300) if f"m{n}" not in lost], 5))
    history.receipts = [each for each in history.receipts if each.id not in lost]
    for id in doubled:
        history.received(id, started=1000 + int(id[1:]), ended=1000.5 + int(id[1:]))
    history.received("ghost")
    found = history.check()
    assert {loss.id for loss in found.lost} == lost
    assert set(found.duplicates) == doubled
    assert found.ghosts == ("ghost",)
    assert not found.reordered
    assert not found.overlaps
