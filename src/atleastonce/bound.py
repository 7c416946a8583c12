"""A consumer bound to one broker: runs of its handler, and the engine's decisions that follow from how they end."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from atleastonce import wire
from atleastonce.channels import Channel, Source, Topic
from atleastonce.consumer import Consumer
from atleastonce.context import Compose, Context
from atleastonce.contract import (
    ACK,
    NONE,
    Capabilities,
    Code,
    Delivery,
    Fault,
    Level,
    Outgoing,
    Retry,
)
from atleastonce.durations import format_duration, seconds
from atleastonce.engine.decision import DONE, GIVE_BACK, Decision
from atleastonce.engine.threads import on_a_thread
from atleastonce.errors import AtLeastOnceError, DeadLetter, Rejected
from atleastonce.patterns.alike import Alike
from atleastonce.patterns.failure import Again, Dead, Drop, Hop, decide, ensure_failure, room
from atleastonce.patterns.floodgate import Floodgate
from atleastonce.patterns.history import History, Past, past_of, read_history, tries_of, undecoded
from atleastonce.patterns.hops import (
    bare_copy,
    brief_copy,
    dead_copy,
    given_back_copy,
    one_line,
    parked_copy,
    retry_copy,
    words,
)

log = logging.getLogger("atleastonce")

# What comes back from a waiting room too early waits here for the rest if that is shorter than this. Longer ones go round
# again: they would fill the window, and RabbitMQ takes back what is held for half an hour.
_HOLD_SECONDS = 60.0
# Where we read the waiting room ourselves, what is to wait longer than the room's delay makes room for others after this
# long at least. Shorter costs a publish each time; longer holds up others of a short delay when a window full of it waits.
_ROUND_SECONDS = 2.0


# What a copy of a dead letter that says less may get around; rights and missing channels it does not.
_ABOUT_CONTENT = frozenset({Code.TOO_LARGE, Code.INVALID})


# Decisions whose copies go to this consumer's own channels, not to the dead letters.
_ON_ITS_WAY = frozenset({"retried", "parked", "suspected", "released"})


class Watcher(Protocol):
    """Who looks at failures as signs of something larger."""

    def failed(self, delivery: Delivery, error: BaseException) -> Decision | None:
        """A run of ``delivery`` has ended with ``error``. None: let the policy decide. From any thread."""


class Bound:
    """A consumer on one broker: the process functions for the engine.

    Args:
        consumer: what was registered.
        capabilities: of the broker it runs on.
        compose: builds what `Context.publish` sends.
        service: the service's name, for dead letters.
        guard: told of failures, and asked before a message is given up; None where all are.
        watchers: told of every failure before the policy is asked; the first that answers decides instead.
        missing: told when a channel that copies go to does not exist (any more), and makes it again; None where nothing is to
            be created.
    """

    def __init__(
        self,
        consumer: Consumer,
        capabilities: Capabilities,
        compose: Compose,
        service: str,
        missing: Callable[[], None] | None = None,
        guard: Floodgate | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._missing = missing
        self._guard = guard
        self._watchers = watchers
        self.consumer = consumer
        self.policy = consumer.failure
        self._home = consumer.home
        self._binding = consumer.binding
        self._compose = compose
        self._service = service
        # What is ordered waits in its lane: neither in the broker nor in channels, and nobody but us counts its attempts.
        self._ordered = consumer.order is not None
        self._native = NONE if self._ordered else capabilities.delay
        self._lease_limit = capabilities.lease_limit
        self._rooms = consumer.rooms(capabilities)
        self._waiting = {delay: consumer.home.retry_channel(delay) for delay in self._rooms}
        self._publish_delay = capabilities.publish_delay
        self._suspects = consumer.home.suspects_channel.name
        self._dead_letters = consumer.home.dead_letter_channel
        self._way_back = way_back(consumer, capabilities)
        self._counted = self._native.level is Level.NATIVE
        self._drafts = (
            not consumer.transactions
        )  # where a copy leaves with its settlement, nothing writes it for a list
        self._alike: Alike | None = None  # to the last failure that a copy waits for

    # ------------------------------------------------------------------------------- runs of the handler

    async def process(self, delivery: Delivery) -> Decision:
        """Run an ``async def`` handler for ``delivery``."""
        binding = self._binding
        try:
            payload = binding.decode(delivery.body)
            if binding.context is None:
                await binding.call(payload)
                return DONE
            context = self._context(delivery)
            await binding.call(payload, **{binding.context: context})
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=True)
            return self.failed(delivery, error)
        return Decision(ACK, tuple(context.outputs)) if context.outputs else DONE

    def process_sync(self, delivery: Delivery) -> Decision:
        """Run a ``def`` handler for ``delivery``, on a worker thread."""
        binding = self._binding
        try:
            payload = binding.decode(delivery.body)
            if binding.context is None:
                if (result := binding.call(payload)) is not None:
                    self._check_done(result)
                return DONE
            context = self._context(delivery)
            if (result := binding.call(payload, **{binding.context: context})) is not None:
                self._check_done(result)
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=False)
            return self.failed(delivery, error)
        return Decision(ACK, tuple(context.outputs)) if context.outputs else DONE

    def _check_done(self, result: object) -> None:
        """Acknowledging what a ``def`` handler only began would lose it."""
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"{self._binding.name} returned an awaitable that nothing awaits; make it an async def")

    async def process_batch(self, batch: Sequence[Delivery]) -> Sequence[Decision]:
        """Run a batch handler. What does not decode is taken out first; if the handler raises, each message runs alone, so that
        one bad message costs only itself."""
        decode = self._binding.decode
        payloads: list[Any] = []
        refused: dict[int, Decision] = {}
        for place, delivery in enumerate(batch):
            try:
                payloads.append(decode(delivery.body))
            except Exception as error:  # noqa: BLE001 - one bad message costs only itself
                refused[place] = self.failed(delivery, error)
        if not refused:
            return await self._run_batch(batch, payloads)
        members = [delivery for place, delivery in enumerate(batch) if place not in refused]
        decided = iter(await self._run_batch(members, payloads) if members else ())
        return [refused[place] if place in refused else next(decided) for place in range(len(batch))]

    async def _run_batch(self, members: Sequence[Delivery], payloads: list[Any]) -> list[Decision]:
        contexts = [] if self._binding.context is None else [self._context(delivery) for delivery in members]
        try:
            results = await self._call_batch(payloads, contexts)
        except BaseException as error:  # noqa: BLE001 - the policy decides about every failure
            ensure_failure(error, awaited=True)
            if len(members) == 1:
                return [self.failed(members[0], error)]
            log.warning(
                "%s failed for a batch of %d (%s); running them one by one",
                self._binding.name,
                len(members),
                one_line(words(error)),
            )
            self._one_by_one(members)
            return [
                (await self._run_batch([delivery], [payload]))[0]
                for delivery, payload in zip(members, payloads, strict=True)
            ]
        if results is None and not contexts:
            return [DONE] * len(members)
        if results is None:
            results = [None] * len(members)
        if not isinstance(results, list | tuple) or len(results) != len(members):
            wrong = TypeError(f"{self._binding.name} must return None or one result per message, {len(members)} here")
            return [self.failed(delivery, wrong) for delivery in members]
        decisions = [
            self.failed(delivery, result) if isinstance(result, Exception) else DONE
            for delivery, result in zip(members, results, strict=True)
        ]
        for position, context in enumerate(contexts):
            if context.outputs and decisions[position] is DONE:
                decisions[position] = Decision(ACK, tuple(context.outputs))
        return decisions

    def _one_by_one(self, members: Sequence[Delivery]) -> None:
        """The handler has failed for ``members``, which are about to run alone."""

    async def _call_batch(self, payloads: list[Any], contexts: list[Context]) -> Any:
        extra = {} if self._binding.context is None else {self._binding.context: contexts}
        if self._binding.is_async:
            return await self._binding.call(payloads, **extra)
        return await on_a_thread(partial(self._binding.call, payloads, **extra))

    def _context(self, delivery: Delivery) -> Context:
        return Context(delivery, self._compose, self._history)

    # ------------------------------------------------------------------------------------- what follows

    def failed(self, delivery: Delivery, error: BaseException) -> Decision:
        """What follows from ``error`` for ``delivery``, by the policy."""
        for watcher in self._watchers:
            if (decision := watcher.failed(delivery, error)) is not None:
                return decision
        now = time.time()
        alike = self._alike
        if alike is not None and (decision := alike.first(delivery, error, now)) is not None:
            if self._guard is not None:
                self._guard.failed()
            return decision
        history = self._history(delivery)
        # A copy of it to try again would have lost its key and fields.
        if delivery.unreadable is not None and (unread := undecoded(delivery)) is not None:
            return self._give_up(delivery, history, Dead("decode", unread), now)
        if alike is not None and alike.covers(delivery, history.attempt, error):
            if self._guard is not None:
                self._guard.failed()
            copy = alike.copy(delivery, history, error, now)
            return Decision(copies=(Outgoing(alike.waiting, copy),), name="retried")
        first = self._first_failed(delivery, history, now)
        if history.first_failed is None:
            history = History(history.attempt, first, history.redrives, history.ours)
        tries = tries_of(delivery) if self._ordered else delivery.tries
        step = decide(self.policy, error, attempt=history.attempt, tries=tries, now=now, first_failed=first)
        if isinstance(step, Again):
            return Decision(again=step.wait, name="retried_in_place")
        if isinstance(step, Hop):
            if self._guard is not None:
                self._guard.failed()
            return self._hop(delivery, history, step, error, now)
        if isinstance(step, Drop):
            log.info("%s: %s discarded: %s", self._home, delivery.message.id, one_line(str(step.reason)))
            return Decision(name="discarded")
        return self._give_up(delivery, history, step, now)

    def park(self, delivery: Delivery, stage: str, error: BaseException) -> Decision:
        """What follows when ``delivery`` may not run at all, or not again: to the dead letters, with ``stage``."""
        return self._give_up(delivery, self._history(delivery), Dead(stage, error), time.time())

    def _give_up(self, delivery: Delivery, history: History, dead: Dead, now: float) -> Decision:
        # What the handler itself decides to give up is no sign of an outage.
        if self._guard is not None and not isinstance(dead.error, DeadLetter):
            wait = self._guard.given_up(delivery, _reason(dead.error))
            if wait is not None and delivery.source.name == self._suspects and self._way_back is not None:
                # Held, it would hold up all other suspects; it goes to those that wait for the end of the flood.
                return self._handed_back(delivery, history, self._way_back, now)
            if wait is not None:
                return Decision(again=wait, name="held")
        return self._dead(delivery, history, dead, now)

    def _first_failed(self, delivery: Delivery, history: History, now: float) -> float:
        """When it failed first. Where the broker counts and keeps no header, reckoned: not later than the waits since allow."""
        if history.first_failed is not None:
            return min(history.first_failed, now)  # a future one comes from another clock, or a forger
        if not self._counted:
            return now
        waited = sum(self.policy.delays[: history.attempt - 1])
        return max(now - waited, min(delivery.message.published_at or 0.0, now))

    def rejected(self, delivery: Delivery, decision: Decision, fault: Fault) -> Decision | None:
        """What follows when the broker refuses a copy for good. See `Rejection`."""
        if decision.draft is not None and (unread := undecoded(delivery)) is not None:
            return self._give_up(delivery, self._history(delivery), Dead("decode", unread), time.time())
        if decision.name == "released" and decision.copies[0].destination != self._home.suspects_channel:
            return None  # a copy that would only have spared it an attempt: it is given back as it is
        if fault.code in (Code.NOT_FOUND, Code.UNROUTABLE) and self._missing is not None:
            self._missing()
            return None  # what was deleted under us is being made again: hold it, and try again
        if fault.code is Code.PERMISSION and decision.name in _ON_ITS_WAY:
            return None  # a right that was taken away says nothing of the message: as if the channel were away
        now = time.time()
        history = self._history(delivery)
        suspects = self._home.suspects_channel
        if decision.copies[0].destination == suspects:
            if decision.copies[0].message.headers == delivery.message.headers:
                return None
            return Decision(copies=(Outgoing(suspects, bare_copy(delivery)),), name=decision.name)
        if decision.name == "dead":
            copy = decision.copies[0].message
            if copy.headers == delivery.message.headers or fault.code not in _ABOUT_CONTENT:
                return None  # nothing left to leave out, or it would not help: hold it, and try again
            less = brief_copy(copy) if wire.ERROR_MESSAGE in copy.headers else bare_copy(delivery)
            return Decision(copies=(Outgoing(self._dead_letters, less),), name="dead")
        failed = decision.copies[0].message.headers.get(wire.ERROR_TYPE) if decision.name == "retried" else None
        why = f"; it was to be tried again after {failed}" if failed else ""
        return self._dead(delivery, history, Dead("rejected", Rejected(f"{fault}{why}")), now)

    def give_back(self, delivery: Delivery) -> Decision:
        """What becomes of ``delivery``, which was not handled or not to its end, where the broker would count that as an attempt: a
        copy, which begins where this one stands."""
        channel = delivery.source.channel if delivery.source != self._home else self._way_back
        if channel is None or undecoded(delivery) is not None:  # a copy would have lost its key and fields
            return GIVE_BACK
        return self._handed_back(delivery, self._history(delivery), channel, time.time())

    def _handed_back(
        self, delivery: Delivery, history: History, channel: Channel[Any] | Source, now: float
    ) -> Decision:
        first = self._first_failed(delivery, history, now) if history.attempt > 1 else None
        message = given_back_copy(delivery, self._home, history, first, now=now)
        return Decision(copies=(Outgoing(channel, message),), name="released")

    def condemned(self, delivery: Delivery, error: BaseException, stage: str = "crash-loop") -> Decision:
        """What follows when ``delivery`` must not run once more, flood or not: it has ended its process too often."""
        return self._dead(delivery, self._history(delivery), Dead(stage, error), time.time())

    def _acquitted(self, delivery: Delivery, history: History, hop: Hop, error: BaseException, now: float) -> Decision:
        """A suspect that only failed goes back to the others, as if it came for the first time: waiting where it is would
        raise its count, or hold up everything else."""
        if self._way_back is None:
            return Decision(again=hop.delay, name="retried")
        message = retry_copy(delivery, self._home, history, hop, error, now=now, tier=0.0)
        delay = hop.delay if self._publish_delay.covers(hop.delay) else self._publish_delay.limit or 0.0
        return Decision(copies=(Outgoing(self._way_back, message, delay),), name="retried")

    def _hop(self, delivery: Delivery, history: History, hop: Hop, error: BaseException, now: float) -> Decision:
        if delivery.source.name == self._suspects and (self._counted or self._ordered or not self.policy.delays):
            return self._acquitted(delivery, history, hop, error, now)
        if self._ordered:
            return self._hold(delivery, history, hop, now)
        if self._native.level is Level.NATIVE and self._native.covers(hop.delay):
            if hop.attempt == history.attempt and hop.delay <= _HOLD_SECONDS:
                return Decision(again=hop.delay, name="retried")  # given back, it would be counted
            return Decision(Retry(hop.delay), name="retried")
        if not self._rooms:
            return Decision(again=hop.delay, name="retried")
        tier = room(self._rooms, hop.delay)
        waiting = self._waiting[tier]
        if not self._counted:
            self._alike = Alike.to(
                self.policy, delivery, history.attempt, error, hop, self._home, waiting, tier, drafts=self._drafts
            )
        message = retry_copy(delivery, self._home, history, hop, error, now=now, tier=tier)
        return Decision(copies=(Outgoing(waiting, message),), name="retried")

    def _hold(self, delivery: Delivery, history: History, hop: Hop, now: float) -> Decision:
        """A retry that waits in its lane, and holds its key."""
        limit = self._lease_limit
        if limit is not None and hop.delay > limit:
            error = DeadLetter(
                f"it was to wait {format_duration(hop.delay)} in its order, and this broker leaves a message with its worker for "
                f"{format_duration(limit)} at most"
            )
            return self._give_up(delivery, history, Dead("handler", error), now)
        delivery.past = Past(msgspec.structs.replace(history, attempt=hop.attempt), delivery.tries)
        return Decision(again=hop.delay, name="retried")

    def _dead(self, delivery: Delivery, history: History, dead: Dead, now: float) -> Decision:
        reason = _reason(dead.error)
        if not self.consumer.dead_letter:
            log.error("%s: %s dropped, for there is no dead-letter queue: %s", self._home, delivery.message.id, reason)
            return Decision(name="dropped")
        if not isinstance(dead.error, AtLeastOnceError):
            log.warning("%s: %s goes to the dead letters: %s", self._home, delivery.message.id, reason)
        message = dead_copy(delivery, self._home, history, dead, service=self._service, now=now)
        return Decision(copies=(Outgoing(self._dead_letters, message),), name="dead")

    def _history(self, delivery: Delivery) -> History:
        if self._ordered and (past := past_of(delivery)) is not None:  # what waits in its lane is remembered here alone
            return past.history
        # In the channel of suspects the broker counts what ended a process, and no attempts.
        return read_history(delivery, self._home, counted=self._counted and delivery.source.name != self._suspects)

    def due_in_channel(self, delivery: Delivery, delay: float) -> float | Decision:
        """When a delivery that is read from the retry channel of ``delay`` may run, or be looked at again; or that it goes to the
        channel's end, since it was sent away for longer than that: held until then, such messages would fill the window
        and hold up the others. A time that is not believed is replaced at once: held, it would be as far ahead as before
        when it is looked at again."""
        now = time.time()
        due = wire.read_due(delivery.message.headers, now=now, delay=delay)
        came = delivery.message.published_at
        turn = due.at if came is None or not delay else min(came, now) + max(delay, _ROUND_SECONDS)
        if not due.clamped and due.at <= max(now, turn) + 1.0:  # a publish for a second is not worth it
            return due.at
        if not due.clamped and turn > now:
            return turn
        channel = self._home.retry_channel(delay) if delay else self._home.redrive_channel
        return Decision(copies=(Outgoing(channel, parked_copy(delivery, due, due.at - now)),), name="parked")

    def due_at_home(self, delivery: Delivery) -> float | Decision:
        """When a delivery that the broker brought back from a retry channel may run; or that it waits once more there,
        since it was sent away for longer than any channel's delay."""
        rooms = self._rooms
        if not rooms or not delivery.returned or not self._history(delivery).ours:
            return 0.0
        now = time.time()
        due = wire.read_due(delivery.message.headers, now=now, delay=rooms[-1])
        left = due.at - now
        if left <= min(max(rooms[0], 1.0), _HOLD_SECONDS):
            return due.at
        channel = self._home.retry_channel(room(rooms, left))
        return Decision(copies=(Outgoing(channel, parked_copy(delivery, due, left)),), name="parked")

    @property
    def timeout(self) -> float | None:
        """The handler's timeout in seconds."""
        return None if self.policy.timeout is None else seconds(self.policy.timeout)


def way_back(consumer: Consumer, capabilities: Capabilities) -> Channel[Any] | Source | None:
    """Where a copy goes that is for this consumer again; None where it cannot be addressed."""
    home = consumer.home
    if not isinstance(home.channel, Topic):
        return home.channel
    if capabilities.addresses_groups:
        return home
    return home.redrive_channel if consumer.dead_letter else None


def _reason(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {words(error)}")
