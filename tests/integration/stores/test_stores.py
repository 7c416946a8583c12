"""The contract of stores, on each real store."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from atleastonce.stores.outbox import OutboxStore, share
from atleastonce.testing.brokers import killable
from atleastonce.testing.stores import InboxSuite, KilledStoreSuite, OutboxSuite, StoreHarness, StoreSuite
from atleastonce.testing.stores.outbox import ONE, TWO


class TestMemory(StoreSuite):
    @pytest.fixture
    def harness(self) -> StoreHarness:
        return StoreHarness("memory://", shared=False)


class TestSQLite(StoreSuite, InboxSuite):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> StoreHarness:
        return StoreHarness(f"sqlite:///{tmp_path}/store.db", {"patience": 20})


class TestPostgres(StoreSuite, InboxSuite):
    @pytest.fixture
    def harness(self, postgres_url: str) -> StoreHarness:
        return StoreHarness(postgres_url, {"create": True})


class TestMySQL(StoreSuite, InboxSuite):
    @pytest.fixture
    def harness(self, mysql_url: str) -> StoreHarness:
        return StoreHarness(mysql_url, {"create": True})


class TestRedis(StoreSuite):
    @pytest.fixture
    def harness(self, redis_url: str) -> StoreHarness:
        return StoreHarness(redis_url, purges=False)


class TestDynamoDB(StoreSuite):
    """On an emulator: its semantics, not the service's."""

    @pytest.fixture
    def harness(self, sqs_url: str) -> StoreHarness:
        url = sqs_url.replace("sqs://", "dynamodb://test:test@") + "/stores"
        return StoreHarness(url, {"create": True, "margin": 1.5}, margin=1.5, purges=False)


class TestSQLiteOutbox(OutboxSuite):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> StoreHarness:
        return StoreHarness(f"sqlite:///{tmp_path}/store.db", {"patience": 20})


class TestMySQLOutbox(OutboxSuite):
    @pytest.fixture
    def harness(self, mysql_url: str) -> StoreHarness:
        return StoreHarness(mysql_url, lease=0.5)


class TestPostgresOutbox(OutboxSuite):
    @pytest.fixture
    def harness(self, postgres_url: str) -> StoreHarness:
        return StoreHarness(postgres_url)

    async def test_nobody_waits_to_remove_a_relay_that_is_coming_back(
        self, own: StoreHarness, store: OutboxStore
    ) -> None:
        """Two whose leases have ended would wait for each other: a deadlock, which the server ends after a second only, and which
        costs those that wait behind it their leases too."""
        await store.outbox_hold(TWO, "two", 60)
        renew = f"UPDATE {own.options['prefix']}_outbox_relay SET until = clock_timestamp() + %s * interval '1 second'"
        async with store.transaction() as tx:
            await tx.execute(renew, (-1,))
        other = own.store()
        assert isinstance(other, OutboxStore)
        async with other, store.transaction() as tx, asyncio.timeout(20):
            await tx.execute(renew, (60,))
            assert (await other.outbox_hold(ONE, "one", 60)).share == share(2)


@pytest.mark.chaos
class TestKilledPostgres(KilledStoreSuite):
    options: ClassVar[dict[str, Any]] = {"create": True, "timeout": 3}

    def server(self) -> AbstractAsyncContextManager[Any]:
        return killable("postgres")


@pytest.mark.chaos
class TestKilledMySQL(KilledStoreSuite):
    options: ClassVar[dict[str, Any]] = {"create": True, "timeout": 3}

    def server(self) -> AbstractAsyncContextManager[Any]:
        return killable("mysql")


@pytest.mark.chaos
class TestKilledRedis(KilledStoreSuite):
    def server(self) -> AbstractAsyncContextManager[Any]:
        return killable("redis")
