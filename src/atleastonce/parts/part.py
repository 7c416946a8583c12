"""One part being read: what came of it, and what of that is out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection

from atleastonce.channels import Source
from atleastonce.contract import RELEASE, Delivery, Listener, Subscription, Window
from atleastonce.errors import AtLeastOnceError, ConnectionLost

Subscribe = Callable[[Source, Window, Listener], Awaitable[Subscription]]

_PATIENCE = 5.0
"""Seconds that one receive waits. It returns as soon as anything is there, and another one begins then."""
_GRACE = 30.0
"""Seconds of one drain. What runs for longer is waited for by the next one."""


class Part:
    """A part of a source.

    Args:
        whole: the source, whose deliveries these are to everybody above.
        source: the part of it.
        window: its share.
        listener: of the whole.
        subscribe: the adapter's.
        came: told that something lies in ``buffer``.
        failed: told what ended it.

    Attributes:
        buffer: what was received and not handed on: one receive's at most.
        out: what was handed on and is not settled.
        busy: at how many looks in a row something of it was in hand.
        moving: whether it is being given up.
    """

    def __init__(
        self,
        whole: Source,
        source: Source,
        window: Window,
        listener: Listener,
        subscribe: Subscribe,
        came: Callable[[Part], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.buffer: deque[Delivery] = deque()
        self.out: set[Delivery] = set()
        self.busy = 0
        self.moving = False
        self.subscription: Subscription | None = None
        self._whole = whole
        self._source = source
        self._stream = source.channel.name
        self._window = window
        self._listener = listener
        self._subscribe = subscribe
        self._came = came
        self._failed = failed
        self._wanted = asyncio.Event()
        self._paused = False
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Subscribe. Raises as `Adapter.subscribe`."""
        self.subscription = await self._subscribe(self._source, self._window, _Relay(self._listener, self._stream))
        if self._paused:
            await self.subscription.pause()

    def start(self) -> None:
        """Begin to receive."""
        self._want()
        self._reading = asyncio.create_task(self._read(), name=f"atleastonce-part-{self._source}")

    async def _read(self) -> None:
        try:
            while self.subscription is not None:
                await self._wanted.wait()
                found = await self.subscription.receive(self._window.messages, _PATIENCE)
                if found:
                    for delivery in found:
                        delivery.source = self._whole
                        delivery.stream = self._stream
                    self._wanted.clear()
                    self.buffer.extend(found)
                    self._came(self)
        except asyncio.CancelledError:
            if self._reading is not None:
                self._failed(ConnectionLost("something inside the client was cancelled"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever ended it is told by `receive`
            self._failed(error)

    def take(self, most: int) -> list[Delivery]:
        """Hand on up to ``most`` of what came. What lay here until its lease was over is not handed on: somebody else may have
        it."""
        buffer, now = self.buffer, time.monotonic()
        found: list[Delivery] = []
        while buffer and len(found) < most:
            delivery = buffer.popleft()
            if not delivery.lost and (not delivery.lease_until or delivery.lease_until > now):
                found.append(delivery)
        self.out.update(found)
        if not buffer:
            self._want()
        return found

    def _want(self) -> None:
        if not self._paused:
            self._wanted.set()

    async def pause(self) -> None:
        """See `Subscription.pause`."""
        self._paused = True
        self._wanted.clear()
        if self.subscription is not None:
            await self.subscription.pause()

    async def resume(self) -> None:
        """See `Subscription.resume`."""
        self._paused = False
        if self.subscription is not None:
            await self.subscription.resume()
        if not self.buffer:
            self._want()

    async def leave(self) -> None:
        """Let what runs end, give back the rest, and let go of it: whoever stands by has it next."""
        await self._stop()
        loop = asyncio.get_running_loop()
        while True:
            end = loop.time() + _GRACE
            await self._listener.drain({self._stream}, _GRACE)
            if loop.time() < end:  # else something may still run
                break
        await self._let_go()

    async def retire(self) -> None:
        """See `Subscription.leave`. Where nothing is out it is let go of at once: whoever stands by does not wait for what runs in
        other parts."""
        self._paused = True
        self._wanted.clear()
        if self.subscription is not None:
            await self.subscription.leave()
        await self._stop()
        if not self.out:
            await self._let_go()

    async def close(self) -> None:
        """Let go of it. What was handed on and is unsettled is left to its lease, or to the broker's notice of our leaving."""
        await self._stop()
        await self._let_go()

    async def _stop(self) -> None:
        """Receive nothing more."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
        kept = list(self.buffer)
        self.buffer.clear()
        if kept and self.subscription is not None:
            with contextlib.suppress(AtLeastOnceError):  # dead already: the broker gives them back by itself
                await self.subscription.settle([(delivery, RELEASE) for delivery in kept])

    async def _let_go(self) -> None:
        self.out.clear()
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            await subscription.close()


class _Relay:
    """What the subscription of one part tells, told to who reads the whole."""

    def __init__(self, listener: Listener, stream: str) -> None:
        self._listener = listener
        self._stream = stream

    async def drain(self, streams: Collection[str], grace: float) -> None:
        await self._listener.drain({self._stream}, grace)

    def lost(self, streams: Collection[str] | None) -> None:
        self._listener.lost({self._stream})

    def condition(self, state: str, detail: str) -> None:
        self._listener.condition(state, detail)
