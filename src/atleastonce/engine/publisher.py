"""Publishing within bounds: single publishes that are pending together leave together, and no more are pending than
the window takes."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeAlias

from atleastonce.contract import Code, Outcome, Outgoing, Window, unknown
from atleastonce.engine.answers import ask
from atleastonce.engine.rate import TokenBucket
from atleastonce.errors import Closed, Overloaded
from atleastonce.message import sizes
from atleastonce.wake import Bell, Signal

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]


class Publisher:
    """Sends through an adapter, with bounded pending messages and bytes.

    There is no linger: a lone publish leaves at once, and what comes in during its round trip makes up the next
    batch. So batches are as large as the broker is slow, and latency is never traded for throughput.

    Who waits for the window gets it in the order of asking: a large message or list is not passed by small ones for ever.

    Args:
        send: the adapter's.
        window: the bound on what is pending. Too small limits throughput to window / round trip; too large only hides
            overload. What is larger than the whole of it goes alone.
        max_batch: the most that leaves in one call.
        rate: how fast messages may leave; None for no limit. No more leave at once than it grants, however many are pending.
    """

    def __init__(self, send: Send, window: Window, *, max_batch: int, rate: TokenBucket | None = None) -> None:
        self._send = send
        self._window = window
        self._max_batch = max_batch
        self._rate = rate
        self._pending: dict[_Waits, Outgoing] = {}
        self._bell = Bell()
        self._task: asyncio.Task[None] | None = None
        self._messages = 0
        self._bytes = 0
        self._waiting: deque[tuple[asyncio.Future[None], int, int]] = deque()
        self._closed = False
        self._given_up = False  # what has not left yet does not leave any more
        self._let_in = Signal()
        self._empty: asyncio.Future[None] | None = None  # awaited by close

    async def publish(self, item: Outgoing, *, within: float) -> Outcome:
        """Send one message together with whatever else is pending. Cancelled before it has left, it is not sent.

        Raises:
            Overloaded: the window stayed full for ``within`` seconds.
            Closed: after `close`, or it had not left when that gave up; it was not sent.
        """
        size = item.message.size
        if not self._enters(1, size):
            await self._wait(1, size, within)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._begin(item, future)
        try:
            return await future
        finally:
            self._pending.pop(future, None)
            self._leave(1, size)

    async def post(self, item: Outgoing, told: Callable[[Outcome], None], *, within: float) -> Posted:
        """Hand one message over, as `publish`, and return without waiting for its outcome, which ``told`` is called with.

        Args:
            told: must not raise. Not called for what was withdrawn.

        Raises:
            Overloaded, Closed: as `publish`.
        """
        size = item.message.size
        if not self._enters(1, size):
            await self._wait(1, size, within)
        posted = _Posted(self, size, told)
        self._begin(item, posted)
        return posted

    def _withdraw(self, posted: _Posted, size: int) -> None:
        if self._pending.pop(posted, None) is not None:
            self._leave(1, size)

    def _begin(self, item: Outgoing, waits: _Waits) -> None:
        self._pending[waits] = item
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="atleastonce-publisher")
        self._bell.ring()

    async def publish_many(self, items: Sequence[Outgoing], *, within: float) -> list[Outcome]:
        """Send a list in order, in batches that fit the window; one outcome each.

        Once a part of the list has been sent, nothing raises: what could not follow is ``unknown`` with
        `Code.OVERLOADED` or `Code.CLOSED`.

        Raises:
            Overloaded, Closed: as `publish`; nothing was sent.
        """
        outcomes: list[Outcome] = []
        for batch, size in self._batches(items):
            try:
                if not self._enters(len(batch), size):
                    await self._wait(len(batch), size, within)
                try:
                    await self._paced(batch, outcomes)
                finally:
                    self._leave(len(batch), size)
            except (Overloaded, Closed) as error:
                if not outcomes:
                    raise
                code = Code.OVERLOADED if isinstance(error, Overloaded) else Code.CLOSED
                outcomes += [unknown(code, f"not sent: {error}")] * (len(items) - len(outcomes))
                break
        return outcomes

    async def close(self, within: float = math.inf) -> None:
        """Refuse new publishes and wait for the pending ones. Idempotent.

        Args:
            within: for so many seconds what the rate still holds may leave; what has not by then is not sent, and its publish
                raises `Closed`.
        """
        self._closed = True
        for waiter, _, _ in self._waiting:
            if not waiter.done():
                waiter.set_exception(Closed("the broker was closed"))
        self._waiting.clear()
        loop = asyncio.get_running_loop()
        timer = None if self._rate is None or within == math.inf else loop.call_later(within, self._give_up)
        try:
            while self._messages:
                if self._empty is None:
                    self._empty = loop.create_future()
                await asyncio.wait([self._empty])
        finally:
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _give_up(self) -> None:
        self._given_up = True
        self._let_in.notify()

    @property
    def pending(self) -> int:
        """How many messages are sent and unconfirmed, or waiting to be sent."""
        return self._messages

    # ---------------------------------------------------------------------------------------- the window

    def _enters(self, messages: int, size: int) -> bool:
        """Whether there is room now; then it is taken."""
        if self._closed:
            raise Closed("the broker was closed")
        if self._waiting or not self._fits(messages, size):
            return False
        self._messages += messages
        self._bytes += size
        return True

    async def _wait(self, messages: int, size: int, within: float) -> None:
        """Until it has entered."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (turn, messages, size)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(within):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # its turn came meanwhile
                if isinstance(error, TimeoutError):
                    return
                self._leave(messages, size)
                raise
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._admit()  # who waited behind it may fit
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"{self._messages} publishes are pending, and there was no room for {messages} more within {within:g} s; "
                    "publish less, or wait longer"
                ) from None
            raise

    def _fits(self, messages: int, size: int) -> bool:
        window = self._window
        return not self._messages or (
            self._messages + messages <= window.messages and self._bytes + size <= window.bytes
        )

    def _leave(self, messages: int, size: int) -> None:
        self._messages -= messages
        self._bytes -= size
        if self._waiting:
            self._admit()
        if self._empty is not None and not self._messages:
            self._empty.set_result(None)
            self._empty = None

    def _admit(self) -> None:
        """Take those who wait onto the account, in order, as far as they fit."""
        while self._waiting:
            turn, messages, size = self._waiting[0]
            if not turn.done():
                if not self._fits(messages, size):
                    return
                self._messages += messages
                self._bytes += size
                turn.set_result(None)
            self._waiting.popleft()

    def _batches(self, items: Sequence[Outgoing]) -> Iterator[tuple[Sequence[Outgoing], int]]:
        """``items`` in parts that the window takes, each with its bytes."""
        most = min(self._max_batch, self._window.messages)
        each = sizes([item.message for item in items])
        if 0 < len(items) <= most and (whole := sum(each)) <= self._window.bytes:  # as most lists
            yield items, whole
            return
        begin = size = 0
        for end, more in enumerate(each):
            if end > begin and (end - begin == most or size + more > self._window.bytes):
                yield items[begin:end], size
                begin, size = end, 0
            size += more
        if begin < len(items):
            yield items[begin:], size

    # ------------------------------------------------------------------------------------------- sending

    async def _run(self) -> None:
        while True:
            await self._bell.heard()
            while self._pending:
                if self._rate is None:
                    await self._send_batch(self._next_batch(self._max_batch))
                    continue
                try:
                    most = await self._granted(self._rate, len(self._pending))
                except Closed as error:
                    self._refuse(error)
                    continue
                batch = self._next_batch(most)  # some may have been cancelled meanwhile
                self._rate.give_back(most - len(batch))
                if batch:
                    await self._send_batch(batch)

    def _refuse(self, error: Closed) -> None:
        """None of what is pending leaves."""
        batch, self._pending = self._pending, {}
        for waits in batch:
            if not waits.done():
                waits.set_exception(error)

    def _next_batch(self, most: int) -> dict[_Waits, Outgoing]:
        batch = self._pending
        if len(batch) <= most:
            self._pending = {}
            return batch
        batch = dict(islice(batch.items(), most))
        for waits in batch:
            del self._pending[waits]
        return batch

    async def _granted(self, rate: TokenBucket, most: int) -> int:
        """How many of ``most`` leave together: one at least, once it may.

        Raises:
            Closed: it was given up first.
        """
        while True:
            if self._given_up:
                raise Closed("the broker was closed, and its rate limit had not let this leave; it was not sent")
            if granted := rate.take(min(most, self._max_batch)):
                return granted
            await self._let_in.wait(rate.wait)

    async def _paced(self, batch: Sequence[Outgoing], outcomes: list[Outcome]) -> None:
        """Send ``batch`` no faster than may be, and add what was answered to ``outcomes``. Raises as `_ask`; what was answered
        before is in ``outcomes`` then."""
        if self._rate is None:
            outcomes += await self._ask(batch)
            return
        begin = 0
        while begin < len(batch):
            granted = await self._granted(self._rate, len(batch) - begin)
            outcomes += await self._ask(batch[begin : begin + granted])
            begin += granted

    async def _send_batch(self, batch: dict[_Waits, Outgoing]) -> None:
        try:
            outcomes = await self._ask(list(batch.values()))
        except asyncio.CancelledError:
            for waits in batch:
                waits.cancel()
            raise
        except Closed as error:
            for waits in batch:
                if not waits.done():
                    waits.set_exception(error)
            return
        posted = size = 0
        for waits, outcome in zip(batch, outcomes, strict=True):
            if isinstance(waits, _Posted):  # off the account all at once
                posted += 1
                size += waits.size
                waits.told(outcome)
            elif not waits.done():
                waits.set_result(outcome)
        if posted:
            self._leave(posted, size)

    async def _ask(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """One outcome each, whatever the adapter does.

        Raises:
            Closed: the adapter is not open; nothing was attempted.
        """
        closed: Closed | None = None

        async def send(items: Sequence[Outgoing]) -> Sequence[Outcome]:
            nonlocal closed
            try:
                return await self._send(items)
            except Closed as error:
                closed = error
                return ()

        outcomes = await ask(send, batch)
        if closed is not None:
            raise closed
        return outcomes


class Posted(Protocol):
    """What was handed over."""

    def withdraw(self) -> None:
        """Nobody wants it any more: if it has not left, it does not leave, and nobody is told."""


class _Posted:
    """In the place of a future where nobody awaits one: that would cost a future and a turn of the loop for each message."""

    __slots__ = ("_publisher", "size", "told")

    def __init__(self, publisher: Publisher, size: int, told: Callable[[Outcome], None]) -> None:
        self._publisher = publisher
        self.size = size
        self.told = told

    def withdraw(self) -> None:
        self._publisher._withdraw(self, self.size)

    def done(self) -> bool:
        return False

    def set_result(self, outcome: Outcome) -> None:
        self._publisher._leave(1, self.size)
        self.told(outcome)

    def set_exception(self, _: Exception) -> None:
        self.set_result(unknown(Code.CLOSED, "the broker was closed"))

    def cancel(self) -> None:
        self.set_result(unknown(Code.CLOSED, "the broker was closed"))


_Waits: TypeAlias = "asyncio.Future[Outcome] | _Posted"
