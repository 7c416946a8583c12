"""Answers through queues, for adapters that have no way of their own: each inbox is a queue that its owner reads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from atleastonce.channels import Queue, Source
from atleastonce.contract import (
    ACK,
    Adapter,
    Arrived,
    Deletes,
    Delivery,
    KeepsInboxes,
    Outcome,
    Outgoing,
    Replies,
    Reply,
    ReplyInbox,
    Subscription,
    Topology,
    Window,
)
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.cancel import is_cancelled
from atleastonce.errors import Closed
from atleastonce.patterns.replies.letters import correlation_of

log = logging.getLogger("atleastonce")

PREFIX = "alo.reply."
_ADDRESS = re.compile(r"alo\.reply\.[0-9a-f]{32}")

# What is answered at one time, more or less; an inbox is emptied as fast as it fills.
_WINDOW = Window(1000, 64 * 2**20)
_RECEIVE_WAIT = 5.0
_SIGN_SECONDS = 60.0
# How long what is half made is waited for, and then its removal. Shorter: it may be made after it was removed, and stays until it
# is swept. Longer: so long may it hold up the end of its owner, if the broker is silent.
_UNDO_SECONDS = 10.0
_REOPEN = Backoff("50ms", factor=2, maximum="2s")


def replies_of(adapter: Adapter) -> Replies:
    """The adapter's own way, else queues."""
    return adapter if isinstance(adapter, Replies) else QueueReplies(adapter)


class QueueReplies:
    """`Replies` made of what every adapter can."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    async def open_inbox(self, arrived: Arrived) -> ReplyInbox:
        inbox = QueueInbox(self._adapter, Queue(f"{PREFIX}{secrets.token_hex(16)}"), arrived)
        await inbox.open()
        return inbox

    def is_address(self, address: str) -> bool:
        return _ADDRESS.fullmatch(address) is not None

    def asked_by(self, delivery: Delivery) -> tuple[str, str]:
        return "", ""

    async def reply(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._adapter.send(batch)


class QueueInbox:
    """A queue of one process, made anew under the same name should it vanish."""

    def __init__(self, adapter: Adapter, queue: Queue[Any], arrived: Arrived) -> None:
        self._adapter = adapter
        self._queue = queue
        self._arrived = arrived
        self._reading: asyncio.Task[None] | None = None
        self._kept = 0.0

    async def open(self) -> None:
        """Listen, or leave nothing behind. Raises as `Adapter.subscribe`."""
        making = asyncio.create_task(self._subscribe(), name="atleastonce-replies")
        try:
            subscription = await asyncio.shield(making)
        except BaseException:
            await self._undo(making)
            raise
        self._reading = asyncio.create_task(self._read(subscription), name="atleastonce-replies")

    async def _undo(self, making: asyncio.Task[Subscription]) -> None:
        """Not cancelled first: what is under way on a thread goes on, and would make the queue after it was removed."""
        await asyncio.wait((making,), timeout=_UNDO_SECONDS)
        if not making.done():
            making.cancel()
        elif not making.cancelled() and making.exception() is None:
            await self._leave(making.result())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNDO_SECONDS):
                await self._remove()

    def address(self, correlation: str) -> str:
        return self._queue.name

    async def close(self) -> None:
        if self._reading is None:
            return
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._reading = None
        await self._remove()

    async def _remove(self) -> None:
        with contextlib.suppress(Exception):  # it is gone, or goes with the broker's own housekeeping
            if isinstance(self._adapter, KeepsInboxes):
                await self._adapter.remove_inbox(self._queue.name)
            elif isinstance(self._adapter, Deletes):
                await self._adapter.delete(self._topology)

    @property
    def _topology(self) -> Topology:
        return Topology(channels=(self._queue,), sources=(Source(self._queue),))

    async def _keep(self) -> None:
        self._kept = time.monotonic()
        if isinstance(self._adapter, KeepsInboxes):
            await self._adapter.keep_inbox(self._queue.name)
        else:
            await self._adapter.declare(self._topology)

    async def _subscribe(self) -> Subscription:
        await self._keep()
        return await self._adapter.subscribe(Source(self._queue), _WINDOW, self)

    async def _read(self, subscription: Subscription) -> None:
        failures = 0
        while True:
            try:
                while True:
                    batch = await subscription.receive(_WINDOW.messages, _RECEIVE_WAIT)
                    failures = 0
                    if isinstance(self._adapter, KeepsInboxes) and time.monotonic() - self._kept > _SIGN_SECONDS:
                        await self._keep()
                    if batch:
                        self._arrived([Reply(correlation_of(each.message), each.message) for each in batch])
                        await subscription.settle([(each, ACK) for each in batch])
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                if is_cancelled():
                    await self._leave(subscription)
                    raise
            except Closed:
                return
            except Exception as error:  # noqa: BLE001 - whatever ended it, answers are waited for
                log.warning("the inbox for replies is lost (%s); opening it again", error)
            await self._leave(subscription)
            subscription = await self._again(failures)
            failures += 1

    async def _again(self, failures: int) -> Subscription:
        while True:
            failures += 1
            await asyncio.sleep(_REOPEN.wait(failures) or 0.0)
            try:
                return await self._subscribe()
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("the inbox for replies cannot be opened (%s); trying again", error)

    async def _leave(self, subscription: Subscription) -> None:
        with contextlib.suppress(Exception):
            await subscription.close()

    # ------------------------------------------------------------------------------------------------ contract.Listener

    async def drain(self, streams: object, grace: float) -> None:
        """Nothing is kept here."""

    def lost(self, streams: object) -> None:
        """Nor here."""

    def condition(self, state: str, detail: str) -> None:
        """What matters of it comes as an exception."""
