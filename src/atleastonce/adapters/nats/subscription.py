"""One source being read: requests ahead of need, a buffer, and verdicts that are answered.

Verdicts go to a subject and not through a channel: a delivery outlives the connection that it came through.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from atleastonce.adapters.nats import faults, telling
from atleastonce.adapters.nats.delivery import EXTEND, GIVE_BACK, OPEN, OVER, SETTLED, NatsDelivery, words_for
from atleastonce.adapters.nats.holding import Holding
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.pulls import Pulls, Said
from atleastonce.adapters.nats.replies import Replies
from atleastonce.adapters.nats.topology import Reader
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    STALE,
    Code,
    Delivery,
    Listener,
    Outcome,
    Scope,
    Settlement,
    Subscription,
    Window,
    rejected,
    unknown,
)
from atleastonce.errors import AtLeastOnceError, Closed, ConnectionLost, NotFound, PermissionDenied
from atleastonce.silence import Owed
from atleastonce.wake import Signal

log = logging.getLogger("atleastonce.nats")

_EPOCHS = itertools.count(1)

_SLACK: Final = 16 * 1024
"""Bytes beside the largest message that a request always has room for, so that none is too large to be asked for."""

_ACK: Final = b"$JS.ACK."

_AWAY = unknown(Code.UNAVAILABLE, "no connection")
_CANNOT = rejected(Code.INVALID, "NATS has no dead-letter net: copy the message, then acknowledge it")


class NatsSubscription(Subscription):
    """Deliveries of one durable."""

    def __init__(self, source: Source, window: Window, listener: Listener, link: Link, reader: Reader) -> None:
        self.on_end: Callable[[NatsSubscription], None] = lambda _: None
        self.stale = 0
        """Settlements of earlier epochs, or after their lease, that were dropped."""
        self._source = source
        self._window = window
        self._listener = listener
        self._link = link
        self._reader = reader
        self._next = f"{link.config.api}.CONSUMER.MSG.NEXT.{reader.stream}.{reader.durable}"
        self._tell = telling.confirmed if link.config.acks == "confirmed" else telling.flushed
        self._timeout = link.config.request_timeout
        # It began to run a little before the message was here. A verdict that is late by that little harms nobody: what is
        # acknowledged was handled, though somebody else may be handling it again.
        self._lease = reader.ack_wait
        self._epoch = next(_EPOCHS)
        self._pulls = Pulls(window, link.config.pull_expires, reader.config)
        self._holding = Holding(window)
        self._going: set[telling.TellingBatch] = set()
        self._told_large = False
        self._replies: Replies | None = None
        self._ready = asyncio.Event()
        self._sid = b""
        self._inbox = b""
        self._requests = 0
        self._news = Signal()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: AtLeastOnceError | None = None
        self._paused = False
        self._closed = False

    def begin(self, replies: Replies) -> None:
        """Start to listen on this connection; requests go with `receive`."""
        self._replies = replies
        self._listen(replies)
        self._ready.set()

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + max_wait
        while True:
            if self._closed:
                raise Closed(f"{self._source.name}: the subscription is closed")
            if self._error is not None:
                raise self._error
            found = self._holding.hand_out(max_messages)
            if not self._paused:
                self._pull()
            if self._pulls.recovered:
                self._listener.condition("unblocked", "")
            if found:
                return found
            now = time.monotonic()
            if now >= deadline:
                return ()
            left = min(deadline - now, max(0.01, self._pulls.patience(now)), self._holding.until_room(now))
            await self._news.wait(left)
            if not self._holding.buffer and self._pulls.outstanding and self._pulls.patience(time.monotonic()) <= 0:
                self._suspect()

    def _pull(self) -> None:
        replies = self._replies
        if replies is None or not self._ready.is_set():
            return
        holding = self._holding
        if not holding.room:
            holding.drop_ended()
        batch = self._pulls.wanted(holding.room)
        if batch:
            self._requests += 1
            room = max(self._window.bytes - holding.bytes, replies.wire.largest + _SLACK)
            question = self._pulls.question(batch, room)
            line = b"PUB %b %b%d %d\r\n%b\r\n"
            replies.wire.put(line % (self._next.encode(), self._inbox, self._requests, len(question), question))

    def _arrived(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        if not reply:
            self._told(self._pulls.status(block))
            return
        if not reply.startswith(_ACK):  # no consumer's: somebody publishes to our inbox
            return
        now = time.monotonic()
        try:
            delivery = NatsDelivery(self._source, self._epoch, now + self._lease, subject, reply, block, body)
        except (ValueError, IndexError):  # likewise
            return
        self._pulls.arrived(now)
        self._holding.arrived(delivery)

    def _told(self, said: Said) -> None:
        pulls = self._pulls
        if said is Said.SUSPECT:
            if pulls.refused == 2:
                self._listener.condition("blocked", f"the consumer refuses requests: {pulls.refusal}")
            self._suspect()
        elif said is Said.LARGE and not self._told_large:
            self._told_large = True
            text = "%s: the next message is larger than the %d bytes that a request may bring; such are asked for one by one"
            log.warning(text, self._source.name, pulls.room)
        if said in (Said.ENDED, Said.LARGE):
            self._news.notify()

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(batch)
        replies = await self._connection()
        outcomes: list[Outcome] = [OK] * len(batch)
        sent: list[tuple[int, NatsDelivery, bytes]] = []
        repeated: list[int] = []
        now = time.monotonic()
        for index, (delivery, verdict) in enumerate(batch):
            if delivery.epoch != self._epoch or not isinstance(delivery, NatsDelivery):
                self.stale += 1
                outcomes[index] = STALE
            elif delivery.state == SETTLED:
                repeated.append(index)
            elif self._is_over(delivery, now):
                self.stale += 1
                outcomes[index] = STALE
            elif replies is None:
                outcomes[index] = _AWAY
            elif (words := words_for(verdict)) is None:
                outcomes[index] = _CANNOT
            else:
                delivery.state = SETTLED
                sent.append((index, delivery, words))
        if replies is not None and sent:
            await self._settle(replies, sent, outcomes)
        for index in repeated:
            if batch[index][0].state != SETTLED:  # type: ignore[attr-defined]
                outcomes[index] = telling.CUT
        self._news.notify()  # the window has room
        return outcomes

    def _is_over(self, delivery: NatsDelivery, now: float) -> bool:
        if delivery.state == OPEN and delivery.lease_until > now and self._error is None:
            return False
        delivery.lost = True
        delivery.state = OVER
        self._holding.drop(delivery)
        return True

    async def _settle(
        self, replies: Replies, sent: Sequence[tuple[int, NatsDelivery, bytes]], outcomes: list[Outcome]
    ) -> None:
        try:
            told = [(delivery, words) for _, delivery, words in sent]
            answers = await self._tell(replies, told, self._timeout, self._going)
        except BaseException:  # cancelled: who settles again is answered by the consumer
            for _, delivery, _ in sent:
                delivery.state = OPEN
            raise
        if isinstance(
            self._error, PermissionDenied
        ):  # said beside the stream of answers, also where none was asked for
            answers = [rejected(Code.PERMISSION, str(self._error), scope=Scope.SUBSCRIPTION)] * len(answers)
        for (index, delivery, _), answer in zip(sent, answers, strict=True):
            outcomes[index] = answer
            if answer is OK:
                self._holding.drop(delivery)
            else:
                delivery.state = OPEN
        if telling.NO_CONSUMER in answers:
            self._suspect()

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        """As `Subscription.extend`; the length is the consumer's own ``ack_wait``, which ``seconds`` cannot change."""
        if self._closed:
            return [STALE] * len(deliveries)
        replies = await self._connection()
        now = time.monotonic()
        good = [
            each
            for each in deliveries
            if isinstance(each, NatsDelivery) and each.epoch == self._epoch and not self._is_over(each, now)
        ]
        answer = _AWAY
        if replies is not None and good:
            # Answered by the server that is there: a renewal that got lost behind it is repeated long before the lease ends.
            (answer, *_) = await telling.flushed(replies, [(each, EXTEND) for each in good], self._timeout, self._going)
            if answer is OK:
                for each in good:
                    each.lease_until = now + self._lease
        held = set(map(id, good))
        return [answer if id(each) in held else STALE for each in deliveries]

    async def _connection(self) -> Replies | None:
        """The connection once the consumer was found on it; None if that takes too long."""
        if not self._ready.is_set() and self._error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._ready.wait()
        return self._replies if self._ready.is_set() else None

    # -------------------------------------------------------------------------------------------------------- lifecycle

    @property
    def overdue(self) -> Owed | None:
        replies = self._replies  # without a connection the state says so
        return None if replies is None else replies.wire.silence.look(self._pulls.owed)

    async def pause(self) -> None:
        if self._paused or self._closed:
            return
        self._paused = True
        await self._ask_no_more()

    async def leave(self) -> None:
        if self._closed:
            return
        self._paused = True
        await self._stop_fetching()

    async def leave_with_rest(self) -> Sequence[Delivery]:
        if self._closed:
            return ()
        if not self._paused:
            self._paused = True
            await self._ask_no_more()
        return self._holding.hand_out(len(self._holding.buffer))

    async def resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if self._replies is not None and not self._sid and not self._closed:
            self._listen(self._replies)
        self._news.notify()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.notify()
        for task in list(self._tasks):
            task.cancel()
        await self._stop_fetching()
        self._ready.clear()
        self.on_end(self)

    async def _ask_no_more(self) -> None:
        """Returns when what was on its way is here."""
        replies, sid = self._replies, self._sid
        self._sid = b""
        if replies is not None and sid:
            replies.wire.mute(sid)
            await telling.heard(replies, self._timeout)
            replies.wire.forget(sid)
        self._pulls.forget()

    async def _stop_fetching(self) -> None:
        """Ask for no more, and give back what has come and was not handed out."""
        await self._ask_no_more()
        replies = self._replies
        kept = self._holding.take_back()
        for each in kept:
            each.state = SETTLED
        if kept and replies is not None and self._error is None:
            await self._tell(replies, [(each, GIVE_BACK) for each in kept], self._timeout, self._going)

    def _listen(self, replies: Replies) -> None:
        """A new inbox: requests to an old one are dropped by the server, for nobody listens there."""
        inbox = f"{self._link.config.inbox_prefix}.{secrets.token_hex(11)}."
        self._inbox = inbox.encode()
        self._sid = replies.wire.listen(f"{inbox}*", self._arrived)
        self._pulls.forget()

    # ----------------------------------------------------------------------------------------------- told by the link

    def after_read(self) -> None:
        """Something was read from the socket."""
        if self._holding.buffer:
            self._news.notify()

    def disconnected(self, reason: Exception) -> None:
        """The connection is gone. What is out stays ours: verdicts will go through the next one."""
        self._replies = None
        self._sid = b""
        self._ready.clear()
        self._pulls.forget()
        if self._error is None and not self._closed:
            self._listener.condition("disconnected", faults.classify(reason).detail)

    def connected(self, replies: Replies) -> None:
        """There is a connection again."""
        self._spawn(self._find_again(replies))

    def denied(self, subject: str, said: str) -> None:
        """The server dropped something that may be ours."""
        for batch in self._going:
            batch.denied(subject, said)
        # $JS.ACK.stream.consumer... or $JS.ACK.domain.account.stream.consumer...
        verdict = subject.startswith(_ACK.decode()) and f".{self._reader.stream}.{self._reader.durable}." in subject
        if verdict or subject in (self._next, f"{self._inbox.decode()}*"):
            # Who may not acknowledge would handle the same messages for ever.
            self._end(PermissionDenied(f"{self._source.name}: {said}"))

    async def _find_again(self, replies: Replies) -> None:
        """Go on where we were, unless it is another consumer by now: our verdicts would hit its messages."""
        while self._error is None and replies.wire.lost is None:
            if await self._look():
                self._replies = replies
                if not self._paused:
                    self._listen(replies)
                self._ready.set()
                self._listener.condition("connected", self._link.config.address)
                self._news.notify()
                return
            await asyncio.sleep(0.25)

    def _suspect(self) -> None:
        """Look whether the consumer is still there; if it is, ask anew."""
        if not self._tasks and self._error is None and not self._closed:
            self._spawn(self._inspect())

    async def _inspect(self) -> None:
        replies, sid = self._replies, self._sid
        there = await self._look()
        same = replies is self._replies and sid and sid == self._sid
        # Silent still, so it was not our own loop that could not hear.
        silent = self._pulls.outstanding and self._pulls.patience(time.monotonic()) <= 0
        if replies is not None and there and same and silent:
            replies.wire.mute(sid)
            self._listen(replies)
            await telling.heard(replies, self._timeout)  # what was on its way to the old inbox is here now
            replies.wire.forget(sid)
        self._news.notify()

    async def _look(self) -> bool:
        """Whether the consumer is there and the one that we know; ends the subscription if it certainly is not."""
        name = self._source.name
        try:
            found = await self._link.ask(f"CONSUMER.INFO.{self._reader.stream}.{self._reader.durable}")
        except faults.ApiFailure as failure:
            if failure.error.code == 404:
                self._end(NotFound(f"{name}: {failure}"))
            return False
        except PermissionDenied:
            return True  # we may read and not look
        except Exception:  # noqa: BLE001 - nobody can tell now; it is asked again
            return False
        self._pulls.limit(found["config"])
        if found.get("created") != self._reader.created:
            self._end(ConnectionLost(f"{name}: the consumer was deleted and made again"))
            return False
        return True

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"nats {self._source.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, error: AtLeastOnceError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._holding.clear()
        self._ready.clear()
        self._news.notify()
        self._listener.lost(None)
        self._listener.condition("disconnected", str(error))
