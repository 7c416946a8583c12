"""Cases for a `TransactionalStore`: the id and the effect are one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from atleastonce.errors import InvalidMessage
from atleastonce.stores import Entry, TransactionalStore
from atleastonce.testing.stores.bench import Base, StoreHarness

ONE = b"\x01" * 32


class _Undone(Exception):
    pass


class InboxSuite(Base):
    """Subclass it beside `StoreSuite`, and override ``harness``."""

    @pytest_asyncio.fixture
    async def store(self, harness: StoreHarness) -> AsyncIterator[TransactionalStore]:
        store = harness.store()
        assert isinstance(store, TransactionalStore)
        async with store:
            yield store

    async def test_an_id_is_new_once(self, store: TransactionalStore, scope: str) -> None:
        async with store.transaction() as tx:
            assert await store.claim_in(tx, scope, ["b", "a", "b"], [ONE] * 3) == [Entry.NEW, Entry.NEW, Entry.SEEN]
        async with store.transaction() as tx:
            found = await store.claim_in(tx, scope, ["c", "a", "b"], [ONE, b"other", ONE])
        assert found == [Entry.NEW, Entry.MISMATCH, Entry.SEEN]

    async def test_what_is_rolled_back_was_never_seen(self, store: TransactionalStore, scope: str) -> None:
        async def fail() -> None:
            async with store.transaction() as tx:
                assert await store.claim_in(tx, scope, ["a"], [ONE]) == [Entry.NEW]
                raise _Undone

        with pytest.raises(_Undone):
            await fail()
        async with store.transaction() as tx:
            assert await store.claim_in(tx, scope, ["a"], [ONE]) == [Entry.NEW]

    async def test_of_two_at_once_one_is_new(
        self, store: TransactionalStore, harness: StoreHarness, scope: str
    ) -> None:
        """The second waits for the first; lists in opposite orders do not lock each other out."""
        ids = [f"m-{number}" for number in range(50)]

        async def handle(asked: list[str]) -> list[Entry]:
            own = harness.store()
            assert isinstance(own, TransactionalStore)
            async with own, own.transaction() as tx:
                found = dict(zip(asked, await own.claim_in(tx, scope, asked, [ONE] * 50), strict=True))
            return [found[id] for id in ids]

        runs = await asyncio.gather(*(handle(ids if number % 2 else ids[::-1]) for number in range(6)))
        assert [list(column).count(Entry.NEW) for column in zip(*runs, strict=True)] == [1] * 50
        assert all(len(set(run)) == 1 for run in runs)

    async def test_a_bad_id_is_refused_before_anything(self, store: TransactionalStore, scope: str) -> None:
        async with store.transaction() as tx:
            with pytest.raises(InvalidMessage):
                await store.claim_in(tx, scope, ["good", ""], [ONE, ONE])
            assert await store.claim_in(tx, scope, ["good"], [ONE]) == [Entry.NEW]
            assert await store.claim_in(tx, scope, [], []) == []

    @pytest.mark.parametrize("failed", [False, True])
    async def test_its_own_transaction_is_told_from_another(
        self, store: TransactionalStore, scope: str, failed: bool
    ) -> None:
        async with store.transaction() as tx:
            await store.claim_in(tx, scope, ["a"], [ONE])
            assert await store.holds_in(tx, failed=failed)
        async with store.transaction() as tx:
            assert await store.claim_in(tx, scope, ["a"], [ONE]) == [Entry.SEEN]

        async def look() -> None:
            async with store.transaction() as tx:
                assert not await store.holds_in(tx, failed=failed)
                raise _Undone

        with pytest.raises(_Undone):
            await look()

    async def test_old_rows_are_purged_and_young_ones_stay(self, store: TransactionalStore, scope: str) -> None:
        async with store.transaction() as tx:
            await store.claim_in(tx, scope, ["old"], [ONE], ttl=0.05)
            await store.claim_in(tx, scope, ["young"], [ONE], ttl=60)
        await asyncio.sleep(0.1)
        while await store.purge():
            pass
        async with store.transaction() as tx:
            assert await store.claim_in(tx, scope, ["old", "young"], [ONE, ONE]) == [Entry.NEW, Entry.SEEN]
