"""What Kafka's commit metadata says about unclean ends: marks survive, are taken back in good order, and tell where to look."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atleastonce.adapters.kafka.vigil import CAREFUL_RECORDS, CAREFUL_SECONDS, Vigil
from atleastonce.contract import Window
from atleastonce.offsets import Mark, OffsetTracker, Point, decode, encode, read_mark

WIDE = Window(10, 1 << 20)
ALONE = Window(1, 1 << 20, counted=True)

marks = st.builds(Mark, st.integers(1, 1000), st.integers(0, 10**6))


@given(st.integers(0, 10**6), st.lists(st.integers(1, 50), max_size=20), st.none() | marks, st.integers(40, 4096))
def test_a_mark_travels_beside_what_is_done_ahead(base: int, gaps: list[int], mark: Mark | None, limit: int) -> None:
    ahead, cursor = [], base
    for gap in gaps:
        ahead.append((cursor + gap, cursor + 2 * gap))
        cursor += 2 * gap
    text = encode(Point(base, tuple(ahead)), limit, mark)
    assert len(text) <= limit
    ranges = decode(text, base)
    assert ranges is not None
    assert ranges == tuple(ahead)[: len(ranges)] or limit < 4096
    found = read_mark(text, base)
    if mark is None:
        assert found is None
    elif text:
        assert found == Mark(mark.begun, max(mark.end, base))
    assert decode(text, base + 1) in (None, ())
    assert read_mark(text, base + 1) is None


@pytest.mark.parametrize("text", ["", "foreign", "alo1:", "alo1:AAAA", encode(Point(5, ((7, 9),)))])
def test_texts_without_a_mark_have_none(text: str) -> None:
    assert read_mark(text, 5) is None


class Commit(NamedTuple):
    offset: int | None = None
    metadata: str = ""


class Reader:
    """One life on one partition, as the adapter lives it: reserve, hand out, complete, commit."""

    def __init__(self, stored: Commit, window: Window, now: float = 0.0) -> None:
        self.stored = stored
        self.now = now
        mark = None if stored.offset is None else read_mark(stored.metadata, stored.offset)
        ahead = () if stored.offset is None else decode(stored.metadata, stored.offset) or ()
        self.tracker: OffsetTracker[int] = OffsetTracker(stored.offset, ahead)
        self.vigil = Vigil(stored.offset, mark, window, now)
        self.next = stored.offset or 0
        self.reservations = 0

    def hand_out(self, most: int, end: int) -> list[tuple[int, int]]:
        """Offsets with their counts."""
        batch: list[int] = []
        while self.next < end and len(batch) < most:
            if not self.tracker.skip(self.next):
                batch.append(self.next)
            self.next += 1
        self.tracker.receive(batch, batch)
        if batch and self.vigil.unreserved(batch[-1]):
            point = self.tracker.point()
            assert point is not None
            mark, reserved = self.vigil.reserve(point.offset, batch[-1], self.now)
            self.stored = Commit(point.offset, encode(point, mark=mark))
            self.vigil.reserved = reserved
            self.reservations += 1
        return [(offset, self.vigil.count(offset)) for offset in batch]

    def commit(self, *, clean: bool = False) -> None:
        point = self.tracker.point()
        if point is not None:
            self.stored = Commit(point.offset, encode(point, mark=self.vigil.mark(point.offset, self.now, clean=clean)))


def test_a_clean_end_leaves_no_mark_and_an_unclean_one_does() -> None:
    reader = Reader(Commit(), WIDE)
    reader.hand_out(5, 100)
    assert read_mark(reader.stored.metadata, 0) == Mark(1, 0)
    reader.commit()
    assert read_mark(reader.stored.metadata, 0) == Mark(1, 0)
    reader.commit(clean=True)
    assert reader.stored == Commit(0, "")


def test_in_normal_running_there_is_one_reservation_however_much_is_read() -> None:
    reader = Reader(Commit(), WIDE)
    for _ in range(1000):
        for offset, count in reader.hand_out(10, 10**6):
            assert count == 0
            reader.tracker.complete(offset)
    assert reader.reservations == 1


def test_after_one_unclean_end_all_is_reserved_and_nothing_suspected_and_later_it_is_forgotten() -> None:
    first = Reader(Commit(), WIDE)
    first.hand_out(10, 100)
    second = Reader(first.stored, WIDE)
    counts = second.hand_out(10, 100)
    assert max(count for _, count in counts) == 2
    for offset, _ in counts:
        second.tracker.complete(offset)
    second.hand_out(10, 100)
    mark = read_mark(second.stored.metadata, second.stored.offset or 0)
    assert mark is not None
    assert mark.begun == 2
    second.now = CAREFUL_SECONDS + 1
    second.commit()
    assert read_mark(second.stored.metadata, second.stored.offset or 0) == Mark(1, second.stored.offset or 0)
    second.commit(clean=True)
    assert second.stored.metadata == "" or read_mark(second.stored.metadata, second.stored.offset or 0) is None


def test_a_clean_end_within_a_crash_loop_counts_no_life_and_forgets_none() -> None:
    dead = Reader(Commit(), WIDE)
    dead.hand_out(10, 100)
    deployed = Reader(dead.stored, WIDE)
    deployed.hand_out(10, 100)
    deployed.commit(clean=True)
    assert read_mark(deployed.stored.metadata, 0) == Mark(1, 0)


def test_who_ends_its_process_in_good_order_is_counted_and_what_lies_behind_it_is_not() -> None:
    stored = Commit()
    for life in range(1, 6):
        reader = Reader(stored, WIDE)
        counts = dict(reader.hand_out(10, 100))
        assert counts[3] == (life if life > 1 else 0)
        for offset in (0, 1, 2, *range(6, 10)):
            if offset in counts:
                reader.tracker.complete(offset)
        reader.vigil.died(3)
        reader.commit(clean=True)
        stored = reader.stored
        assert read_mark(stored.metadata, 3) == Mark(life, 4)
    reader = Reader(stored, WIDE)
    assert dict(reader.hand_out(10, 100))[5] == 0
    reader.tracker.complete(3)
    reader.vigil.died(3)
    reader.commit(clean=True)
    assert reader.stored.offset == 4
    assert read_mark(reader.stored.metadata, 4) == Mark(1, 4)
    after = Reader(reader.stored, WIDE)
    assert max(count for _, count in after.hand_out(10, 100)) == 2, "what is left is careful, and suspects nobody"


def test_two_that_end_processes_in_turns_are_both_counted() -> None:
    stored = Commit()
    for life in range(6):
        reader = Reader(stored, WIDE)
        counts = dict(reader.hand_out(10, 100))
        reader.vigil.died(7 if life % 2 else 2)
        reader.commit(clean=True)
        stored = reader.stored
    assert counts[2] == counts[7] == 6


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(0, 400), st.integers(1, 20))
def test_a_killer_is_suspected_after_a_bounded_number_of_lives_wherever_it_lies(
    data: st.DataObject, killer: int, chunk: int
) -> None:
    """Each life hands out, completes in any order, commits now and then, and dies when the killer runs."""
    stored, end = Commit(), 500
    for life in range(8):
        reader = Reader(stored, WIDE)
        running: list[int] = []
        while True:
            for offset, count in reader.hand_out(min(chunk, WIDE.messages - len(running)), end):
                if offset == killer and count >= 3:
                    assert life >= 2  # not after a single accident
                    return
                running.append(offset)
            which = running.pop(data.draw(st.integers(0, len(running) - 1)))
            if which == killer:
                break
            reader.tracker.complete(which)
            if data.draw(st.booleans()):
                reader.commit()
        stored = reader.stored
    pytest.fail("never suspected")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["dies", "stops", "done"]), max_size=30))
def test_where_every_hand_out_is_counted_the_count_is_exact(ends: list[str]) -> None:
    stored, offset, deaths = Commit(), 0, 0
    for end in ends:
        reader = Reader(stored, ALONE)
        ((handed, count),) = reader.hand_out(1, 100)
        assert (handed, count) == (offset, deaths + 1)
        if end == "dies":
            deaths += 1
        else:
            if end == "done":
                reader.tracker.complete(offset)
                offset, deaths = offset + 1, 0
            reader.commit(clean=True)
        stored = reader.stored


def test_one_life_counts_each_of_what_it_hands_out_alone() -> None:
    reader = Reader(Commit(), ALONE)
    for expected in range(5):
        assert reader.hand_out(1, 100) == [(expected, 1)]
        reader.tracker.complete(expected)
    dead = Reader(reader.stored, ALONE)
    assert dead.hand_out(1, 100) == [(4, 2)]  # done, and not committed: it may have been the end of it


def test_far_beyond_an_unclean_end_nothing_is_reserved_any_more() -> None:
    vigil = Vigil(0, Mark(1, 0), WIDE, now=0.0)
    assert vigil.reserve(CAREFUL_RECORDS - 1, CAREFUL_RECORDS, now=0.0)[1] < 2**63
    assert vigil.reserve(CAREFUL_RECORDS, CAREFUL_RECORDS, now=0.0) == (Mark(1, CAREFUL_RECORDS), 2**63)
    assert vigil.reserve(5, 5, now=CAREFUL_SECONDS)[1] == 2**63
