"""Receives for a worker: from one subscription after another, as much as there is room for, and nothing while something speaks
against it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from atleastonce.contract import Delivery, Subscription
from atleastonce.engine.drains import Drains
from atleastonce.engine.rate import TokenBucket
from atleastonce.engine.window import WindowMeter
from atleastonce.wake import Bell

# A receive that finds nothing returns after this long. It only bounds how stale a broken adapter can get: stopping
# cancels it.
_RECEIVE_WAIT = 5.0
# The longest that a worker whose `elders` are behind receives nothing. Too short: fresh messages take the machine from those that
# are due. Too long: a backlog of due ones keeps fresh ones waiting.
_GIVE_WAY_SECONDS = 1.0
_LOOK_SECONDS = 0.002
# How long nothing may wait with one that has priority until it counts as idle: between two receives of a backlog nothing does.
# Too short: a round trip to a slow broker looks like the end of the backlog. Too long: others stand still after each message.
_MORE_SECONDS = 0.1


class Elder(Protocol):
    """A worker that goes first."""

    @property
    def behind(self) -> bool:
        """Whether messages wait there although there is a place to run them: what it lacks is the machine's time."""


class Better(Protocol):
    """A worker with priority."""

    @property
    def waiting(self) -> bool:
        """Whether messages wait there, for a place or for the machine's time."""


class Intake:
    """The receiving end of one worker.

    Args:
        meter: how much room there is.
        most: messages in one call.
        received: given what came, if only an empty list.
        drains: of the same worker.
        rate: how fast messages may be received, with whoever shares it; None for no limit.

    Attributes:
        elders: workers whose messages have waited for their turn already: while one of them has places and not the time to fill
            them, this one receives only now and then.
        betters: workers with priority: while messages wait there, this one receives one message now and then.
        room: to be rung when there is room again.
    """

    def __init__(
        self,
        meter: WindowMeter,
        most: int,
        received: Callable[[Sequence[Delivery]], None],
        drains: Drains,
        rate: TokenBucket | None,
    ) -> None:
        self.elders: list[Elder] = []
        self.betters: list[Better] = []
        self._better_waited = self._filled_at = -math.inf
        self.room = Bell()
        self._meter = meter
        self._most = most
        self._received = received
        self._drains = drains
        self._rate = rate
        self._subscription: Subscription | None = None
        self._paused: set[str] = set()
        self._pausing = asyncio.Lock()

    async def read(self, subscription: Subscription) -> None:
        """Receive until it dies (raises) or the worker stops (returns)."""
        with self.of(subscription):
            if self._paused:
                await self._tell()
            await self._receive(subscription)

    @contextlib.contextmanager
    def of(self, subscription: Subscription) -> Iterator[None]:
        """It is ``subscription`` that is paused and resumed meanwhile."""
        self._subscription = subscription
        try:
            yield
        finally:
            self._subscription = None

    async def _receive(self, subscription: Subscription) -> None:
        meter = self._meter
        most = min(self._most, meter.limit.unseen)
        while not self._drains.stopping:
            room = meter.room()
            # While paused, too: what was fetched before is in nobody's hands but the subscription's.
            if not room:
                meter.waits = True
                try:
                    await self.room.heard()
                finally:
                    meter.waits = False
                continue
            if self.elders or self.betters:
                # Others have asked meanwhile, perhaps for the same room.
                room = min(1 if await self._give_way() else most, meter.room())
                if not room:
                    continue
            room = min(room, most)
            if self._rate is not None and not (room := self._rate.take(room)):
                await self.room.heard(self._rate.wait)
                continue
            batch: Sequence[Delivery] = ()
            meter.ask(room)
            try:
                batch = await subscription.receive(room, _RECEIVE_WAIT)
            finally:
                meter.answer(len(batch))
                if self._rate is not None:
                    self._rate.give_back(room - len(batch))
            self._received(batch)
            if len(batch) >= room:
                self._filled_at = time.monotonic()
            # A receive served from a buffer does not suspend: lanes and settler need the loop too.
            await asyncio.sleep(0)

    async def _give_way(self) -> bool:
        """Let others go first, but not for ever. Whether one with priority may still have messages that wait."""
        now = time.monotonic()
        deadline = now + _GIVE_WAY_SECONDS
        # Polled: what ends it is the passing of time, or the emptiness of other workers.
        while not self._drains.stopping and now < deadline:
            if any(better.waiting for better in self.betters):
                self._better_waited = now
            elif now - self._better_waited >= _MORE_SECONDS and not any(elder.behind for elder in self.elders):
                return False
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
        return now - self._better_waited < _MORE_SECONDS

    @property
    def more(self) -> bool:
        """Whether the last receive, a moment ago, brought all that was asked for: there is more where that came from."""
        return time.monotonic() - self._filled_at < _MORE_SECONDS

    async def pause(self, reason: str) -> None:
        """Stop receiving for ``reason``, until `resume` with the same one. What is in flight goes on."""
        self._paused.add(reason)
        await self._tell()

    async def resume(self, reason: str) -> None:
        """Take ``reason`` back; receiving goes on once none is left."""
        if reason not in self._paused:
            return
        self._paused.discard(reason)
        if not self._paused:
            await self._tell()
        self.room.ring()

    @property
    def paused(self) -> str:
        """Why nothing is received: the reasons of `pause`; "" if it is not paused."""
        return ", ".join(sorted(self._paused))

    async def _tell(self) -> None:
        """Tell the subscription whether it is paused. One call at a time, and the last one tells how it is then."""
        async with self._pausing:
            if self._subscription is not None:
                await (self._subscription.pause() if self._paused else self._subscription.resume())
