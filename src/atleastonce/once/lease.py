"""Runs of a handler under leases of a store: the claims are made before, by the gate (`claims.Claims`), and ended after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atleastonce.bound import Bound
from atleastonce.context import Context, LeaseContext
from atleastonce.contract import ACK, Delivery, Fault
from atleastonce.engine.decision import DONE, Decision, again
from atleastonce.once.grant import Grant
from atleastonce.once.item import DUPLICATE, Items
from atleastonce.once.waiting import Waiting
from atleastonce.patterns.failure import ensure_failure
from atleastonce.patterns.once.options import Lease

# How soon a message whose lease was taken over asks again what has become of it.
_OVERTAKEN_SECONDS = 0.05


class LeaseBound(Bound):
    """A consumer with a `Lease`, on one broker.

    Attributes:
        memory: seconds for which what was handled is remembered.
        grants: of everything that is out, from all its readers.
        waiting: what is busy.
        items: makes their keys.
    """

    def __init__(self, *args: Any, lease: Lease, **named: Any) -> None:
        super().__init__(*args, **named)
        self.memory = lease.remembered(0.0)
        self.grants: dict[Delivery, Grant] = {}
        self.waiting = Waiting()
        self.items = Items(self, lease, decode=False)

    def _context(self, delivery: Delivery) -> Context:
        return LeaseContext(delivery, self._compose, self._history, self.grants[delivery])

    async def process(self, delivery: Delivery) -> Decision:
        grant = self.grants[delivery]
        if grant.over:
            return overtaken(delivery)
        grant.begin()
        try:
            result, context = self._begin(grant)
            result = await result
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=True)
            grant.cut = False
            return self.failed(delivery, error)
        return self._end(grant, result, context)

    def process_sync(self, delivery: Delivery) -> Decision:
        grant = self.grants[delivery]
        if grant.over:
            return overtaken(delivery)
        grant.begin()
        try:
            result, context = self._begin(grant)
            if result is not None:
                self._check_done(result)
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=False)
            grant.cut = False
            return self.failed(delivery, error)
        return self._end(grant, result, context)

    def _begin(self, grant: Grant) -> tuple[Any, Context | None]:
        binding, delivery = self._binding, grant.item.delivery
        payload = grant.take_payload()
        if payload is None:
            payload = binding.decode(delivery.body)
        if binding.context is None:
            return binding.call(payload), None
        context = self._context(delivery)
        return binding.call(payload, **{binding.context: context}), context

    def _end(self, grant: Grant, result: Any, context: Context | None) -> Decision:
        outputs = tuple(context.outputs) if context is not None else ()
        grant.cut = False
        grant.succeeded(result, copies=bool(outputs))
        return Decision(ACK, outputs) if outputs else DONE

    def rejected(self, delivery: Delivery, decision: Decision, fault: Fault) -> Decision | None:
        other = super().rejected(delivery, decision, fault)
        if other is not None and (grant := self.grants.get(delivery)) is not None:
            grant.not_done()  # else its redrive would be a duplicate, and what it publishes lost
        return other

    def duplicate(self, delivery: Delivery, result: bytes) -> Decision:
        """What becomes of a message that was done before, with ``result``."""
        return DUPLICATE

    def _one_by_one(self, members: Sequence[Delivery]) -> None:
        for delivery in members:
            self.grants[delivery].cut = False  # the list's run has ended by itself

    async def _run_batch(self, members: Sequence[Delivery], payloads: list[Any]) -> list[Decision]:
        grants = [self.grants[delivery] for delivery in members]
        if any(grant.over for grant in grants):
            ours = [place for place, grant in enumerate(grants) if not grant.over]
            run = iter(await self._run_batch([members[p] for p in ours], [payloads[p] for p in ours]) if ours else ())
            return [next(run) if place in ours else overtaken(members[place]) for place in range(len(members))]
        for grant in grants:
            grant.begin()
        decisions = await super()._run_batch(members, payloads)
        for grant, decision in zip(grants, decisions, strict=True):
            grant.cut = False
            if decision.name == "done":
                grant.succeeded(None, copies=bool(decision.copies))
        return decisions


def overtaken(delivery: Delivery) -> Decision:
    """Its lease was somebody else's before it began, or before it was told to be done: ask anew what has become of it."""
    delivery.tries = 1
    return again(delivery, _OVERTAKEN_SECONDS, "overtaken")
