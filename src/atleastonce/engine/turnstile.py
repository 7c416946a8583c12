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

    def add(self, worker: Runs) -> None:
        """``worker`` runs handlers from now on; not within somebody's turn."""
        self._workers.append(worker)
        if self._held:
            worker.halt()

    @contextlib.asynccontextmanager
    async def alone(self, within: float) -> AsyncIterator[bool]:
        """Let nothing start, and wait at most ``within`` seconds for what runs. Whether nothing runs then; if so nothing does
        until the end of the block. Too short: slow handlers are never waited for. Too long: fast ones wait for a slow one.
        """
        async with self._turn:
            self._held = True
            for worker in self._workers:
                worker.halt()
            try:
                yield await self._still(time.monotonic() + within)
            finally:
                self.share()

    def share(self) -> None:
        """Let the others start again before the turn ends: what runs is no longer alone. Nobody else has a turn until it ends."""
        self._held = False
        for worker in self._workers:
            worker.let_go()

    async def _still(self, deadline: float) -> bool:
        while any(worker.pool.busy for worker in self._workers):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True
