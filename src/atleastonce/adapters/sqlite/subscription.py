"""One reader of a source: its window, what it holds, and its waiting."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections import deque
from collections.abc import Sequence

from atleastonce.adapters.sqlite.faults import fault_of, outcome_of
from atleastonce.adapters.sqlite.store import Claimed, Store
from atleastonce.adapters.sqlite.worker import Worker
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    RELEASE,
    STALE,
    Code,
    Delivery,
    Listener,
    Outcome,
    Settlement,
    Subscription,
    Window,
)
from atleastonce.errors import AtLeastOnceError, Closed, ConnectionLost, NotFound, PermissionDenied

_BUSY_PAUSE = 0.05  # seconds before a claim that found the file busy or full is tried again


class SQLiteSubscription(Subscription):
    """From `SQLiteAdapter.subscribe`."""

    def __init__(
        self, worker: Worker, source: Source, number: int, window: Window, listener: Listener, lease: float
    ) -> None:
        self.number = number
        self._worker = worker
        self._source = source
        self._window = window
        self._listener = listener
        self._lease = lease
        self._out: dict[int, Delivery] = {}
        self._out_bytes = 0
        self._claim: asyncio.Future[Claimed] | None = None
        self._buffer: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._paused = False
        self._closed = False
        self._blocked = False

    def changed(self) -> None:
        """Something may be ready now."""
        self._changed.set()

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + max_wait
        while True:
            self._check()
            self._changed.clear()
            pause = None if self._buffer else await self._fetch(max_messages)
            if found := self._hand_out(max_messages):
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                return ()
            await self._wait(left if pause is None else min(left, pause))

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"the subscription to {self._source.name} is closed")

    async def _wait(self, seconds: float) -> None:
        self._worker.wait_begins()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            self._worker.wait_ends()

    async def _fetch(self, max_messages: int) -> float | None:
        """Claim into the buffer; returns in how many seconds to look again if that brought nothing, None for never.

        A cancelled call leaves its claim to the next one.
        """
        if self._claim is None:
            limit, room = self._room(max_messages)
            if self._paused:
                return None
            if limit <= 0 or room <= 0:
                ends = (delivery.lease_until for delivery in self._out.values())
                return max(0.0, min(ends, default=math.inf) - time.monotonic())
            source, number, lease = self._source, self.number, self._lease

            def look(store: Store) -> Claimed | None:
                claimed = store.next_visible(number)
                return None if claimed.exists and claimed.again_in == 0.0 else claimed

            def claim(store: Store) -> Claimed:
                return store.claim(source, number, limit, room, lease)

            self._claim = self._worker.submit(claim, durable=False, unless=look)
        pending = self._claim
        try:
            claimed = await asyncio.shield(pending)
        except (sqlite3.Error, AtLeastOnceError) as error:
            self._claim = None
            return self._failed(error)
        self._claim = None
        if self._blocked:
            self._blocked = False
            self._listener.condition("unblocked", "")
        if not claimed.exists:
            raise NotFound(f"{self._source.name} was deleted")
        self._take(claimed.deliveries)
        return claimed.again_in

    def _failed(self, error: Exception) -> float:
        fault = fault_of(error)
        if fault.code is Code.PERMISSION:
            raise PermissionDenied(fault.detail) from error
        if fault.code is not Code.OVERLOADED:
            raise ConnectionLost(f"{self._source.name}: {fault.detail}") from error
        if not self._blocked:
            self._blocked = True
            self._listener.condition("blocked", fault.detail)
        return _BUSY_PAUSE

    def _room(self, max_messages: int) -> tuple[int, int]:
        """How many messages and bytes the window has left. An ended lease counts no longer: others may have it."""
        if len(self._out) >= self._window.messages or self._out_bytes >= self._window.bytes:
            now = time.monotonic()
            for delivery in [delivery for delivery in self._out.values() if delivery.lease_until <= now]:
                self._drop(delivery)
        return min(max_messages, self._window.messages - len(self._out)), self._window.bytes - self._out_bytes

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if (earlier := self._out.get(delivery.token.seq)) is not None:
                self._drop(earlier)
            self._out[delivery.token.seq] = delivery
            self._out_bytes += delivery.token.size
        self._buffer.extend(deliveries)

    def _drop(self, delivery: Delivery) -> None:
        if self._out.get(delivery.token.seq) is delivery:
            del self._out[delivery.token.seq]
            self._out_bytes -= delivery.token.size

    def _hand_out(self, most: int) -> list[Delivery]:
        found: list[Delivery] = []
        now = time.monotonic()
        while self._buffer and len(found) < most:
            delivery = self._buffer.popleft()
            if delivery.lease_until > now:
                found.append(delivery)
            else:  # it lay here after a cancelled receive until its lease was over; it will come again
                self._drop(delivery)
        return found

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        return [STALE] * len(batch) if self._closed else await self._settle(batch)

    async def _settle(self, batch: Sequence[Settlement]) -> list[Outcome]:
        batch = list(batch)
        try:
            outcomes = await self._worker.submit(lambda store: store.settle(batch))
        except (sqlite3.Error, AtLeastOnceError) as error:
            if isinstance(error, Closed):
                raise
            return [outcome_of(error)] * len(batch)
        for (delivery, _), outcome in zip(batch, outcomes, strict=True):
            if outcome.fault is None:
                self._drop(delivery)
            elif outcome.fault.code is Code.STALE:
                delivery.lost = True
                self._drop(delivery)
        self._changed.set()  # the window has room
        return outcomes

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(deliveries)
        tokens = [delivery.token for delivery in deliveries]
        until = time.monotonic() + seconds
        try:
            outcomes = await self._worker.submit(lambda store: store.extend(tokens, seconds), durable=False)
        except (sqlite3.Error, AtLeastOnceError) as error:
            if isinstance(error, Closed):
                raise
            return [outcome_of(error)] * len(tokens)
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if outcome.ok:
                delivery.lease_until = until
            elif delivery.token.outcome is not OK:
                delivery.lost = True
        return outcomes

    # -------------------------------------------------------------------------------------------------------- lifecycle

    async def pause(self) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._paused = False
        self._changed.set()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        try:
            if self._claim is not None:
                self._take((await asyncio.shield(self._claim)).deliveries)
            if self._buffer:
                await self._settle([(delivery, RELEASE) for delivery in self._buffer])
        except (sqlite3.Error, AtLeastOnceError):
            pass  # what could not be released comes back when its lease ends
        finally:
            self._claim = None
            self._buffer.clear()
