"""The window's account: back to zero, never below, and a request that shrinks with the size of what comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.contract import Window
from atleastonce.engine.window import WindowMeter

MIB = 2**20


def test_an_unused_window_has_room_for_all_its_messages() -> None:
    meter = WindowMeter(Window(100, MIB))
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
        (1, MIB - 1, 1),  # one at least, while any byte is left
        (0, 0, 100),
        (5, 0, 95),  # empty messages have no size to go by
    ],
)
def test_room_after_one_batch(taken: int, size: int, room: int) -> None:
    meter = WindowMeter(Window(100, MIB))
    meter.take(taken, size)
    assert meter.room() == room


def test_one_big_batch_shrinks_the_next_request_at_once_and_small_ones_widen_it_slowly() -> None:
    meter = WindowMeter(Window(1000, MIB))
    meter.take(1, MIB // 4)
    meter.give(1, MIB // 4)
    assert meter.room() == 4
    rooms = []
    for _ in range(60):
        meter.take(1, 100)
        meter.give(1, 100)
        rooms.append(meter.room())
    assert rooms == sorted(rooms)
    assert rooms[0] == 4
    assert rooms[-1] > 500


def test_low_is_three_quarters_in_both_measures() -> None:
    meter = WindowMeter(Window(4, 400))
    meter.take(4, 100)
    assert not meter.low
    meter.give(1, 25)
    assert meter.low
    meter.take(1, 325)
    meter.give(2, 99)
    assert (meter.messages, meter.bytes) == (2, 301)
    assert not meter.low
    meter.give(1, 1)
    assert meter.low


def test_a_window_of_one_is_low_when_it_is_empty() -> None:
    meter = WindowMeter(Window(1, 1))
    meter.take(1, 50)
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
            meter.take(len(batch), sum(batch))
            out += batch
        else:
            assert len(out) >= messages or sum(out) >= size
        assert (meter.messages, meter.bytes) == (len(out), sum(out))
        assert meter.messages <= messages
        assert meter.peak_messages >= meter.messages
        assert meter.peak_bytes >= meter.bytes
    meter.give(len(out), sum(out))
    assert (meter.messages, meter.bytes) == (0, 0)
    assert meter.room() >= 1
    assert meter.low
