"""Requests being read over core NATS: a queue group, a buffer, and nothing that is kept.

Core NATS cannot be told to wait, so what waits is buffered here, far beyond the window but within its bytes. A full buffer stops
listening: others of the group take over, and if there are none whoever asks is told so at once. A request that is given back is
published again, to the others.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import subject_of
from atleastonce.adapters.nats.question import Question
from atleastonce.adapters.nats.replies import Replies
from atleastonce.channels import Source
from atleastonce.contract import (
    ACK,
    OK,
    Delivery,
    Listener,
    Outcome,
    Release,
    Retry,
    Settlement,
    Subscription,
    Verdict,
    Window,
)
from atleastonce.errors import AtLeastOnceError, Closed, PermissionDenied
from atleastonce.silence import Owed
from atleastonce.wake import Signal

_BUFFERED: Final = 64
"""So many times the window's messages. Fewer: a burst finds nobody listening. More: requests wait here past their time."""

# Asked of every request of a list without a step of Python's for each.
_SIZE = attrgetter("size")


class CoreSubscription(Subscription):
    """Requests to one subject, as one of a group."""

    def __init__(self, source: Source, window: Window, listener: Listener, link: Link) -> None:
        self.on_end: Callable[[CoreSubscription], None] = lambda _: None
        self._source = source
        self._subject = subject_of(source.channel)
        self._most, self._most_bytes = _BUFFERED * window.messages, window.bytes
        self._listener = listener
        self._link = link
        self._replies: Replies | None = None
        self._sid = b""
        self._buffer: deque[Question] = deque()
        self._series, self._number = secrets.token_hex(10), 0
        self._out: set[Question] = set()
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
        # While it is paused it answers late, and not at once with nothing: who reads would ask again and again.
        nothing = self._paused or not self._buffer
        if nothing and not self._closed and self._error is None and max_wait > 0:
            await self._news.wait(max_wait)
        if self._closed:
            raise Closed(f"{self._source.name}: the subscription is closed")
        if self._error is not None:
            raise self._error
        if self._paused:
            return ()
        buffer = self._buffer
        if len(buffer) <= max_messages:
            found = list(buffer)
            buffer.clear()
        else:
            found = [buffer.popleft() for _ in range(max_messages)]
        self._out.update(found)
        return found

    def _took(self, _subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        self._number = number = self._number + 1
        question = Question(self._source, self._series, number, reply, block, body)
        self._bytes = size = self._bytes + question.size
        buffer = self._buffer
        buffer.append(question)  # `after_read` tells who waits for it
        if size >= self._most_bytes or len(buffer) >= self._most:
            self._mute()

    def _keep(self, question: Question) -> None:
        self._buffer.append(question)
        self._news.notify()

    @property
    def _full(self) -> bool:
        return self._bytes >= self._most_bytes or len(self._buffer) >= self._most

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if [verdict for _, verdict in batch].count(ACK) == len(batch):  # as nearly always
            done = self._out.intersection([delivery for delivery, _ in batch])  # what is not was settled before
            self._out -= done
            self._bytes -= sum(map(_SIZE, done))
        else:
            for delivery, verdict in batch:
                self._end(delivery, verdict)
        if not self._sid and not self._full:
            self._listen()
        return [OK] * len(batch)

    def _end(self, delivery: Delivery, verdict: Verdict) -> None:
        if delivery not in self._out or not isinstance(delivery, Question):
            return  # settled before
        self._out.discard(delivery)
        if isinstance(verdict, Retry):
            self._later(delivery, verdict.delay)
            return
        self._bytes -= delivery.size
        if isinstance(verdict, Release):
            self._give_back(delivery)

    def _later(self, delivery: Question, seconds: float) -> None:
        """It waits here: nobody else keeps it."""
        again = delivery.once_more()

        def due() -> None:
            self._timers.discard(timer)
            self._keep(again)

        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), due)
        self._timers.add(timer)

    def _give_back(self, delivery: Question) -> None:
        self._leaving = True  # what comes back to us would go round for ever
        self._mute()
        if self._replies is not None:
            self._replies.wire.put(delivery.published(self._subject))

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        """Nobody else has them, however long it takes: there is no lease."""
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
        self.after_read()  # of the bytes that ended it: there is no other
        self._listener.condition("disconnected", self._link.trouble)

    def denied(self, subject: str, said: str) -> None:
        """The server may mean our subject."""
        if subject == self._subject and "subscription" in said.lower():
            self._error = PermissionDenied(said)
            self._news.notify()

    def after_read(self) -> None:
        """Tell who waits for what one read of the socket has brought."""
        if self._buffer and not self._paused:
            self._news.notify()
