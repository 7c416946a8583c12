"""One pass over a dead-letter queue: everything that is in it at the start is handed out once, some is taken, the rest kept.

What is kept is held until the end, since what is given back at once comes again at once. Holding has bounds. Beyond them a
letter is put back as a copy: confirmed at the queue's end, then its original is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    Adapter,
    Backlog,
    Delivery,
    Leasing,
    Level,
    Outgoing,
    Settlement,
    Subscription,
    Window,
)
from atleastonce.errors import ConnectionLost
from atleastonce.message import Message

log = logging.getLogger("atleastonce")

# How many letters may be held where each is out on the broker: RabbitMQ's prefetch has 16 bits; a lease has to be renewed for
# each. Fewer: more letters that nobody wants are copied to the end; more: memory, and renewals.
_HELD_IN_SESSION, _HELD_ON_LEASE = 50_000, 10_000
_HELD_BYTES = 256 << 20

# What a log's commit can remember of one partition is 4 KiB of text: the lengths of this many runs of kept letters with done
# ones between them, up to 6 bytes for a pair. With more, it would forget what was redriven behind them.
_RUNS = 500

# A letter that its broker hands out for the tenth time may be near a delivery limit (RabbitMQ: 20 by default), and what
# exceeds it is dropped: giving it back as a copy begins the count anew.
_WORN = 10

_SLICE = 1.0
# Nothing more comes: where something came already, and where nothing did. A Kafka group gives the partitions of a member
# that was killed to another one after its session's time, 45 s by default, and waits once more for one that was killed while
# it waited.
_QUIET_SECONDS = 3.0
# What another reader took with it, a poll that was on its way when it closed for example, comes back within this.
_RETURN_SECONDS = 10.0
_FIRST_SECONDS = 150.0
_REMARK_SECONDS = 5.0

_BACK_SECONDS = 2.0

_CHUNK = 1000


class Passage:
    """A context manager; leaving it gives back what was kept.

    Args:
        adapter: open.
        source: the dead-letter queue.
        stopping: once it is set, nothing more is handed out.

    Attributes:
        total: how many are there at the start; None where the broker cannot say.
        seen: how many of them were handed out.
        put_back: how many were kept as copies at the queue's end.
        stopped: why it ended before the end; "" if it did not.
    """

    def __init__(self, adapter: Adapter, source: Source, stopping: asyncio.Event | None = None) -> None:
        self.total: int | None = None
        self.seen = 0
        self.put_back = 0
        self.stopped = ""
        self._adapter = adapter
        self._source = source
        self._stopping = stopping or asyncio.Event()
        self._log = False
        self._out: set[Delivery] = set()  # handed out, neither done nor kept
        self._held: list[Delivery] = []
        self._held_bytes = 0
        self._holes: dict[str, _Holes] = {}
        self._ahead: deque[Delivery] = deque()
        self._received = 0
        self._settled = 0
        self._subscription: Subscription | None = None
        self._listener = _Listener()
        self._last = 0.0
        self._remarked = False
        self._renewed = 0.0

    async def __aenter__(self) -> Self:
        backlog = await self._backlog()
        self._log = backlog.true_waiting is not None
        self.total = backlog.true_waiting if self._log else backlog.waiting
        if self.total == 0 and backlog.in_flight:
            self.stopped = (
                f"{backlog.in_flight} are in the hands of another reader, or of one that was killed and holds them until its "
                "lease ends"
            )
        elif self.total and not self._log:
            # What a reader that has just gone took with it comes back soon. If it does not, it is not waited for.
            self.total += backlog.in_flight or 0
        # On a log, holding costs the broker nothing, and what is held is bounded by what a commit can remember.
        window = Window(1 << 30, 1 << 50) if self._log else Window(self._most + 2 * _CHUNK, _HELD_BYTES + (64 << 20))
        self._subscription = await self._adapter.subscribe(self._source, window, self._listener)
        self._last = self._renewed = asyncio.get_running_loop().time()
        if self.total == 0 and not self._log and not self.stopped:
            # A RabbitMQ queue whose leader is not elected yet, as after a restart, counts 0: better ask it for a message.
            self._ahead += await self._subscription.receive(_CHUNK, _SLICE)
            self._received = len(self._ahead)
            self.total = None if self._ahead else 0
        return self

    async def _backlog(self) -> Backlog:
        """What is there. What the last request of a reader that has just gone took with it comes back soon, and is waited for where
        there is nothing else."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _BACK_SECONDS
        while True:
            backlog = await self._adapter.backlog(self._source)
            away = backlog.true_waiting is None and backlog.waiting == 0 and backlog.in_flight
            if not away or loop.time() > end or self._stopping.is_set():
                return backlog
            await asyncio.sleep(0.05)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subscription = self._open
        self._listener.ended(self._listener.out)
        # What is out was left by an error, and would be gone until its lease is over.
        back = [] if self._log else [each for each in (*self._out, *self._held, *self._ahead) if not each.lost]
        try:  # a log has no hand-outs to take back: its commit leaves out what is not settled
            for start in range(0, len(back), _CHUNK):
                released: list[Settlement] = [(delivery, RELEASE) for delivery in back[start : start + _CHUNK]]
                with contextlib.suppress(Exception):  # the broker is gone, and takes them back by itself
                    await subscription.settle(released)
            if back and error is None:
                await self._see_back(len(back))
        finally:
            await subscription.close()
        if not self._log and error is None and self.total:
            await self._see_back(
                self.total - self._settled + self.put_back
            )  # with what was fetched and never handed out

    async def _see_back(self, count: int) -> None:
        """Brokers take back what was released in their own time, and RabbitMQ some of what was settled, if its channel is
        closed before. And whoever looks next is to see everything."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _BACK_SECONDS
        while loop.time() < end:
            waiting = (await self._adapter.backlog(self._source)).waiting
            if waiting is None or waiting >= count:
                return
            await asyncio.sleep(0.02)

    @property
    def _open(self) -> Subscription:
        assert self._subscription is not None  # noqa: S101 - set on entering
        return self._subscription

    @property
    def _most(self) -> int:
        session = self._adapter.capabilities.lease is not Leasing.EXTENDABLE
        return _HELD_IN_SESSION if session else _HELD_ON_LEASE

    # ----------------------------------------------------------------------------------------- handing out

    async def receive(self, most: int) -> Sequence[Delivery]:
        """The next letters, at most ``most``; none at the end. All of them are to be done or kept.

        Raises:
            ConnectionLost: the broker went away; what is not done is still there.
        """
        while not self.stopped and (self.total is None or self.seen < self.total):
            if self._stopping.is_set():
                self.stop("interrupted")
                break
            await self._renew()
            limit = most if self.total is None else min(most, self.total - self.seen)
            batch = await self._next(limit)
            if batch:
                self._listener.out += len(batch)
                self._out.update(batch)
                self._last = asyncio.get_running_loop().time()
                self.seen += len(batch)
                return batch
            if await self._is_quiet():
                break
        return []

    async def _next(self, most: int) -> Sequence[Delivery]:
        if self._ahead:
            batch = [self._ahead.popleft() for _ in range(min(most, len(self._ahead)))]
            return [delivery for delivery in batch if not delivery.lost]
        batch = list(await self._open.receive(most, _SLICE))
        while batch and len(batch) < most and (more := await self._open.receive(most - len(batch), 0)):
            batch += more  # each list costs a round trip; what has arrived goes with this one
        self._received += len(batch)
        return batch

    async def _is_quiet(self) -> bool:
        waited = asyncio.get_running_loop().time() - self._last
        if self._listener.away:  # who hears nothing there must not take that for the end
            if waited < _RETURN_SECONDS:
                return False
            raise ConnectionLost(f"{self._source}: {self._listener.away}")
        if self._received or self.total is None:
            return waited >= _QUIET_SECONDS and (waited >= _RETURN_SECONDS or not await self._is_elsewhere())
        if waited >= _REMARK_SECONDS and not self._remarked:
            self._remarked = True
            log.warning(
                "%s hands out nothing yet: a reader that was killed is waited for, a minute or two", self._source
            )
        if waited >= _FIRST_SECONDS:
            self.stopped = (
                f"{self._source} handed out none of its {self.total} messages; does another reader have them?"
            )
            return True
        return (await self._adapter.backlog(self._source)).waiting == 0  # somebody else was faster

    async def _is_elsewhere(self) -> bool:
        """Whether some that were there at the start are ready still, or with somebody else."""
        if self.total is None or self.seen >= self.total:
            return False
        found = await self._adapter.backlog(self._source)
        ours = self.seen - self._settled
        return bool(found.waiting) or (found.in_flight or 0) > ours

    def stop(self, reason: str) -> None:
        """Hand out no more, for ``reason``; "" is none."""
        self.stopped = self.stopped or reason

    @property
    def yielding(self) -> bool:
        """Whether some of it goes to another reader as soon as nothing is out."""
        return self._listener.draining > 0

    def later(self, count: int) -> None:
        """``count`` of those handed out were not there at the start, and so are no part of the total."""
        self.seen -= count

    # -------------------------------------------------------------------------------------------- settling

    async def done(self, deliveries: Sequence[Delivery]) -> int:
        """Take these out of the queue; how many of them are out of it."""
        if not deliveries:
            return 0
        outcomes = await self._open.settle([(delivery, ACK) for delivery in deliveries])
        settled = outcomes.count(OK)
        self._out.difference_update(deliveries)
        self._settled += settled
        self._listener.ended(len(deliveries))
        if settled < len(deliveries):
            log.warning(
                "%s: %d messages could not be settled; they will be there again",
                self._source,
                len(deliveries) - settled,
            )
        return settled

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        """Leave these in the queue. Nothing of them but their place is held: their bodies and headers are gone."""
        back = [delivery for delivery in deliveries if not self._hold(delivery)]
        self._listener.ended(len(deliveries) - len(back))
        if back and not await self._put_back(back):
            self.stop(f"{len(self._held)} letters are held, and {self._source} takes no copies of more")

    def _hold(self, delivery: Delivery) -> bool:
        """Hold ``delivery`` if that is possible."""
        if self._log:
            holes = self._holes.setdefault(delivery.stream, _Holes())
            if isinstance(delivery.position, int) and not holes.add(delivery.position):
                return False
        else:
            full = len(self._held) >= self._most or self._held_bytes + delivery.size > _HELD_BYTES
            worn = delivery.count >= _WORN and self._adapter.capabilities.dead_letter is Level.NATIVE
            if full or worn:
                return False
        self._add(delivery)
        return True

    def _add(self, delivery: Delivery) -> None:
        self._out.discard(delivery)
        self._held_bytes += delivery.size
        self._held.append(delivery)
        delivery.shed()

    async def _put_back(self, deliveries: Sequence[Delivery]) -> bool:
        copies = [Outgoing(self._source.channel, _same(delivery.message)) for delivery in deliveries]
        outcomes = await self._adapter.send(copies)
        moved = [delivery for delivery, outcome in zip(deliveries, outcomes, strict=True) if outcome.ok]
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if not outcome.ok:
                self._add(delivery)
                self._listener.ended(1)
        self.put_back += len(moved)
        await self.done(moved)
        return len(moved) == len(deliveries)

    # --------------------------------------------------------------------------------------------- waiting

    async def rest(self, seconds: float) -> None:
        """Wait, keeping what is held."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0 and not self._stopping.is_set():
            await self._renew()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _SLICE)):
                    await self._stopping.wait()
        self._last = loop.time()

    async def arrived(self) -> int | None:
        """How many letters came since the start, as far as the broker's counts tell; None where they do not."""
        if self.total is None:
            return None
        while not self._log and (
            more := await self._open.receive(_CHUNK, 0)
        ):  # not counted as waiting, nor as received
            self._received += len(more)
            self._ahead += more
        now = await self._adapter.backlog(self._source)
        waiting = now.true_waiting if self._log else now.waiting
        if waiting is None:
            return None
        gone = self._settled if self._log else self._received
        return max(0, waiting + gone - self.total - self.put_back)

    async def _renew(self) -> None:
        capabilities = self._adapter.capabilities
        if capabilities.lease is not Leasing.EXTENDABLE:
            return
        now = asyncio.get_running_loop().time()
        if now - self._renewed < capabilities.lease_seconds / 3:
            return
        self._renewed = now
        held = [delivery for delivery in (*self._held, *self._ahead) if not delivery.lost]
        for start in range(0, len(held), _CHUNK):
            await self._open.extend(held[start : start + _CHUNK], capabilities.lease_seconds)


class _Holes:
    """What one stream's commit has to remember: letters that stay behind ones that are done."""

    __slots__ = ("last", "runs")

    def __init__(self) -> None:
        self.last = -1
        self.runs = 0

    def add(self, position: int) -> bool:
        """Whether one more at ``position`` can be remembered; it then is."""
        runs = self.runs + (position != self.last + 1)
        if runs > _RUNS:
            return False
        self.runs, self.last = runs, position
        return True


class _Listener:
    """What is out is settled before its partition goes to another reader."""

    def __init__(self) -> None:
        self.out = 0
        """Handed out, neither done nor kept."""
        self.away = ""
        """Why the broker cannot be heard; "" if it can."""
        self.draining = 0
        self._idle = asyncio.Event()

    def ended(self, count: int) -> None:
        """So many are done or kept."""
        self.out -= count
        if self.out <= 0:
            self._idle.set()

    async def drain(self, streams: Collection[str], grace: float) -> None:
        if self.out <= 0:
            return
        self._idle.clear()
        self.draining += 1
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            self.draining -= 1

    def lost(self, streams: Collection[str] | None) -> None: ...

    def condition(self, state: str, detail: str) -> None:
        if state == "disconnected":
            self.away = detail or state
        elif state in ("connected", "assigned"):
            self.away = ""


def _same(message: Message) -> Message:
    headers = message.headers if wire.ID in message.headers else message.headers.set({wire.ID: message.id})
    return Message(message.id, message.body, message.key, headers, None, message.native)
