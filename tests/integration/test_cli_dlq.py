"""``atleastonce dlq``: with a service and without one, on stdout and stderr, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atleastonce import Queue, Source, Topic, connect, wire
from atleastonce.cli.app import run
from atleastonce.contract import Outgoing, Topology
from atleastonce.message import Headers, Message

APP = """
from atleastonce import Queue, Service, Topic

service = Service("billing", broker="sqlite:///shop.db")

@service.consumer(Topic("orders.created"))
async def charge(order: dict) -> None: ...

@service.consumer(Queue("jobs"))
async def work(job: dict) -> None: ...

@service.consumer(Queue("scratch"), dead_letter=None)
async def look(job: dict) -> None: ...
"""
HOME, JOBS = Source(Topic[Any]("orders.created"), "billing"), Source(Queue[Any]("jobs"))
GROUP_KEYS = [
    "channel", "group", "fingerprint", "error_type", "error_message", "stage", "count", "first_failed", "last_failed", "example_id",
]  # fmt: skip


def letter(home: Source, number: int) -> Outgoing:
    fields = {
        wire.ID: f"m{number}",
        wire.GROUP: home.group_name,
        wire.ORIGIN: f"{home.channel.name}/0/{number}",
        wire.ERROR_STAGE: "handler",
        wire.ERROR_TYPE: "KeyError" if number % 2 else "ValueError",
        wire.ERROR_MESSAGE: f"order {number}\x1b[31m",
        wire.FINGERPRINT: "odd" if number % 2 else "even",
        wire.ERROR_AT: wire.millis(time.time() - 600 * number),
        "tenant": "a" if number < 3 else "b",
    }
    return Outgoing(home.dead_letter_channel, Message(f"m{number}", b'{"n":%d}' % number, b"k", Headers(fields)))


async def bury(url: str, *letters: Outgoing) -> None:
    async with connect(url) as broker:
        homes = (HOME, JOBS)
        dead = tuple(home.dead_letter_channel for home in homes)
        await broker.declare(
            Topology(tuple(home.channel for home in homes), (*homes, Source(Queue("scratch"))), (), dead)
        )
        assert all(outcome.ok for outcome in await broker.adapter.send(letters))


async def waiting(url: str, source: Source) -> int | None:
    async with connect(url) as broker:
        return (await broker.adapter.backlog(source)).waiting


class Shop:
    """Six dead orders and one dead job, in a folder with the app."""

    def __init__(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.place = place
        self.url = f"sqlite:///{place}/shop.db"
        self._capsys = capsys

    def dlq(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self._capsys.readouterr()
        code = run(["dlq", *words])
        found = self._capsys.readouterr()
        return code, found.out, found.err

    def report(self, *words: str, code: int = 0) -> Any:
        ended, out, err = self.dlq(*words, "--json")
        assert ended == code, err
        return json.loads(out.splitlines()[-1])

    def left(self, home: Source = HOME) -> int | None:
        return asyncio.run(waiting(self.url, Source(home.dead_letter_channel)))

    def back(self, home: Source = HOME) -> int | None:
        return asyncio.run(waiting(self.url, home))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shop:
    (tmp_path / "dlqapp.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "dlqapp", raising=False)
    monkeypatch.delenv("ALO_BROKER", raising=False)
    made = Shop(tmp_path, capsys)
    asyncio.run(bury(made.url, *(letter(HOME, n) for n in range(6)), letter(JOBS, 100)))
    return made


def test_list_has_its_fixed_shape_with_and_without_a_service(shop: Shop) -> None:
    rows = shop.report("list", "dlqapp:service")
    assert [list(row) for row in rows] == [GROUP_KEYS] * 3
    assert [(row["channel"], row["group"], row["fingerprint"], row["count"]) for row in rows] == [
        ("orders.created", "billing", "even", 3),
        ("orders.created", "billing", "odd", 3),
        ("jobs", None, "even", 1),
    ]
    assert (
        rows
        == shop.report("list", "--broker", shop.url, "--channel", "orders.created", "--group", "billing") + rows[2:]
    )
    assert rows[2:] == shop.report("list", "--broker", shop.url, "--channel", "jobs")
    code, out, _ = shop.dlq("list", "dlqapp:service", "--channel", "orders.created")
    assert code == 0
    assert "3 x ValueError: order 0" in out
    assert "6 dead letters in 2 groups" in out
    assert "\x1b" not in out
    assert shop.left() == 6


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--error-type", "KeyError"], 3),
        (["--error-type", "KeyError", "--error-type", "ValueError"], 7),
        (["--fingerprint", "ev"], 4),
        (["--older-than", "25m"], 4),
        (["--newer-than", "25m"], 3),
        (["--header", "tenant=a"], 3),
        (["--where", "n >= `4`"], 3),
        (["--id", "m1", "--id", "m2"], 2),
        (["--group", "billing"], 6),
        (["--channel", "jobs"], 1),
        (["--where", "nothing"], 0),
    ],
)
def test_every_command_takes_the_same_filters(shop: Shop, options: list[str], count: int) -> None:
    assert sum(row["count"] for row in shop.report("list", "dlqapp:service", *options)) == count
    code, out, err = shop.dlq("export", "dlqapp:service", *options)
    assert (code, len(out.splitlines())) == (0, count), err
    code, out, _ = shop.dlq("show", "dlqapp:service", "--json", *options)
    assert (code, len(out.splitlines())) == (0 if count else 1, count)
    assert shop.report("redrive", "dlqapp:service", "--dry-run", *options)["matched"] == count
    assert shop.report("purge", "dlqapp:service", "--dry-run", *options)["matched"] == count
    assert (shop.left(), shop.left(JOBS)) == (6, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list"], "whose dead letters"),
        (["list", "--channel", "jobs"], "no broker"),
        (["list", "dlqapp:service", "--where", "n >"], "no JMESPath"),
        (["list", "dlqapp:service", "--older-than", "soon"], "older_than"),
        (["list", "dlqapp:service", "--header", "tenant"], "NAME=VALUE"),
        (["list", "dlqapp:service", "--channel", "other"], "there are orders.created.billing, jobs"),
        (["list", "dlqapp:service", "--channel", "scratch"], "has no dead letters"),
        (["list", "dlqapp:service", "--dlq", "x"], "whose is it"),
        (["redrive", "dlqapp:service", "--rate", "fast"], "no rate"),
        (["redrive", "dlqapp:service", "--abort-if-refailed", "many"], "no share"),
        (["redrive", "dlqapp:service", "--max", "0"], "--help"),
        (["redrive", "dlqapp:service", "--to", "elsewhere"], "--outside"),
        (["redrive", "dlqapp:service", "--to", "orders.created"], "that is a topic"),
        (["redrive", "dlqapp:service", "--edit", "m1"], "--audit FILE"),
        (["redrive", "dlqapp:service", "--edit", "m1", "--id", "m2", "--audit", "a"], "leave --id away"),
        (["redrive", "dlqapp:service", "--body-file", "x"], "which message"),
        (["purge", "dlqapp:service"], "--yes"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(shop: Shop, words: list[str], says: str) -> None:
    (shop.place / "shop.db").rename(shop.place / "away.db")  # nothing may be asked of the broker
    code, out, err = shop.dlq(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (shop.place / "shop.db").exists()


def test_redrive_moves_what_is_chosen_and_writes_the_audit(shop: Shop) -> None:
    report = shop.report("redrive", "dlqapp:service", "--error-type", "KeyError", "--audit", "audit.jsonl")
    seconds = report.pop("seconds")
    assert 0 < seconds < 30
    assert report == {"matched": 3, "redriven": 3, "skipped": 4, "failed": 0, "refailed": 0, "dry_run": False}
    assert (shop.left(), shop.back()) == (3, 3)
    lines = [json.loads(line) for line in (shop.place / "audit.jsonl").read_text().splitlines()]
    assert {(line["id"], line["outcome"], line["destination"]) for line in lines} == {
        (f"m{n}", "redriven", "orders.created.billing") for n in (1, 3, 5)
    }
    assert len({line["run"] for line in lines}) == 1
    again = shop.report("redrive", "dlqapp:service", "--error-type", "KeyError")
    assert (again["matched"], again["redriven"]) == (0, 0)


def test_dry_run_shows_what_would_go_and_moves_nothing(shop: Shop) -> None:
    code, out, _ = shop.dlq("redrive", "dlqapp:service", "--dry-run", "--where", "n < `3`")
    assert code == 0
    assert "2 x ValueError" in out
    assert "3 would be redriven, 4 would stay; nothing was done" in out
    assert (shop.left(), shop.back()) == (6, 0)


def test_a_message_that_is_not_there_is_exit_code_1(shop: Shop) -> None:
    code, _, err = shop.dlq("redrive", "dlqapp:service", "--id", "m1", "--id", "nobody")
    assert code == 1
    assert "1 of the 2 messages are not among the dead letters" in err
    assert shop.left() == 5
    assert shop.dlq("show", "dlqapp:service", "--id", "nobody")[0] == 1


def test_a_sandbox_gets_the_copies(shop: Shop) -> None:
    assert shop.report("redrive", "dlqapp:service", "--channel", "jobs", "--to", "scratch")["redriven"] == 1
    assert shop.back(Source(Queue("scratch"))) == 1
    code, _, err = shop.dlq("redrive", "dlqapp:service", "--to", "elsewhere", "--outside")
    assert code == 1
    assert "elsewhere does not exist" in err
    assert shop.left() == 6


def test_one_body_is_edited_and_its_original_is_in_the_audit(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = shop.place / "editor.py"
    editor.write_text(
        "import sys, pathlib\np = pathlib.Path(sys.argv[1])\np.write_text(p.read_text().replace('2', '22') + '\\n')\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {editor}")
    monkeypatch.delenv("VISUAL", raising=False)
    report = shop.report("redrive", "dlqapp:service", "--edit", "m2", "--audit", "audit.jsonl")
    assert (report["matched"], report["redriven"]) == (1, 1)
    assert json.loads((shop.place / "audit.jsonl").read_text())["original"] == "eyJuIjoyfQ=="
    (shop.place / "bad").write_text("{")
    code, _, err = shop.dlq("redrive", "dlqapp:service", "--edit", "m3", "--audit", "b.jsonl", "--body-file", "bad")
    assert code == 2
    assert "nothing was sent" in err
    (shop.place / "same").write_text('{"n":3}')
    code, _, err = shop.dlq("redrive", "dlqapp:service", "--edit", "m3", "--audit", "b.jsonl", "--body-file", "same")
    assert code == 0
    assert "nothing was sent" in err
    assert (shop.left(), shop.back()) == (5, 1)

    async def bodies() -> list[bytes]:
        async with connect(shop.url) as broker:
            return [d.body for d in await broker.adapter.browse(HOME.channel, 10)]  # type: ignore[attr-defined]

    assert asyncio.run(bodies()) == [b'{"n":22}']


def test_purge_and_export(shop: Shop) -> None:
    code, _, err = shop.dlq("export", "dlqapp:service", "-o", "dead.jsonl")
    assert (code, "7 exported" in err) == (0, True)
    entries = [json.loads(line) for line in (shop.place / "dead.jsonl").read_text().splitlines()]
    assert {entry["id"] for entry in entries} == {*(f"m{n}" for n in range(6)), "m100"}
    assert entries[0]["dead"]["error_type"] == "ValueError"
    assert shop.dlq("export", "dlqapp:service", "-o", "dead.jsonl")[0] == 1, "an export overwrote another"
    report = shop.report("purge", "dlqapp:service", "--yes", "--header", "tenant=a")
    assert (report["matched"], report["purged"], report["skipped"]) == (3, 3, 4)
    assert shop.report("purge", "dlqapp:service", "--yes")["purged"] == 4
    assert (shop.left(), shop.left(JOBS)) == (0, 0)
    assert shop.dlq("list", "dlqapp:service")[1] == "no dead letters\n"


def test_missing_queues_and_other_peoples_names(shop: Shop) -> None:
    code, _, err = shop.dlq("list", "--broker", shop.url, "--channel", "nothing")
    assert (code, "nothing.dlq" in err) == (1, True)
    code, _, err = shop.dlq("redrive", "--broker", shop.url, "--channel", "nothing")
    assert code == 1
    rows = shop.report("list", "--broker", shop.url, "--channel", "scratch", "--dlq", "jobs.dlq")
    assert [(row["channel"], row["count"]) for row in rows] == [("scratch", 1)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_after_its_batch_with_a_report(shop: Shop, number: signal.Signals, code: int) -> None:
    asyncio.run(bury(shop.url, *(letter(HOME, n) for n in range(10, 210))))
    command = [sys.executable, "-m", "atleastonce", "dlq", "redrive", "dlqapp:service", "--rate", "20/s", "--json"]
    process = subprocess.Popen(
        [*command, "--audit", "a.jsonl"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    audit, end = shop.place / "a.jsonl", time.monotonic() + 30
    while not (audit.exists() and audit.read_text()):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    report = json.loads(out)
    assert 0 < report["redriven"] < 206
    assert "ending after this batch" in err
    assert shop.back() == report["redriven"] == len(audit.read_text().splitlines())
    assert shop.left() == 206 - report["redriven"], "what was kept or not yet looked at was not given back"
