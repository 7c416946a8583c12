"""`atleastonce inbox` on a file."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from atleastonce import SQLiteStore
from atleastonce.cli.app import run
from atleastonce.stores import open_store, scope_key

SCOPE = scope_key("svc", "g", "h")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["inbox", *words])
    out, err = capsys.readouterr()
    return code, out, err


async def fill(path: Path, count: int, ttl: float) -> None:
    async with SQLiteStore(path) as store, store.transaction() as tx:
        await store.claim_in(tx, SCOPE, [f"{ttl} {n}" for n in range(count)], [b""] * count, ttl=ttl)


def test_init_makes_the_schema_and_may_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    for _ in range(2):
        assert call(capsys, "init", url)[0] == 0
    code, out, _ = call(capsys, "init", url, "--json")
    assert (code, json.loads(out)["made"]) == (0, True)
    code, out, _ = call(capsys, "status", url)
    assert code == 0
    assert "inbox" in out


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:1", "dynamodb://127.0.0.1:1/alo?region=eu-west-1", "postgresql://u@127.0.0.1:1/shop"],
    ids=["redis", "dynamodb", "postgresql"],
)
def test_init_without_its_server_says_so(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    code, out, err = call(capsys, "init", url)
    assert code == 1
    assert not out
    assert "127.0.0.1" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["sqlite:///never.db", "postgresql://u:hunter2@h/shop", "mysql://u:hunter2@h/shop", "mariadb://h/shop"]
)
def test_the_schema_is_printed_without_a_server(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "init", url, "--sql", "--prefix", "mine")
    assert code == 0
    assert "CREATE TABLE IF NOT EXISTS mine_inbox" in out
    assert "hunter2" not in out
    assert json.loads(call(capsys, "init", url, "--sql", "--json")[1])["sql"].count("CREATE TABLE") >= 3
    assert not Path("never.db").exists()


def test_what_is_printed_is_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.db"
    with sqlite3.connect(path) as own:
        own.executescript(call(capsys, "init", f"sqlite:///{path}", "--sql")[1])
    own.close()
    assert call(capsys, "status", f"sqlite:///{path}")[0] == 0


def test_purge_removes_what_has_expired_in_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.db"
    asyncio.run(fill(path, 25, 0.001))
    asyncio.run(fill(path, 3, 3600))
    code, out, _ = call(capsys, "purge", f"sqlite:///{path}", "--limit", "10", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["removed"], report["batches"], report["finished"]) == (25, 4, True)
    code, out, _ = call(capsys, "status", f"sqlite:///{path}", "--json")
    assert json.loads(out)["inbox"]["rows"] == 3
    code, out, _ = call(capsys, "purge", f"sqlite:///{path}")
    assert "0 removed" in out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["status", "sqlite:///no/such.db"], 2, "there is no such file"),
        (["status", "memory://"], 2, "inside one process"),
        (["init", "redis://h", "--sql"], 2, "has no SQL"),
        (["init", "cassandra://h"], 2, "unknown scheme"),
        (["status", "postgresql://u:hunter2@127.0.0.1:1/x"], 1, "postgres store"),
        (["status", "mysql://u:hunter2@127.0.0.1:1/x"], 1, "mysql store"),
        (["purge", "sqlite:///no/such.db"], 2, "there is no such file"),
        (["purge", "sqlite:///no/such.db", "--limit", "0"], 2, "--limit"),
        (["purge", "sqlite:///no/such.db", "--pause", "soon"], 2, "--pause"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    got, _, err = call(capsys, *words)
    assert got == code
    assert text in err
    assert err.count("\n") == 1
    assert "hunter2" not in err


def test_a_file_without_a_schema_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.db").touch()
    code, _, err = call(capsys, "status", f"sqlite:///{tmp_path}/empty.db")
    assert code == 2
    assert "atleastonce inbox init" in err


def test_every_store_with_tables_says_them_in_sql() -> None:
    for url in ("sqlite:///x.db", "postgresql://h/d", "mysql://h/d"):
        assert "_inbox" in open_store(url).schema()  # type: ignore[attr-defined]
