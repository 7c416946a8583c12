"""The relay: reads rows, publishes them, removes what is confirmed. Four tasks, and lists between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from atleastonce.contract import Code, Outcome, Outgoing, Status, unknown
from atleastonce.durations import seconds
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.wake import Bell
from atleastonce.errors import AtLeastOnceError
from atleastonce.patterns.hops import one_line
from atleastonce.patterns.outbox.away import Away
from atleastonce.patterns.outbox.line import Line
from atleastonce.patterns.outbox.options import RelayOptions
from atleastonce.stores.outbox import Holding, OutboxRow, OutboxStats, OutboxStore, Parking
from atleastonce.stores.records import new_token
from atleastonce.urls import mask

log = logging.getLogger("atleastonce")

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]

_STORE_AWAY = Backoff("200ms", factor=2, maximum="10s")
# These say that the message itself is wrong. A missing channel or right is repaired by people, and then it leaves.
_POISON = frozenset({Code.INVALID, Code.TOO_LARGE, Code.INTERNAL})
_FIRST_WAIT = 0.01
# Read at once, beyond which less is asked for: large bodies must not fill the memory.
_FETCH_BYTES = 8 << 20
# How often the lag is counted. Shorter: a count of a long backlog for each. Longer: staler figures.
_COUNT_SECONDS = 10.0
_LEAVE_SECONDS = 2.0
_SHARE_SECONDS = 1.0
# A broker that confirms nothing for so long is said to be waited for. Adapters may wait half a minute before they give up.
_SILENT_SECONDS = 2.0
# How many batches are with the broker at a time. One alone leaves the broker idle from its confirmations to the next batch. No
# order rests on it: `Line` hands out nothing that may not be overtaken.
_UNDER_WAY = 2
# How many batches are out or not removed yet when another one leaves: with it, what a crash repeats at most is three.
_AHEAD = 2
# Of the lease, from when it was asked for: a batch that begins before its end should also end before it.
_SAFE = 0.8


class RelayStatus(msgspec.Struct, frozen=True):
    """What a relay is doing.

    Attributes:
        store: its scheme.
        state: ``starting``, ``running``, ``standing by`` (other relays hold all slots), ``waiting`` (the store or a destination is
            away), ``stopped``.
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
        self.started = asyncio.Event()
        """Set once it has asked the store for slots, and been answered."""
        self.counts: Counter[str] = Counter(published=0, repeated=0, parked=0)
        self._store = store
        self._send = send
        self._name = name
        self._batch = chosen.batch
        self._poll = seconds(chosen.poll)
        self._lease = seconds(chosen.lease)
        self._blocking = chosen.blocking
        self._token = new_token()
        self._line = Line(ordered=chosen.ordered)
        self._away = Away()
        self._slots: frozenset[int] = frozenset()
        self._share = 0
        self._safe_until = 0.0
        self._limit = 16
        self._more = False  # whether the next look will find many again, as far as is known
        self._sent: list[int] = []
        self._poison: list[tuple[OutboxRow, Parking]] = []
        self._reading_bell, self._sending_bell, self._removing_bell = Bell(), Bell(), Bell()
        self._keeping_bell, self._quiet_bell = Bell(), Bell()
        self._store_detail = ""
        self._state = "starting"
        self._stopping = False
        self._under_way: dict[asyncio.Task[None], float] = {}  # batches with the broker, and since when
        self._lag: OutboxStats | None = None
        self._counted = 0.0
        self._promoted = 0.0
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> None:
        """Relay, in the background, until `stop`. A store or broker that is away is waited for, and `status` says so."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="atleastonce-relay")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self._keeping, self._reading, self._sending, self._removing):
                group.create_task(work())

    async def stop(self, grace: float) -> bool:
        """Read nothing more, end what is under way within ``grace`` seconds, give back the slots. Idempotent.

        Returns:
            Whether all that was published has also been removed: if not, it is published again.
        """
        task = self._task
        if task is None or self._state == "stopped":
            return True
        self._stopping = True
        end = time.monotonic() + grace
        while self._busy and not task.done() and (left := end - time.monotonic()) > 0:
            await self._quiet_bell.heard(left)
        clean = not self._busy
        task.cancel()
        self._quiet_bell.ring()  # another stop, with more grace, may be waiting
        await asyncio.gather(task, return_exceptions=True)
        if clean and self._state != "stopped":  # else another relay would publish, at once, what may still be under way
            self._state = "stopped"
            try:
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await self._store.outbox_leave(self._token)
            except (AtLeastOnceError, TimeoutError) as error:
                log.warning("outbox: the slots were not given back, and end with their lease: %s", error)
        self._state = "stopped"
        return clean

    @property
    def _busy(self) -> bool:
        """Whether something is under way that a stop should see end."""
        return bool(self._under_way or self._sent or self._poison)

    async def emptied(self) -> None:
        """Wait until nothing is ready any more: all was published and removed, by whichever relay, or parked."""
        while True:
            if not len(self._line) and not self._busy:
                with contextlib.suppress(AtLeastOnceError):
                    self._lag = await self._store.outbox_stats()
                    if not self._lag.waiting:
                        return
            await asyncio.sleep(0.05)

    def status(self) -> RelayStatus:
        """What it is doing."""
        state, detail = self._state, self._store_detail
        if self._task is not None and self._task.done():
            state, detail = "stopped", "" if self._task.cancelled() else repr(self._task.exception())
        elif state == "running":
            since = time.monotonic() - min(self._under_way.values()) if self._under_way else 0.0
            silent = f"no confirmation for {since:.0f} s" if since > _SILENT_SECONDS else ""
            if detail := detail or self._away.detail or silent:
                state = "waiting"
            elif not self._slots:
                state, detail = "standing by", "other relays hold all slots"
        return RelayStatus(
            self._store.scheme, state, detail, self._line.out, len(self._slots), dict(self.counts), self._lag
        )

    async def _asking(self, what: str, call: Callable[[], Awaitable[None]]) -> None:
        """``call``, again and again until the store has answered."""
        tried = 0
        while True:
            try:
                await call()
            except Exception as error:  # noqa: BLE001 - whatever it is: nothing may end the relay
                tried += 1
                pause = _STORE_AWAY.wait(tried) or 0.0
                self._store_detail = f"store: {mask(one_line(str(error) or type(error).__name__))}"
                if tried == 1:
                    log.error("outbox: %s failed, trying again until it works: %s", what, self._store_detail)
                await asyncio.sleep(pause)
            else:
                if tried:
                    log.warning("outbox: the store answers again")
                self._store_detail = ""
                return

    # --------------------------------------------------------------------------------------------------- slots and lag

    async def _keeping(self) -> None:
        while True:
            await self._asking("holding slots", self._hold)
            if time.monotonic() - self._counted >= _COUNT_SECONDS:
                self._counted = time.monotonic()
                with contextlib.suppress(AtLeastOnceError):
                    self._lag = await self._store.outbox_stats()
            # Who has less than its share looks for what others give back.
            wait = self._lease / 3
            await self._keeping_bell.heard(wait if len(self._slots) >= self._share else min(wait, _SHARE_SECONDS))

    async def _hold(self) -> None:
        asked = time.monotonic()
        holding: Holding = await self._store.outbox_hold(self._token, self._name, self._lease)
        self._safe_until = asked + self._lease * _SAFE
        if self._state == "starting":
            self._state = "running"
            self.started.set()
        self._share = holding.share
        excess = sorted(holding.slots)[holding.share :]
        kept = holding.slots.difference(excess)
        fresh = kept - self._slots
        self._slots = kept
        self._line.drop(lambda row: row.slot not in kept)
        if idle := set(excess) - self._line.slots():
            await self._store.outbox_leave(self._token, idle)
        if len(idle) < len(excess):
            self._keeping_bell.ring()  # what is under way ends soon
            await asyncio.sleep(0.02)
        if fresh:
            self._reading_bell.ring()

    @property
    def _safe(self) -> bool:
        return time.monotonic() < self._safe_until

    # -------------------------------------------------------------------------------------------------------- reading

    async def _reading(self) -> None:
        idle = 0
        while True:
            if self._stopping or not self._slots or len(self._line) > 2 * self._batch:
                await self._reading_bell.heard(1.0)
                continue
            found = 0

            async def read() -> None:
                nonlocal found
                found = await self._read()

            await self._asking("reading", read)
            if found:
                idle = 0
                self._sending_bell.ring()
                continue
            wait = min(self._poll, _FIRST_WAIT * 2.0 ** min(idle, 16))
            idle += 1
            away = self._away.wait(time.monotonic())
            await self._store.outbox_wait(wait if away is None else min(wait, away + 0.001))

    async def _read(self) -> int:
        now = time.monotonic()
        if now - self._promoted >= self._poll:
            self._promoted = now
            await self._store.outbox_promote()
        slots = self._slots
        rows = await self._store.outbox_fetch(
            self._token, slots, self._limit, held=self._line.held, paused=self._away.paused(now)
        )
        self._more = len(rows) >= self._batch
        self._tune(rows)
        return self._line.add(row for row in rows if row.slot in self._slots)  # some may have been given back meanwhile

    def _tune(self, rows: Sequence[OutboxRow]) -> None:
        """Ask for so much of each slot that all together are about two batches, however the rows are spread."""
        if not rows:
            return
        size = sum(len(row.outgoing.message.body) for row in rows if row.outgoing is not None)
        fullest = max(Counter(row.slot for row in rows).values())
        if size > _FETCH_BYTES:
            self._limit = max(1, self._limit * _FETCH_BYTES // size)
        elif len(rows) > 4 * self._batch:
            self._limit = max(1, self._limit // 2)
        elif fullest >= self._limit and len(rows) < 2 * self._batch and 2 * size < _FETCH_BYTES:
            self._limit = min(2 * self._batch, self._limit * 2)

    # -------------------------------------------------------------------------------------------------------- sending

    async def _sending(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self._sending_bell.heard()
                while self._may_send:
                    if not self._safe:  # the slots may be another's: they are asked for again
                        self._line.drop(lambda _: True)
                        self._keeping_bell.ring()
                        break
                    task = group.create_task(self._publish(self._line.take(self._batch)))
                    self._under_way[task] = time.monotonic()
                    task.add_done_callback(self._landed)

    @property
    def _may_send(self) -> bool:
        """What was published and not removed is what a crash repeats: publishing waits for the store when that is too slow."""
        if not self._line.ready or self._stopping or len(self._under_way) >= _UNDER_WAY:
            return False
        if self._under_way and self._more and len(self._line) < self._batch:
            return False  # there is a better one in a moment: to send two halves costs more than to send one whole
        return self._line.out + len(self._sent) <= _AHEAD * self._batch

    def _landed(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._quiet_bell.ring()
        self._sending_bell.ring()
        if len(self._line) <= 2 * self._batch:
            self._reading_bell.ring()

    async def _publish(self, rows: list[OutboxRow]) -> None:
        if any(row.outgoing is None for row in rows):
            for row in rows:
                if row.outgoing is None:
                    self._refuse(row, row.flaw)
            rows = [row for row in rows if row.outgoing is not None]
        outcomes = await self._outcomes(rows) if rows else []
        worked: set[str] = set()
        failed: dict[str, str] = {}
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.ok:
                worked.add(row.destination)
                self._line.end(row)
                self._sent.append(row.seq)
            elif outcome.status is Status.REJECTED and outcome.fault is not None and outcome.fault.code in _POISON:
                self._refuse(row, str(outcome.fault))
            else:
                failed.setdefault(row.destination, mask(one_line(str(outcome.fault))))
                self._line.again(row)
                self.counts["repeated"] += 1
        if self._sent or self._poison:
            self._removing_bell.ring()
        now = time.monotonic()
        for destination in worked - failed.keys():
            if self._away.worked(destination):
                log.warning("outbox: %s takes messages again", destination)
        for destination, reason in failed.items():
            pause = self._away.failed(destination, reason, now)
            log.warning("outbox: %s takes no messages (%s); trying again in %.1f s", destination, reason, pause)
        if failed:
            self._line.drop(lambda row: row.destination in failed)

    async def _outcomes(self, rows: list[OutboxRow]) -> list[Outcome]:
        try:
            return await self._ask(rows)
        except Exception as error:  # noqa: BLE001 - a channel that cannot be made, say; found by asking one by one
            places: dict[str, list[int]] = {}
            for position, row in enumerate(rows):
                places.setdefault(row.destination, []).append(position)
            outcomes = [unknown(Code.UNAVAILABLE, str(error) or type(error).__name__)] * len(rows)
            if len(places) > 1:
                for positions in places.values():
                    some = await self._outcomes([rows[position] for position in positions])
                    for position, outcome in zip(positions, some, strict=True):
                        outcomes[position] = outcome
            return outcomes

    async def _ask(self, rows: list[OutboxRow]) -> list[Outcome]:
        return list(await self._send([row.outgoing for row in rows if row.outgoing is not None]))

    def _refuse(self, row: OutboxRow, reason: str) -> None:
        """``row`` can never be published. If it blocks, its key waits until that is written down."""
        text = mask(one_line(reason))[:1000]
        log.error("outbox: %s to %s is parked: %s", _id(row), row.destination, text)
        self._poison.append((row, Parking(row.seq, text)))
        self._removing_bell.ring()
        if not self._blocking:
            self._line.end(row)
            self._sending_bell.ring()

    # -------------------------------------------------------------------------------------------------------- removing

    async def _removing(self) -> None:
        while True:
            await self._removing_bell.heard()
            while self._sent or self._poison:
                await self._asking("removing what was published", self._remove)
            self._quiet_bell.ring()

    async def _remove(self) -> None:
        if sent := list(self._sent):
            await self._store.outbox_remove(sent)
            del self._sent[: len(sent)]
            self._line.forget(sent)
            self.counts["published"] += len(sent)
            self._sending_bell.ring()
        if poison := list(self._poison):
            await self._store.outbox_park([parking for _, parking in poison], blocking=self._blocking)
            del self._poison[: len(poison)]
            self.counts["parked"] += len(poison)
            for row, _ in poison:
                if self._blocking:
                    self._line.again(row)  # what waits behind it is not read again while it blocks
                else:
                    self._line.forget([row.seq])
            self._sending_bell.ring()


def _id(row: OutboxRow) -> str:
    return row.outgoing.message.id if row.outgoing is not None else f"row {row.seq}"
