"""How fast dead letters go back, and whether they go on."""

from __future__ import annotations

import asyncio

from atleastonce.patterns.redrive.passage import Passage
from atleastonce.patterns.redrive.run import Run

# With a limit on failures: what goes first, then how often to look, and how long to wait for failures to show.
_FIRST = 50
_LOOK_EVERY = 5.0
_WATCH_SECONDS = 2.0


class Pace:
    """At most so many per second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due: float | None = None

    def size(self, most: int) -> int:
        """How many to take at once: a quarter of a second's worth, so that they go evenly."""
        return most if self._rate is None else max(1, min(most, int(self._rate / 4)))

    def pause(self, moved: int) -> float:
        """How long to wait after ``moved`` went."""
        if self._rate is None or not moved:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._due = max(now, self._due or now) + moved / self._rate
        return max(0.0, self._due - now)


class Watch:
    """Looks now and then whether what went back dies again."""

    def __init__(self, passage: Passage, share: float) -> None:
        self._passage = passage
        self._share = share
        self._next: float | None = None

    def size(self, run: Run, most: int) -> int:
        """How many may go before the next look, at most ``most``."""
        return most if self._next is not None else min(most, max(1, _FIRST - run.counts["redriven"]))

    async def look(self, run: Run, *, last: bool = False) -> str:
        """Why to stop; "" if there is no reason."""
        loop = asyncio.get_running_loop()
        moved = run.counts["redriven"]
        if not moved or not (last or (moved >= _FIRST if self._next is None else loop.time() >= self._next)):
            return ""
        dead = 0
        # A log counts what is not yet committed as waiting: only what is there twice is there.
        for _ in range(2):
            await self._passage.rest(_WATCH_SECONDS)
            dead = max(run.counts["refailed"], min(moved, await self._passage.arrived() or 0))
            if dead <= self._share * moved:
                break
        run.counts["refailed"] = max(run.counts["refailed"], dead)
        self._next = loop.time() + _LOOK_EVERY
        if dead <= self._share * moved:
            return ""
        return f"{dead} of {moved} died again, more than {self._share:.0%}; the rest stays where it is"
