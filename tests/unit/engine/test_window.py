"""The window's account: back to zero, never below, and a request that shrinks with the size of what comes."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.contract import Window
from atleastonce.engine.window import WindowMeter

MIB = 2**20


def test_an_unused_window_has_room_for_all_its_messages() -> None:
    meter = WindowMeter(Window(100, 64 * MIB))
    assert meter.room() == 100
    assert meter.low


@pytest.mark.parametrize(
    ("taken", "size", "room"),
    [
        (1, 10, 99),
        (100, 1000, 0),  # full in messages
        (1, MIB, 0),  # full in bytes
        (1, 3 * MIB, 0),  # overshot by one big message
        (10, MIB // 2, 10),  # as many again as bytes allow at this size
        (1, MIB // 2, 1),
        (1, MIB - 1, 0),  # what is left is less than one more may have
        (0, 0, 16),  # nothing is known of sizes
        (5, 0, 95),  # empty messages have no size to go by
    ],
)
def test_room_after_one_batch(taken: int, size: int, room: int) -> None:
    meter = WindowMeter(Window(100, MIB))
    meter.take(taken, size, size // taken if taken else 0)
    assert meter.room() == room


def test_one_large_message_shrinks_the_next_requests_until_many_small_ones_came() -> None:
    meter = WindowMeter(Window(10_000, MIB))
    meter.take(1, MIB // 4, MIB // 4)
    assert meter.room() == 3
    meter.give(1, MIB // 4)
    assert meter.room() == 4
    rooms = []
    for _ in range(3000):
        meter.take(1, 100, 100)
        meter.give(1, 100)
        rooms.append(meter.room())
    assert rooms == sorted(rooms)
    assert rooms[998] == 4, "for a thousand messages at least"
    assert rooms[2000] == 10_000


def test_before_any_was_seen_messages_may_be_large() -> None:
    meter = WindowMeter(Window(1000, MIB))
    assert meter.room() == 16
    meter.take(3, 0, 0)
    assert meter.room() == 997, "and empty ones have no size to go by"


def test_what_is_larger_than_the_window_comes_alone_and_is_told_once() -> None:
    meter = WindowMeter(Window(100, 1000))
    assert meter.take(1, 1001, 1001)
    meter.give(1, 1001)
    assert meter.room() == 1
    meter.take(1, 10, 10)
    assert meter.room() == 0
    meter.give(1, 10)
    assert not meter.take(1, 5000, 5000)


@given(st.integers(1, 50), st.lists(st.integers(1, 50), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_bytes_are_never_over_once_the_largest_has_been_seen(limit: int, sizes: list[int], random: Random) -> None:
    sizes = [min(size, limit) for size in sizes]
    meter = WindowMeter(Window(1000, limit))
    meter.take(1, max(sizes), max(sizes))
    meter.give(1, max(sizes))
    out: list[int] = []
    for _ in range(100):
        if room := meter.room():
            batch = random.choices(sizes, k=random.randint(1, room))
            meter.take(len(batch), sum(batch), max(batch))
            out += batch
            assert meter.bytes <= limit
        else:
            assert out, "an empty window has room"
            meter.give(1, out.pop(random.randrange(len(out))))


def test_low_is_three_quarters_in_both_measures() -> None:
    meter = WindowMeter(Window(4, 400))
    meter.take(4, 100, 25)
    assert not meter.low
    meter.give(1, 25)
    assert meter.low
    meter.take(1, 325, 325)
    meter.give(2, 99)
    assert (meter.messages, meter.bytes) == (2, 301)
    assert not meter.low
    meter.give(1, 1)
    assert meter.low


def test_a_window_of_one_is_low_when_it_is_empty() -> None:
    meter = WindowMeter(Window(1, 1))
    meter.take(1, 50, 50)
    assert not meter.low
    meter.give(1, 50)
    assert meter.low
    assert meter.room() == 1


@given(
    st.integers(1, 50),
    st.integers(1, 5000),
    st.lists(st.one_of(st.lists(st.integers(0, 2000), min_size=1, max_size=20), st.integers(1, 20)), max_size=60),
)
def test_the_account_is_the_sum_of_what_is_out_and_comes_back_to_zero(
    messages: int, size: int, script: list[list[int] | int]
) -> None:
    """Batches come in as far as there is room, and are given back in any portion."""
    meter = WindowMeter(Window(messages, size))
    out: list[int] = []
    for step in script:
        if isinstance(step, int):
            back, out = out[:step], out[step:]
            meter.give(len(back), sum(back))
        elif room := meter.room():
            assert 1 <= room <= messages - len(out)
            batch = step[:room]
            meter.take(len(batch), sum(batch), max(batch))
            out += batch
        else:
            assert out
        assert (meter.messages, meter.bytes) == (len(out), sum(out))
        assert meter.messages <= messages
        assert meter.peak_messages >= meter.messages
        assert meter.peak_bytes >= meter.bytes
    meter.give(len(out), sum(out))
    assert (meter.messages, meter.bytes) == (0, 0)
    assert meter.room() >= 1
    assert meter.low
