"""The gate of a consumer with a `Lease`: claims what was received before it runs, keeps the leases, and tells the store how it
ended before the broker is told. All of it by the list: one round trip for what came in during the last one."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from atleastonce.contract import ACK, Code, Delivery, Fault, Verdict
from atleastonce.contract import Status as Ended
from atleastonce.durations import seconds
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import Decision
from atleastonce.engine.gate import Host
from atleastonce.engine.leases import LeaseTable
from atleastonce.once.grant import Grant
from atleastonce.once.lease import LeaseBound, overtaken
from atleastonce.patterns.once.options import Lease
from atleastonce.patterns.once.outage import Outage
from atleastonce.stores.records import LOST, Claim, ClaimRequest, Completion, Status, new_token
from atleastonce.stores.records import Lease as Held
from atleastonce.wake import Bell

log = logging.getLogger("atleastonce")

# Who is busy elsewhere is asked about so often. Shorter: round trips for nothing. Longer: duplicates keep their places in the
# window for longer than they need to. What is busy here is not waited for: its end wakes them.
_BUSY = Backoff("100ms", factor=2, maximum="5s")
# A list that another client's changes were in the way of is asked for again after this.
_CONFLICT_SECONDS = 0.05
# A lease that is to end now and in doubt, which giving it back would not leave.
_AT_ONCE = 0.001


class Claims:
    """The gate of one worker.

    Args:
        bound: the consumer.
        lease: as its user wrote it.
        scope: of its claims.
        outage: told when the store does not answer; nothing is asked until it does again.
    """

    def __init__(self, bound: LeaseBound, lease: Lease, scope: str, outage: Outage) -> None:
        self._bound = bound
        self._store = lease.store
        self._scope = scope
        self._seconds = seconds(lease.lease)
        self._outage = outage
        self._grants = bound.grants
        self._entered: list[Delivery] = []
        self._leaving: list[tuple[Grant, Verdict]] = []
        self._telling = False
        self._table = LeaseTable(self._seconds)
        self._bells = (Bell(), Bell(), Bell())
        outage.on_end(self._ring)

    # ---------------------------------------------------------------------------------------------------- engine.gate

    def attach(self, host: Host, settle: Callable[[Delivery, Verdict], None]) -> None:
        self._host, self._settle = host, settle

    def enter(self, batch: Sequence[Delivery]) -> None:
        ours = [delivery for delivery in batch if self._is_ours(delivery)]  # it was held before it ran
        if ours:
            self._host.admit(ours)
            batch = [delivery for delivery in batch if not self._is_ours(delivery)]
        self._entered.extend(batch)
        self._bells[0].ring()

    def _is_ours(self, delivery: Delivery) -> bool:
        grant = self._grants.get(delivery)
        return grant is not None and _is_held(grant)

    def settle(self, delivery: Delivery, verdict: Verdict) -> None:
        grant = self._grants.get(delivery)
        if grant is None or grant.lease is None:
            self._settle(delivery, verdict)
        elif not grant.leaving:
            grant.leaving = True
            unheard = grant.cut or grant.lost or self._outage.active
            if unheard and not _is_done(
                grant, verdict
            ):  # there is nothing to tell, or nobody: the lease ends by itself
                self._over(grant, verdict)
                return
            self._leaving.append((grant, verdict))
            self._bells[1].ring()

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        gone = [delivery for delivery in self._entered if unwanted(delivery)]
        if gone:
            self._entered = [delivery for delivery in self._entered if not unwanted(delivery)]
        return gone

    def forget(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            grant = self._grants.pop(delivery, None)
            if grant is not None:
                self._bound.waiting.leave(grant.item.key, delivery)

    @property
    def idle(self) -> bool:
        return not self._leaving and not self._telling

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self._claiming, self._ending, self._keeping):
                group.create_task(work())

    def _ring(self) -> None:
        for bell in self._bells:
            bell.ring()

    # ---------------------------------------------------------------------------------------------------------- claim

    async def _claiming(self) -> None:
        while True:
            await self._bells[0].heard()
            while self._entered and not self._outage.active:
                batch, self._entered = self._entered, []
                unanswered = await self._claim(batch)
                self._entered = unanswered + self._entered
                await asyncio.sleep(_CONFLICT_SECONDS if unanswered else 0)

    async def _claim(self, batch: Sequence[Delivery]) -> list[Delivery]:
        """Ask for ``batch``; return what was not answered."""
        grants = [grant for delivery in batch if (grant := self._grant(delivery)) is not None]
        if not grants:
            return []
        asked = time.monotonic()
        claims = await self._store.claim([grant.request for grant in grants])
        unanswered: list[Delivery] = []
        ours: list[Delivery] = []
        for grant, claim in zip(grants, claims, strict=True):
            delivery = grant.item.delivery
            if claim.granted:
                grant.won(claim, asked + self._seconds)
                ours.append(delivery)
            elif claim.status is Status.UNKNOWN:
                unanswered.append(delivery)
                self._trouble(claim.fault)
            else:
                self._host.ended(delivery, self._refused(grant, claim))
        self._table.add(ours, asked)
        self._bells[2].ring()
        self._host.admit(ours)
        return unanswered

    def _grant(self, delivery: Delivery) -> Grant | None:
        """What ``delivery`` asks for; None if it asks for nothing more, and has been told so."""
        grant = self._grants.get(delivery)
        if grant is not None and grant.lease is None:
            return grant  # asked before, and not granted: the same token finds what was
        item = grant.item if grant is not None else self._bound.items.make(delivery)
        if isinstance(item, Decision):
            self._host.ended(delivery, item)
            return None
        request = ClaimRequest(self._scope, item.key, item.print, self._seconds, self._bound.memory, new_token())
        grant = self._grants[delivery] = Grant(item, request)
        return grant

    def _refused(self, grant: Grant, claim: Claim) -> Decision:
        if claim.status is Status.DONE:
            return self._bound.duplicate(grant.item.delivery, claim.result)
        if claim.status is Status.MISMATCH:
            return self._bound.items.mismatch(grant.item)
        if claim.status is Status.BUSY:
            grant.waits += 1
            self._bound.waiting.join(grant.item.key, grant.item.delivery, self._host)
            wait = min(claim.retry_after, _BUSY.wait(grant.waits) or 0.0)
            return Decision(again=max(0.01, wait) * random.uniform(1.0, 1.2), name="busy")
        return self._bound.items.refused(grant.item, claim.fault.detail if claim.fault else "the store refuses it")

    def _trouble(self, fault: Fault | None) -> None:
        if fault is not None and fault.code is not Code.CONFLICT:
            self._outage.begin(fault)

    # ------------------------------------------------------------------------------------------------------------ end

    async def _ending(self) -> None:
        while True:
            await self._bells[1].heard()
            while self._leaving and not self._outage.active:
                batch, self._leaving = self._leaving, []
                self._telling = True
                try:
                    untold = await self._end(batch)
                finally:
                    self._telling = False
                self._leaving = untold + self._leaving
                await asyncio.sleep(_CONFLICT_SECONDS if untold else 0)

    async def _end(self, batch: list[tuple[Grant, Verdict]]) -> list[tuple[Grant, Verdict]]:
        """Tell the store, and then the broker; return what the store was not told."""
        done = [pair for pair in batch if _is_done(*pair)]
        back = [grant for grant, verdict in batch if not _is_done(grant, verdict)]
        untold: list[tuple[Grant, Verdict]] = []
        completions = [Completion(_lease(grant), grant.result or b"", self._bound.memory) for grant, _ in done]
        outcomes = await self._store.complete(completions)
        for (grant, verdict), outcome in zip(done, outcomes, strict=True):
            if outcome.status is Ended.UNKNOWN:
                self._trouble(outcome.fault)
                untold.append((grant, verdict))
            elif outcome == LOST:
                self._overtaken(grant)
            else:
                self._over(grant, verdict)
        # Should that not be heard, the lease ends by itself.
        await self._store.release([_lease(grant) for grant in back if not grant.half_done])
        if half := [_lease(grant) for grant in back if grant.half_done]:
            await self._store.extend(half, _AT_ONCE)  # whoever runs it next is told that it is in doubt
        for grant, verdict in batch:
            if not _is_done(grant, verdict):
                self._over(grant, verdict)
        return untold

    def _over(self, grant: Grant, verdict: Verdict) -> None:
        self._settle(grant.item.delivery, verdict)
        self._bound.waiting.wake(grant.item.key)

    def _overtaken(self, grant: Grant) -> None:
        log.error(
            "%s: its lease had ended and somebody else took over while its handler ran; its effect may have happened twice",
            grant.item.delivery.message.id,
        )
        grant.leaving, grant.result = False, None
        self._host.ended(grant.item.delivery, overtaken(grant.item.delivery))

    # ----------------------------------------------------------------------------------------------------------- keep

    async def _keeping(self) -> None:
        while True:
            due = self._table.next_due()
            await self._bells[2].heard(None if due is None else max(0.0, due - time.monotonic()))
            now = time.monotonic()
            held = [d for d in self._table.due(now) if (g := self._grants.get(d)) is not None and _is_held(g)]
            if held:
                await self._extend(held, now)

    async def _extend(self, batch: list[Delivery], now: float) -> None:
        grants = [self._grants[delivery] for delivery in batch]
        outcomes = await self._store.extend([_lease(grant) for grant in grants], self._seconds)
        kept: list[Delivery] = []
        for grant, outcome in zip(grants, outcomes, strict=True):
            if outcome != LOST:  # unknown: asked again, and it may be ours still when the store is back
                kept.append(grant.item.delivery)
                if outcome.ok:
                    grant.until = now + self._seconds
            elif not grant.leaving:
                grant.lost = True
                log.warning("%s: its lease was taken over while its handler ran", grant.item.delivery.message.id)
        self._table.add(kept, now)


def _lease(grant: Grant) -> Held:
    assert grant.lease is not None  # noqa: S101 - asked only of what was granted
    return grant.lease


def _is_done(grant: Grant, verdict: Verdict) -> bool:
    """Whether the handler has succeeded, and what it published is confirmed."""
    return grant.result is not None and not grant.lost and (verdict is ACK or not grant.copies)


def _is_held(grant: Grant) -> bool:
    return grant.lease is not None and not grant.lost and not grant.leaving
