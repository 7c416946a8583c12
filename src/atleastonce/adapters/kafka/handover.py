"""From the polling thread to the loop: a deque of lists, and at most one pending wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from atleastonce.contract import Delivery
from atleastonce.errors import AtLeastOnceError


class Handover:
    """Deliveries that are ready to be received.

    `put`, `fail` and `purge_soon` are called on the polling thread, everything else on the loop. The waiter is announced
    before the deque is looked at for the last time, and the deque is filled before the waiter is looked for: one of
    the two always sees the other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[list[Delivery]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._waking = False
        self._purge = False
        self.failure: AtLeastOnceError | None = None

    def __bool__(self) -> bool:
        return bool(self._ready)

    def records(self) -> int:
        """How many deliveries are ready; on either thread."""
        return sum(map(len, tuple(self._ready)))

    # ------------------------------------------------------------------------------ polling thread

    def put(self, deliveries: list[Delivery]) -> None:
        """Offer ``deliveries``; the list is given away."""
        self._ready.append(deliveries)
        self.wake()

    def fail(self, error: AtLeastOnceError) -> None:
        """End it: what is ready may still be taken, then every `wait` raises ``error``."""
        if self.failure is None:
            self.failure = error
        self.wake()

    def purge_soon(self) -> None:
        """Partitions are gone: what is ready of them is thrown away before anything else is taken."""
        self._purge = True

    def wake(self) -> None:
        """Wake the loop if it waits."""
        if self._waiter is not None and not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._awake)
            except RuntimeError:  # the loop is closed: nobody will ever receive again
                self._waking = False

    # ---------------------------------------------------------------------------------------- loop

    def take(self, limit: int) -> list[Delivery]:
        """Up to ``limit`` deliveries, oldest first; without waiting."""
        if self._purge:
            self.purge()
        ready = self._ready
        if not ready:
            return []
        taken = ready.popleft()
        if len(taken) > limit:
            ready.appendleft(taken[limit:])
            del taken[limit:]
            return taken
        while ready and len(taken) + len(ready[0]) <= limit:
            taken.extend(ready.popleft())
        return taken

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Offer these again, before all others."""
        self._ready.appendleft(deliveries)
        self._awake()

    def purge(self) -> None:
        """Throw away what belongs to partitions that are gone or going; it stays open, and so uncommitted."""
        self._purge = False
        ready = self._ready
        # The other thread may append meanwhile: what is kept goes back in front of that.
        taken = [ready.popleft() for _ in range(len(ready))]
        kept = [[each for each in some if each.token.live and not each.token.draining] for some in taken]
        ready.extendleft(filter(None, reversed(kept)))

    def withdraw(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out what is ``unwanted``, to be given back."""
        taken = [self._ready.popleft() for _ in range(len(self._ready))]
        kept = [[each for each in some if not unwanted(each)] for some in taken]
        self._ready.extendleft(filter(None, reversed(kept)))
        return [each for some in taken for each in some if unwanted(each)]

    def clear(self) -> None:
        """Throw everything away."""
        self._ready.clear()

    async def wait(self, seconds: float, *, even_if_ready: bool = False) -> None:
        """Until something is ready, failed or woken, at most ``seconds``. Cancelling loses nothing."""
        waiter = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_later(seconds, self._awake)
        try:
            if (even_if_ready or not self._ready) and self.failure is None:
                await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _awake(self) -> None:
        self._waking = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
