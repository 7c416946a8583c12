"""The tour as a user sees it: a process with an exit code, and nothing left of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from atleastonce.cli.app import run
from atleastonce.cli.demo import tour
from atleastonce.cli.demo.orders import Line
from atleastonce.cli.demo.publish import Shop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180, func_only=True)]

DEADLINE = 60.0
KEYS = ["broker", "published", "unconfirmed", "done", "done_after_retry", "redriven", "dead", "discarded"]
KEYS += ["duplicates_suppressed", "lost", "seconds"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, from which the demo is started; its temporary files go to one beside it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cwd").mkdir()
    yield tmp_path
    # Windows of a few hundred milliseconds: processes that were told to end are on their way.
    until(lambda: not workers(tmp_path), "the end of all consumer processes")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "atleastonce", "demo", *words]


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(place / "tmp")}


def demo(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=place / "cwd", env=environment(place), capture_output=True, text=True, check=False
    )


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        cwd=place / "cwd",
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers(place: Path) -> list[int]:
    """Consumer processes whose temporary files are in ``place``, by their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = b"demo.worker" in (entry / "cmdline").read_bytes()
            if ours and str(place).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.02)  # polling a condition with a deadline


def account_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    account: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert list(account) == KEYS
    endings = ("done", "done_after_retry", "redriven", "dead", "discarded", "lost")
    assert sum(account[name] for name in endings) == account["published"]
    assert account["lost"] == account["unconfirmed"] == 0
    return account


def test_every_message_is_accounted_for(place: Path) -> None:
    done = demo(place, "--messages", "1000", "--json")
    account = account_of(done)
    assert account["published"] == 1000
    assert account["dead"] == 2  # the poison
    assert account["redriven"] > 20
    assert account["done_after_retry"] > 60
    assert account["discarded"] > 0
    assert account["duplicates_suppressed"] >= 20 * 2 - 4  # every 50th, twice; a duplicate may be poison or dead
    assert done.stderr.count("kill -9 billing") == 1
    assert not list((place / "tmp").iterdir())
    assert not list((place / "cwd").iterdir())


@pytest.mark.parametrize("broker", ["kafka_url", "rabbitmq_url", "pubsub_url"])
def test_the_same_on_real_brokers(place: Path, request: pytest.FixtureRequest, broker: str) -> None:
    url = request.getfixturevalue(broker)
    account = account_of(demo(place, "--messages", "1000", "--json", "--broker", url))
    assert account["published"] == 1000
    assert account["dead"] == 2
    assert account["redriven"] > 20
    assert account["done_after_retry"] > 60
    assert account["duplicates_suppressed"] >= 20 * 2 - 4


def test_bad_lines_are_named_and_the_others_go_on(place: Path) -> None:
    lines = ['{"order_id":1,"customer_id":"c","total":5}', "nope", '{"order_id":2,"customer_id":"c","total":19.99}']
    (place / "cwd" / "mine.jsonl").write_text("\n".join(lines))
    done = demo(place, "--input", "mine.jsonl", "--json")
    assert done.returncode == 1
    assert "mine.jsonl:2: JSON is malformed" in done.stderr
    account = json.loads(done.stdout.splitlines()[-1])
    assert (account["published"], account["done"] + account["done_after_retry"], account["redriven"]) == (2, 1, 1)


def test_a_loss_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    publish = Shop.publish

    async def lossy(shop: Shop, lines: Sequence[Line]) -> None:
        """Says that all is confirmed, and leaves one out."""
        await publish(shop, [line for line in lines if line.message_id != "order-100007"])
        shop.confirmed.update(line.message_id for line in lines)

    monkeypatch.setattr(Shop, "publish", lossy)
    monkeypatch.setattr(tour, "_LOST_SECONDS", 1.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(["demo", "--messages", "40", "--json"]) == 1
    out, err = capfd.readouterr()
    account = json.loads(out.splitlines()[-1])
    assert (account["published"], account["lost"]) == (40, 1)
    assert "lost by billing: order-100007" in err
    assert "lost by shipping: order-100007" in err
    (kept,) = tmp_path.iterdir()
    assert f"kept in {kept}" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(place: Path, number: signal.Signals, code: int) -> None:
    process = start(place, "--messages", "50000")
    until(lambda: len(workers(place)) == 4, "four consumer processes")
    process.send_signal(number)
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert not workers(place)
    assert not list((place / "tmp").iterdir())


def test_consumers_end_with_a_killed_demo_and_the_next_one_cleans_up(place: Path) -> None:
    process = start(place, "--messages", "50000")
    until(lambda: len(workers(place)) == 4, "four consumer processes")
    process.kill()
    process.communicate(timeout=DEADLINE)
    until(lambda: not workers(place), "the end of the consumer processes")
    assert list((place / "tmp").iterdir())
    account_of(demo(place, "--messages", "20", "--json"))
    assert not list((place / "tmp").iterdir())


def test_a_broker_that_is_not_there_is_named(place: Path) -> None:
    process = start(place, "--broker", "kafka://127.0.0.1:1")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert "127.0.0.1:1" in first
    assert "trying again" in first
    assert process.returncode == 130
