"""Cases with several processes on one store."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from collections import Counter
from typing import Any

import pytest

from atleastonce.stores import Completion, LeaseStore, Status
from atleastonce.testing.stores.bench import Base, Spawn, StoreHarness, ask, one, taken_over


async def start(spawn: Spawn, harness: StoreHarness, scope: str, ids: list[str], lease: float, mode: str) -> Process:
    """A worker that has opened the store and waits for a line."""
    orders = {
        "url": harness.url,
        "options": dict(harness.options),
        "scope": scope,
        "ids": ids,
        "lease": lease,
        "mode": mode,
    }
    return await spawn("worker", orders)


async def go(worker: Process) -> dict[str, Any]:
    """What it was granted."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(b"go\n")
    await worker.stdin.drain()
    found: dict[str, Any] = json.loads(await asyncio.wait_for(worker.stdout.readline(), 60))
    return found


class Sharing(Base):
    """Skipped for a store that lives in one process."""

    async def test_of_many_processes_one_wins_each_id(
        self, harness: StoreHarness, store: LeaseStore, scope: str, spawn: Spawn
    ) -> None:
        _only_shared(harness)
        ids = [f"m-{number}" for number in range(400)]
        workers = await asyncio.gather(*(start(spawn, harness, scope, ids, 60.0, "race") for _ in range(4)))
        found = await asyncio.gather(*map(go, workers))
        await asyncio.gather(*(worker.wait() for worker in workers))
        assert [each["odd"] for each in found] == [[]] * 4
        winners = Counter(id for each in found for id in each["won"])
        assert winners == Counter(ids)
        assert {each.status for each in await store.claim([ask(scope, id) for id in ids])} == {Status.BUSY}

    async def test_a_killed_holder_is_taken_over_once(
        self, harness: StoreHarness, store: LeaseStore, scope: str, spawn: Spawn
    ) -> None:
        _only_shared(harness)
        worker = await start(spawn, harness, scope, ["m-1"], 1.0, "hold")
        fence = (await go(worker))["won"]["m-1"]
        worker.kill()
        await worker.wait()
        assert (await one(store, ask(scope))).status is Status.BUSY, "the lease outlives its holder"
        heir = await taken_over(store, ask(scope))
        assert (heir.status, heir.attempts) == (Status.RECLAIMED, 2)
        assert heir.fence > fence
        assert heir.lease is not None
        assert (await store.complete([Completion(heir.lease)]))[0].ok

    async def test_at_the_end_of_a_lease_one_takes_over(
        self, harness: StoreHarness, store: LeaseStore, scope: str
    ) -> None:
        """Eight askers, at the moment that twenty leases end; again and again."""
        ids = [f"m-{number}" for number in range(20)]
        fences = {id: (await one(store, ask(scope, id, lease=harness.lease))).fence for id in ids}
        grants: Counter[str] = Counter()
        end = asyncio.get_running_loop().time() + harness.lease + harness.margin + 1.0

        async def asker() -> None:
            while asyncio.get_running_loop().time() < end:
                for claim in await store.claim([ask(scope, id, lease=60) for id in ids]):
                    if claim.lease is not None:
                        assert claim.fence > fences[claim.lease.id]
                        grants[claim.lease.id] += 1

        await asyncio.gather(*(asker() for _ in range(8)))
        assert grants == Counter(ids)


def _only_shared(harness: StoreHarness) -> None:
    if not harness.shared:
        pytest.skip("this store lives in one process")
