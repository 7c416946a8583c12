"""Moves deliveries: every copy published and confirmed first, then the original settled. Never the other way round.

A copy that is not confirmed leaves its original unsettled and is published again, with back-off, for as long as it takes; the
handler is not run again for it. The delivery stays in the window meanwhile, so an unreachable destination becomes backpressure and
not loss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import msgspec

from atleastonce.contract import ACK, OK, RELEASE, Code, Delivery, Fault, Outcome, Outgoing, ReplyTo, Status, Verdict
from atleastonce.engine.answers import ask
from atleastonce.engine.copies import FailedCopies
from atleastonce.engine.decision import Decision

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]


_Move = tuple[Delivery, Decision]
_Way = (
    str | tuple[str, ...]
)  # the names of the channels that a decision's copies go to; of one copy, as nearly always, its name
# Answers have as many destinations as there are askers, and hang together if they hang.
_TO_ASKERS = ""
_UNREADABLE = Fault(Code.INVALID, detail="its message cannot be read")


class Mover:
    """Publishes the copies of one worker's decisions.

    One list at a time for each destination, and destinations beside each other: what goes to one that hangs waits for it, and
    keeps nothing else waiting.

    Args:
        send: publishes.
        settle: told of a delivery whose copies are all confirmed.
        settle_all: the same for a list; None where each has a way of its own to its settlement.
        wait: gives a delivery and its decision back to `add` after so many seconds.
        refused: told that a copy was refused for good; whether something else was decided. If not, the same copies are
            tried again later.
    """

    def __init__(
        self,
        send: Send,
        settle: Callable[[Delivery, Verdict], None],
        wait: Callable[[float, Delivery, Decision], None],
        refused: Callable[[Delivery, Decision, Fault], bool],
        settle_all: Callable[[Sequence[Delivery], Verdict], None] | None = None,
    ) -> None:
        self._send = send
        self._settle = settle
        self._settle_all = settle_all
        self._pending: dict[_Way, list[_Move]] = {}
        self._moving: dict[_Way, asyncio.Task[None]] = {}
        self._running = False
        self._failed_copies = FailedCopies(wait, refused)
        self._bug: asyncio.Future[None] | None = None  # has the error that ended one of the ways
        self.last_fault: Fault | None = None

    def add(self, delivery: Delivery, decision: Decision) -> None:
        """Publish the decision's copies soon, then settle."""
        way: _Way
        if (draft := decision.draft) is not None:
            way = draft.destination.name
        elif len(copies := decision.copies) == 1:
            destination = copies[0].destination
            way = _TO_ASKERS if destination.__class__ is ReplyTo else destination.name
        else:
            way = tuple(["" if copy.destination.__class__ is ReplyTo else copy.destination.name for copy in copies])
        if (pending := self._pending.get(way)) is not None:  # the first of them has begun it
            pending.append((delivery, decision))
        else:
            self._put(way, [(delivery, decision)])

    def add_all(self, deliveries: Sequence[Delivery], decision: Decision) -> None:
        """`add` each of ``deliveries``."""
        if decision.draft is None:
            for delivery in deliveries:
                self.add(delivery, decision)
            return
        self._put(decision.draft.destination.name, [(delivery, decision) for delivery in deliveries])

    def _put(self, way: _Way, moves: list[_Move]) -> None:
        if (pending := self._pending.get(way)) is not None:
            pending += moves
            return
        self._pending[way] = moves
        if way not in self._moving and self._running:
            self._begin(way)

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be published or being published."""
        return not self._moving and not self._pending

    @property
    def failing(self) -> int:
        """How many deliveries have a copy whose publishing failed and is to be repeated."""
        return len(self._failed_copies)

    async def run(self) -> None:
        """Publish until cancelled.

        Raises:
            Exception: a bug has ended the publishing of one way; what goes it would wait for ever.
        """
        self._running = True
        self._bug = asyncio.get_running_loop().create_future()
        try:
            for way in self._pending:
                self._begin(way)
            await self._bug
        finally:
            self._running = False
            moving = list(self._moving.values())
            for task in moving:
                task.cancel()
            await asyncio.gather(*moving, return_exceptions=True)

    def _begin(self, way: _Way) -> None:
        self._moving[way] = asyncio.create_task(self._move_all(way))

    async def _move_all(self, way: _Way) -> None:
        """Until nothing is left that goes this way."""
        try:
            while batch := self._pending.pop(way, None):
                await self._move(batch)
        except Exception as error:  # noqa: BLE001 - raised by `run`, which somebody looks after
            if self._bug is not None and not self._bug.done():
                self._bug.set_exception(error)
        finally:
            del self._moving[way]

    async def _move(self, batch: list[_Move]) -> None:
        live = [move for move in batch if not move[0].lost]
        if len(live) < len(batch):
            for delivery, _ in batch:
                if delivery.lost:  # it comes again, and would be copied twice
                    self.forget(delivery)
                    self._settle(delivery, RELEASE)
        copies, unwritten = _written(live)
        if unwritten:
            live = [move for move in live if move[0] not in unwritten]
            for delivery, decision in unwritten.items():
                self._refuse(delivery, decision, _UNREADABLE)
        outcomes = await ask(self._send, copies) if copies else []
        if outcomes.count(OK) == len(outcomes):
            self._confirmed(live)
            return
        answers = zip(copies, outcomes, strict=True)
        for delivery, decision in live:
            mine = list(islice(answers, len(decision.copies) if decision.draft is None else 1))
            missing = [(copy, outcome) for copy, outcome in mine if not outcome.ok]
            if not missing:
                self.forget(delivery)
                self._settle(delivery, decision.verdict)
            else:
                self._failed(delivery, decision, missing)

    def _confirmed(self, moves: list[_Move]) -> None:
        """All copies of these are."""
        if self.failing:
            for delivery, _ in moves:
                self.forget(delivery)
        if self._settle_all is not None and [decision.verdict for _, decision in moves].count(ACK) == len(moves):
            self._settle_all([delivery for delivery, _ in moves], ACK)
            return
        for delivery, decision in moves:
            self._settle(delivery, decision.verdict)

    def _failed(self, delivery: Delivery, decision: Decision, missing: list[tuple[Outgoing, Outcome]]) -> None:
        # What is confirmed is not published again: one destination that is away must not flood the others.
        rest = msgspec.structs.replace(decision, copies=tuple(copy for copy, _ in missing), draft=None)
        _, worst = min(missing, key=lambda item: item[1].status is not Status.REJECTED)
        if worst.status is Status.REJECTED and worst.fault is not None:
            self._refuse(delivery, rest, worst.fault)
        else:
            self.last_fault = worst.fault
            self._failed_copies.again(delivery, rest, worst.fault)

    def _refuse(self, delivery: Delivery, decision: Decision, fault: Fault) -> None:
        self.last_fault = fault
        if not self._failed_copies.replaced(delivery, decision, fault):
            self._failed_copies.again(delivery, decision, fault)

    def forget(self, delivery: Delivery) -> None:
        """The delivery has ended: stop counting its failures."""
        self._failed_copies.forget(delivery)


def _written(moves: Sequence[_Move]) -> tuple[list[Outgoing], dict[Delivery, Decision]]:
    """All copies of ``moves``, in order, and the moves of which none can be written."""
    copies: list[Outgoing] = []
    unwritten: dict[Delivery, Decision] = {}
    begin = 0
    while begin < len(moves):
        decision = moves[begin][1]
        if decision.draft is None:
            copies += decision.copies
            begin += 1
            continue
        end = begin + 1
        while end < len(moves) and moves[end][1] is decision:
            end += 1
        written, left = decision.draft.written([delivery for delivery, _ in moves[begin:end]])
        copies += written
        unwritten.update(dict.fromkeys(left, decision))
        begin = end
    return copies, unwritten
