"""Shedding by depth: a producer that stops sending while too much waits already.

A window bounds what is on its way to the broker; this bounds what waits *in* it. Behind a consumer that is slower than its
producer a queue grows without end, and every message in it is late: better that whoever asks is told at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from atleastonce.channels import Source
from atleastonce.contract import Backlog
from atleastonce.errors import Overloaded

log = logging.getLogger("atleastonce")


class DepthLimit:
    """The limit of one source, looked after while something is published to it. Loop thread only.

    Args:
        source: whose backlog counts.
        above: so many waiting messages are too many.
        every: seconds between looks. Shorter: a query each; longer: as much is sent before the limit is noticed.
        backlog: asks the broker.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        source: Source,
        above: int,
        every: float,
        backlog: Callable[[Source], Awaitable[Backlog]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._above = above
        self._every = every
        self._backlog = backlog
        self._clock = clock
        self._waiting: int | None = None
        self._looked = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self._told = False

    def ensure_room(self) -> None:
        """Return if no more wait than may, as far as is known: what cannot be counted sheds nothing.

        Raises:
            Overloaded: more wait. Nothing was sent.
        """
        if self._clock() - self._looked >= self._every and (self._look is None or self._look.done()):
            self._look = asyncio.get_running_loop().create_task(self.look(), name=f"atleastonce-depth-{self.source}")
        if self._waiting is not None and self._waiting > self._above:
            raise Overloaded(
                f"{self._waiting} messages wait in {self.source}, and {self._above} are the limit; not sent. Publish less, or "
                "let more be consumed"
            )

    async def look(self) -> None:
        """Count now."""
        try:
            found = await self._backlog(self.source)
        except Exception as error:  # noqa: BLE001 - whatever the client raises: unknown is no reason to refuse
            found = Backlog(detail=str(error))
        self._looked = self._clock()
        self._waiting = found.waiting
        if found.waiting is None and not self._told:
            self._told = True
            log.warning("%s: how much waits is not known (%s), so nothing is shed", self.source, found.detail)

    def close(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
