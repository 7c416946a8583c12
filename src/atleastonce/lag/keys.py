"""Hot keys of what waits: looked for among the oldest messages that a group has not handled, which all stay where they are."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final

import msgspec

from atleastonce.channels import Source
from atleastonce.contract import Adapter, Browses, Delivery
from atleastonce.errors import AtLeastOnceError, ends_process
from atleastonce.lag.counts import Lag
from atleastonce.lag.places import Place
from atleastonce.patterns.hot_keys import KeyShare, hot_among
from atleastonce.patterns.ordering import KeyOf

_SAMPLE: Final = 1000
"""Messages of one look. Of so many a key of a fiftieth, the least that has a name, comes 20 times, give or take 4. Fewer: chance
names keys. More: a longer look, most of all on NATS, which shows messages one by one."""
_FIRST: Final = 100
"""Messages by which their size is known before more are asked for. Fewer: a few small ones hide that the rest are large; more:
so many large ones are read at once."""
_BYTES: Final = 16 << 20
"""What the messages of one look may hold, about. Less: of large ones too few are seen; more: memory, and a broker that is busy
with a look."""
_AT_ONCE: Final = 4
"""Places that are looked at together. Fewer: a service of many consumers waits for its answer; more: a burst on its broker."""
_REST: Final = 50
"""A look that took a second is made again after so many: looking takes a fiftieth of the time. Smaller: consumers may feel it;
larger: keys are named late."""
_REST_AT_MOST: Final = 300.0
"""Seconds, for a look that took longest because the broker was in trouble."""


class Sample(msgspec.Struct, frozen=True):
    """What one look has found.

    Attributes:
        hot: the keys that stand out, the most frequent first; None where it cannot be told.
        messages: how many were looked at.
        at: when, by the clock of its `Looks`.
        detail: why it cannot be told.
    """

    hot: list[KeyShare] | None = None
    messages: int = 0
    at: float = 0.0
    detail: str = ""


class Looks:
    """Looks for the hot keys of several places, again and again, at a pace that their broker hardly feels.

    Args:
        adapter: open.
        where: the places. Those that name no key are not looked at.
        clock: monotonic seconds.
    """

    def __init__(self, adapter: Adapter, where: Sequence[Place], clock: Callable[[], float] = time.monotonic) -> None:
        self._adapter = adapter
        self._where = where
        self._clock = clock
        self._known = [None if place.key_of is None else Sample(detail="still looking for hot keys") for place in where]
        self._looking: asyncio.Task[list[Sample | None]] | None = None
        self._due = -math.inf

    async def known(self, patience: float | None) -> Sequence[Sample | None]:
        """What the last look has found, for each place; None for one that is not looked at. Looks again if it is time.

        Args:
            patience: for how many seconds a look is waited for; it then goes on, and another call has it. None: to its end.
        """
        if self._looking is None and self._clock() >= self._due:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="atleastonce-hot-keys")
        if self._looking is not None:
            done, _ = await asyncio.wait([self._looking], timeout=patience)
            if done:
                look, self._looking = self._looking, None
                self._known = look.result()
        return self._known

    async def close(self) -> None:
        """Give up the look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> list[Sample | None]:
        begin, turns = self._clock(), asyncio.Semaphore(_AT_ONCE)

        async def one(place: Place) -> Sample | None:
            if place.key_of is None:
                return None
            async with turns:
                return msgspec.structs.replace(
                    await _sample(self._adapter, place.source, place.key_of), at=self._clock()
                )

        found = await asyncio.gather(*(one(place) for place in self._where))
        now = self._clock()
        self._due = now + min(_REST_AT_MOST, _REST * (now - begin))
        return found


def named(rows: Iterable[Lag], samples: Sequence[Sample | None], now: float) -> list[Lag]:
    """``rows`` with what is known of their keys at ``now``, by the clock of the `Looks`; a reason is added to their detail."""
    return [
        row
        if sample is None
        else msgspec.structs.replace(
            row,
            hot_keys=sample.hot,
            sampled=None if sample.hot is None else sample.messages,
            sampled_age_s=None if sample.hot is None else round(max(0.0, now - sample.at), 3),
            detail="; ".join(filter(None, (row.detail, sample.detail))),
        )
        for row, sample in zip(rows, samples, strict=True)
    ]


async def _sample(adapter: Adapter, source: Source, key_of: KeyOf) -> Sample:
    if not isinstance(adapter, Browses):
        return Sample(
            detail=f"{adapter.scheme} shows a message only by taking it from its consumers, so hot keys are not looked for; "
            "service.status() names those of what was handled"
        )
    try:
        found = await _oldest(adapter, source)
    except AtLeastOnceError as error:
        return Sample(detail=f"hot keys of {source}: {error}")
    return Sample(hot_among([_key(delivery, key_of) for delivery in found]), len(found))


async def _oldest(adapter: Browses, source: Source) -> Sequence[Delivery]:
    found = await adapter.browse(source.channel, _FIRST, source.group)
    if len(found) < _FIRST:
        return found
    size = sum(delivery.size for delivery in found) / len(found)
    most = min(_SAMPLE, int(_BYTES / max(1.0, size)))
    return await adapter.browse(source.channel, most, source.group) if most > len(found) else found


def _key(delivery: Delivery, key_of: KeyOf) -> Hashable | None:
    try:
        return key_of(delivery)
    except BaseException as error:  # a user's function, or a payload that is none: its message is dead, and of no key
        if ends_process(error):
            raise
        return None
