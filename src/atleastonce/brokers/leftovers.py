"""Ending brokers, and what killed processes left of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import containers, state
from .cache import cache_dir, locked, remove_tree
from .process import Identity, alive, end
from .recipes import NAMES, RECIPES
from .running import Running


def end_broker(name: str, directory: Path, *, purge: bool, forcibly: bool = False) -> bool:
    """End whatever belongs to this directory: the recorded broker, or what a killed `up` left without a record.

    `forcibly` saves the seconds of an orderly end where the data is to be removed anyway.
    """
    was = False
    if record := state.read(directory):
        running = Running(RECIPES[name], record, directory)
        was = running.is_alive()
        if was and not record.container:
            running.kill() if forcibly else running.stop()
    was = end(directory, None, grace=0) or was
    was = containers.remove_left(directory) or was
    if purge:
        remove_tree(directory)
    return was


def end_all(home: Path, names: Sequence[str], *, purge: bool, forcibly: bool = False) -> list[str]:
    """`end_broker` for several of one state directory, in parallel; the names of those that were running."""

    def end_one(name: str) -> bool:
        if not (home / name).exists():
            return False
        with locked(lock_of(home / name)):
            return end_broker(name, home / name, purge=purge, forcibly=forcibly)

    with ThreadPoolExecutor(len(NAMES), "brokers") as pool:
        return [name for name, was in zip(names, pool.map(end_one, names), strict=True) if was]


def sessions() -> Path:
    """Where the state directories of sessions are."""
    return cache_dir() / "sessions"


def end_session(home: Path) -> None:
    """End the brokers of a session and forget it."""
    end_all(home, NAMES, purge=True, forcibly=True)
    remove_tree(home)


def sweep_sessions() -> None:
    """End what sessions of dead processes left."""
    for home in sessions().glob("*-*"):
        try:
            pid, started = (home / "owner").read_text().split("\n")
            if alive(Identity(int(pid), started)):
                continue
        except (OSError, ValueError):
            # No owner yet: perhaps it is being made right now. A minute later it is not.
            with contextlib.suppress(OSError):
                if time.time() - home.stat().st_mtime < 60:
                    continue
        end_session(home)


def lock_of(directory: Path) -> Path:
    """The lock of a broker's directory, beside it, so that it can be held while the directory is removed."""
    return directory.parent / f"{directory.name}.lock"
