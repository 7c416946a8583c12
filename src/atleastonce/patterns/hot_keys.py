"""Hot keys: which keys bring most messages, and which cost most time, of what a consumer handles.

One key's messages run one at a time in an ordered consumer, and come from one partition in any: a key that brings a tenth of all of
them is a limit that no number of workers lifts. So it has a name in ``service.status()`` before somebody is paged.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from random import randrange
from typing import AnyStr, TypeVar

import msgspec

from atleastonce.contract import Delivery
from atleastonce.durations import whole
from atleastonce.engine.batches import BatchProcess
from atleastonce.engine.decision import AsyncProcess, Decision, SyncProcess
from atleastonce.engine.sketch import Sketch
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.ordering import KeyOf, shown

# What is counted exactly before it is merged. Fewer: more merges; more: status is late by as many messages.
_BATCH = 512
# A key is worth a line from this share of the messages or of the time on.
_SHARE = 0.02
_MOST = 5

T = TypeVar("T")


class HotKey(msgspec.Struct, frozen=True):
    """One key that stands out, of the last minutes.

    Attributes:
        key: as text.
        messages: its share of all that were handled, from 0.0 to 1.0; at most so much.
        time: its share of the time in handlers.
    """

    key: str
    messages: float
    time: float


class KeyShare(msgspec.Struct, frozen=True):
    """One key that stands out among some messages.

    Attributes:
        key: as text.
        share: of those messages, from 0.0 to 1.0.
    """

    key: str
    share: float


def standing_out(shares: Iterable[tuple[T, float]]) -> list[T]:
    """Which of these stand out by their shares, the largest first: one rule for what was handled and what waits."""
    hot = sorted((each for each in shares if each[1] >= _SHARE), key=lambda each: -each[1])
    return [what for what, _ in hot[:_MOST]]


def hot_among(keys: Sequence[Hashable | None]) -> list[KeyShare]:
    """Which of the keys of some messages stand out, by exact count; what has no key is none. What came once is none either: of a
    few messages every key would have a large share."""
    found = [
        KeyShare(shown(key), round(count / len(keys), 3))
        for key, count in Counter(keys).items()
        if key is not None and count > 1
    ]
    return standing_out((each, each.share) for each in found)


class CountedRuns:
    """Around the runs of one reader."""

    def __init__(self, hot: HotKeys, key_of: KeyOf, clock: Callable[[], float]) -> None:
        self._add = hot.add
        self._key_of = key_of
        self._clock = clock

    def around(self, process: AsyncProcess) -> AsyncProcess:
        """``process``, counted."""

        async def counted(delivery: Delivery) -> Decision:
            key, begin = self._key_of(delivery), self._clock()
            try:
                return await process(delivery)
            finally:
                self._add(key, self._clock() - begin)

        return counted

    def around_sync(self, process: SyncProcess) -> SyncProcess:
        """``process`` on a thread, counted."""

        def counted(delivery: Delivery) -> Decision:
            key, begin = self._key_of(delivery), self._clock()
            try:
                return process(delivery)
            finally:
                self._add(key, self._clock() - begin)

        return counted

    def around_batch(self, process: BatchProcess) -> BatchProcess:
        """``process`` for lists, counted: each message has its share of the time."""

        async def counted(batch: Sequence[Delivery]) -> Sequence[Decision]:
            keys, begin = [self._key_of(delivery) for delivery in batch], self._clock()
            try:
                return await process(batch)
            finally:
                took = (self._clock() - begin) / max(1, len(keys))
                for key in keys:
                    self._add(key, took)

        return counted


class HotKeys:
    """Counts what the readers of one consumer handle. From any thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._messages, self._time = Sketch(clock=clock), Sketch(clock=clock)
        self._counts: dict[Hashable, float] = {}
        self._seconds: dict[Hashable, float] = {}
        self._since = 0
        # Of threads: one may be stopped by another anywhere, also in the midst of a merge.
        self._lock = threading.Lock()

    def reader(self, key_of: KeyOf) -> CountedRuns:
        """What stands around the runs of one reader, whose deliveries have the key that ``key_of`` says."""
        return CountedRuns(self, key_of, self._clock)

    def add(self, key: Hashable | None, took: float) -> None:
        """A run took so many seconds."""
        with self._lock:
            counts, seconds = self._counts, self._seconds
            counts[key] = counts.get(key, 0.0) + 1.0
            seconds[key] = seconds.get(key, 0.0) + took
            self._since += 1
            if self._since >= _BATCH:
                self._merge()

    def _merge(self) -> None:
        self._since = 0
        counts, self._counts = self._counts, {}
        seconds, self._seconds = self._seconds, {}
        self._messages.merge(counts)
        self._time.merge(seconds)

    def top(self) -> list[HotKey]:
        """The keys that stand out, the most frequent first; what has no key is none."""
        with self._lock:
            self._merge()
            messages, spent = self._messages, self._time
            counts, times = dict(messages.top(64)), dict(spent.top(64))
            total, seconds = messages.total or 1.0, spent.total or 1.0
        found = [
            HotKey(
                shown(key),
                round(min(1.0, counts.get(key, 0.0) / total), 3),
                round(min(1.0, times.get(key, 0.0) / seconds), 3),
            )
            for key in dict.fromkeys([*counts, *times])
            if key is not None
        ]
        return standing_out((each, max(each.messages, each.time)) for each in found)


def split_hot_key(key: AnyStr, buckets: int) -> AnyStr:
    """``key``, text or bytes, with one of ``buckets`` suffixes, by chance: its messages then share ``buckets`` lines, and have no
    order between them. For keys that are hot and need none: the rest of what they were kept together for is to be done by the
    handler.

    Raises:
        ConfigurationError: ``buckets`` is out of range, or ``key`` is neither text nor bytes. None is no key: its messages share no
            line.
    """
    suffix = f"#{randrange(whole(buckets, name='split_hot_key buckets', high=10_000))}"
    if isinstance(key, str):
        return f"{key}{suffix}"
    if isinstance(key, bytes):
        return key + suffix.encode()
    raise ConfigurationError(f"split_hot_key key={key!r}: give a message key, text or bytes")
