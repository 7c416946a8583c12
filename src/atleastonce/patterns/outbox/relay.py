"""The relay: reads rows, publishes them, removes what is confirmed, and counts. Five tasks, and lists between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter

import msgspec

from atleastonce.durations import seconds
from atleastonce.errors import AtLeastOnceError
from atleastonce.patterns.outbox.counting import Counting
from atleastonce.patterns.outbox.holding import Holder
from atleastonce.patterns.outbox.options import RelayOptions
from atleastonce.patterns.outbox.reading import Reader
from atleastonce.patterns.outbox.removing import Remover
from atleastonce.patterns.outbox.sending import Send, Sender
from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import OutboxStats, OutboxStore

log = logging.getLogger("atleastonce")

_LEAVE_SECONDS = 2.0
# A broker that confirms nothing for so long is said to be waited for. Adapters may wait half a minute before they give up.
_SILENT_SECONDS = 2.0


class RelayStatus(msgspec.Struct, frozen=True):
    """What a relay is doing.

    Attributes:
        store: its scheme.
        state: ``starting``, ``running``, ``standing by`` (other relays hold all slots), ``waiting`` (the store or a destination is
            away, or rows wait that it is not given), ``stopped``.
        detail: why it waits.
        in_flight: rows handed to the broker and not confirmed.
        slots: how many it holds.
        counts: since its start: published, repeated, parked.
        lag: of the outbox, as last counted; None before.
    """

    store: str
    state: str
    detail: str
    in_flight: int
    slots: int
    counts: dict[str, int]
    lag: OutboxStats | None


class Relay:
    """One relay of one outbox, from `start` to `stop`; any number may run, anywhere.

    Args:
        store: open; a store that is away later is waited for.
        send: publishes a list, in order, one outcome each: `Broker.send`.
        name: for people, in the list of relays.
        options: how it works.
    """

    def __init__(
        self, store: OutboxStore, send: Send, *, name: str = "relay", options: RelayOptions | None = None
    ) -> None:
        chosen = options or RelayOptions()
        self._work = work = Work(store, chosen.batch, ordered=chosen.ordered)
        self._holder = Holder(work, name, seconds(chosen.lease))
        self._counting = Counting(work, self._holder.started)
        self._reader = Reader(work, seconds(chosen.poll))
        self._sender = Sender(work, send, blocking=chosen.blocking, safe=lambda: self._holder.safe)
        self._remover = Remover(work, blocking=chosen.blocking)
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> asyncio.Event:
        """Set once it has asked the store for slots, and been answered."""
        return self._holder.started

    @property
    def counts(self) -> Counter[str]:
        """Since its start: published, repeated, parked."""
        return self._work.counts

    def start(self) -> None:
        """Relay, in the background, until `stop`. A store or broker that is away is waited for, and `status` says so."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="atleastonce-relay")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self._holder.run, self._reader.run, self._sender.run, self._remover.run, self._counting.run):
                group.create_task(work())

    async def stop(self, grace: float) -> bool:
        """Read nothing more, end what is under way within ``grace`` seconds, give back the slots. Idempotent.

        Returns:
            Whether all that was published has also been removed: if not, it is published again.
        """
        work, task = self._work, self._task
        if task is None or self._stopped:
            return True
        work.stopping = True
        end = time.monotonic() + grace
        while self._busy and not task.done() and (left := end - time.monotonic()) > 0:
            await work.quiet.heard(left)
        clean = not self._busy
        task.cancel()
        work.quiet.ring()  # another stop, with more grace, may be waiting
        await asyncio.gather(task, return_exceptions=True)
        if clean and not self._stopped:  # else another relay would publish, at once, what may still be under way
            self._stopped = True
            try:
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await work.store.outbox_leave(work.token)
            except (AtLeastOnceError, TimeoutError) as error:
                log.warning("outbox: the slots were not given back, and end with their lease: %s", error)
        self._stopped = True
        return clean

    @property
    def _busy(self) -> bool:
        """Whether something is under way that a stop should see end."""
        return bool(self._sender.busy or self._work.sent or self._work.poison)

    async def emptied(self) -> None:
        """Wait until nothing is ready any more: all was published and removed, by whichever relay, or parked, or waits for what is
        parked."""
        while True:
            if not len(self._work.line) and not self._busy:
                with contextlib.suppress(AtLeastOnceError):
                    lag = await self._counting.count()
                    if lag.waiting <= lag.blocked:
                        return
            await asyncio.sleep(0.05)

    def status(self) -> RelayStatus:
        """What it is doing."""
        work = self._work
        state, detail = self._state, work.store_detail
        if self._task is not None and self._task.done():
            state, detail = "stopped", "" if self._task.cancelled() else repr(self._task.exception())
        elif state == "running":
            since = self._sender.waits
            silent = f"no confirmation for {since:.0f} s" if since > _SILENT_SECONDS else ""
            if detail := detail or work.away.detail or silent or self._counting.detail:
                state = "waiting"
            elif not work.slots:
                state, detail = "standing by", "other relays hold all slots"
        return RelayStatus(
            work.store.scheme, state, detail, work.line.out, len(work.slots), dict(work.counts), self._counting.lag
        )

    @property
    def _state(self) -> str:
        if self._stopped:
            return "stopped"
        return "running" if self.started.is_set() else "starting"
