"""Room for one message of who has none of its own: kept free before it is read, and never more than there is."""

from __future__ import annotations

import asyncio

import pytest
from engine_kit import until

from atleastonce.contract import Window
from atleastonce.engine.guest import Guest
from atleastonce.engine.shared_window import PartMeter, SharedWindow


def window(messages: int, size: int = 1000, readers: int = 1) -> tuple[Guest, PartMeter]:
    shared = SharedWindow(Window(messages, size), readers)
    return Guest(shared), shared.of_source(lambda: None)


async def test_it_waits_for_a_message_to_end_and_nobody_takes_its_room_meanwhile() -> None:
    guest, source = window(2)
    source.take(2, 20, 10)
    assert not await guest.reserve(0.02)
    reserving = asyncio.create_task(guest.reserve(5.0))
    await asyncio.sleep(0)
    source.give(1, 10)
    assert not source.fits(1, 10)
    assert await reserving
    assert not source.fits(1, 10)
    assert guest.fits(1, 100)
    guest.take(1, 100, 100)
    assert source.messages + guest.messages == 2
    guest.give(1, 100)
    assert not source.fits(1, 10), "it may read another one"
    guest.release()
    assert source.fits(1, 10)


async def test_a_window_of_one_message_has_none_of_the_source_beside_it() -> None:
    guest, source = window(1)
    source.take(1, 10, 10)
    assert not await guest.reserve(0.02)
    source.give(1, 10)
    assert await guest.reserve(0.02)
    assert not source.fits(1, 10)
    guest.release()
    assert source.fits(1, 10)


async def test_what_does_not_fit_is_what_is_reserved_the_next_time() -> None:
    guest, source = window(10)
    source.take(1, 100, 100)
    source.give(1, 100)
    source.take(5, 500, 100)
    assert await guest.reserve(0.02)
    assert guest.fits(1, 500), "more than was kept, and there is room"
    assert not guest.fits(1, 501)
    guest.release()
    assert guest.lacks == 501
    assert not await guest.reserve(0.02)
    source.give(1, 100)
    assert await guest.reserve(0.02)
    assert guest.fits(1, 501)
    assert guest.lacks == 0


async def test_what_is_larger_than_the_window_has_it_alone() -> None:
    guest, source = window(10)
    assert await guest.reserve(0.02)
    source.take(1, 0, 0)
    assert not guest.fits(1, 5000)
    guest.release()
    reserving = asyncio.create_task(guest.reserve(5.0))
    await asyncio.sleep(0)
    assert not source.fits(1, 0)
    source.give(1, 0)
    assert await reserving
    assert guest.fits(1, 5000)
    assert not source.fits(1, 0)


async def test_what_has_not_ended_at_its_release_still_counts() -> None:
    guest, source = window(1)
    assert await guest.reserve(0.02)
    assert guest.fits(1, 10)
    guest.take(1, 10, 10)
    guest.release()
    assert not source.fits(1, 10)
    guest.give(1, 10)
    assert source.fits(1, 10)


async def test_a_cancelled_reservation_keeps_nothing() -> None:
    guest, source = window(1)
    source.take(1, 10, 10)
    reserving = asyncio.create_task(guest.reserve(5.0))
    await until(lambda: guest.held_up)
    reserving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reserving
    source.give(1, 10)
    assert source.fits(1, 10)
