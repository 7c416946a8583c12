"""Nothing else runs meanwhile: how one handler of a process runs alone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Protocol

from atleastonce.engine.pools import Pool

# How often it is looked whether the last handler has ended. Only while somebody waits to be alone.
_LOOK_SECONDS = 0.01

BRIEF = 1.0
"""How long everybody waits for a handler to end. Who has not ended by then is slow, and waits for alone."""

# After a wait in vain nobody waits again for so many times as long: what is held up by it has the rest of the time.
_REST = 4


class Runs(Protocol):
    """What starts handlers: a worker."""

    pool: Pool

    def halt(self) -> None:
        """Start nothing more until `let_go`."""

    def let_go(self) -> None:
        """Start again."""


class Turnstile:
    """All workers of one service, and the right to run while none of them does.

    Between two turns at least one message of every worker may start: turns can slow a service down, never stop it.
    """

    def __init__(self) -> None:
        self._workers: list[Runs] = []
        self._held = False
        self._turn = asyncio.Lock()
        self._rest_until = 0.0

    def add(self, worker: Runs) -> None:
        """``worker`` runs handlers from now on; not within somebody's turn."""
        self._workers.append(worker)
        if self._held:
            worker.halt()

    @contextlib.asynccontextmanager
    async def alone(self, within: float = BRIEF) -> AsyncIterator[bool]:
        """Let nothing start, and wait at most ``within`` seconds for what runs. Whether nothing runs then; if so nothing does
        until the end of the block.

        All workers wait for `BRIEF` seconds. Beyond that only those wait whose handlers still run, so that a slow handler holds up
        its own neighbours and nobody else's. Too short: slow handlers are never waited for. Too long: the fast ones of the same
        worker wait for a slow one.
        """
        async with self._turn:
            await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))
            began = time.monotonic()
            try:
                alone = await self._stand_still(began + within)
                if not alone:
                    self.share()
                    now = time.monotonic()
                    self._rest_until = now + _REST * (now - began)
                yield alone
            finally:
                self.share()

    def share(self) -> None:
        """Let the others start again before the turn ends: what runs is no longer alone. Nobody else has a turn until it ends."""
        self._held = False
        for worker in self._workers:
            worker.let_go()

    async def _stand_still(self, deadline: float) -> bool:
        slow: list[Runs] = []
        while True:
            self._held = True
            for worker in self._workers:
                worker.halt()
            if await self._ended(self._workers, time.monotonic() + BRIEF):
                return True
            # These wait on; each round adds one at least, so that in the end everybody stands still.
            slow = [worker for worker in self._workers if worker in slow or worker.pool.busy]
            self._held = False
            for worker in self._workers:
                if worker not in slow:
                    worker.let_go()
            if not await self._ended(slow, deadline):
                return False

    async def _ended(self, workers: list[Runs], deadline: float) -> bool:
        while any(worker.pool.busy for worker in workers):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True
