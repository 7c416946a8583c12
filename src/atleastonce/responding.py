"""A handler that answers: its result, or its failure, goes to whoever asked before the request is settled.

The answer is a copy like that of any other move: confirmed first, where the broker confirms, then the request is settled; if the
process dies in between, the request comes again and is answered again, of which the asker takes one. With a `Lease` the answer is
remembered, and duplicates get it without a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from atleastonce import wire
from atleastonce.bound import Bound
from atleastonce.context import Context
from atleastonce.contract import ACK, OK, Code, Delivery, Fault, Outcome, Outgoing, Replies, ReplyTo, Status, rejected
from atleastonce.engine.decision import DONE, Decision
from atleastonce.engine.mover import Send
from atleastonce.errors import (
    CrashLoop,
    DeadLetter,
    DecodeError,
    Discard,
    EncodeError,
    IdempotencyMismatch,
    InvalidIdempotencyKey,
    RemoteError,
)
from atleastonce.once import LeaseBound
from atleastonce.once.grant import Grant
from atleastonce.once.item import DUPLICATE
from atleastonce.patterns.failure import Dead, causes, ensure_failure
from atleastonce.patterns.history import History
from atleastonce.patterns.hops import one_line, words
from atleastonce.patterns.replies import MAX_ADDRESS, Answer, Failure, answer_of, failure_of, reply_of

log = logging.getLogger("atleastonce")

LATE = Decision(name="late")
"""Its asker has stopped waiting: settled without a run."""

# What an answer needs beside its body.
_ENVELOPE = 1024

_GONE = frozenset({Code.NOT_FOUND, Code.UNROUTABLE, Code.TIMEOUT, Code.CLOSED})
_FINAL = (CrashLoop, DeadLetter, DecodeError, Discard, EncodeError, IdempotencyMismatch, InvalidIdempotencyKey)


class _NoInbox(Exception):
    """A request whose answer would go where no answers go."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """Who waits for an answer."""

    to: ReplyTo
    correlation: str

    @property
    def late(self) -> bool:
        """Whether they have stopped waiting."""
        return time.time() > self.to.until


class Desk:
    """What a responder knows about answering on its broker.

    Args:
        replies: the broker's way.
        allowed: patterns of further addresses that may be answered to.
        name: of the responder: what answers say of who gives them.
        most: bytes of the largest message; None if unknown.
    """

    def __init__(self, replies: Replies, allowed: Sequence[str], name: str, most: int | None) -> None:
        self.name = name
        self._replies = replies
        self._allowed = tuple(allowed)
        self._most = most

    def asked(self, delivery: Delivery) -> Asked | None:
        """Who asked; None if nobody waits for an answer.

        Raises:
            _NoInbox: the answer is to go where no answers go.
        """
        address, correlation = self._replies.asked_by(delivery)  # as it came: only who asks has to make sense of it
        if not address:
            headers = delivery.headers
            address = headers.get(wire.REPLY_TO) or ""
            correlation = wire.read_id(headers.get(wire.CORRELATION)) or ""
        if not address or (until := delivery.waited_until) is None:
            return None
        known = len(address) <= MAX_ADDRESS and (
            self._replies.is_address(address) or any(fnmatchcase(address, pattern) for pattern in self._allowed)
        )
        if not known:
            raise _NoInbox(one_line(address, 200))
        return Asked(ReplyTo.waiting(address, until), correlation)

    def answer(self, asked: Asked, answer: Answer) -> Outgoing:
        """``answer`` on its way; an error instead of one that the broker would not take."""
        if self._most is not None and len(answer.body) + _ENVELOPE > self._most:
            return self.failure(asked, self.too_large(len(answer.body)))
        return reply_of(answer, asked.to, asked.correlation, self.name)

    def failure(self, asked: Asked, failure: Failure) -> Outgoing:
        """An error on its way."""
        return failure_of(failure, asked.to, asked.correlation, self.name)

    def too_large(self, size: int) -> Failure:
        """What is said in place of an answer of ``size`` bytes."""
        limit = "what the broker takes" if self._most is None else f"{self._most}, which is what the broker takes"
        return Failure("ReplyTooLarge", f"the answer has {size} bytes, over {limit}; answer with a reference to it")


class Responder(Bound):
    """A handler whose result is an answer."""

    def __init__(self, *args: Any, desk: Desk, **named: Any) -> None:
        super().__init__(*args, **named)
        self.desk = desk

    async def process(self, delivery: Delivery) -> Decision:
        binding = self._binding
        context: Context | None = None
        try:
            asked = self.desk.asked(delivery)
            if asked is not None and asked.late:
                return LATE
            payload = binding.decode(delivery.body)
            if binding.context is None:
                result = await binding.call(payload)
            else:
                context = self._context(delivery)
                result = await binding.call(payload, **{binding.context: context})
            return self._answer(asked, answer_of(result) if asked is not None else None, context)
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=True)
            return self.failed(delivery, error)

    def process_sync(self, delivery: Delivery) -> Decision:
        binding = self._binding
        context: Context | None = None
        try:
            asked = self.desk.asked(delivery)
            if asked is not None and asked.late:
                return LATE
            payload = binding.decode(delivery.body)
            if binding.context is None:
                result = binding.call(payload)
            else:
                context = self._context(delivery)
                result = binding.call(payload, **{binding.context: context})
            self._check_done(result)
            return self._answer(asked, answer_of(result) if asked is not None else None, context)
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=False)
            return self.failed(delivery, error)

    def _answer(self, asked: Asked | None, answer: Answer | None, context: Context | None) -> Decision:
        copies = () if context is None else tuple(context.outputs)
        if asked is not None and answer is not None:
            copies = (self.desk.answer(asked, answer), *copies)
        return Decision(ACK, copies) if copies else DONE

    # ------------------------------------------------------------------------------------------------ when it fails

    def failed(self, delivery: Delivery, error: BaseException) -> Decision:
        if isinstance(error, _NoInbox):
            log.warning(
                "%s: %s asks for an answer to %s, which is no inbox of this broker; it is not run. If it is one of yours, "
                "allow it: responder(..., reply_to=[pattern])",
                self._home,
                delivery.message.id,
                error,
            )
            return Decision(name="refused")
        if isinstance(error, RemoteError) and not error.retryable:  # chosen by the handler, for its asker
            return self.park(delivery, "handler", error)
        decision = super().failed(delivery, error)
        return self._told(delivery, decision, error) if decision.name == "discarded" else decision

    def _dead(self, delivery: Delivery, history: History, dead: Dead, now: float) -> Decision:
        if not self.consumer.dead_letter:
            log.warning(
                "%s: %s failed: %s",
                self._home,
                delivery.message.id,
                one_line(f"{_type(dead.error)}: {words(dead.error)}"),
            )
            return self._told(delivery, Decision(name="failed"), dead.error)
        return self._told(delivery, super()._dead(delivery, history, dead, now), dead.error)

    def _told(self, delivery: Delivery, decision: Decision, error: BaseException) -> Decision:
        """``decision``, and whoever asked is told why there is no answer."""
        try:
            asked = self.desk.asked(delivery)
        except _NoInbox:
            return decision
        if asked is None:
            return decision
        reply = self.desk.failure(asked, failure_from(error, self.policy.give_up_on))
        return msgspec.structs.replace(decision, copies=(reply, *decision.copies))

    def rejected(self, delivery: Delivery, decision: Decision, fault: Fault) -> Decision | None:
        """An answer that the broker refuses is dropped: whoever asked is gone, or is told that it was too large."""
        if not decision.copies or not isinstance(decision.copies[0].destination, ReplyTo):
            return super().rejected(delivery, decision, fault)
        reply = decision.copies[0]
        rest = decision.copies[1:]
        asked = self.desk.asked(delivery)
        if fault.code is Code.TOO_LARGE and asked is not None and wire.ERROR_TYPE not in reply.message.headers:
            failure = self.desk.failure(asked, self.desk.too_large(len(reply.message.body)))
            return Decision(decision.verdict, (failure, *rest), name="failed")
        if fault.code not in _GONE:
            log.warning("%s: the answer to %s cannot be sent: %s", self._home, delivery.message.id, fault)
        return Decision(decision.verdict, rest, name="unheard")


class LeaseResponder(Responder, LeaseBound):
    """A handler whose answers are remembered: a duplicate gets the first one's, and does not run."""

    async def process(self, delivery: Delivery) -> Decision:
        return self._not_now(delivery) or await LeaseBound.process(self, delivery)

    def process_sync(self, delivery: Delivery) -> Decision:
        return self._not_now(delivery) or LeaseBound.process_sync(self, delivery)

    def _not_now(self, delivery: Delivery) -> Decision | None:
        try:
            asked = self.desk.asked(delivery)
        except _NoInbox as error:
            return self.failed(delivery, error)
        return LATE if asked is not None and asked.late else None

    def _end(self, grant: Grant, result: Any, context: Context | None) -> Decision:
        delivery = grant.item.delivery
        asked = self.desk.asked(delivery)
        grant.cut = False
        try:
            answer = answer_of(result)
        except EncodeError as error:  # the effect has happened: it is done, and must not happen again
            grant.keep(b"", copies=True)
            return self._told(delivery, Decision(name="failed"), error)
        decision = self._answer(asked, answer, context)
        grant.keep(answer.packed(), copies=bool(decision.copies))
        return decision

    def duplicate(self, delivery: Delivery, result: bytes) -> Decision:
        try:
            asked = self.desk.asked(delivery)
        except _NoInbox:
            return DUPLICATE
        if asked is None or asked.late:
            return DUPLICATE
        answer = Answer.unpacked(result)
        if answer is None:
            failure = Failure("ReplyForgotten", "it was handled before, and its answer could not be kept")
            return Decision(copies=(self.desk.failure(asked, failure),), name="duplicates")
        return Decision(copies=(self.desk.answer(asked, answer),), name="duplicates")


def failure_from(error: BaseException, fatal: tuple[type[BaseException], ...]) -> Failure:
    """What whoever asked is told of ``error``: its type and one line, without secrets. Retryable unless the same request would
    fail the same way."""
    if isinstance(error, RemoteError):
        return Failure(one_line(error.type, 256), one_line(error.message), error.retryable)
    final = any(isinstance(cause, (*_FINAL, *fatal)) for cause in causes(error))
    return Failure(_type(error), one_line(words(error)), not final)


def _type(error: BaseException) -> str:
    return one_line(type(error).__name__, 256)


def outlet(send: Send, replies: Replies) -> Send:
    """Sends answers the one way and all else the other. An answer whose asker has stopped waiting is sent no second time."""

    async def out(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        answers = [item for item in batch if isinstance(item.destination, ReplyTo)]
        if len(answers) == len(batch):
            outcomes = await replies.reply(answers)
            if outcomes.count(OK) == len(batch):
                return outcomes
            return [_last(item, outcome) for item, outcome in zip(answers, outcomes, strict=True)]
        if not answers:
            return await send(batch)
        others = [item for item in batch if not isinstance(item.destination, ReplyTo)]
        told = iter(await replies.reply(answers))
        sent = iter(await send(others))
        return [_last(item, next(told)) if isinstance(item.destination, ReplyTo) else next(sent) for item in batch]

    return out


def _last(item: Outgoing, outcome: Outcome) -> Outcome:
    to = item.destination
    if outcome.status is Status.UNKNOWN and isinstance(to, ReplyTo) and time.time() > to.until:
        return rejected(Code.TIMEOUT, "whoever asked has stopped waiting")
    return outcome
