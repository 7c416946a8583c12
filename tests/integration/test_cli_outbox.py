"""``atleastonce outbox`` as a person runs it, on the embedded broker and database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atleastonce import Outbox, Queue, SQLiteStore, Topic
from atleastonce.cli.app import run as cli
from atleastonce.stores import OutboxStats
from atleastonce.stores.outbox import Parking

COMMAND = [sys.executable, "-m", "atleastonce"]


Run = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """A command line in this process, for starting one takes longer than what it does here."""

    def call(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        got = cli(arguments)
        out, errors = capfd.readouterr()
        assert got == code, errors + out
        return out + errors

    return call


class Shop:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "shop.db"
        self.url = f"sqlite:///{self.path}"
        self.broker = f"sqlite:///{folder}/broker.db"
        self.outbox = Outbox(SQLiteStore(self.path))

    def write(self, count: int, channel: Any = Queue("orders"), key: str | None = None) -> None:  # noqa: B008 - immutable
        asyncio.run(self._write(count, channel, key))

    def park(self, count: int) -> None:
        asyncio.run(self._park(count))

    def stats(self) -> OutboxStats:
        async def ask() -> OutboxStats:
            async with self.outbox:
                return await self.outbox.store.outbox_stats()

        return asyncio.run(ask())

    async def _write(self, count: int, channel: Any, key: str | None) -> None:
        values = [{"n": n} for n in range(count)]
        async with self.outbox, self.outbox.transaction() as tx:
            await self.outbox.publish_many(tx, channel, values, id=lambda one: f"m{one['n']}", key=lambda _: key)

    async def _park(self, count: int) -> None:
        async with self.outbox:
            store = self.outbox.store
            await store.outbox_hold(b"x" * 16, "test", 60)
            rows = await store.outbox_fetch(b"x" * 16, range(8), 100, held=(), paused=())
            await store.outbox_park(
                [Parking(row.seq, row.id, "too large: 9 MB") for row in rows[:count]], blocking=True
            )
            await store.outbox_leave(b"x" * 16)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_relay_until_empty(shop: Shop, run: Run) -> None:
    shop.write(1200)
    waiting = json.loads(run("outbox", "status", shop.url, "--json", code=1))
    assert (waiting["waiting"], waiting["parked"], waiting["relays"]) == (1200, 0, 0)
    assert waiting["oldest"] > 0
    out = run("outbox", "relay", shop.url, "--broker", shop.broker, "--until-empty", "--json")
    account = json.loads(out.splitlines()[0])
    assert (account["published"], account["repeated"], account["parked"], account["waiting"]) == (1200, 0, 0, 0)
    assert "0 waiting, 0 delayed, 0 parked, 0 relays" in run("outbox", "status", shop.url)
    assert run("tail", "orders", "--queue", "--broker", shop.broker, "--max", "3").count("m") >= 3


def test_relay_until_empty_leaves_what_waits_for_a_parked_row(shop: Shop, run: Run) -> None:
    """It waits for people; a row that cannot even be read holds up its key like any other."""
    shop.write(5, key="k")
    shop.write(3)
    with contextlib.closing(sqlite3.connect(shop.path)) as file, file:
        file.execute("UPDATE alo_outbox SET headers = '[broken' WHERE seq = 1")
    command = ("outbox", "relay", shop.url, "--broker", shop.broker, "--until-empty", "--blocking", "--json")
    account = json.loads(run(*command, code=1).splitlines()[0])
    assert (account["published"], account["parked"], account["waiting"]) == (3, 1, 4)
    assert "4 of them for a parked one of their key" in run("outbox", "status", shop.url, code=1)
    assert json.loads(run(*command).splitlines()[0])["published"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_relay_ends_in_good_order(shop: Shop, run: Run, number: signal.Signals) -> None:
    shop.write(10)
    command = [*COMMAND, "outbox", "relay", shop.url, "--broker", shop.broker, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as relay:
        end = time.monotonic() + 30
        while shop.stats().waiting or not shop.stats().relays:
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(relay.pid, number)
        out, errors = relay.communicate(timeout=30)
    assert relay.returncode == 0, errors
    assert json.loads(out)["published"] == 10
    assert shop.stats().relays == 0, "it has left"


def test_relay_waits_for_its_store_unless_told_not_to(run: Run, shop: Shop) -> None:
    away = "postgresql://u:secret@127.0.0.1:1/shop"
    out = run("outbox", "relay", away, "--broker", shop.broker, "--no-wait", code=1)
    assert len(out.splitlines()) == 1
    assert "secret" not in out
    command = [*COMMAND, "outbox", "relay", away, "--broker", shop.broker]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as relay:
        assert relay.stderr is not None
        assert "trying again in" in relay.stderr.readline()
        os.kill(relay.pid, signal.SIGINT)
        _, errors = relay.communicate(timeout=30)
    assert relay.returncode == 130
    assert "secret" not in errors


def test_list_redrive_and_discard(shop: Shop, run: Run) -> None:
    shop.write(4, Topic("orders"))
    shop.park(3)
    assert "3 parked" in run("outbox", "status", shop.url, code=1)
    listed = run("outbox", "list", shop.url)
    assert "m0  topic:orders, 7 bytes" in listed
    assert "too large: 9 MB" in listed
    assert [row["id"] for row in json.loads(run("outbox", "list", shop.url, "--json", "--max", "2"))] == ["m0", "m1"]
    assert "2 of the ids are not parked" in run(
        "outbox", "redrive", shop.url, "--id", "m0", "--id", "m3", "--id", "typo", code=1
    )
    assert json.loads(run("outbox", "discard", shop.url, "--id", "m1", "--json")) == {"discarded": 1}
    assert "1 redriven" in run("outbox", "redrive", shop.url, "--all")
    assert shop.stats().waiting == 3


@pytest.mark.parametrize("command", [["status"], ["list"], ["redrive", "--all"], ["relay", "--broker", "memory://"]])
def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, run: Run, command: list[str]) -> None:
    verb, *options = command
    assert "there is no such file" in run("outbox", verb, f"sqlite:///{tmp_path}/typo.db", *options, code=2)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["redrive", "STORE"], "which rows?"),
        (["redrive", "STORE", "--all", "--id", "m1"], "which rows?"),
        (["discard", "STORE"], "which rows?"),
        (["status", "memory://"], "has no outbox"),
        (["status", "redis://127.0.0.1:1"], "has no outbox"),
        (["status", "oracle://x"], "unknown scheme"),
        (["status", "STORE", "--prefix", "a b"], "cannot begin a table's name"),
        (["status", "STORE", "--prefix", "other"], "has no schema yet"),
        (["relay", "STORE", "--broker", "memory://", "--batch", "0"], "batch"),
        (["relay", "STORE", "--broker", "memory://", "--lease", "1ms"], "lease"),
        (["relay", "STORE"], "no broker"),
    ],
)
def test_bad_arguments_are_one_line(
    shop: Shop, run: Run, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALO_BROKER", raising=False)
    shop.write(1)
    out = run("outbox", *[shop.url if each == "STORE" else each for each in arguments], code=2)
    assert words in out
    assert len(out.splitlines()) == 1
