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


def limit_at(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    new, old = tmp_path / "memory.max", tmp_path / "memory" / "memory.limit_in_bytes"
    nowhere = tmp_path / "cgroup"
    assert container_limit(tmp_path, nowhere) is None
    limit_at(old, "9223372036854771712")  # version 1 says "none" so
    assert container_limit(tmp_path, nowhere) is None
    limit_at(new, "max")
    assert container_limit(tmp_path, nowhere) is None
    limit_at(old, str(1 << 30))
    assert container_limit(tmp_path, nowhere) == 1 << 30
    limit_at(new, str(1 << 29))
    assert container_limit(tmp_path, nowhere) == 1 << 29


def test_the_limit_of_a_service_of_systemd_is_in_its_branch_of_the_tree(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/system.slice/billing.service\n")
    assert container_limit(tmp_path, own) is None
    limit_at(tmp_path / "system.slice/billing.service/memory.max", str(1 << 28))
    assert container_limit(tmp_path, own) == 1 << 28
    limit_at(tmp_path / "system.slice/memory.max", str(1 << 27))  # what all around it may use together
    assert container_limit(tmp_path, own) == 1 << 27
    limit_at(tmp_path / "user.slice/memory.max", "4096")  # somebody else's
    assert container_limit(tmp_path, own) == 1 << 27


def test_the_limit_of_a_group_of_version_1(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("7:cpu,cpuacct:/other\n5:memory:/docker/abc\n1:name=systemd:/docker/abc\nnonsense\n")
    limit_at(tmp_path / "memory/docker/abc/memory.limit_in_bytes", str(1 << 26))
    limit_at(tmp_path / "other/memory.max", "4096")
    assert container_limit(tmp_path, own) == 1 << 26


def test_a_group_above_the_root_that_is_mounted_is_not_looked_for(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "mounted"
    own.write_text("0::/../outside\n")
    limit_at(tmp_path / "outside/memory.max", "4096")
    assert container_limit(root, own) is None
