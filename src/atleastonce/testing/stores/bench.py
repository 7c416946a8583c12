"""What the cases share: the store under test, requests in a scope of one's own, waiting for a condition."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from atleastonce.stores import Claim, ClaimRequest, LeaseStore, Status, open_store, scope_key

PRINT = b"\x01" * 32
Spawn: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[Process]]


@dataclass
class StoreHarness:
    """The store under test.

    Attributes:
        url, options: for `open_store`, here and in child processes.
        lease: seconds of a lease that a case waits for the end of. At least three times a round trip.
        margin: seconds that the store adds before it calls a lease ended.
        shared: whether other processes can reach it.
        purges: whether `purge` removes anything (Redis forgets by itself).
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    lease: float = 0.3
    margin: float = 0.0
    shared: bool = True
    purges: bool = True

    def store(self) -> LeaseStore:
        return open_store(self.url, self.options)


class Base:
    """The fixtures. Override ``harness``."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def harness(self) -> StoreHarness:
        raise NotImplementedError("give the suite's subclass a fixture `harness` that returns its StoreHarness")

    @pytest_asyncio.fixture
    async def store(self, harness: StoreHarness) -> AsyncIterator[LeaseStore]:
        async with harness.store() as store:
            yield store

    @pytest.fixture
    def scope(self) -> str:
        return fresh_scope()

    @pytest_asyncio.fixture
    async def spawn(self) -> AsyncIterator[Spawn]:
        """Runs a module of this package as a program, with its orders as JSON, until it says ``ready``. However the case ends, what
        still runs then is killed."""
        processes: list[Process] = []

        async def spawn(module: str, orders: Mapping[str, Any]) -> Process:
            program = ("-m", f"atleastonce.testing.stores.{module}", json.dumps(orders))
            process = await asyncio.create_subprocess_exec(sys.executable, *program, stdin=PIPE, stdout=PIPE)
            processes.append(process)
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
            return process

        yield spawn
        for process in processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in processes))


def fresh_scope() -> str:
    return scope_key("suite", uuid.uuid4().hex, "handler")


def ask(scope: str, id: str = "m-1", *, print_: bytes = PRINT, lease: float = 30.0, **more: Any) -> ClaimRequest:
    return ClaimRequest(scope, id, print_, lease, **more)


async def one(store: LeaseStore, request: ClaimRequest) -> Claim:
    (claim,) = await store.claim([request])
    assert claim.fault is None, claim.fault
    return claim


async def until(look: Callable[[], Awaitable[Any]], patience: float = 15.0) -> Any:
    """What ``look`` returns once it is true."""
    end = time.monotonic() + patience
    while not (found := await look()):
        assert time.monotonic() < end, f"not within {patience} s: {look}"
        await asyncio.sleep(0.02)
    return found


async def taken_over(store: LeaseStore, request: ClaimRequest) -> Claim:
    """The claim of whoever waits for the end of another's lease."""

    async def attempt() -> Claim | None:
        claim = await one(store, request)
        return None if claim.status is Status.BUSY else claim

    found: Claim = await until(attempt)
    return found
