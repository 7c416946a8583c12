"""The look of the SQLite outbox: all rows as one row, and what cannot be one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atleastonce import Outbox, Queue, SQLiteStore
from atleastonce.stores.outbox import FETCHED_BYTES, SLOTS, OutboxRow
from atleastonce.stores.sqlite import look
from atleastonce.stores.sqlite.look import Look

RELAY = b"r" * 16


class Connection(sqlite3.Connection):
    asked: list[str]

    def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
        self.asked.append(sql)
        return super().execute(sql, *given)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    connection = sqlite3.connect(path, factory=Connection)
    connection.asked = []
    yield connection
    connection.close()


def fill(path: Path, *bodies: bytes, header: str = "blue") -> None:
    async def run() -> None:
        async with SQLiteStore(path) as store:
            outbox = Outbox(store)
            async with outbox.transaction() as tx:
                for n, body in enumerate(bodies):
                    key = None if n % 3 == 1 else b"" if n % 3 == 2 else b"k\xff%d" % n
                    await outbox.publish(tx, Queue("out"), body, key=key, headers={"tenant": header})
            await store.outbox_hold(RELAY, "relay", 3600)

    asyncio.run(run())


def ask(held: list[int] | None = None, *, limit: int = 100, most: int = 100) -> Look:
    return Look("alo_outbox", RELAY, range(SLOTS), limit, held or [], [], most)


def bodies(rows: list[OutboxRow] | None) -> list[bytes]:
    assert rows is not None
    return [row.outgoing.message.body for row in rows if row.outgoing is not None]


@pytest.mark.parametrize("header", ["blue", "späť"])
def test_all_at_once_and_one_by_one_are_the_same(path: Path, connection: Connection, header: str) -> None:
    fill(path, *(b"%d\0\xff" % n for n in range(40)), b"", header=header)
    for held, most in (([], 100), ([1, 2, 3, 4, 9, 30], 100), ([*range(5, 20)], 12)):
        one_by_one = ask(held, most=most)._one_by_one(connection)
        assert [row.seq for row in one_by_one] == [n for n in range(1, 42) if n not in held][:most]
        assert ask(held, most=most)._joined(connection) == one_by_one


def test_the_same_words_serve_whatever_is_held(path: Path, connection: Connection) -> None:
    fill(path, *(b"%d" % n for n in range(9)))
    for held in ([1, 2], [2, 3, 4]):
        assert [row.seq for row in ask(held).rows(connection)] == [n for n in range(1, 10) if n not in held]
    assert len(connection.asked) == 2
    assert len({*connection.asked}) == 1


def test_what_is_too_much_for_one_look_is_for_the_next(path: Path, connection: Connection) -> None:
    large = b"x" * (FETCHED_BYTES // 2)
    fill(path, b"0" + large, b"1" + large, b"2" + large, b"3")
    longest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    assert ask()._joined(connection) is None
    assert connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) == longest
    assert [body[:1] for body in bodies(ask().rows(connection))] == [b"0", b"1"]


def test_header_fields_count_too(path: Path, connection: Connection) -> None:
    half = FETCHED_BYTES // 4 + 10
    fill(path, *(b"%d" % n + b"x" * half for n in range(2)), b"2", header="y" * half)
    assert ask()._joined(connection) is None
    assert [body[:1] for body in bodies(ask().rows(connection))] == [b"0", b"1"]


def test_another_order_is_noticed() -> None:
    """That rows come in the order of a sorted subquery is how SQLite does it, and promised nowhere."""
    assert look._rows([b"[2,1]", *[b"[]"] * 7], b"", b"", b"") is None


def test_a_row_that_is_no_text_spoils_no_other(path: Path, connection: Connection) -> None:
    fill(path, b"0", b"1", b"2")
    connection.execute("UPDATE alo_outbox SET id = CAST(x'ff' AS TEXT) WHERE seq = 2")
    assert ask()._joined(connection) is None
    rows = ask().rows(connection)
    assert bodies(rows) == [b"0", b"2"]
    assert [bool(row.flaw) for row in rows] == [False, True, False]
