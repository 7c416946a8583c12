"""The offset tracker and its metadata: nothing undone may ever look done, and no text may be believed wrongly."""

from __future__ import annotations

import base64
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atleastonce import offsets
from atleastonce.offsets import METADATA_LIMIT, OffsetTracker, Point, decode, encode


def tracker(*offsets: int, start: int | None = None) -> OffsetTracker[str]:
    made: OffsetTracker[str] = OffsetTracker(start)
    made.receive(offsets, [f"r{offset}" for offset in offsets])
    return made


def expand(point: Point) -> set[int]:
    return {offset for start, end in point.ahead for offset in range(start, end)}


# ------------------------------------------------------------------------------------------- the tracker


def test_nothing_received_and_nothing_committed_commits_nothing() -> None:
    assert OffsetTracker[str]().point() is None


def test_an_empty_partition_commits_where_it_stands_and_not_beyond() -> None:
    # One past the end is OFFSET_OUT_OF_RANGE at the next start, and with it a reset of the whole partition.
    assert OffsetTracker[str](7).point() == Point(7)


def test_in_order_completion_commits_the_next_offset() -> None:
    t = tracker(0, 1, 2)
    t.complete(0)
    t.complete(1)
    assert t.point() == Point(2)
    t.complete(2)
    assert t.point() == Point(3)


def test_the_lowest_open_offset_is_committed_never_the_highest_seen() -> None:
    t = tracker(*range(10, 20))
    for offset in (12, 13, 19, 11):
        assert t.complete(offset)
    assert t.point() == Point(10, ((11, 14), (19, 20)))
    assert t.point().done_ahead == 4  # type: ignore[union-attr]


def test_completing_twice_or_what_never_came_changes_nothing() -> None:
    t = tracker(5, 6)
    assert t.complete(6)
    assert not t.complete(6)
    assert not t.complete(4)
    assert not t.complete(99)
    assert t.point() == Point(5, ((6, 7),))


def test_gaps_of_compaction_and_transaction_markers_count_as_done() -> None:
    t = tracker(3, 7, 20, start=0)
    assert t.point() == Point(3, ((4, 7), (8, 20)))
    t.complete(3)
    assert t.point() == Point(7, ((8, 20),))
    t.complete(7)
    t.complete(20)
    assert t.point() == Point(21)


def test_the_end_of_the_log_counts_as_received_where_something_was() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(3)
    tracker.receive([3, 4], ["a", "b"])
    tracker.reached(6)  # a transaction's mark lies at 5
    tracker.reached(4)  # an older telling
    tracker.complete(3)
    assert tracker.point() == Point(4, ((5, 6),))
    tracker.complete(4)
    assert tracker.point() == Point(6)
    unread: OffsetTracker[str] = OffsetTracker()
    unread.reached(9)
    assert unread.point() is None


def test_a_point_can_be_asked_for_as_if_more_were_done() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(0)
    tracker.receive([0, 1, 2, 3], ["a", "b", "c", "d"])
    assert tracker.point({0, 2}) == Point(1, ((2, 3),))
    assert tracker.point({0, 1, 2, 3}) == Point(4)
    assert tracker.point() == Point(0)  # and nothing is


def test_a_record_may_be_none() -> None:
    t: OffsetTracker[None] = OffsetTracker()
    t.receive([1], [None])
    assert t.complete(1)


def test_an_earlier_offset_than_expected_is_noticed() -> None:
    t = tracker(100, 101)
    assert t.rewound(101)
    assert t.rewound(0)
    assert not t.rewound(102)
    assert not t.rewound(5000)
    assert not OffsetTracker[str]().rewound(0)


def test_memory_follows_what_is_open_not_how_far_the_work_ran_ahead() -> None:
    t = tracker(0)
    for offset in range(1, 200_000):
        t.receive([offset], ["r"])
        t.complete(offset)
    assert len(t.open) == 1
    point = t.point()
    assert point == Point(0, ((1, 200_000),))
    assert len(encode(point)) < 40


# --------------------------------------------------------------------------------- a second owner


def test_the_next_owner_is_given_the_holes_only() -> None:
    first = tracker(*range(10))
    for offset in (1, 2, 5, 9):
        first.complete(offset)
    point = first.point()
    assert point is not None
    second: OffsetTracker[str] = OffsetTracker(point.offset, decode(encode(point), point.offset) or ())
    handed_out = [offset for offset in range(point.offset, 12) if not second.skip(offset)]
    assert handed_out == [0, 3, 4, 6, 7, 8, 10, 11]


def test_what_an_earlier_owner_did_is_kept_until_it_is_passed() -> None:
    t: OffsetTracker[str] = OffsetTracker(10, [(12, 20), (25, 26)])
    t.receive([10, 11], ["a", "b"])
    t.complete(10)
    assert t.point() == Point(11, ((12, 20), (25, 26)))
    t.complete(11)
    assert t.point() == Point(20, ((25, 26),))
    assert t.restored
    assert t.skip(12)
    assert not t.skip(20)
    t.receive([20, 21], ["c", "d"])
    assert t.point() == Point(20, ((25, 26),))
    assert t.skip(25)
    assert t.point() == Point(20, ((22, 26),))
    assert not t.skip(26)
    assert not t.restored


def test_a_skip_within_a_batch_does_not_move_the_position_back() -> None:
    t: OffsetTracker[str] = OffsetTracker(10, [(11, 13)])
    assert not t.skip(10)
    assert t.skip(11)
    assert t.skip(12)
    t.receive([10], ["a"])
    assert t.position == 13
    assert not t.rewound(13)
    t.complete(10)
    assert t.point() == Point(13)


# ----------------------------------------------------------------------------------------- the text


def test_nothing_ahead_is_an_empty_text() -> None:
    assert encode(Point(5)) == ""
    assert decode("", 5) == ()
    assert decode(None, 5) == ()


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "alo1:",
        "alo1:!!!!",
        "alo1:AAAA",
        "alo2:AAAA",
        "mp1:AAAA",
        "alo1:" + "A" * 50_000,
        "\u00e4lo1:",
        "alo1:\u00e4",
    ],
)
def test_foreign_and_damaged_texts_are_not_believed(text: str) -> None:
    assert decode(text, 0) is None


def test_a_text_for_another_offset_is_not_believed() -> None:
    text = encode(Point(10, ((12, 15),)))
    assert decode(text, 10) == ((12, 15),)
    assert decode(text, 11) is None
    assert decode(text, 0) is None


@pytest.mark.parametrize(
    "point", [Point(10, ((12, 15), (100, 5000))), Point(0, tuple((i, i + 1) for i in range(1, 999, 2)))]
)
def test_no_flipped_bit_and_no_cut_is_believed(point: Point) -> None:
    text = encode(point)
    raw = bytearray(base64.b64decode(text[5:]))
    for position in range(len(raw)):
        for bit in range(8):
            raw[position] ^= 1 << bit
            assert decode("alo1:" + base64.b64encode(raw).decode(), point.offset) is None
            raw[position] ^= 1 << bit
    for length in range(1, len(text)):
        assert decode(text[:length], point.offset) is None


def test_a_scattered_pattern_too_large_for_the_limit_is_cut_not_dropped() -> None:
    ahead = tuple((offset, offset + 1) for offset in range(1, 100_000, 2))
    text = encode(Point(0, ahead))
    assert 4000 < len(text) <= METADATA_LIMIT
    kept = decode(text, 0)
    assert kept is not None
    assert kept == ahead[: len(kept)]
    assert len(kept) > 10_000  # a bitmap: 3 kB of single bits


def test_offsets_as_large_as_kafka_has_them() -> None:
    point = Point(2**62, ((2**62 + 5, 2**62 + 10**12),))
    assert decode(encode(point), 2**62) == point.ahead


RUNS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=2000)


def from_runs(base: int, runs: list[tuple[int, int]]) -> Point:
    ahead, cursor = [], base
    for todo, done in runs:
        ahead.append((cursor + todo, cursor + todo + done))
        cursor += todo + done
    return Point(base, tuple(ahead))


@given(base=st.integers(0, 2**62), runs=RUNS, limit=st.integers(0, METADATA_LIMIT))
@settings(max_examples=300, deadline=None)
def test_round_trip_never_invents_and_never_exceeds_the_limit(
    base: int, runs: list[tuple[int, int]], limit: int
) -> None:
    point = from_runs(base, runs)
    text = encode(point, limit)
    assert len(text) <= limit
    back = decode(text, base)
    assert back is not None
    if limit == METADATA_LIMIT and len(runs) <= 700:
        assert back == point.ahead
    remaining = list(point.ahead)
    for start, end in back:  # every range lies within one of the true ones
        while remaining and remaining[0][1] < end:
            remaining.pop(0)
        assert remaining
        assert remaining[0][0] <= start < end <= remaining[0][1]


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 2**63 - 1))
def test_a_forged_text_with_a_right_checksum_is_read_without_raising(
    payload: bytes, codec: int, committed: int
) -> None:
    data = offsets._HEAD.pack(codec, committed) + payload
    text = "alo1:" + base64.b64encode(data + zlib.crc32(data).to_bytes(4, "big")).decode()
    for ranges in (decode(text, committed), decode(text + "=", committed)):
        assert ranges is None or all(committed < start < end <= 2**63 for start, end in ranges)
    mark = offsets.read_mark(text, committed)
    assert mark is None or mark.begun > 0


@given(st.text(max_size=300), st.binary(max_size=300), st.integers(0, 2**63 - 1))
def test_any_text_is_read_without_raising(text: str, raw: bytes, committed: int) -> None:
    assert decode(text, committed) in (None, ())
    assert decode("alo1:" + base64.b64encode(raw).decode(), committed) is None


# ------------------------------------------------------- against a model, over many owners and crashes


class Log(RuleBasedStateMachine):
    """One partition with gaps, read by one owner after another; each may crash between any two commits.

    The model is a set: what has been completed by anybody. Nothing that is not in it may be below the committed offset
    or within the metadata; what an owner has committed may never be handed out again.
    """

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed: int) -> None:
        chance = random.Random(seed)
        self.log = sorted(chance.sample(range(300), 120))
        self.completed: set[int] = set()
        self.committed: tuple[int, str] | None = None
        self.safe: set[int] = set()
        self.own()

    def own(self) -> None:
        if self.committed is None:
            self.tracker: OffsetTracker[int] = OffsetTracker()
            self.cursor = 0
        else:
            offset, text = self.committed
            ahead = decode(text, offset)
            assert ahead is not None
            self.tracker = OffsetTracker(offset, ahead)
            self.cursor = sum(1 for each in self.log if each < offset)
        self.open: list[int] = []

    @rule(count=st.integers(1, 15))
    def receive(self, count: int) -> None:
        taken = []
        for offset in self.log[self.cursor : self.cursor + count]:
            self.cursor += 1
            if self.tracker.restored and self.tracker.skip(offset):
                assert offset in self.completed
                continue
            assert offset not in self.safe, "handed out again though its completion was committed"
            taken.append(offset)
        self.tracker.receive(taken, taken)
        self.open += taken

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.open))
        self.open.remove(offset)
        assert self.tracker.complete(offset)
        self.completed.add(offset)

    @rule()
    def commit(self) -> None:
        point = self.tracker.point()
        if point is None:
            return
        if self.committed is not None:
            assert point.offset >= self.committed[0], "the watermark went back"
        self.committed = (point.offset, encode(point))
        done_ahead = expand(point)
        self.safe = {offset for offset in self.log if offset < point.offset or offset in done_ahead}

    @rule()
    def crash(self) -> None:
        self.own()

    @invariant()
    def nothing_undone_looks_done(self) -> None:
        point = self.tracker.point()
        if point is None:
            return
        ahead = expand(point)
        for offset in self.log:
            if offset < point.offset or offset in ahead:
                assert offset in self.completed

    @invariant()
    def ranges_are_well_formed(self) -> None:
        point = self.tracker.point()
        if point is None:
            return
        cursor = point.offset
        for start, end in point.ahead:
            assert cursor < start < end
            cursor = end

    @invariant()
    def counters_return(self) -> None:
        assert sorted(self.tracker.open) == sorted(self.open)


Log.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLog = Log.TestCase
