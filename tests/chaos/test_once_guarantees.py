"""Each store keeps its promise through each fault that needs no server of its own, one run each.

``docs/generate/guarantees.py`` runs all of them, as often as it is told, and writes ``docs/guarantees.md``.
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import once_faults
from once_faults import DIED, STORES, Run
from once_worker import CONCURRENCY, VICTIM
from replica import FileReplica, ServerReplica

from atleastonce.testing.brokers import PrivateBroker

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(180, func_only=True)]

SEED = os.environ.get("ALO_CHAOS_SEED", "7")
"""Chooses which of the faults each store meets here; another number, another choice."""
PATIENT = "30s"
CASES = [(mode, store) for mode, stores in STORES.items() for store in stores]
KILLED = [(*case, fault) for case in CASES for fault in random.Random(f"{SEED}{case}").sample(DIED, 2)]


def start(request: pytest.FixtureRequest, tmp_path: Path, mode: str, store: str) -> Run:
    if store == "sqlite":
        url = f"sqlite:///{tmp_path}/store.db"
    elif store == "dynamodb":  # an emulator
        url = (
            request.getfixturevalue("sqs_url").replace("sqs://", "dynamodb://test:test@") + f"/g{uuid.uuid4().hex[:8]}"
        )
    else:
        url = request.getfixturevalue(f"{store}_url")
    return Run(mode, store, url, tmp_path)


@pytest.mark.parametrize(("mode", "store", "fault"), KILLED)
async def test_a_process_that_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, mode: str, store: str, fault: str
) -> None:
    row = await once_faults.died(start(request, tmp_path, mode, store), fault)
    assert row.holds, row
    assert row.effects == once_faults.ORDERS


@pytest.mark.parametrize(("mode", "store"), random.Random(SEED).sample(CASES, 4))
async def test_a_reply_that_is_lost(request: pytest.FixtureRequest, tmp_path: Path, mode: str, store: str) -> None:
    row = await once_faults.reply_lost(start(request, tmp_path, mode, store))
    assert row.holds, row
    assert row.effects == once_faults.ORDERS
    assert row.duplicate_effects == 0, row


@pytest.mark.parametrize(("mode", "store"), [("inbox", "postgres"), ("inbox", "mysql"), ("lease", "redis")])
async def test_a_zombie(request: pytest.FixtureRequest, tmp_path: Path, mode: str, store: str) -> None:
    row = await once_faults.frozen(start(request, tmp_path, mode, store))
    assert row.holds, row
    assert row.effects == once_faults.ORDERS
    # What had not begun when it was frozen does not begin afterwards: its lease is over by the process's own clock.
    assert row.duplicate_effects <= VICTIM + CONCURRENCY, row


@pytest.mark.parametrize("store", ["sqlite", "postgres", "mysql"])
async def test_a_failover_that_loses_writes(private_broker: PrivateBroker, tmp_path: Path, store: str) -> None:
    """Effects and the memory of them are lost together, and had together once more."""
    if store == "sqlite":
        run = Run("inbox", store, f"sqlite:///{tmp_path}/store.db", tmp_path, lease=PATIENT)
        row = await once_faults.failed_over(run, FileReplica(tmp_path / "store.db"))
    else:
        with private_broker(store) as server:
            if server.log is None:
                pytest.skip("not started natively: its files are not here")
            run = Run("inbox", store, server.url, tmp_path, lease=PATIENT)
            row = await once_faults.failed_over(run, ServerReplica(server, tmp_path / "replica"))
    assert row.duplicate_effects == 0, row
    assert row.effects == 10 * once_faults.ORDERS
