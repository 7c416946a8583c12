"""One reader of a queue: its window, its polls, and the ends of what it handed out."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from atleastonce.adapters.sqs import faults
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.polls import BRIEF, Arrival, Polls
from atleastonce.adapters.sqs.records import SQSDelivery
from atleastonce.adapters.sqs.settling import MAX_VISIBILITY, Settling
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    STALE,
    Ack,
    Code,
    Delivery,
    Fault,
    Listener,
    Outcome,
    Reject,
    Retry,
    Settlement,
    Status,
    Subscription,
    Verdict,
    Window,
)
from atleastonce.errors import AtLeastOnceError, Closed, ConnectionLost
from atleastonce.silence import Owed, Silence

_LARGEST_POLL: Final = 10
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
# A delivery that lay in the buffer until less than this share of its lease is left is not handed out: it could end before
# its renewal gets through.
_FRESH: Final = 0.1
_epochs = itertools.count(1)


class SQSSubscription(Subscription):
    """From `SQSAdapter.subscribe`.

    A poll that fails does not end it: there is no session to lose, and what is out can still be settled. It tries again,
    and ends only when nothing was heard for so long that every lease is over.
    """

    def __init__(
        self,
        source: Source,
        queue: str,
        window: Window,
        listener: Listener,
        config: Config,
        make_polls: Callable[[Callable[[Sequence[Arrival]], None]], Polls],
        settling: Settling,
        silence: Silence,
    ) -> None:
        self.queue = queue
        self.on_end: Callable[[SQSSubscription], None] = lambda _: None
        self._source = source
        self._window = window
        self._listener = listener
        self._lease = float(config.lease)
        self._most_polls = config.pollers
        self._fifo = bool(getattr(source.channel, "fifo", False))
        self._polls = make_polls(self._arrived)
        self._settling = settling
        self._silence = silence
        self._epoch = next(_epochs)
        self._width = 1  # polls at once, as things go
        self._buffer: deque[SQSDelivery] = deque()
        self._out: set[Delivery] = set()  # handed out and unsettled
        self._bytes = 0  # of these, and of the buffer
        self._mean = 1024.0  # bytes of a message, as they come
        self._news = asyncio.Event()
        self._paused = False
        self._closed = False
        self._waiting = False
        self._patience = 0.0  # of who asks, in seconds
        self._failure: AtLeastOnceError | None = None
        self._failing_since = 0.0
        self._pause = _FIRST_PAUSE
        self._again_at = 0.0

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + max_wait
        self._waiting, self._patience = True, max_wait
        try:
            while True:
                self._check()
                if self._failure is not None:
                    raise self._failure
                self._news.clear()
                if not self._paused:
                    found = self._hand_out(max_messages)
                    pause = self._poll()
                    if found:
                        return found
                else:
                    pause = math.inf
                left = deadline - time.monotonic()
                if left <= 0:
                    return ()
                try:
                    async with asyncio.timeout(min(left, pause)):
                        await self._news.wait()
                except TimeoutError:
                    pass
        finally:
            self._waiting = False

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"the subscription to {self._source.name} is closed")

    def _poll(self) -> float:
        """Have as many polls running as there is use and room for; returns in how many seconds to look again."""
        now = time.monotonic()
        if now < self._again_at:
            return self._again_at - now
        while self._polls.running < self._width:
            room = self._room(now)
            if room <= 0:
                ends = min((delivery.lease_until for delivery in self._out), default=math.inf)
                return max(0.01, ends - now) if not self._polls.running else math.inf
            self._polls.start(min(room, _LARGEST_POLL), briefly=self._briefly())
        return math.inf

    def _briefly(self) -> bool:
        """Whether the next poll must not wait for long.

        One may, where there is nothing that a stop would give back: what is given back while it waits comes to us once more. Who
        does not ask for long is about to leave. And after a failure what counts is that there is an answer.
        """
        idle = not (self._out or self._buffer or self._polls.running) and self._width == 1
        return not idle or self._patience <= BRIEF or self._failing_since > 0

    def _room(self, now: float) -> int:
        """How many messages may still come. An ended lease counts no longer: others may have it."""
        window = self._window
        taken = len(self._out) + len(self._buffer) + self._polls.asked
        if taken >= window.messages or self._bytes >= window.bytes:
            for delivery in [delivery for delivery in self._out if delivery.lease_until <= now]:
                self._leave(delivery)
            taken = len(self._out) + len(self._buffer) + self._polls.asked
        expected = self._bytes + int(self._polls.asked * self._mean)
        if expected >= window.bytes:
            return 0
        by_bytes = max(1, int((window.bytes - expected) / self._mean))
        return min(window.messages - taken, by_bytes)

    def _hand_out(self, most: int) -> list[Delivery]:
        found: list[Delivery] = []
        buffer = self._buffer
        fresh = time.monotonic() + self._lease * _FRESH
        while buffer and len(found) < most:
            delivery = buffer.popleft()
            if delivery.lease_until > fresh:
                found.append(delivery)
            else:  # it lay here until its lease was over; it will come again
                self._bytes -= delivery.size
        self._out.update(found)
        return found

    def _leave(self, delivery: Delivery) -> None:
        if delivery in self._out:
            self._out.discard(delivery)
            self._bytes -= delivery.size

    def _arrived(self, arrivals: Sequence[Arrival]) -> None:
        if self._closed:
            return
        for asked, messages, error, at in arrivals:
            if error is not None:
                self._failed(error, at)
                continue
            if self._failing_since:
                self._failing_since, self._pause, self._again_at = 0.0, _FIRST_PAUSE, 0.0
                self._listener.condition("connected", self.queue)
            # One poll waits as well as many. More of them only where they come back full: then more is there.
            if len(messages) == asked:
                self._width = min(self._width + 1, self._most_polls)
            elif not messages:
                self._width = max(1, self._width - 1)
            size = 0
            for message in messages:
                delivery = SQSDelivery(message, self._source, self.queue, self._epoch, at, self._lease)
                size += delivery.size
                self._buffer.append(delivery)
            if messages:
                self._bytes += size
                self._mean += (size / len(messages) - self._mean) / 8
        # While nobody asks, no more is fetched than one round of polls: it would grow old here.
        if not self._paused and (self._waiting or len(self._buffer) < self._width * _LARGEST_POLL):
            self._poll()
        self._news.set()

    def _failed(self, error: Exception, at: float) -> None:
        fault = faults.classify(error)
        if fault.code is not Code.OVERLOADED and not fault.retryable:
            self._failure = faults.as_error(error, f"reading {self._source.name}")
            return
        if not self._failing_since:
            self._failing_since = at
            state = "blocked" if fault.code is Code.OVERLOADED else "disconnected"
            self._listener.condition(state, fault.detail)
        elif at - self._failing_since > self._lease and fault.code is not Code.OVERLOADED:
            self._failure = ConnectionLost(f"{self._source.name}: {fault.detail}")
            return
        if at >= self._again_at:  # polls that failed together count once
            self._again_at = at + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._width = 1

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(batch)
        outcomes: list[Outcome] = [OK] * len(batch)
        now = time.monotonic()
        acks: list[tuple[int, Delivery]] = []
        waits: list[tuple[int, Delivery, int]] = []
        rejects: list[tuple[int, Delivery]] = []
        twice: list[tuple[int, int]] = []
        seen: dict[Delivery, int] = {}
        for place, (delivery, verdict) in enumerate(batch):
            if (refusal := self._refused(delivery, now)) is not None:
                outcomes[place] = refusal
            elif delivery in seen:
                twice.append((place, seen[delivery]))
            else:
                seen[delivery] = place
                if isinstance(verdict, Ack):
                    acks.append((place, delivery))
                elif isinstance(verdict, Reject):
                    rejects.append((place, delivery))
                else:
                    waits.append((place, delivery, self._visibility(delivery, verdict, now)))
        if self._fifo and waits:
            waits += self._behind([delivery for _, delivery, _ in waits])
        given = await self._settling.settle(acks, waits, rejects)
        for place, delivery, outcome in given:
            self._ended(delivery, outcome)
            if place >= 0:
                outcomes[place] = outcome
        for place, first in twice:
            outcomes[place] = outcomes[first]
        self._news.set()  # the window has room
        return outcomes

    def _refused(self, delivery: Delivery, now: float) -> Outcome | None:
        """The outcome of what is not to be sent: settled before, of another subscription, or with a lease that is over.

        The clock decides, for SQS does not always tell: it answers a late DeleteMessage with success, whether or not it
        deleted anything.
        """
        if delivery.epoch != self._epoch:
            return STALE
        if isinstance(delivery.token, Outcome):
            return delivery.token
        if delivery.lease_until <= now:
            self._ended(delivery, _OVER)
            return _OVER
        return None

    def _visibility(self, delivery: Delivery, verdict: Verdict, now: float) -> int:
        """Seconds until a given-back delivery is visible: whole ones, never fewer than asked for, unless its twelve
        hours are over before."""
        delay = verdict.delay if isinstance(verdict, Retry) else 0.0
        return min(math.ceil(delay), _left(delivery, now))

    def _behind(self, given_back: Sequence[Delivery]) -> list[tuple[int, Delivery, int]]:
        """What waits in the buffer behind one of ``given_back`` in its message group: it must not be handed out first."""
        groups = {delivery.stream for delivery in given_back}
        behind = [delivery for delivery in self._buffer if delivery.stream in groups]
        if behind:
            self._buffer = deque(delivery for delivery in self._buffer if delivery.stream not in groups)
            self._out.update(behind)  # until their visibility was changed
        return [(-1, delivery, 0) for delivery in behind]

    def _ended(self, delivery: Delivery, outcome: Outcome) -> None:
        if outcome.status is Status.UNKNOWN:
            return  # to be repeated with the same token
        stale = outcome.fault is not None and outcome.fault.code is Code.STALE
        delivery.lost = delivery.lost or stale
        delivery.token = outcome
        self._leave(delivery)

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(deliveries)
        now = time.monotonic()
        outcomes: list[Outcome] = [OK] * len(deliveries)
        waits: list[tuple[int, Delivery, int]] = []
        for place, delivery in enumerate(deliveries):
            refusal = self._refused(delivery, now)
            if refusal is OK:
                refusal = STALE  # settled: there is nothing left to keep
            if refusal is not None:
                outcomes[place] = refusal
                continue
            longest = _left(delivery, now)
            if longest <= 0:
                outcomes[place] = _TWELVE_HOURS
            else:
                waits.append((place, delivery, min(math.ceil(seconds), longest)))
        lengths = {place: length for place, _, length in waits}
        for place, delivery, outcome in await self._settling.settle([], waits, []):
            outcomes[place] = outcome
            if outcome.ok:
                delivery.lease_until = now + lengths[place]
            elif outcome.fault is not None and outcome.fault.code is Code.STALE:
                self._ended(delivery, outcome)
        return outcomes

    # -------------------------------------------------------------------------------------------------------- lifecycle

    @property
    def overdue(self) -> Owed | None:
        return self._silence.look()

    async def pause(self) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._paused = False
        self._news.set()

    async def leave(self) -> None:
        self._paused = True
        if not self._closed:
            await self._polls.refuse()
            await self._return(())

    async def leave_with_rest(self) -> Sequence[Delivery]:
        self._paused = True
        if self._closed:
            return ()
        await self._polls.end()
        return self._hand_out(len(self._buffer))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.set()
        self.on_end(self)
        await self._return(self._polls.close())

    async def _return(self, came: Sequence[dict[str, Any]]) -> None:
        """Give back what ``came``, and what was not handed out: nobody renews its lease here."""
        now = time.monotonic()
        fetched = [SQSDelivery(raw, self._source, self.queue, self._epoch, now, self._lease) for raw in came]
        waits: list[tuple[int, Delivery, int]] = [(-1, delivery, 0) for delivery in (*self._buffer, *fetched)]
        self._bytes -= sum(delivery.size for delivery in self._buffer)
        self._buffer.clear()
        if waits:
            await self._settling.settle([], waits, [])


_OVER: Final = Outcome(Status.REJECTED, Fault(Code.STALE, detail="its lease is over; not sent"))
_TWELVE_HOURS: Final = Outcome(
    Status.REJECTED, Fault(Code.STALE, detail="twelve hours after it was received SQS extends a lease no more")
)


def _left(delivery: Any, now: float) -> int:
    """Whole seconds of the twelve hours that are left to a delivery."""
    return max(0, int(MAX_VISIBILITY - (now - delivery.received)) - 1)
