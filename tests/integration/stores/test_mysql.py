"""What MySQL and MariaDB do in their own way, each a trap that somebody fell into."""

from __future__ import annotations

import asyncio
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import aiomysql
import pymysql
import pytest

from atleastonce import ConfigurationError, MySQLStore, PermissionDenied, StoreUnavailable
from atleastonce.contract import Code
from atleastonce.stores import ClaimRequest, Completion, Entry, Status, scope_key
from atleastonce.urls import BrokerUrl

SCOPE = scope_key("svc", "g", "h")
ONE, TWO = b"\x01" * 32, b"\x02" * 32


def arguments(url: str) -> dict[str, Any]:
    parts = BrokerUrl.parse(url)
    ((host, port),) = parts.hosts
    return {"host": host, "port": port, "user": parts.user, "database": parts.path}


def query(url: str, *statements: str) -> list[Any]:
    with pymysql.connect(**arguments(url), autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


@pytest.fixture
def url(mysql_url: str) -> Iterator[str]:
    """A database of the test's own."""
    name = f"d{uuid.uuid4().hex[:12]}"
    query(mysql_url, f"CREATE DATABASE {name}")
    yield mysql_url.rpartition("/")[0] + f"/{name}"
    query(mysql_url, f"DROP DATABASE {name}")


# --------------------------------------------------------------------------------------------------------------- at start


async def test_no_schema_and_another_version(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no schema yet; call the store's init\(\)"):
        await MySQLStore(url).open()
    await MySQLStore(url).init()
    async with MySQLStore(url):
        pass
    query(url, "UPDATE alo_store SET version = 99")
    with pytest.raises(ConfigurationError, match="has version 99, this atleastonce needs 1"):
        await MySQLStore(url).open()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE alo_inbox ENGINE=Aria", "engine Aria, which has no transactions"),
        ("ALTER TABLE alo_lease MODIFY id VARCHAR(512) CHARACTER SET utf8mb4 NOT NULL", r"must be VARBINARY\(512\)"),
        ("ALTER TABLE alo_inbox MODIFY id VARBINARY(64) NOT NULL", r"must be VARBINARY\(512\), not varbinary\(64\)"),
        ("DROP TABLE alo_inbox", "lacks the table alo_inbox; run `atleastonce inbox init`"),
    ],
    ids=["engine", "collated", "short", "half"],
)
async def test_a_schema_of_ones_own_that_would_lose_messages_is_refused(url: str, change: str, words: str) -> None:
    await MySQLStore(url).init()
    query(url, change)
    with pytest.raises(ConfigurationError, match=words):
        await MySQLStore(url).open()


async def test_no_such_database_no_such_user_no_rights(url: str) -> None:
    with pytest.raises(ConfigurationError, match="Unknown database"):
        await MySQLStore(url.rpartition("/")[0] + "/nowhere").open()
    await MySQLStore(url).init()
    user = f"u{uuid.uuid4().hex[:8]}"
    login = url.replace("root@", f"{user}:hunter2@")
    with pytest.raises(PermissionDenied) as caught:
        await MySQLStore(login).open()
    assert "hunter2" not in str(caught.value)
    query(url, f"CREATE USER {user}@'127.0.0.1' IDENTIFIED BY 'hunter2'")
    with pytest.raises(PermissionDenied):
        await MySQLStore(login).open()
    query(url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {arguments(url)['database']}.* TO {user}@'127.0.0.1'")
    async with MySQLStore(login) as store:
        assert (await store.claim([ClaimRequest(SCOPE, "a")]))[0].granted
    query(url, f"DROP USER {user}@'127.0.0.1'")


@pytest.mark.parametrize("mode", ["required", "verify-ca", "verify-identity"])
async def test_a_server_without_tls_gets_no_password(url: str, mode: str) -> None:
    """aiomysql by itself would go on unencrypted."""
    if query(url, "SELECT @@have_ssl") != [("DISABLED",)]:
        pytest.skip("this server has TLS")
    await MySQLStore(url).init()
    with pytest.raises(StoreUnavailable, match="has no TLS, and ssl_mode asks for it"):
        await MySQLStore(f"{url}?ssl_mode={mode}").open()
    async with MySQLStore(url) as store:
        store._threads._address = MySQLStore(f"{url}?ssl_mode={mode}")._address
        with pytest.raises(ConfigurationError, match="SSL is required but the server doesn't support it"):
            store.transaction_sync().__enter__()


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("db?ssl_mode=perhaps", "give one of disabled, required, verify-ca, verify-identity"),
        ("db?ssl_ca=/no/such/file", "certificates cannot be read"),
        ("db?ssl_moed=required", 'did you mean "ssl_mode"'),
        ("", "write it as mysql://user:password@host/database"),
    ],
)
def test_bad_urls_are_one_line(tail: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        MySQLStore(f"mysql://u:hunter2@h/{tail}")
    assert "hunter2" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- running


async def test_results_of_all_sizes_in_one_list(url: str) -> None:
    """MariaDB takes a column's type from the longest literal of a UNION, and makes one of 65536 bytes empty; and 64 KiB each
    are more than a server takes in one packet."""
    sizes = [0, 1, 255, 256, 65_535, 65_536] * 40
    async with MySQLStore(url, create=True) as store:
        claims = await store.claim([ClaimRequest(SCOPE, f"{n}") for n in range(len(sizes))])
        done = [Completion(c.lease, b"x" * size) for c, size in zip(claims, sizes, strict=True) if c.lease]
        assert {outcome.ok for outcome in await store.complete(done)} == {True}
        again = await store.claim([ClaimRequest(SCOPE, f"{n}") for n in range(len(sizes))])
    assert [len(claim.result) for claim in again] == sizes


async def test_what_a_collation_calls_the_same_are_two_messages(url: str) -> None:
    names = ["a", "A", "a ", "á", "\uff41", "😀", "😁", "a\n", "\\", "'", '"', "%s", ";"]
    async with MySQLStore(url, create=True) as store:
        assert {c.status for c in await store.claim([ClaimRequest(SCOPE, name) for name in names])} == {Status.NEW}
        async with store.transaction() as tx:
            assert set(await store.claim_in(tx, SCOPE, names, [ONE] * len(names))) == {Entry.NEW}


async def test_a_locked_row_is_waited_for_and_then_unknown(url: str) -> None:
    async with MySQLStore(url, create=True, lock_timeout="1s") as store:
        await store.claim([ClaimRequest(SCOPE, "a", lease=0.001)])
        with pymysql.connect(**arguments(url)) as blocker:
            blocker.cursor().execute("SELECT 1 FROM alo_lease FOR UPDATE")
            (claim,) = await store.claim([ClaimRequest(SCOPE, "a")])
            assert claim.status is Status.UNKNOWN
            assert claim.fault is not None
            assert (claim.fault.code, claim.fault.retryable) == (Code.CONFLICT, True)
            blocker.rollback()
        assert (await store.claim([ClaimRequest(SCOPE, "a")]))[0].granted


async def test_ended_connections_are_replaced(url: str) -> None:
    """In calls, and where a transaction begins."""
    async with MySQLStore(url, create=True, connections=3) as store:
        for turn in range(2):
            await asyncio.gather(*(store.claim([ClaimRequest(SCOPE, f"{turn} {n}")]) for n in range(6)))
            with store.transaction_sync():
                pass
            name = arguments(url)["database"]
            ids = query(
                url, f"SELECT id FROM information_schema.processlist WHERE db = '{name}' AND id != connection_id()"
            )
            assert len(ids) >= 3
            query(url, *(f"KILL {number}" for (number,) in ids))
            if turn:
                answers = await asyncio.gather(*(store.claim([ClaimRequest(SCOPE, f"n{n}")]) for n in range(6)))
                assert {claim.status for (claim,) in answers} == {Status.NEW}
            else:
                async with store.transaction() as tx:
                    assert await store.claim_in(tx, SCOPE, ["a"], [ONE]) == [Entry.NEW]
                with store.transaction_sync() as blocking:
                    assert await store.claim_in(blocking, SCOPE, ["b"], [ONE]) == [Entry.NEW]


async def test_silent_connections_are_not_given_out(url: str) -> None:
    """The server ends them, so that a frozen handler holds up nobody for ever."""
    async with MySQLStore(url, create=True, idle_in_transaction="1s") as store:
        for n in range(2):
            async with store.transaction() as tx:
                await store.claim_in(tx, SCOPE, [f"{n}"], [ONE])
                ended = tx
            await asyncio.sleep(1.5 if n == 0 else 0)  # longer than the server keeps it
        assert not ended.closed
        async with store.transaction() as tx:
            await tx.query("SELECT @@wait_timeout, @@innodb_lock_wait_timeout")
            assert tx._result.rows == ((1, 2),)


async def test_a_cancelled_call_leaves_the_store_usable(url: str) -> None:
    async with MySQLStore(url, create=True, connections=1) as store:
        request = ClaimRequest(SCOPE, "a", lease=60)
        for turn in range(20):
            task = asyncio.create_task(store.claim([request]))
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        (claim,) = await store.claim([request])
        assert (claim.status, claim.attempts) == (Status.NEW, 1)


def test_why_there_is_no_connection_is_said() -> None:
    error = pymysql.err.OperationalError(2003, "Can't connect to MySQL server on 'h'")
    error.__cause__ = ConnectionRefusedError(111, "certificate verify failed, for mysql://u:hunter2@h/d")
    fault = MySQLStore("mysql://h/d").classify(error)
    assert "certificate verify failed" in fault.detail
    assert "hunter2" not in fault.detail


async def test_a_full_table_is_unknown_and_passes(url: str) -> None:
    """As for a full disk, the server says that it has no room."""
    store = MySQLStore(url)
    for number in (1114, 1021):
        fault = store.classify(pymysql.err.OperationalError(number, "The table 'alo_lease' is full"))
        assert (fault.code, fault.retryable) == (Code.OVERLOADED, True)
    fault = store.classify(pymysql.err.InternalError(3, 'Error writing file (Errcode: 28 "No space left on device")'))
    assert fault.code is Code.OVERLOADED


# ---------------------------------------------------------------------------------------------------------------- inbox


@pytest.mark.parametrize("flags", [0, pymysql.constants.CLIENT.FOUND_ROWS], ids=["plain", "FOUND_ROWS"])
@pytest.mark.parametrize("cursor", ["Cursor", "DictCursor", "SSCursor"])
async def test_the_inbox_in_connections_of_pymysql(url: str, flags: int, cursor: str) -> None:
    """Django and SQLAlchemy ask for FOUND_ROWS, which counts a row that stays as it is."""
    kind = getattr(pymysql.cursors, cursor)
    async with MySQLStore(url, create=True) as store:
        with pymysql.connect(**arguments(url), client_flag=flags, cursorclass=kind) as mine:
            assert await store.claim_in(mine, SCOPE, ["a", "b"], [ONE, ONE]) == [Entry.NEW, Entry.NEW]
            assert await store.claim_in(mine, SCOPE, ["a", "c"], [ONE, ONE]) == [Entry.SEEN, Entry.NEW]
            assert await store.holds_in(mine)
            mine.commit()
            assert await store.claim_in(mine.cursor(), SCOPE, ["b"], [TWO]) == [Entry.MISMATCH]
            assert await store.claim_in(mine, SCOPE, ["d", "a"], [ONE, ONE]) == [Entry.NEW, Entry.SEEN]
            mine.rollback()
            assert not await store.holds_in(mine)
            assert await store.claim_in(mine, SCOPE, ["d"], [ONE]) == [Entry.NEW]


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_the_inbox_in_connections_that_await(url: str, driver: str) -> None:
    module = pytest.importorskip(driver)
    given = arguments(url)
    given["db"] = given.pop("database")
    async with MySQLStore(url, create=True) as store, module.connect(**given) as mine:
        assert await store.claim_in(mine, SCOPE, ["a", "b"], [ONE, ONE]) == [Entry.NEW, Entry.NEW]
        assert await store.claim_in(mine, SCOPE, ["b", "c"], [TWO, ONE]) == [Entry.MISMATCH, Entry.NEW]
        await mine.rollback()
        assert await store.claim_in(mine, SCOPE, ["c"], [ONE]) == [Entry.NEW]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_what_came_after_the_snapshot_is_seen_with_its_fingerprint(url: str, level: str) -> None:
    """In REPEATABLE READ a plain SELECT would not find the row that was in the way."""
    async with MySQLStore(url, create=True) as store, _own(url) as mine:
        await mine.query(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
        await mine.query("SELECT count(*) FROM alo_store")  # the snapshot
        async with store.transaction() as tx:
            await store.claim_in(tx, SCOPE, ["a"], [ONE])
        assert await store.claim_in(mine, SCOPE, ["a", "b"], [TWO, ONE]) == [Entry.MISMATCH, Entry.NEW]


async def test_a_snapshot_that_is_too_old_is_a_conflict(url: str) -> None:
    """MariaDB with innodb_snapshot_isolation, its default from 11.6.2 on."""
    async with MySQLStore(url, create=True) as store, _own(url) as mine:
        try:
            await mine.query("SET SESSION innodb_snapshot_isolation = ON")
        except pymysql.err.OperationalError:
            pytest.skip("this server has no innodb_snapshot_isolation")
        await mine.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await mine.query("SELECT count(*) FROM alo_inbox")
        async with store.transaction() as tx:
            await store.claim_in(tx, SCOPE, ["a"], [ONE])
        with pytest.raises(pymysql.err.MySQLError) as caught:
            await store.claim_in(mine, SCOPE, ["a"], [ONE])
        fault = store.classify(caught.value)
        assert (fault.code, fault.retryable) == (Code.CONFLICT, True)


async def test_a_deadlock_is_told(url: str) -> None:
    async with MySQLStore(url, create=True) as store, _own(url) as one, _own(url) as two:
        await store.claim_in(one, SCOPE, ["a"], [ONE])
        await store.claim_in(two, SCOPE, ["b"], [ONE])
        both = await asyncio.gather(
            store.claim_in(one, SCOPE, ["b"], [ONE]), store.claim_in(two, SCOPE, ["a"], [ONE]), return_exceptions=True
        )
        (error,) = [each for each in both if isinstance(each, BaseException)]
        fault = store.classify(error)
        assert (fault.code, fault.retryable) == (Code.CONFLICT, True)
        victim = one if both[0] is error else two
        assert not await store.holds_in(victim)


async def test_nothing_is_warned_of(url: str) -> None:
    """aiomysql asks for warnings, a round trip each time, and repeats them as Python's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with MySQLStore(url, create=True) as store, store.transaction() as tx:
            for _ in range(2):
                await store.claim_in(tx, SCOPE, ["a"], [ONE])
        await MySQLStore(url).init()


def _own(url: str) -> Any:
    given = arguments(url)
    given["db"] = given.pop("database")
    return aiomysql.connect(**given)
