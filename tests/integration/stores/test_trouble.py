"""Stores that cannot be reached, are set wrong, or are in the way of themselves."""

import asyncio
import contextlib
import sqlite3
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pymysql
import pytest
from redis.asyncio import Redis

from atleastonce import ConfigurationError, PermissionDenied, PostgresStore, RedisStore, SQLiteStore, StoreUnavailable
from atleastonce.brokers import Running
from atleastonce.contract import Code
from atleastonce.contract import Status as Ended
from atleastonce.stores import ClaimRequest, Entry, Status, new_token, open_store, scope_key
from atleastonce.stores.sqlite import schema
from atleastonce.stores.sqlite import store as sqlite_store
from atleastonce.testing.brokers import PrivateBroker
from atleastonce.urls import BrokerUrl

SCOPE = scope_key("svc", "g", "h")
ONE = b"\x01" * 32


def database(url: str) -> str:
    """A database of the test's own."""
    name = f"d{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    return url.rpartition("/")[0] + f"/{name}"


@pytest.mark.parametrize(
    "store",
    [
        PostgresStore("postgresql://u:hunter2@127.0.0.1:1/x", connect_timeout=2),
        RedisStore("redis://u:hunter2@127.0.0.1:1/0"),
        SQLiteStore("/no/such/folder/hunter2/../store.db"),
    ],
    ids=["postgres", "redis", "sqlite"],
)
async def test_unreachable_at_start(store: PostgresStore | RedisStore | SQLiteStore) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    if not isinstance(store, SQLiteStore):
        assert "hunter2" not in str(caught.value) + repr(store)


class TestPostgres:
    async def test_no_schema_and_another_version(self, postgres_url: str) -> None:
        url = database(postgres_url)
        with pytest.raises(ConfigurationError, match=r"no schema yet; call the store's init\(\)"):
            await PostgresStore(url).open()
        await PostgresStore(url).init()
        async with PostgresStore(url):
            pass
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("UPDATE alo_store SET version = 99")
        with pytest.raises(ConfigurationError, match="has version 99, this atleastonce needs 1"):
            await PostgresStore(url).open()

    async def test_no_such_database_and_no_such_role(self, postgres_url: str) -> None:
        with pytest.raises(ConfigurationError, match="does not exist"):
            await PostgresStore(postgres_url.rpartition("/")[0] + "/nowhere").open()

    async def test_no_rights(self, postgres_url: str) -> None:
        url = database(postgres_url)
        await PostgresStore(url).init()
        role = f"r{uuid.uuid4().hex[:8]}"
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"CREATE ROLE {role} LOGIN".encode())
        with pytest.raises(PermissionDenied):
            await PostgresStore(url.replace("postgres@", f"{role}@")).open()

    async def test_a_dropped_table_is_unknown_and_not_retryable(self, postgres_url: str) -> None:
        url = database(postgres_url)
        async with PostgresStore(url, create=True) as store:
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute("DROP TABLE alo_lease")
            (claim,) = await store.claim([ClaimRequest(SCOPE, "a")])
        assert claim.status is Status.UNKNOWN
        assert claim.fault is not None
        assert (claim.fault.code, claim.fault.retryable) == (Code.NOT_FOUND, False)

    async def test_tables_in_a_schema_of_their_own(self, postgres_url: str) -> None:
        url = database(postgres_url)
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA messaging")
        async with PostgresStore(url, create=True, prefix="messaging.once") as store:
            (claim,) = await store.claim([ClaimRequest(SCOPE, "a")])
            assert claim.granted
            assert (await store.stats()).leases.rows == 1

    async def test_a_partitioned_inbox(self, postgres_url: str) -> None:
        """As its page says: by hash, which keeps an id in one partition."""
        url = database(postgres_url)
        await PostgresStore(url).init()
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("ALTER TABLE alo_inbox RENAME TO plain")
            admin.execute("DROP INDEX alo_inbox_expires")
            admin.execute("CREATE TABLE alo_inbox (LIKE plain INCLUDING DEFAULTS) PARTITION BY HASH (scope, id)")
            admin.execute("ALTER TABLE alo_inbox ADD PRIMARY KEY (scope, id)")
            for part in range(4):
                admin.execute(
                    f"CREATE TABLE alo_inbox_{part} PARTITION OF alo_inbox "
                    f"FOR VALUES WITH (MODULUS 4, REMAINDER {part})".encode()
                )
            admin.execute("CREATE INDEX alo_inbox_expires ON alo_inbox (expires)")
        ids = [f"m{n}" for n in range(200)]
        async with PostgresStore(url) as store:
            for ttl, wanted in ((0.001, Entry.NEW), (60.0, Entry.SEEN)):
                async with store.transaction() as tx:
                    assert set(await store.claim_in(tx, SCOPE, ids, [ONE] * 200, ttl=ttl)) == {wanted}
            async with store.transaction() as tx:
                await store.claim_in(tx, SCOPE, ["young"], [ONE], ttl=60)
            stats = await store.stats()
            assert stats.inbox is not None
            assert stats.inbox.rows == 201
            while await store.purge(50):
                pass
            assert (await store.stats()).inbox.rows == 1  # type: ignore[union-attr]

    async def test_a_locked_row_is_waited_for_and_then_unknown(self, postgres_url: str) -> None:
        """Not for ever, and its neighbours' next list goes on."""
        url = database(postgres_url)
        async with PostgresStore(url, create=True, lock_timeout="50ms") as store:
            await store.claim([ClaimRequest(SCOPE, "a", lease=0.001)])
            async with await psycopg.AsyncConnection.connect(url) as blocker:
                await blocker.execute("SELECT 1 FROM alo_lease FOR UPDATE")
                (claim,) = await store.claim([ClaimRequest(SCOPE, "a")])
                assert claim.status is Status.UNKNOWN
                assert claim.fault is not None
                assert (claim.fault.code, claim.fault.retryable) == (Code.CONFLICT, True)
                (other,) = await store.claim([ClaimRequest(SCOPE, "b")])
                assert other.status is Status.NEW
            (claim,) = await store.claim([ClaimRequest(SCOPE, "a")])
            assert claim.granted

    async def test_ended_connections_are_replaced(self, postgres_url: str) -> None:
        url = database(postgres_url)
        async with PostgresStore(url, create=True) as store:
            await asyncio.gather(*(store.claim([ClaimRequest(SCOPE, f"{n}")]) for n in range(8)))
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'atleastonce' "
                    "AND datname = current_database()"
                )
            answers = await asyncio.gather(*(store.claim([ClaimRequest(SCOPE, f"n{n}")]) for n in range(8)))
            assert {claim.status for (claim,) in answers} == {Status.NEW}

    async def test_a_cancelled_claim_leaves_the_store_usable(self, postgres_url: str) -> None:
        url = database(postgres_url)
        async with PostgresStore(url, create=True, connections=1) as store:
            request = ClaimRequest(SCOPE, "a", lease=60)
            for turn in range(20):
                task = asyncio.create_task(store.claim([request]))
                for _ in range(turn):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            (claim,) = await store.claim([request])
            assert (claim.status, claim.attempts) == (Status.NEW, 1)

    async def test_the_inbox_in_the_users_own_connections(self, postgres_url: str) -> None:
        """psycopg async and sync, with any row factory, and a cursor."""
        from psycopg.rows import dict_row

        url = database(postgres_url)
        async with PostgresStore(url, create=True) as store:
            async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as mine:
                await mine.execute("CREATE TABLE effect (id text)")
                assert await store.claim_in(mine, SCOPE, ["a"], [ONE]) == [Entry.NEW]
                await mine.execute("INSERT INTO effect VALUES ('a')")
            with psycopg.connect(url) as sync:
                assert await store.claim_in(sync, SCOPE, ["a", "b"], [ONE, ONE]) == [Entry.SEEN, Entry.NEW]
                assert await store.claim_in(sync.cursor(), SCOPE, ["b"], [b"?"]) == [Entry.MISMATCH]
                sync.rollback()
                assert await store.claim_in(sync, SCOPE, ["b"], [b"?"]) == [Entry.NEW]

    async def test_serialization_failures_are_told(self, postgres_url: str) -> None:
        """Under REPEATABLE READ the second inserter fails: the whole transaction is to be begun again."""
        url = database(postgres_url)
        async with PostgresStore(url, create=True) as store, await psycopg.AsyncConnection.connect(url) as mine:
            await mine.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await mine.execute("SELECT 1 FROM alo_inbox")
            async with store.transaction() as tx:
                await store.claim_in(tx, SCOPE, ["a"], [ONE])
            with pytest.raises(psycopg.errors.SerializationFailure) as caught:
                await store.claim_in(mine, SCOPE, ["a"], [ONE])
            fault = store.classify(caught.value)
            assert (fault.code, fault.retryable) == (Code.CONFLICT, True)


class TestRedis:
    async def test_a_server_that_evicts_is_refused(self, private_broker: PrivateBroker) -> None:
        with private_broker("redis") as broker:
            async with Redis.from_url(broker.url) as admin:
                await admin.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(ConfigurationError, match="maxmemory-policy is allkeys-lru"):
                await RedisStore(broker.url).open()
            async with RedisStore(broker.url, allow_eviction=True):
                pass

    async def test_full_memory_is_unknown_and_passes(self, private_broker: PrivateBroker) -> None:
        with private_broker("redis") as broker:
            async with Redis.from_url(broker.url) as admin, RedisStore(broker.url) as store:
                await admin.config_set("maxmemory", "1")
                (claim,) = await store.claim([ClaimRequest(SCOPE, "a")])
                assert claim.status is Status.UNKNOWN
                assert claim.fault is not None
                assert (claim.fault.code, claim.fault.retryable) == (Code.OVERLOADED, True)
                await admin.config_set("maxmemory", "0")
                assert (await store.claim([ClaimRequest(SCOPE, "a")]))[0].status is Status.NEW

    async def test_flushed_scripts_come_back(self, redis_broker: Running) -> None:
        """With its one connection in use for the very question."""
        async with Redis.from_url(redis_broker.url) as admin, RedisStore(redis_broker.url, connections=1) as store:
            scope = scope_key("svc", uuid.uuid4().hex, "h")
            for turn in range(3):
                await admin.script_flush()
                assert (await store.claim([ClaimRequest(scope, f"{turn}")]))[0].status is Status.NEW

    async def test_another_version_is_refused(self, redis_broker: Running) -> None:
        prefix = f"p{uuid.uuid4().hex[:8]}"
        async with Redis.from_url(redis_broker.url) as admin:
            await admin.set(f"{prefix}:store:version", 99)
        with pytest.raises(ConfigurationError, match="has version 99"):
            await RedisStore(redis_broker.url, prefix=prefix).open()

    async def test_one_slot_for_each_scope(self, redis_broker: Running) -> None:
        async with Redis.from_url(redis_broker.url) as admin, RedisStore(redis_broker.url) as store:
            ids = ["a", "{b}", "}{", "c{d}"]
            keys = [store._key(SCOPE, id) for id in ids]
            slots = {key.partition("{")[2].partition("}")[0] for key in keys}
            assert len(slots) == 1
            assert len(set(keys)) == 4
            assert await admin.ping()


class TestSQLite:
    async def test_no_schema_another_version_no_database(self, tmp_path: Path) -> None:
        path = tmp_path / "s.db"
        with pytest.raises(ConfigurationError, match="no schema yet"):
            await SQLiteStore(path, create=False).open()
        await SQLiteStore(path).init()
        with sqlite3.connect(path) as admin:
            admin.execute("UPDATE alo_store SET version = 99")
        admin.close()
        with pytest.raises(ConfigurationError, match="has version 99"):
            await SQLiteStore(path).open()
        (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 9)
        with pytest.raises(ConfigurationError, match="no SQLite database"):
            await SQLiteStore(tmp_path / "text").open()

    async def test_a_writer_that_hangs_costs_unknown(self, tmp_path: Path) -> None:
        async with SQLiteStore(tmp_path / "s.db", patience="20ms") as store:
            request = ClaimRequest(SCOPE, "a", token=new_token())
            async with store.transaction():
                (claim,) = await store.claim([request])
                assert claim.status is Status.UNKNOWN
                assert claim.fault is not None
                assert claim.fault.retryable
                (outcome,) = await store.release([_lease(request)])
                assert outcome.status is Ended.UNKNOWN
            assert (await store.claim([request]))[0].status is Status.NEW

    @pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
    async def test_a_connection_is_not_closed_while_a_cancelled_statement_is_in_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
    ) -> None:
        """SQLite would end the process. What was being committed is committed, though nobody is told."""
        begun, go = threading.Event(), threading.Event()
        waited: list[bool] = []

        def trace(what: str) -> None:
            if what == statement and not waited:
                begun.set()
                waited.append(go.wait(5))

        def connect(path: Path, patience: float) -> sqlite3.Connection:
            made = schema.connect(path, patience)
            made.set_trace_callback(trace)
            return made

        async with SQLiteStore(tmp_path / "s.db") as store:
            monkeypatch.setattr(sqlite_store, "schema", SimpleNamespace(connect=connect, as_error=schema.as_error))

            async def write() -> None:
                async with store.transaction() as tx:
                    tx.execute("CREATE TABLE effect (n)")

            task = asyncio.create_task(write())
            assert await asyncio.to_thread(begun.wait, 5)
            for _ in range(2):
                task.cancel()
                assert not (await asyncio.wait([task], timeout=0.05))[0], "the thread is still in it"
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert waited == [True]
            async with store.transaction() as tx:
                made = tx.execute("SELECT count(*) FROM sqlite_master WHERE name = 'effect'").fetchone()[0]
            assert made == (statement == "COMMIT")

    async def test_a_full_disk_costs_unknown(self, tmp_path: Path) -> None:
        async with SQLiteStore(tmp_path / "s.db") as store:
            assert store._desk is not None
            (pages,) = await store._desk.read(lambda connection: connection.execute("PRAGMA page_count").fetchone())
            await store._desk.read(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}"))
            many = [ClaimRequest(SCOPE, "x" * 400 + f"{n}") for n in range(200)]
            answers = await store.claim(many)
            assert {claim.status for claim in answers} == {Status.UNKNOWN}
            assert answers[0].fault is not None
            assert answers[0].fault.code is Code.OVERLOADED
            await store._desk.read(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
            assert {claim.status for claim in await store.claim(many)} == {Status.NEW}


def _lease(request: ClaimRequest):  # type: ignore[no-untyped-def]
    from atleastonce.stores import Lease

    return Lease(request.scope, request.id, request.token)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mysql"])
@pytest.mark.parametrize("lost", [["outbox_relay"], ["inbox"], ["outbox", "outbox_slot", "outbox_relay"]])
async def test_a_missing_table_is_named_at_the_start(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, lost: list[str]
) -> None:
    """A database of a time before there was an outbox: its messages would be found out one by one, each a dead letter."""
    url = f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
    prefix = f"t{uuid.uuid4().hex[:8]}"
    await open_store(url, {"prefix": prefix}).init()
    for table in lost:
        query(url, f"DROP TABLE {prefix}_{table}")
    names = ", ".join(f"{prefix}_{table}" for table in lost)
    s = "s" if len(lost) > 1 else ""
    with pytest.raises(ConfigurationError, match=f"lacks the table{s} {names}; run `atleastonce inbox init`"):
        await open_store(url, {"prefix": prefix, "create": False}).open()
    await open_store(url, {"prefix": prefix}).init()
    async with open_store(url, {"prefix": prefix, "create": False}):
        pass


def query(url: str, sql: str) -> None:
    parts = BrokerUrl.parse(url)
    if parts.scheme == "sqlite":
        with contextlib.closing(sqlite3.connect(str(parts.path))) as lite, lite:
            lite.execute(sql)
    elif parts.scheme == "mysql":
        ((host, port),) = parts.hosts
        with pymysql.connect(host=host, port=port or 3306, user=parts.user, database=parts.path) as my:
            my.cursor().execute(sql)
    else:
        with psycopg.connect(url, autocommit=True) as pg:
            pg.execute(sql.encode())


async def test_a_commit_of_sqlite_waits_for_nothing_that_handlers_sent_to_threads(tmp_path: Path) -> None:
    """What a handler has sent to the loop's threads may never end, and a transaction holds up every writer of the file."""
    release, found = threading.Event(), list[Entry]()
    with ThreadPoolExecutor(1) as busy:
        asyncio.get_running_loop().set_default_executor(busy)
        async with SQLiteStore(tmp_path / "s.db") as store:

            async def work() -> None:
                for _ in range(2):
                    async with store.transaction() as tx:
                        found.extend(await store.claim_in(tx, "s", ["m"], [b""]))

            blocked = asyncio.create_task(asyncio.to_thread(release.wait))
            await asyncio.sleep(0)
            working = asyncio.create_task(work())
            done, _ = await asyncio.wait([working], timeout=5)  # the loop's only thread waits for its end
            release.set()
            await asyncio.gather(working, blocked)
    assert done == {working}
    assert found == [Entry.NEW, Entry.SEEN]
