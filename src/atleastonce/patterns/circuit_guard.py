"""A consumer's circuit breaker at work: pauses its readers while the circuit is open, holds what they have, sends one probe.

What fails while the circuit is open, or is the failure that opens it, is held and runs again later: an outage burns no more
attempts than it took to notice it. A suspect, which runs alone, would hold up all others if it were held: it is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from atleastonce.contract import Delivery
from atleastonce.durations import format_duration
from atleastonce.engine.batches import BatchProcess
from atleastonce.engine.decision import AsyncProcess, Decision, SyncProcess, again
from atleastonce.engine.worker import Worker
from atleastonce.errors import Control, DecodeError
from atleastonce.patterns.circuit_breaker import CircuitBreaker, State
from atleastonce.patterns.failure import causes
from atleastonce.patterns.hops import one_line, words

log = logging.getLogger("atleastonce")

_REASON = "circuit open"
# How often an open circuit is looked at: so late begins a probe, and the end of a pause, at most.
_LOOK_SECONDS = 0.05
# What is held is woken by the end of the pause. Should it be missed, it looks by itself after this.
_HELD = 5.0
# Runs that end so have called what the handler calls, as far as anybody knows, and it has worked; "failed" is an answer, too.
_WORKED = frozenset({"done", "failed"})


class CircuitGuard:
    """One consumer's circuit and the readers it stands before. Made on the event loop.

    Args:
        name: of the consumer's source, for logs.
        policy: when it opens.
    """

    def __init__(self, name: str, policy: CircuitBreaker) -> None:
        self._name = name
        self._policy = policy
        self._circuit = policy.circuit(self._done)
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._alone: Worker | None = None
        self._give_back: Callable[[Delivery], Decision] | None = None
        self._tickets: dict[Delivery, int] = {}  # of what runs
        self._held: dict[Delivery, None] = {}  # oldest first
        self._words = ""
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, worker: Worker) -> None:
        """One more reader, to be counted and paused."""
        self._workers.append(worker)

    def add_alone(self, worker: Worker, give_back: Callable[[Delivery], Decision]) -> None:
        """One more, whose messages run alone; ``give_back`` says what becomes of one that does not run, or was in vain."""
        self._workers.append(worker)
        self._alone, self._give_back = worker, give_back

    # ------------------------------------------------------------------------------------------------ around a run

    def around(self, process: AsyncProcess) -> AsyncProcess:
        """``process`` for single messages, while the circuit lets it."""

        async def guarded(delivery: Delivery) -> Decision:
            if not self._begin(delivery):
                return self._hold(delivery)
            return self._end(delivery, await process(delivery))

        return guarded

    def around_sync(self, process: SyncProcess) -> SyncProcess:
        """``process`` on a thread, while the circuit lets it."""

        def guarded(delivery: Delivery) -> Decision:
            if not self._begin(delivery):
                return self._hold(delivery)
            return self._end(delivery, process(delivery))

        return guarded

    def around_batch(self, process: BatchProcess) -> BatchProcess:
        """``process`` for lists, while the circuit lets it. A probe is one message, and the others wait for its end."""

        async def guarded(batch: Sequence[Delivery]) -> Sequence[Decision]:
            run = [delivery for delivery in batch if self._begin(delivery)]
            decisions = dict(zip(run, await process(run), strict=True)) if run else {}
            return [
                self._end(delivery, decisions[delivery]) if delivery in decisions else self._hold(delivery)
                for delivery in batch
            ]

        return guarded

    def failed(self, delivery: Delivery, error: BaseException) -> Decision | None:
        """A run of ``delivery`` has ended with ``error``. None: the policy decides. Else: it is held. From any thread."""
        chain = list(causes(error))
        # Neither a handler's own decision nor a body that is no good says anything of what the handler calls.
        if any(isinstance(cause, DecodeError) for cause in chain):
            self._abandon(delivery)
            return None
        if any(isinstance(cause, Control) for cause in chain) or not self._policy.counts(chain):
            return None
        with self._lock:
            ticket = self._tickets.pop(delivery, None)
            if ticket is None:  # it has not begun here
                return None
            opened = self._circuit.opened
            self._circuit.failed(ticket, time.monotonic())
            state = self._circuit.state
            if self._circuit.opened > opened:
                self._words = f"{type(error).__name__}: {one_line(words(error))}"
        if state is State.CLOSED:
            return None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._watch)
        return self._hold(delivery)

    def _begin(self, delivery: Delivery) -> bool:
        with self._lock:
            ticket = self._circuit.admit(time.monotonic())
            if ticket is not None:
                self._tickets[delivery] = ticket
        return ticket is not None

    def _end(self, delivery: Delivery, decision: Decision) -> Decision:
        """It has not failed, or not in a way that counts. What is to run again for other reasons says nothing, nor does what the
        handler decided, a failure that does not count, or a duplicate, for which nothing ran: the next one is the probe."""
        if decision.again is not None or decision.name not in _WORKED:
            self._abandon(delivery)
        else:
            with self._lock:
                ticket = self._tickets.pop(delivery, None)
                if ticket is not None:
                    self._circuit.succeeded(ticket)
        return decision

    def _abandon(self, delivery: Delivery) -> None:
        with self._lock:
            ticket = self._tickets.pop(delivery, None)
            if ticket is not None:
                self._circuit.abandoned(ticket, time.monotonic())

    def _hold(self, delivery: Delivery) -> Decision:
        if self._alone is not None and self._give_back is not None and delivery.source == self._alone.source:
            return self._give_back(delivery)
        self._held[delivery] = None
        return again(delivery, _HELD, "held")

    # -------------------------------------------------------------------------------------------- while it is open

    @property
    def detail(self) -> str:
        """For status: why nothing is read, and what next; "" while the circuit is closed."""
        circuit = self._circuit
        if circuit.state is State.CLOSED:
            return ""
        wait = circuit.wait(time.monotonic())
        then = f"probing in {format_duration(round(wait, 1))}" if wait and circuit.state is State.OPEN else "probing"
        return f"{_REASON}: {circuit.reason}, the last one by {self._words}; {then}"

    async def open(self) -> None:
        """Let everything through again, by hand, and count from nothing."""
        with self._lock:
            self._circuit.reset()
        if self._watching is not None:
            await asyncio.wait([self._watching])

    def close(self) -> None:
        """The readers are stopping: leave them alone."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()

    def _done(self) -> int:
        return sum(worker.counts["done"] for worker in self._workers)

    def _watch(self) -> None:
        if not self._closed and (self._watching is None or self._watching.done()):
            self._watching = self._loop.create_task(self._until_closed(), name=f"atleastonce-circuit-{self._name}")

    async def _until_closed(self) -> None:
        log.error("%s: paused: %s", self._name, self.detail)
        reading = False
        while self._circuit.state is not State.CLOSED:
            if not reading:
                await self._pause()
            if self._circuit.wait(time.monotonic()) <= 0:
                probe = self._oldest()
                if probe is not None:
                    self._wake({probe: None})
                elif not reading:  # nobody is held: the next message that comes is the probe
                    reading = True
                    await self._resume()
            else:
                reading = False
            self._held = {delivery: None for delivery in list(self._held) if _may_run(delivery)}
            await asyncio.sleep(_LOOK_SECONDS)
        log.warning("%s: the circuit is closed; reading again", self._name)
        await self._resume()
        held, self._held = self._held, {}
        self._wake(held)

    def _oldest(self) -> Delivery | None:
        """The first of those held that may still run."""
        for delivery in list(self._held):
            del self._held[delivery]
            if _may_run(delivery):
                return delivery
        return None

    def _wake(self, held: dict[Delivery, None]) -> None:
        for worker in self._workers:
            worker.hasten(held.__contains__)

    async def _pause(self) -> None:
        """Also those that came meanwhile."""
        for worker in self._workers:
            if _REASON not in worker.paused:
                await worker.pause(_REASON)

    async def _resume(self) -> None:
        for worker in self._workers:
            await worker.resume(_REASON)


def _may_run(delivery: Delivery) -> bool:
    return not delivery.settled and not delivery.lost
