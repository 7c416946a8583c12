"""A connection that commits each statement by itself is no transaction, and is told before anything is written through it."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiomysql
import aiosqlite
import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order

from atleastonce import ConfigurationError, Context, Inbox, Queue, Service
from atleastonce.urls import BrokerUrl

MakeQueue = Callable[[str], Queue[Any]]


@pytest.fixture
def database(inbox_database: Database) -> Database:
    return inbox_database


def session_of(database: Database, *, blocking: bool) -> Callable[[], Any]:
    @contextlib.contextmanager
    def block() -> Iterator[Any]:
        if database.kind == "postgres":
            with psycopg.connect(database.where, autocommit=True) as pg:
                yield pg
        elif database.kind == "mysql":
            with database.mysql() as my:
                yield my
        else:
            with contextlib.closing(sqlite3.connect(database.where, isolation_level=None, timeout=20)) as lite:
                yield lite

    @contextlib.asynccontextmanager
    async def wait() -> AsyncIterator[Any]:
        if database.kind == "postgres":
            async with await psycopg.AsyncConnection.connect(database.where, autocommit=True) as pg:
                yield pg
        elif database.kind == "mysql":
            parts = BrokerUrl.parse(database.where)
            ((host, port),) = parts.hosts
            my = await aiomysql.connect(host=host, port=port, user=parts.user, db=parts.path, autocommit=True)
            try:
                yield my
            finally:
                my.close()
        else:
            async with aiosqlite.connect(database.where, isolation_level=None, timeout=20) as lite:
                yield lite

    return block if blocking else wait


@pytest.mark.parametrize("blocking", [True, False], ids=["def", "async def"])
async def test_a_session_that_commits_by_itself_is_refused_at_the_start(
    queue: MakeQueue, database: Database, blocking: bool
) -> None:
    store = database.make()
    await refused(queue, Inbox(store, session=session_of(database, blocking=blocking)), blocking=blocking)
    inbox = database.table.replace("effect", "alo") + "_inbox"
    assert database.query(f"SELECT count(*) FROM {inbox}") in ([(0,)], ((0,),))


async def test_an_engine_that_commits_by_itself_is_refused_at_the_start(queue: MakeQueue, database: Database) -> None:
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    from sqlalchemy import create_engine
    from sqlalchemy.orm import sessionmaker

    scheme = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}[database.kind]
    address = f"/{database.where}" if database.kind == "sqlite" else database.where.partition("://")[2]
    engine = create_engine(f"{scheme}://{address}", isolation_level="AUTOCOMMIT")
    try:
        await refused(queue, Inbox(database.make(), session=sessionmaker(engine).begin), blocking=True)
    finally:
        engine.dispose()


async def refused(queue: MakeQueue, inbox: Inbox, *, blocking: bool) -> None:
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    if blocking:

        @service.consumer(queue("orders"), idempotency=inbox)
        def handle(order: Order, ctx: Context) -> None: ...
    else:

        @service.consumer(queue("orders"), idempotency=inbox)
        async def wait(order: Order, ctx: Context) -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"(handle|wait): its inbox's session cannot be used: this connection is in no transaction",
    ):
        await service.start()
