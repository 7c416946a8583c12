"""How much may be fetched: of what waits until it is due, little ahead of its time."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("confluent_kafka", reason='needs pip install "atleastonce[kafka]"')

from atleastonce.adapters.kafka import flow as module
from atleastonce.adapters.kafka.flow import Flow
from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.partition import Assignment
from atleastonce.contract import Window


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def assignment() -> Assignment:
    assignment = Assignment("orders.retry.5s")
    for number in range(2):
        assignment.begin(number, 0)
    return assignment


async def test_while_nothing_is_settled_little_is_fetched_ahead_and_then_as_much_as_was(
    clock: Clock, assignment: Assignment
) -> None:
    flow = Flow(Window(500, 1 << 30, shared=True, ahead=64), assignment, Handover(asyncio.get_running_loop()))
    assert flow.room() == 32  # of one partition, for whichever it may be
    assignment.completed += 100
    assert flow.room() == 50
    assignment.completed += 900
    assert flow.room() == 200  # its share of the window, and no more
    clock.now += 1.5  # a second of none, but one of many before it
    assert flow.room() == 200
    clock.now += 1.5
    assert flow.room() == 32


async def test_a_pause_of_long_ends_the_count(clock: Clock, assignment: Assignment) -> None:
    flow = Flow(Window(500, 1 << 30, shared=True, ahead=64), assignment, Handover(asyncio.get_running_loop()))
    assert flow.room() == 32
    assignment.completed += 1000
    clock.now += 60.0
    assert flow.room() == 32


async def test_a_window_that_is_not_ahead_of_its_time_is_used_as_a_whole(clock: Clock, assignment: Assignment) -> None:
    flow = Flow(Window(500, 1 << 30, shared=True), assignment, Handover(asyncio.get_running_loop()))
    assert flow.room() == 200


async def test_a_small_window_is_not_made_larger(clock: Clock, assignment: Assignment) -> None:
    flow = Flow(Window(10, 1 << 30, shared=True, ahead=64), assignment, Handover(asyncio.get_running_loop()))
    assert flow.room() == 4
