"""A consumer bound to one broker: runs of its handler, and the engine's decisions that follow from how they end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from atleastonce import wire
from atleastonce.consumer import Consumer
from atleastonce.context import Compose, Context
from atleastonce.contract import (
    ACK,
    Capabilities,
    Code,
    Delivery,
    Fault,
    Level,
    Outgoing,
    Retry,
)
from atleastonce.durations import seconds
from atleastonce.engine.decision import DONE, Decision
from atleastonce.errors import AtLeastOnceError, Rejected
from atleastonce.patterns.failure import Again, Dead, Drop, Hop, decide, ensure_failure
from atleastonce.patterns.history import History, read_history
from atleastonce.patterns.hops import bare_copy, dead_copy, one_line, parked_copy, retry_copy, words

log = logging.getLogger("atleastonce")

# What comes back from a waiting room too early waits here for the rest if that is shorter than this. Longer ones go round
# again: they would fill the window, and RabbitMQ takes back what is held for half an hour.
_HOLD_SECONDS = 60.0


class Bound:
    """A consumer on one broker: the process functions for the engine.

    Args:
        consumer: what was registered.
        capabilities: of the broker it runs on.
        compose: builds what `Context.publish` sends.
        service: the service's name, for dead letters.
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
    ) -> None:
        self._missing = missing
        self.consumer = consumer
        self.policy = consumer.failure
        self._home = consumer.home
        self._binding = consumer.binding
        self._compose = compose
        self._service = service
        self._native = capabilities.delay
        self._counted = capabilities.delay.level is Level.NATIVE

    # ------------------------------------------------------------------------------- runs of the handler

    async def process(self, delivery: Delivery) -> Decision:
        """Run an ``async def`` handler for ``delivery``."""
        binding = self._binding
        try:
            payload = binding.decode(delivery.message.body)
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
            payload = binding.decode(delivery.message.body)
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
        """Run a batch handler. What does not decode is taken out first; if the handler raises, each message runs
        alone, so that one
        bad message costs only itself."""
        decisions: dict[int, Decision] = {}
        payloads: list[Any] = []
        members: list[Delivery] = []
        for delivery in batch:
            try:
                payloads.append(self._binding.decode(delivery.message.body))
                members.append(delivery)
            except Exception as error:  # noqa: BLE001 - one bad message costs only itself
                decisions[id(delivery)] = self.failed(delivery, error)
        if members:
            for delivery, decision in zip(members, await self._run_batch(members, payloads), strict=True):
                decisions[id(delivery)] = decision
        return [decisions[id(delivery)] for delivery in batch]

    async def _run_batch(self, members: list[Delivery], payloads: list[Any]) -> list[Decision]:
        try:
            results = await self._call_batch(members, payloads)
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
            return [
                (await self._run_batch([delivery], [payload]))[0]
                for delivery, payload in zip(members, payloads, strict=True)
            ]
        if results is None:
            return [DONE] * len(members)
        if not isinstance(results, list | tuple) or len(results) != len(members):
            wrong = TypeError(f"{self._binding.name} must return None or one result per message, {len(members)} here")
            return [self.failed(delivery, wrong) for delivery in members]
        return [
            self.failed(delivery, result) if isinstance(result, Exception) else DONE
            for delivery, result in zip(members, results, strict=True)
        ]

    async def _call_batch(self, members: list[Delivery], payloads: list[Any]) -> Any:
        extra = {} if self._binding.context is None else {self._binding.context: [self._context(d) for d in members]}
        if self._binding.is_async:
            return await self._binding.call(payloads, **extra)
        return await _on_a_thread(partial(self._binding.call, payloads, **extra))

    def _context(self, delivery: Delivery) -> Context:
        history = self._history(delivery)
        return Context(delivery, self._compose, history.attempt, history.redrives)

    # ------------------------------------------------------------------------------------- what follows

    def failed(self, delivery: Delivery, error: BaseException) -> Decision:
        """What follows from ``error`` for ``delivery``, by the policy."""
        now = time.time()
        history = self._history(delivery)
        first = min(history.first_failed or now, now)  # a future one comes from another clock, or a forger
        step = decide(self.policy, error, attempt=history.attempt, tries=delivery.tries, now=now, first_failed=first)
        if isinstance(step, Again):
            return Decision(again=step.wait, name="retried_in_place")
        if isinstance(step, Hop):
            return self._hop(delivery, history, step, error, now)
        if isinstance(step, Drop):
            log.info("%s: %s discarded: %s", self._home, delivery.message.id, one_line(str(step.reason)))
            return Decision(name="discarded")
        return self._dead(delivery, history, step, now)

    def rejected(self, delivery: Delivery, decision: Decision, fault: Fault) -> Decision | None:
        """What follows when the broker refuses a copy for good. See `Rejection`."""
        if fault.code in (Code.NOT_FOUND, Code.UNROUTABLE) and self._missing is not None:
            self._missing()
            return None  # what was deleted under us is being made again: hold it, and try again
        now = time.time()
        error = Rejected(str(fault))
        history = self._history(delivery)
        if decision.name == "dead":
            copy = decision.copies[0].message
            if copy.headers == delivery.message.headers:
                return None  # nothing left to leave out: hold it, and try again
            if wire.ERROR_MESSAGE not in copy.headers:
                bare = Outgoing(self._home.dead_letter_channel, bare_copy(delivery))
                return Decision(copies=(bare,), name="dead")
            stage = copy.headers.get(wire.ERROR_STAGE) or "rejected"
            return self._dead(delivery, history, Dead(stage, error), now, brief=True)
        return self._dead(delivery, history, Dead("rejected", error), now)

    def _hop(self, delivery: Delivery, history: History, hop: Hop, error: BaseException, now: float) -> Decision:
        if self._native.level is Level.NATIVE and self._native.covers(hop.delay):
            return Decision(Retry(hop.delay), name="retried")
        if self.policy.chain is None:
            return Decision(again=hop.delay, name="retried")
        tier = self.policy.chain.tier(hop.delay)
        message = retry_copy(delivery, self._home, history, hop, error, now=now, tier=tier)
        return Decision(copies=(Outgoing(self._home.retry_channel(tier), message),), name="retried")

    def _dead(self, delivery: Delivery, history: History, dead: Dead, now: float, *, brief: bool = False) -> Decision:
        reason = one_line(f"{type(dead.error).__name__}: {words(dead.error)}")
        if not self.consumer.dead_letter:
            log.error("%s: %s dropped, for there is no dead-letter queue: %s", self._home, delivery.message.id, reason)
            return Decision(name="dropped")
        if not isinstance(dead.error, AtLeastOnceError) and not brief:
            log.warning("%s: %s goes to the dead letters: %s", self._home, delivery.message.id, reason)
        message = dead_copy(delivery, self._home, history, dead, service=self._service, now=now, brief=brief)
        return Decision(copies=(Outgoing(self._home.dead_letter_channel, message),), name="dead")

    def _history(self, delivery: Delivery) -> History:
        return read_history(delivery, self._home, counted=self._counted)

    def due_in_channel(self, delivery: Delivery, delay: float) -> float:
        """When a delivery that is read from the retry channel of ``delay`` may run."""
        return wire.read_due(delivery.message.headers, now=time.time(), delay=delay)

    def due_at_home(self, delivery: Delivery) -> float | Decision:
        """When a delivery that the broker brought back from a retry channel may run; or that it waits once more there,
        since it was sent away for longer than any channel's delay."""
        chain = self.policy.chain
        if chain is None or not delivery.returned or not self._history(delivery).ours:
            return 0.0
        now = time.time()
        due = wire.read_due(delivery.message.headers, now=now, delay=chain.delays[-1])
        left = due - now
        if left <= min(max(chain.delays[0], 1.0), _HOLD_SECONDS):
            return due
        channel = self._home.retry_channel(chain.tier(left))
        return Decision(copies=(Outgoing(channel, parked_copy(delivery, left)),), name="parked")

    @property
    def timeout(self) -> float | None:
        """The handler's timeout in seconds."""
        return None if self.policy.timeout is None else seconds(self.policy.timeout)


async def _on_a_thread(function: Callable[[], Any]) -> Any:
    """As ``asyncio.to_thread``, on a thread that the end of the process does not wait for: a handler that hangs must
    not hold it up. Once for a batch, so that a thread of its own costs nothing that shows."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:  # a future cannot hold a StopIteration
            future.set_exception(RuntimeError(f"raised {error!r}") if isinstance(error, StopIteration) else error)

    def work() -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (function(), None)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: raised again where it is awaited
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, *outcome)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="atleastonce-batch", daemon=True).start()
    return await future
