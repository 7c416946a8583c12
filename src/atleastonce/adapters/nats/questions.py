"""Requests being read over core NATS: a queue group, a buffer, and nothing that is kept.

Core NATS cannot be told to wait, so what waits is buffered here, far beyond the window but within its bytes. A full buffer stops
listening: others of the group take over, and if there are none whoever asks is told so at once. A request that is given back is
published again, to the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from atleastonce.adapters.nats.envelope import read_message
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import subject_of
from atleastonce.adapters.nats.replies import Replies
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    Delivery,
    Listener,
    Outcome,
    Release,
    Retry,
    Settlement,
    Subscription,
    Window,
)
from atleastonce.errors import AtLeastOnceError, Closed, PermissionDenied
from atleastonce.message import new_id
from atleastonce.silence import Owed
from atleastonce.wake import Signal

_BUFFERED: Final = 64
"""So many times the window's messages. Fewer: a burst finds nobody listening. More: requests wait here past their time."""

_FOR_A_STREAM: Final = b"\r\nNats-Msg-Id:"


class _Frame:
    """A request as it came: what giving it back needs."""

    __slots__ = ("block", "body", "reply")

    def __init__(self, reply: bytes, block: bytes, body: bytes) -> None:
        self.reply, self.block, self.body = reply, block, body

    def again(self, subject: str) -> bytes:
        """The publish that brings it to somebody else."""
        to = b"%b %b" % (subject.encode(), self.reply + b" " if self.reply else b"")
        block, body = self.block, self.body
        if not block:
            return b"PUB %b%d\r\n%b\r\n" % (to, len(body), body)
        return b"HPUB %b%d %d\r\n%b%b\r\n" % (to, len(block), len(block) + len(body), block, body)


class CoreSubscription(Subscription):
    """Requests to one subject, as one of a group."""

    def __init__(self, source: Source, window: Window, listener: Listener, link: Link) -> None:
        self.on_end: Callable[[CoreSubscription], None] = lambda _: None
        self._source = source
        self._subject = subject_of(source.channel)
        self._window = window
        self._listener = listener
        self._link = link
        self._replies: Replies | None = None
        self._sid = b""
        self._buffer: deque[Delivery] = deque()
        self._out: set[Delivery] = set()
        self._bytes = 0
        self._news = Signal()
        self._timers: set[asyncio.TimerHandle] = set()
        self._error: AtLeastOnceError | None = None
        self._paused = False
        self._leaving = False
        self._closed = False

    async def begin(self, replies: Replies) -> None:
        """Start to listen on this connection, and on each that follows.

        Raises:
            PermissionDenied: the server does not let us.
            Exception: the connection is gone.
        """
        self._link.guests.add(self)
        self.connected(replies)
        await replies.wire.ping()
        if self._error is not None:
            raise self._error

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        if not self._buffer and not self._closed and self._error is None and max_wait > 0:
            await self._news.wait(max_wait)
        if self._closed:
            raise Closed(f"{self._source.name}: the subscription is closed")
        if self._error is not None:
            raise self._error
        if self._paused:
            return ()
        found = [self._buffer.popleft() for _ in range(min(max_messages, len(self._buffer)))]
        self._out.update(found)
        return found

    def _took(self, _subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        message = read_message(block, body, "", time.time())
        if not message.id:
            message = msgspec.structs.replace(message, id=new_id())
        # What has an id for a stream is no question: its reply subject waits for the stream's confirm.
        asker = reply.decode("ascii", "replace") if reply and _FOR_A_STREAM not in block else None
        delivery = Delivery(message, self._source, self._source.name, "", 0, _Frame(reply, block, body), 1, 0.0, asker)
        self._bytes += delivery.size
        self._keep(delivery)
        if self._full:
            self._mute()

    def _keep(self, delivery: Delivery) -> None:
        self._buffer.append(delivery)
        self._news.notify()

    @property
    def _full(self) -> bool:
        window = self._window
        return len(self._buffer) >= _BUFFERED * window.messages or self._bytes >= window.bytes

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        for delivery, verdict in batch:
            if delivery not in self._out:
                continue  # settled before
            self._out.discard(delivery)
            if isinstance(verdict, Retry):
                self._later(delivery, verdict.delay)
                continue
            self._bytes -= delivery.size
            if isinstance(verdict, Release):
                self._give_back(delivery)
        if not self._sid and not self._full:
            self._listen()
        return [OK] * len(batch)

    def _later(self, delivery: Delivery, seconds: float) -> None:
        """It waits here: nobody else keeps it."""
        token = delivery.token
        again = Delivery(
            delivery.message, self._source, self._source.name, "", 0, token, delivery.count + 1, 0.0, delivery.raw
        )

        def due() -> None:
            self._timers.discard(timer)
            self._keep(again)

        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), due)
        self._timers.add(timer)

    def _give_back(self, delivery: Delivery) -> None:
        self._leaving = True  # what comes back to us would go round for ever
        self._mute()
        if self._replies is not None:
            self._replies.wire.put(delivery.token.again(self._subject))

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        """Nobody else has it, however long it takes."""
        until = time.monotonic() + seconds
        for delivery in deliveries:
            delivery.lease_until = until
        return [OK] * len(deliveries)

    # ------------------------------------------------------------------------------------------------------------- life

    @property
    def overdue(self) -> Owed | None:
        return None if self._replies is None else self._replies.wire.silence.look()

    async def pause(self) -> None:
        self._paused = True
        self._mute()

    async def resume(self) -> None:
        self._paused = False
        self._leaving = False
        if not self._sid:
            self._listen()
        if self._buffer:
            self._news.notify()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.notify()
        self._mute()
        for timer in self._timers:
            timer.cancel()
        for delivery in self._buffer:
            self._give_back(delivery)
        self._buffer.clear()
        self._link.guests.discard(self)
        self.on_end(self)

    def _listen(self) -> None:
        replies = self._replies
        if replies is None or self._paused or self._leaving or self._closed:
            return
        self._sid = replies.wire.listen(self._subject, self._took, self._source.group_name)

    def _mute(self) -> None:
        if self._sid and self._replies is not None:
            wire, sid = self._replies.wire, self._sid
            wire.mute(sid)  # what is on its way still comes
            wire.ping().add_done_callback(lambda _: wire.forget(sid))
        self._sid = b""

    # ----------------------------------------------------------------------------------------------------- link's guest

    def connected(self, replies: Replies) -> None:
        """Listen there; answers to what came before go there as well."""
        if replies is not self._replies:
            self._replies, self._sid = replies, b""
            if not self._full:
                self._listen()
            self._listener.condition("connected", self._link.config.address)

    def disconnected(self, reason: Exception) -> None:
        """Nothing is lost with it but what is asked meanwhile."""
        self._replies, self._sid = None, b""
        self._listener.condition("disconnected", self._link.trouble)

    def denied(self, subject: str, said: str) -> None:
        """The server may mean our subject."""
        if subject == self._subject and "subscription" in said.lower():
            self._error = PermissionDenied(said)
            self._news.notify()

    def after_read(self) -> None:
        """Each message was taken when it came."""
