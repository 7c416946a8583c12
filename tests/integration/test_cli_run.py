"""Commands as processes: they start, do their work, and end in order when they are told to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from atleastonce import Topic, connect_sync

pytestmark = pytest.mark.timeout(120, func_only=True)

APP = """
import time
from atleastonce import Service, Topic

service = Service("billing", broker="sqlite:///shop.db")

@service.consumer(Topic("orders"), concurrency=1)
def charge(order: dict) -> None:
    print("begin", order["n"], flush=True)
    time.sleep(order.get("seconds", 0))
    print("end", order["n"], flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "shopapp.py").write_text(APP)
    return tmp_path


class Running:
    """The command, and its output line by line."""

    def __init__(self, place: Path, *words: str, command: Sequence[str] = ("run", "shopapp:service")) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atleastonce", *command, *words],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, text: str) -> str:
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came:\n{''.join(seen)}")

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@pytest.fixture
def running(place: Path) -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


def test_it_tells_its_status_where_it_is_told_to(place: Path, running: list[Running]) -> None:
    service = Running(place, "--http", "127.0.0.1:0")
    running.append(service)
    found = re.search(r"http://127\.0\.0\.1:\d+", service.until("status at"))
    assert found is not None
    service.until("runs on")
    with urllib.request.urlopen(f"{found[0]}/readyz", timeout=30) as answer:
        assert answer.read() == b"ok\n"
    with urllib.request.urlopen(f"{found[0]}/status", timeout=30) as answer:
        assert [each["source"] for each in json.load(answer)["readers"]] == ["orders.billing"]
    assert service.end(signal.SIGTERM)[0] == 0
    wrong = Running(place, "--http", "9090")
    running.append(wrong)
    output, _ = wrong.process.communicate(timeout=60)
    assert (wrong.process.returncode, "Traceback" in output) == (2, False)
    assert "give HOST:PORT" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_until_a_signal_and_drains(place: Path, running: list[Running], number: signal.Signals) -> None:
    service = Running(place)
    running.append(service)
    service.until("runs on sqlite")
    with connect_sync(f"sqlite:///{place}/shop.db") as broker:
        broker.publish(Topic("orders"), {"n": 1})
        service.until("end 1")
        broker.publish(Topic("orders"), {"n": 2, "seconds": 1})
    service.until("begin 2")
    code, output = service.end(number)
    assert code == 0, output
    assert "end 2" in output
    assert "Traceback" not in output


def test_it_waits_for_its_broker_with_a_reason_and_can_be_interrupted(place: Path, running: list[Running]) -> None:
    service = Running(place, "--broker", "kafka://user:secret@127.0.0.1:1")
    running.append(service)
    line = service.until("trying again in")
    assert "127.0.0.1:1" in line
    assert "secret" not in line
    code, output = service.end(signal.SIGINT)
    assert code == 0, output
    assert "Traceback" not in output


def test_no_wait_fails_at_once(place: Path, running: list[Running]) -> None:
    service = Running(place, "--no-wait", "--broker", "kafka://127.0.0.1:1")
    running.append(service)
    output, _ = service.process.communicate(timeout=60)
    assert service.process.returncode == 1
    assert "trying again" not in output
    assert output.splitlines()[-1].startswith("atleastonce: ")
    assert "127.0.0.1:1" in output.splitlines()[-1]


def test_tail_follows_until_ctrl_c_and_leaves_no_group(place: Path, running: list[Running]) -> None:
    url = f"sqlite:///{place}/shop.db"
    with connect_sync(url) as broker:
        broker.publish(Topic("orders"), {"n": 0})
        tail = Running(place, "--broker", url, command=("tail", "orders", "--topic"))
        running.append(tail)
        note = tail.until("following orders as group")
        broker.publish(Topic("orders"), {"n": 1})
        tail.until('{"n":1}')
        code, output = tail.end(signal.SIGINT)
        assert code == 0, output
        group = re.search(r"group (tail-\w+)", note)
        assert group is not None
        assert broker.backlog(Topic("orders"), group[1]).waiting is None  # there is no such group


def test_publish_can_be_interrupted_while_stdin_is_silent(place: Path, running: list[Running]) -> None:
    publish = Running(place, "--broker", f"sqlite:///{place}/shop.db", command=("publish", "q", "--queue"))
    running.append(publish)
    # A bad line is named as soon as it is read: then the command waits for the next one.
    assert publish.process.stdin is not None
    publish.process.stdin.write("nope\n")
    publish.process.stdin.flush()
    publish.until("stdin:1:")
    begin = time.monotonic()
    publish.process.send_signal(signal.SIGINT)
    assert publish.process.wait(timeout=60) == 130
    assert time.monotonic() - begin < 5
    assert publish.process.stdout is not None
    output = publish.process.stdout.read()
    assert "0 published before the interruption" in output
    assert "Fatal" not in output
