"""The line of rows, against a model; and what is away."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import ConfigurationError, MemoryStore, Message, Outbox, RelayOptions, Service, Topic
from atleastonce.contract import Outgoing
from atleastonce.patterns.outbox.away import Away
from atleastonce.patterns.outbox.line import Line
from atleastonce.stores.outbox import SLOTS, OutboxRow, share, slot_of


def row(seq: int, key: bytes | None = None, topic: str = "t") -> OutboxRow:
    destination = f"topic:{topic}"
    message = Message(f"{seq}", b"", key)
    return OutboxRow(seq, slot_of(destination, key), destination, message.id, key, Outgoing(Topic(topic), message))


def test_of_a_key_one_row_is_out_at_a_time() -> None:
    line = Line()
    rows = [row(1, b"a"), row(2, b"a"), row(3), row(4, b"b"), row(5, b"a"), row(6)]
    assert line.add(rows) == 6
    assert line.add(rows) == 0, "what is held is not new"
    assert [each.seq for each in line.take(10)] == [1, 3, 4, 6]
    assert (len(line), line.out, line.ready) == (2, 4, False)
    line.end(rows[0])
    assert [each.seq for each in line.take(10)] == [2]
    assert sorted(line.held) == [1, 2, 3, 4, 5, 6]
    line.forget([1])
    assert sorted(line.held) == [2, 3, 4, 5, 6]


def test_two_lists_that_are_out_share_no_key_and_no_keyless_destination() -> None:
    """They are published at one time, and brokers mix what is."""
    line = Line()
    rows = [row(1), row(2), row(3, b"a"), row(4, b"b"), row(5, topic="other"), row(6)]
    line.add(rows)
    assert [each.seq for each in line.take(3)] == [1, 2, 3]
    assert [each.seq for each in line.take(3)] == [4, 5]
    assert (len(line), line.ready) == (1, False)
    line.end(rows[0])
    assert not line.ready, "the second of them is out"
    line.again(rows[1])
    assert line.ready
    line.add([rows[1]])
    assert [each.seq for each in line.take(3)] == [6, 2], "it failed, and was read again"


def test_without_order_all_go_at_once() -> None:
    line = Line(ordered=False)
    line.add([row(1, b"a"), row(2, b"a"), row(3, b"a")])
    assert [each.seq for each in line.take(2)] == [1, 2]
    assert line.take(2) == [], "mixed with those they would be in no order at all"


def test_a_failed_row_and_what_is_behind_it_are_read_again() -> None:
    line = Line()
    rows = [row(1, b"a"), row(2, b"a"), row(3, b"b")]
    line.add(rows)
    line.take(10)
    line.again(rows[0])
    assert line.held == [3]
    line.add(rows[:2])
    assert [each.seq for each in line.take(10)] == [1]


def test_dropping_leaves_what_is_out() -> None:
    line = Line()
    rows = [row(1, b"a"), row(2, b"a"), row(3, topic="other"), row(4, b"c")]
    line.add(rows)
    assert [each.seq for each in line.take(1)] == [1]
    line.drop(lambda each: each.destination == "topic:t")
    assert sorted(line.held) == [1, 3]
    assert line.slots() == {rows[0].slot}
    line.end(rows[0])
    assert [each.seq for each in line.take(9)] == [3]
    line.add([row(5, b"a")])
    assert [each.seq for each in line.take(9)] == [5]


OVERTAKING = [row(1, b"a"), row(2, b"a"), row(3, b"b"), row(4)]


@pytest.mark.parametrize(
    ("lets_go", "believed"),
    [
        (lambda _: None, [2, 3, 4]),
        (lambda line: line.again(OVERTAKING[0]), [3, 4]),
        (lambda line: line.drop(lambda each: each.slot == OVERTAKING[2].slot), [2, 4]),
        (lambda line: (line.again(OVERTAKING[0]), line.drop(lambda each: each.destination == "topic:t")), []),
        (lambda line: line.drop(lambda _: True), []),
        (lambda line: (line.end(OVERTAKING[0]), line.forget([1])), [2, 3, 4]),
    ],
    ids=["nothing", "a key", "a slot", "a destination", "all", "it ended"],
)
def test_a_look_is_not_believed_for_what_was_let_go_of_meanwhile(
    lets_go: Callable[[Line], object], believed: list[int]
) -> None:
    """It left out the first row, which was held: its answer begins with the second."""
    line = Line()
    line.add(OVERTAKING[:1])
    line.take(1)
    assert line.look() == [1]
    lets_go(line)
    assert line.add(OVERTAKING[1:]) == len(believed)
    assert [seq for seq in line.held if seq > 1] == believed
    left_out = line.look()
    line.add(each for each in OVERTAKING if each.seq not in left_out)
    assert {2, 3, 4} <= {*line.held}, "the next look finds what is left"


def test_what_was_let_go_of_before_a_look_is_believed() -> None:
    line = Line()
    line.add(OVERTAKING)
    line.take(1)
    line.look()
    line.again(OVERTAKING[0])
    line.drop(lambda _: True)
    assert line.look() == [], "the first one failed"
    assert line.add(OVERTAKING) == 4


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.sampled_from([None, b"a", b"b", b"c"]), min_size=1, max_size=6)),
        st.tuples(st.sampled_from(["take", "end", "again", "drop"]), st.integers(0, 5)),
    ),
    max_size=30,
)


@given(_STEPS)
def test_any_use_of_it_keeps_each_keys_order_and_loses_nothing(steps: list[tuple[str, object]]) -> None:
    """A store of rows, read again and again from its beginning; each row ends once, in its key's order."""
    line = Line()
    left: dict[int, OutboxRow] = {}
    out: list[OutboxRow] = []
    ended: dict[bytes, list[int]] = defaultdict(list)
    number = total = 0

    def read() -> None:
        line.add([left[seq] for seq in sorted(left)])

    def end(each: OutboxRow) -> None:
        line.end(each)
        key = each.outgoing.message.key if each.outgoing else None
        if key is not None:
            ended[key].append(each.seq)
        del left[each.seq]
        line.forget([each.seq])

    for step, what in steps:
        if step == "add":
            for key in what:  # type: ignore[attr-defined]
                number += 1
                total += 1
                left[number] = row(number, key)
            read()
        elif step == "take":
            keyless = any(each.outgoing and each.outgoing.message.key is None for each in out)
            offered, taken = line.ready, line.take(int(what))  # type: ignore[call-overload]
            assert bool(taken) == (offered and bool(what))
            assert not keyless or all(each.outgoing and each.outgoing.message.key for each in taken)
            out += taken
        elif step == "drop":
            line.drop(lambda each, what=what: each.slot % 6 == what)  # type: ignore[misc]
            read()
        elif out:
            each = out.pop(int(what) % len(out))  # type: ignore[call-overload]
            if step == "end":
                end(each)
            else:
                line.again(each)
        keys = [each.outgoing.message.key for each in out if each.outgoing and each.outgoing.message.key]
        assert len(keys) == len(set(keys)), "one of each key"
    while left:
        read()
        out += line.take(100)
        assert out
        while out:
            end(out.pop(0))
    assert len(line) == 0
    assert line.held == []
    for seqs in ended.values():
        assert seqs == sorted(set(seqs))


def test_what_is_away_is_left_alone_for_longer_and_longer() -> None:
    away = Away()
    assert (away.paused(0), away.wait(0), away.detail) == ([], None, "")
    first = away.failed("topic:t", "gone", 0.0)
    assert first is not None
    assert away.failed("topic:t", "gone", 0.0) is None, "a list that had left before"
    assert away.wait(0.0) == first
    second = away.failed("topic:t", "gone", 1.0)
    assert second is not None
    assert 0 < first < second
    away.failed("queue:q", "full", 1.0)
    assert away.paused(1.0) == ["topic:t", "queue:q"]
    assert away.wait(1.0) is not None
    assert "topic:t: gone" in away.detail
    assert away.paused(60) == []
    assert away.worked("topic:t")
    assert not away.worked("topic:t")
    assert away.detail == "queue:q: full"


def test_pauses_grow_only_while_nothing_is_taken() -> None:
    away = Away()
    first = away.failed("topic:t", "slow down", 0.0, some=True)
    assert first is not None
    shortest = first
    for now in range(1, 20):
        assert away.failed("topic:t", "slow down", now, some=True) is None, "told once"
        wait = away.wait(now)
        assert wait is not None
        assert wait < 2 * shortest
    for now in range(100, 200, 20):
        away.failed("topic:t", "gone", now)
    grown = away.wait(180)
    assert grown is not None
    assert grown > 1
    away.failed("topic:t", "slow down", 180, some=True)
    wait = away.wait(180)
    assert wait is not None
    assert wait < 2 * shortest, "an older list shows that it takes some: tried again soon"


def test_slots_are_shared_so_that_none_is_left_over() -> None:
    assert [share(relays) for relays in (0, 1, 2, 3, SLOTS, 100)] == [SLOTS, SLOTS, 4, 3, 1, 1]
    assert slot_of("topic:t", None) == slot_of("topic:t", None)
    assert len({slot_of("topic:t", f"{number}".encode()) for number in range(200)}) == SLOTS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": 10_001}, "batch"),
        ({"batch": "many"}, "batch"),
        ({"poll": "0s"}, "poll"),
        ({"poll": "often"}, "poll"),
        ({"lease": "100ms"}, "lease"),
    ],
)
def test_options_out_of_range_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RelayOptions(**given)


def test_what_is_no_outbox_is_refused() -> None:
    wrong: Any = MemoryStore()
    with pytest.raises(ConfigurationError, match="no database in which messages could be rows"):
        Outbox(wrong)


async def test_a_service_is_given_an_outbox_or_none() -> None:
    wrong: Any = "postgresql://localhost/shop"
    service = Service("s", broker="memory://", outbox=wrong)
    with pytest.raises(ConfigurationError, match="give an Outbox"):
        await service.start()
