"""Nothing else runs meanwhile: how one handler of a process runs alone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
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
        self._held = False  # everybody, by a turn
        self._slow: list[Runs] = []  # those that a turn holds alone
        self._stills = self._still = 0  # how many want everybody to stand still, and for how many everybody does
        self._turn = asyncio.Lock()
        self._rest_until = 0.0

    def add(self, worker: Runs) -> None:
        """``worker`` runs handlers from now on; not within somebody's turn."""
        self._workers.append(worker)
        if self._held or self._stills:
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
            await _seen(lambda: not self._stills, began + BRIEF)  # who comes later waits for this turn
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
        self._slow = []
        self._let_go()

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Let nothing start until the end of the block, which begins when nothing runs: not within somebody's turn, unless it is
        shared by now, and not beside a handler that ends within `BRIEF` seconds. For what is short, and should not be cut in two
        by a handler that ends the process."""
        self._stills += 1
        for worker in self._workers:
            worker.halt()
        try:
            await self._at_rest()
            self._still += 1
            try:
                yield
            finally:
                self._still -= 1
        finally:
            self._stills -= 1
            self._let_go()

    async def _at_rest(self) -> None:
        deadline = time.monotonic() + BRIEF
        while self._held or any(worker.pool.busy for worker in self._workers):
            now = time.monotonic()
            if self._held:
                deadline = now + BRIEF
            elif now >= deadline:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _let_go(self) -> None:
        """Let those start again whom nobody holds any more."""
        if self._held or self._stills:
            return
        for worker in self._workers:
            if worker not in self._slow:
                worker.let_go()

    async def _stand_still(self, deadline: float) -> bool:
        while True:
            self._held = True
            for worker in self._workers:
                worker.halt()
            if await self._ended(self._workers, time.monotonic() + BRIEF):
                return True
            # These wait on; each round adds one at least, so that in the end everybody stands still.
            self._slow = slow = [worker for worker in self._workers if worker in self._slow or worker.pool.busy]
            self._held = False
            self._let_go()
            if not await self._ended(slow, deadline):
                return False

    async def _ended(self, workers: list[Runs], deadline: float) -> bool:
        return await _seen(lambda: not (self._still or any(worker.pool.busy for worker in workers)), deadline)


async def _seen(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait for ``condition``; whether it holds by the ``deadline``."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return True
