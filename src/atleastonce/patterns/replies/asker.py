"""Asking: one inbox for a process, one future for each request that waits, and one timer for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from atleastonce.contract import Code, Outcome, Outgoing, Replies, Reply, ReplyInbox, Status
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.publisher import Posted
from atleastonce.errors import (
    BrokerUnavailable,
    Closed,
    DecodeError,
    NoResponder,
    Overloaded,
    QuorumMissed,
    RemoteError,
    RequestTimeout,
)
from atleastonce.message import Message
from atleastonce.patterns.hops import one_line
from atleastonce.patterns.replies.letters import correlation_of, error_in, request_of
from atleastonce.patterns.replies.table import Table
from atleastonce.patterns.replies.waiters import One, Several, Waiter

# Between two attempts to open an inbox.
_AGAIN = Backoff("100ms", maximum="2s")

_NOBODY = frozenset({Code.NOT_FOUND, Code.UNROUTABLE})


class Post(Protocol):
    """`Publisher.post`."""

    async def __call__(self, item: Outgoing, told: Callable[[Outcome], None], *, within: float) -> Posted: ...


class Asker:
    """All requests of one connection.

    Args:
        replies: how answers come back.
        post: sends a request.
        refused: told of a request that the broker refused, and makes the exception.
        limit: how many may wait at once.
    """

    def __init__(
        self,
        replies: Replies,
        post: Post,
        refused: Callable[[Outgoing, Outcome], Exception],
        limit: int,
    ) -> None:
        self.table: Table[Waiter] = Table(limit)
        self._replies = replies
        self._post = post
        self._refused = refused
        self._limit = limit
        self._inbox: ReplyInbox | None = None
        self._opening: asyncio.Task[ReplyInbox] | None = None  # nobody's own: who stops waiting does not end it
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, item: Outgoing, within: float) -> Message:
        """One answer to ``item``.

        Raises:
            RequestTimeout, RemoteError, NoResponder, Overloaded, Closed, Rejected: as named.
        """
        waiter = One()
        await self._wait(item, waiter, within)
        message = waiter.message
        if message is None:
            raise RequestTimeout(_no_answer(item, within, waiter))
        error = error_in(message)
        if error is not None:
            raise error
        return message

    async def gather(
        self, item: Outgoing, within: float, at_least: int | None, read: Callable[[Message], Any]
    ) -> tuple[list[Any], list[RemoteError | DecodeError]]:
        """The answers of ``at_least`` responders, each as ``read`` gives it, as soon as there are so many; None: all that come in
        time. One for which ``read`` raises `DecodeError` is one of the errors.

        Raises:
            QuorumMissed: fewer answered.
            NoResponder, Overloaded, Closed, Rejected: as named.
        """
        waiter = Several(at_least, read)
        await self._wait(item, waiter, within)
        if at_least is not None and len(waiter.replies) < at_least:
            text = f"{len(waiter.replies)} of {at_least} answers to {_named(item)} within {within:g} s"
            if waiter.errors:
                text += f", and {len(waiter.errors)} errors ({one_line(str(waiter.errors[0]))})"
            raise QuorumMissed(text, waiter.replies, waiter.errors)
        return waiter.replies, waiter.errors

    async def close(self) -> None:
        """Nobody waits any more, and the inbox goes. Idempotent."""
        self._closed = True
        for waiter in self.table.waiting():
            waiter.fail(Closed("the broker was closed while a request waited for its answer"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opening is not None:
            self._opening.cancel()  # it takes back what it has made so far
            await asyncio.wait((self._opening,))
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            await inbox.close()

    async def _wait(self, item: Outgoing, waiter: Waiter, within: float) -> None:
        """Send ``item`` and wait until ``waiter`` is done, or ``within`` seconds have passed. The time begins now: a broker
        that is away must not keep anybody longer."""
        loop = asyncio.get_running_loop()
        end, deadline = loop.time() + within, time.time() + within
        left, inbox = within, self._inbox
        if inbox is None:
            inbox = await self._opened(item, end, within)
            left = max(0.0, end - loop.time())  # that has taken its part
        table = self.table
        if table.full:
            raise Overloaded(
                f"not sent: {self._limit} requests are waiting for their answers; ask less, or raise max_requests"
            )
        correlation = table.add(waiter, end)
        if self._timer is None or end < self._timer.when():
            self._set_timer(end)
        answered = satisfied = False
        posted: Posted | None = None
        try:
            asked = request_of(item, inbox.address(correlation), correlation, deadline)
            posted = await self._post(asked, lambda outcome: self._told(item, waiter, outcome), within=left)
            await waiter.future
            answered, satisfied = waiter.answered, waiter.satisfied
        finally:
            if not answered:  # else there is nothing left of it
                waiter.future.cancel()  # if it is not done: what is told later is told nobody
                if posted is not None:  # what nobody waits for any more must not hold up those that somebody waits for
                    posted.withdraw()
                table.gone(correlation, satisfied=satisfied)

    def _set_timer(self, end: float) -> None:
        """Ring at ``end``, and not before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(end, self._ring)

    def _ring(self) -> None:
        assert self._timer is not None  # noqa: S101 - it has just rung
        now = max(self._timer.when(), asyncio.get_running_loop().time())  # a loop may be a tick of its clock too early
        self._timer = None
        for waiter in self.table.due(now):
            waiter.done()
        if (end := self.table.next_end()) is not None:
            self._set_timer(end)

    async def _opened(self, item: Outgoing, end: float, within: float) -> ReplyInbox:
        """The inbox. Opening it may take longer than this request waits, and goes on for the next one. What fails in passing, as
        where a cluster has no leader yet for what was just made, is tried again for as long."""
        loop = asyncio.get_running_loop()
        tries, why = 0, ""
        while (left := end - loop.time()) > 0 or not tries:
            if self._closed:
                raise Closed("the broker was closed")
            opening = self._opening
            if opening is None:
                opening = self._opening = asyncio.create_task(self._open(), name="atleastonce-inbox")
                opening.add_done_callback(self._has_opened)
            await asyncio.wait((opening,), timeout=left)
            if self._closed:
                raise Closed("the broker was closed")
            if not opening.done():
                break
            try:
                return opening.result()
            except BrokerUnavailable as error:
                why = f": {error}"
            tries += 1
            await asyncio.sleep(max(0.0, min(_AGAIN.wait(tries) or 0.0, end - loop.time())))
        raise RequestTimeout(
            f"request to {_named(item)} not sent: the inbox for its answer could not be opened within {within:g} s{why}"
        )

    def _has_opened(self, opening: asyncio.Task[ReplyInbox]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._inbox = opening.result()

    async def _open(self) -> ReplyInbox:
        try:
            return await self._replies.open_inbox(self._arrived)
        except TimeoutError as error:  # a client's own: not the time of whoever asks
            raise BrokerUnavailable(f"the inbox for replies could not be opened: {error}") from error

    def _told(self, item: Outgoing, waiter: Waiter, outcome: Outcome) -> None:
        if outcome.ok or waiter.future.done():
            return
        fault = outcome.fault
        if outcome.status is not Status.REJECTED or fault is None:
            waiter.doubt = str(fault)  # it may be there: an answer is still possible
        elif fault.code in _NOBODY:
            waiter.fail(NoResponder(f"nobody answers requests to {_named(item)}: {fault.detail}"))
        else:
            waiter.fail(self._refused(item, outcome))

    def _arrived(self, batch: Sequence[Reply]) -> None:
        table = self.table
        for correlation, message in batch:
            if message is None:
                if (waiter := table.answered(correlation)) is not None:
                    waiter.fail(NoResponder("nobody answers requests there: no responder listens"))
                continue
            name = correlation or correlation_of(message)
            waiter = table.get(name)
            if waiter is None:
                continue
            if not waiter.take(message):
                table.counts["duplicate"] += 1
            elif waiter.future.done():
                table.end(name)


def _named(item: Outgoing) -> str:
    return item.destination.name


def _no_answer(item: Outgoing, within: float, waiter: Waiter) -> str:
    text = f"no answer to {item.message.id} from {_named(item)} within {within:g} s"
    if waiter.doubt:
        text += f"; whether it was sent is unknown ({waiter.doubt})"
    return f"{text}; it may have been handled all the same"
