"""All parts of a source, read as one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from atleastonce.channels import Source
from atleastonce.contract import STALE, Delivery, Listener, Outcome, Settlement, Status, Subscription, Window
from atleastonce.errors import Closed
from atleastonce.parts.names import is_parted, parts_of
from atleastonce.parts.part import Part, Subscribe
from atleastonce.parts.readers import Readers
from atleastonce.parts.sharing import Sharing
from atleastonce.silence import Owed
from atleastonce.wake import Signal


async def subscribe(
    source: Source, window: Window, listener: Listener, one: Subscribe, readers: Readers | None = None
) -> Subscription:
    """`Adapter.subscribe` of an adapter whose own, ``one``, knows no parts.

    Args:
        source, window, listener: as there.
        one: subscribes to a part, or to a channel that has none.
        readers: counts who reads the source; None where no part is its reader's for longer than a message.
    """
    if not is_parted(source):
        return await one(source, window, listener)
    subscription = PartedSubscription(source, window, listener, one, readers)
    try:
        await subscription.begin()
    except BaseException:
        await subscription.close()
        raise
    return subscription


class PartedSubscription(Subscription):
    """Deliveries of every part that is ours at the moment. The window is divided among the parts, for nobody knows yet which of
    them that will be."""

    def __init__(
        self, source: Source, window: Window, listener: Listener, one: Subscribe, readers: Readers | None
    ) -> None:
        sources = parts_of(source)
        share = msgspec.structs.replace(
            window,
            messages=max(1, window.messages // len(sources)),
            bytes=max(1, window.bytes // len(sources)),
        )
        self._source = source
        self._parts = {
            part.channel.name: Part(source, part, share, listener, one, self._came, self._failed) for part in sources
        }
        self._sharing = None if readers is None else Sharing(source, list(self._parts.values()), readers, self._failed)
        self._ready: deque[Part] = deque()
        self._news = Signal()
        self._error: Exception | None = None
        self._leaving = False
        self._closed = False

    async def begin(self) -> None:
        """Subscribe to all parts. Raises as `Adapter.subscribe`."""
        for result in await asyncio.gather(*(part.open() for part in self._parts.values()), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        for part in self._parts.values():
            part.start()
        if self._sharing is not None:
            self._sharing.start()

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        if not self._ready and not self._ended and max_wait > 0:
            await self._news.wait(max_wait)
        if self._closed:
            raise Closed(f"{self._source.name}: the subscription is closed")
        if self._error is not None:
            raise self._error
        found: list[Delivery] = []
        while self._ready and len(found) < max_messages:
            part = self._ready.popleft()
            found += part.take(max_messages - len(found))
            if part.buffer:
                self._ready.append(part)
        return found

    @property
    def _ended(self) -> bool:
        return self._closed or self._error is not None

    def _came(self, part: Part) -> None:
        self._ready.append(part)
        self._news.notify()

    def _failed(self, error: Exception) -> None:
        """One part ended: its reader subscribes to all of them anew."""
        if self._error is None:
            self._error = error
        self._news.notify()

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        def told(subscription: Subscription, some: Sequence[Settlement]) -> Awaitable[Sequence[Outcome]]:
            return subscription.settle(some)

        outcomes = await self._each(batch, [delivery for delivery, _ in batch], told)
        for (delivery, _), outcome in zip(batch, outcomes, strict=True):
            if outcome.status is not Status.UNKNOWN and (part := self._parts.get(delivery.stream)) is not None:
                part.out.discard(delivery)
        if self._leaving:  # the last of a part is done: whoever stands by has the part next
            streams = {delivery.stream for delivery, _ in batch}
            touched = (part for stream in streams if (part := self._parts.get(stream)) is not None)
            await asyncio.gather(*(part.close() for part in touched if not part.out))
        return outcomes

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        def told(subscription: Subscription, some: Sequence[Delivery]) -> Awaitable[Sequence[Outcome]]:
            return subscription.extend(some, seconds)

        return await self._each(deliveries, deliveries, told)

    async def _each(
        self,
        items: Sequence[Any],
        deliveries: Sequence[Delivery],
        tell: Callable[[Subscription, Sequence[Any]], Awaitable[Sequence[Outcome]]],
    ) -> list[Outcome]:
        """``items`` told to the parts that their ``deliveries`` are of, all at once; the outcomes in their order."""
        if self._closed:
            return [STALE] * len(items)
        places: dict[str, list[int]] = {}
        for index, delivery in enumerate(deliveries):
            places.setdefault(delivery.stream, []).append(index)
        outcomes: list[Outcome] = [STALE] * len(items)

        async def one(subscription: Subscription, indexes: list[int]) -> None:
            for index, outcome in zip(indexes, await tell(subscription, [items[i] for i in indexes]), strict=True):
                outcomes[index] = outcome

        known = ((self._parts.get(stream), indexes) for stream, indexes in places.items())
        calls = [one(part.subscription, indexes) for part, indexes in known if part and part.subscription]
        if len(calls) == 1:
            await calls[0]
        else:
            await asyncio.gather(*calls)
        return outcomes

    # -------------------------------------------------------------------------------------------------------- lifecycle

    @property
    def overdue(self) -> Owed | None:
        read = [part.subscription.overdue for part in self._parts.values() if part.subscription is not None]
        return min(filter(None, read), key=lambda owed: owed.since, default=None)

    async def pause(self) -> None:
        for part in self._parts.values():
            await part.pause()

    async def resume(self) -> None:
        for part in self._parts.values():
            await part.resume()

    async def leave(self) -> None:
        self._leaving = True
        if self._sharing is not None:
            await self._sharing.close()
        self._ready.clear()
        await asyncio.gather(*(part.retire() for part in self._parts.values()))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.notify()
        if self._sharing is not None:
            await self._sharing.close()
        await asyncio.gather(*(part.close() for part in self._parts.values()))
        self._ready.clear()
