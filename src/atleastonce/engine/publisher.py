"""Publishing within bounds: single publishes that are pending together leave together, and no more are pending than
the window takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import Outcome, Outgoing, Window
from atleastonce.engine.wake import Bell
from atleastonce.errors import Closed, Overloaded

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]


class Publisher:
    """Sends through an adapter, with bounded pending messages and bytes.

    There is no linger: a lone publish leaves at once, and what comes in during its round trip makes up the next
    batch. So batches are as large
    as the broker is slow, and latency is never traded for throughput.

    Args:
        send: the adapter's.
        window: the bound on what is pending. Too small limits throughput to window / round trip; too large only hides
            overload.
        max_batch: the most that leaves in one call.
    """

    def __init__(self, send: Send, window: Window, *, max_batch: int) -> None:
        self._send = send
        self._window = window
        self._max_batch = max_batch
        self._pending: list[tuple[Outgoing, asyncio.Future[Outcome]]] = []
        self._bell = Bell()
        self._task: asyncio.Task[None] | None = None
        self._messages = 0
        self._bytes = 0
        self._blocked: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def publish(self, item: Outgoing, *, within: float) -> Outcome:
        """Send one message together with whatever else is pending.

        Raises:
            Overloaded: the window stayed full for ``within`` seconds.
            Closed: after `close`.
        """
        size = item.message.size
        await self._enter(1, size, within)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="atleastonce-publisher")
        self._bell.ring()
        try:
            return await future
        finally:
            self._leave(1, size)

    async def publish_many(self, items: Sequence[Outgoing], *, within: float) -> list[Outcome]:
        """Send a list in order, in batches that fit the window; one outcome each. Raises as `publish`."""
        outcomes: list[Outcome] = []
        step = min(self._max_batch, self._window.messages)
        for begin in range(0, len(items), step):
            batch = items[begin : begin + step]
            size = sum(item.message.size for item in batch)
            await self._enter(len(batch), size, within)
            try:
                outcomes += await self._send(batch)
            finally:
                self._leave(len(batch), size)
        return outcomes

    async def close(self) -> None:
        """Refuse new publishes and wait for the pending ones."""
        self._closed = True
        for waiter in self._blocked:
            if not waiter.done():
                waiter.set_exception(Closed("the broker was closed"))
        while self._pending:
            await asyncio.wait([future for _, future in self._pending])
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def pending(self) -> int:
        """How many messages are sent and unconfirmed, or waiting to be sent."""
        return self._messages

    async def _enter(self, messages: int, size: int, within: float) -> None:
        if self._closed:
            raise Closed("the broker was closed")
        while self._messages and (
            self._messages + messages > self._window.messages or self._bytes + size > self._window.bytes
        ):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._blocked.append(waiter)
            begin = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(within):
                    await waiter
            except TimeoutError:
                raise Overloaded(
                    f"{self._messages} publishes are pending and none was confirmed for {within:g} s; publish less, or wait longer"
                ) from None
            finally:
                if waiter in self._blocked:
                    self._blocked.remove(waiter)
            within -= asyncio.get_running_loop().time() - begin
        self._messages += messages
        self._bytes += size

    def _leave(self, messages: int, size: int) -> None:
        self._messages -= messages
        self._bytes -= size
        while self._blocked:
            waiter = self._blocked.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _run(self) -> None:
        while True:
            await self._bell.heard()
            while self._pending:
                batch, self._pending = self._pending[: self._max_batch], self._pending[self._max_batch :]
                await self._send_batch(batch)

    async def _send_batch(self, batch: list[tuple[Outgoing, asyncio.Future[Outcome]]]) -> None:
        try:
            outcomes = await self._send([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to everyone whose message it was
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
