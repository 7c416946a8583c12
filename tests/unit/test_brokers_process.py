"""Processes of a broker: found by mark, group and descent, never mistaken for others, ended to the last."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atleastonce.brokers import session
from atleastonce.brokers.model import Command
from atleastonce.brokers.process import Identity, alive, end, family, halt, identity_of, kill, own_identity, send, spawn
from atleastonce.testing.brokers import marked

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the mark is read from /proc")

SLEEP = "import time; time.sleep(600)"

# Leaves a daemon behind, as RabbitMQ leaves epmd: another session, another parent, nothing but the environment in common.
DAEMON = f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    open(sys.argv[1], "w").write(str(os.getpid()))
    {SLEEP}
{SLEEP}
"""


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def python(code: str, *arguments: str, **options: float) -> Command:
    command = Command([sys.executable, "-c", code, *arguments], {"PATH": os.defpath}, "/")
    return Command(command.argv, command.env, command.cwd, signal.SIGTERM, options.get("grace", 5.0))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "broker"
    kill(tmp_path / "broker", None)


def test_an_identity_is_more_than_a_pid() -> None:
    me = own_identity()
    assert alive(me)
    assert not alive(Identity(me.pid, "an earlier process with this pid"))
    assert not alive(None)


def test_a_zombie_is_dead() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    until(lambda: identity_of(child) is None)
    os.waitpid(child, 0)


def test_a_server_is_ended_by_its_signal(mark: Path, tmp_path: Path) -> None:
    who = spawn(python(SLEEP), mark, tmp_path / "log")
    assert alive(who)
    assert {each.pid for each in family(mark, who)} == {who.pid}
    started = time.monotonic()
    assert end(mark, who, signal.SIGTERM, 5)
    assert not alive(who)
    assert time.monotonic() - started < 4
    assert not end(mark, who)


def test_what_ignores_its_signal_is_killed(mark: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    stubborn = "import signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').close(); " + SLEEP
    who = spawn(python(stubborn, str(ready)), mark, tmp_path / "log")
    until(ready.exists)
    assert end(mark, who, signal.SIGTERM, 0.2)
    assert not alive(who)


def test_a_daemon_left_behind_is_found_and_ended(mark: Path, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    who = spawn(python(DAEMON, str(note)), mark, tmp_path / "log")
    until(lambda: note.exists() and note.read_text() != "")
    daemon = int(note.read_text())
    os.kill(who.pid, signal.SIGKILL)
    until(lambda: not alive(who))
    # Nobody remembers the first process any more: as after a killed run.
    until(lambda: {each.pid for each in family(mark, None)} == {daemon})
    assert end(mark, None, grace=0)
    assert identity_of(daemon) is None


def test_another_brokers_processes_are_left_alone(mark: Path, tmp_path: Path) -> None:
    other = tmp_path / "broker-2"  # the mark of one is the beginning of the other's
    who = spawn(python(SLEEP), other, tmp_path / "log")
    try:
        assert not end(mark, None, grace=0)
        assert alive(who)
    finally:
        kill(other, who)


def test_a_reused_pid_is_not_signalled(mark: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        send([Identity(stranger.pid, "0")], signal.SIGKILL)
        assert not end(mark, Identity(stranger.pid, "0"), grace=0)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_paused_server_can_be_ended(mark: Path, tmp_path: Path) -> None:
    who = spawn(python(SLEEP), mark, tmp_path / "log")
    send([who], signal.SIGSTOP)
    started = time.monotonic()
    assert end(mark, who, signal.SIGTERM, 5)
    assert time.monotonic() - started < 4


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system shows no threads")
def test_a_halted_server_stands_still_with_all_its_threads(mark: Path, tmp_path: Path) -> None:
    busy = "import threading\nfor _ in range(8): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()"
    who = spawn(python(busy), mark, tmp_path / "log")
    tasks = Path(f"/proc/{who.pid}/task")
    try:
        until(lambda: len(list(tasks.iterdir())) == 9)
        halt([who])
        states = [(task / "stat").read_text().rpartition(") ")[2][0] for task in tasks.iterdir()]
        assert states == ["T"] * 9
    finally:
        kill(mark, who)


def test_the_environment_of_a_server_is_its_own(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:s3cret@example.test/simple")
    who = spawn(python(SLEEP), mark, tmp_path / "log")
    # A fork shows its parent's environment until it has become the new program.
    until(lambda: b"ALO_BROKER=" in Path(f"/proc/{who.pid}/environ").read_bytes())
    assert b"s3cret" not in Path(f"/proc/{who.pid}/environ").read_bytes()


def test_a_server_of_a_tests_own_ends_with_its_block_or_where_that_was_cut_off_with_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALO_CACHE", str(tmp_path))
    with marked("kafka") as mark:
        who = spawn(python(SLEEP), mark, tmp_path / "log")
        assert alive(who)
    assert not alive(who)
    code = f"""
import sys
from atleastonce.brokers.model import Command
from atleastonce.brokers.process import spawn
from atleastonce.testing.brokers import marked

with marked("kafka") as mark:
    print(spawn(Command([sys.executable, "-c", {SLEEP!r}], {{}}, "/"), mark, mark / "log").pid, flush=True)
    {SLEEP}
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    left = int(run.stdout.readline())
    run.kill()
    run.communicate()
    assert identity_of(left), "it should have outlived the run"
    with session([]):
        assert not identity_of(left)
