"""The memory guard: which share of a window is left at which use, and where the limit comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from atleastonce.contract import Window
from atleastonce.engine.memory import MemoryGuard, container_limit, resident, window_share
from atleastonce.engine.window import WindowMeter

MIB = 1 << 20


@pytest.mark.parametrize(
    ("used", "share"), [(0, 1.0), (500, 1.0), (800, 1.0), (875, 0.5), (950, 0.02), (1000, 0.02), (5000, 0.02)]
)
def test_the_more_is_used_the_less_is_received(used: int, share: float) -> None:
    assert window_share(used, 1000) == pytest.approx(share, abs=1e-9)


def test_windows_shrink_and_grow_again() -> None:
    meter = WindowMeter(Window(100, 1000 * MIB))
    used = 100
    guard = MemoryGuard(1000, lambda: [meter], lambda: used)
    guard.look()
    assert meter.room() == 100
    used = 875
    guard.look()
    assert meter.room() == 50
    meter.take(50, 50, 1)
    assert meter.room() == 0
    assert not meter.low
    used = 2000
    guard.look()
    meter.give(50, 50)
    assert meter.room() == 2
    used = 10
    guard.look()
    assert meter.room() == 100


def test_a_window_of_one_message_stays_one() -> None:
    meter = WindowMeter(Window(1, MIB))
    MemoryGuard(1000, lambda: [meter], lambda: 10_000).look()
    assert meter.room() == 1


def test_where_the_system_says_nothing_nothing_shrinks() -> None:
    meter = WindowMeter(Window(10, MIB))
    MemoryGuard(1, lambda: [meter], lambda: None).look()
    assert meter.room() == 10


def test_a_process_occupies_memory() -> None:
    used = resident()
    assert used is None or MIB < used < 1 << 40


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    new, old = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    assert container_limit((new, old)) is None
    old.write_text("9223372036854771712\n")  # version 1 says "none" so
    assert container_limit((new, old)) is None
    new.write_text("max\n")
    assert container_limit((new, old)) is None
    old.write_text("1073741824\n")
    assert container_limit((new, old)) == 1 << 30
    new.write_text("536870912\n")
    assert container_limit((new, old)) == 1 << 29
