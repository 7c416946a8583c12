"""Processes: started in a group and with a mark of their own, known by pid *and* start time, ended completely.

A broker is more than one process: RabbitMQ leaves `epmd` behind, PostgreSQL's backends each lead a session. What
belongs to it is the union of its process group, its descendants, and every process whose environment bears its mark
(the directory it lives in), which survives double forks and the death of whoever started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .model import Command
from .progress import wait_until

MARK = "ALO_BROKER"
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid. `started` is opaque, per machine boot."""

    pid: int
    started: str


def identity_of(pid: int) -> Identity | None:
    """The identity of a living process; `None` when there is none (a zombie is dead)."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
    stat = _stat(pid)
    if stat is not None:
        return None if stat[0] in "ZX" else Identity(pid, stat[2])
    if Path("/proc/self/stat").exists():
        return None
    shown = subprocess.run(  # no /proc: macOS
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(None, 1)
    return Identity(pid, shown[1].strip()) if len(shown) == 2 and not shown[0].startswith("Z") else None


def alive(who: Identity | None) -> bool:
    """Whether exactly that process still runs."""
    return who is not None and identity_of(who.pid) == who


def own_identity() -> Identity:
    """The identity of this process."""
    mine = identity_of(os.getpid())
    assert mine is not None  # noqa: S101  # this process is alive
    return mine


def spawn(command: Command, mark: Path, log: Path) -> Identity:
    """Start a server in a session of its own, its output appended to `log`, its environment marked with `mark`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            command.argv,
            env={**command.env, MARK: str(mark)},
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[child.pid] = child
    return identity_of(child.pid) or Identity(child.pid, "ended at once")


def family(mark: Path, who: Identity | None) -> set[Identity]:
    """All living processes of the broker in directory `mark`; `who` is its recorded first process."""
    leader = who.pid if who is not None and alive(who) else None
    if not Path("/proc/self/stat").exists():
        return _group_by_ps(leader) if leader else set()
    needle = f"{MARK}={mark}".encode()
    seen: dict[int, tuple[int, str]] = {}
    members: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        stat = _stat(pid)
        if stat is None or stat[0] in "ZX":
            continue
        seen[pid] = stat[1:]
        if (leader is not None and leader in (pid, _group(pid))) or needle in _environment(pid):
            members.add(pid)
    while more := {pid for pid, (parent, _) in seen.items() if parent in members} - members:
        members |= more
    return {Identity(pid, seen[pid][1]) for pid in members}


def send(processes: Iterable[Identity], number: int) -> None:
    """Send a signal to each; those that are gone meanwhile are fine."""
    for each in processes:
        if alive(each):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, number)


def halt(processes: Iterable[Identity]) -> None:
    """SIGSTOP to each; returns when all their threads stand still (bounded: 10 s).

    A busy process goes on answering for a while: each thread stops when it is next scheduled.
    """
    members = set(processes)
    send(members, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not all(_stands(each.pid) for each in members) and wait_until(deadline):
        pass


def end(mark: Path, who: Identity | None, stop_signal: int = signal.SIGTERM, grace: float = 10.0) -> bool:
    """End all processes of a broker: `stop_signal` to its first process, SIGKILL to all that is left after `grace`
    seconds. Returns whether anything was running."""
    members = family(mark, who)
    if not members:
        return False
    if who in members:
        send(members, signal.SIGCONT)  # a paused process hears nothing else
        send([who], stop_signal)
        deadline = time.monotonic() + grace
        while alive(who) and wait_until(deadline):
            pass
    kill(mark, who, members)
    return True


def kill(mark: Path, who: Identity | None, known: Iterable[Identity] = ()) -> None:
    """SIGKILL to all processes of a broker and to those `known`; returns when none is left (bounded: 10 s)."""
    deadline = time.monotonic() + 10
    left = set(known) | family(mark, who)
    while left := {each for each in left if alive(each)} | family(mark, who):
        # Stopped before killed: a parent that saw its child die would start another (PostgreSQL), which nobody here knows.
        send(left, signal.SIGSTOP)
        send(left, signal.SIGKILL)
        if not wait_until(deadline):
            break


def _stat(pid: int) -> tuple[str, int, str] | None:
    """(state, parent, start time in clock ticks since boot) from /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks and parentheses
    return fields[0], int(fields[1]), fields[19]


def _stands(pid: int) -> bool:
    """Whether no thread of a process can run; also where that cannot be seen, or it is gone."""
    states = []
    for entry in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            text = entry.read_text()
            states.append(text[text.rindex(")") + 2])
    return all(state in "TtZX" for state in states)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _group_by_ps(leader: int) -> set[Identity]:
    listing = subprocess.run(["ps", "-axo", "pid=,pgid="], capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in listing.splitlines()]
    found = (identity_of(int(pid)) for pid, group in rows if int(group) == leader)
    return {each for each in found if each is not None}
