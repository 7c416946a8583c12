"""Looking at a topic without being a member of any group."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from heapq import nsmallest

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.faults import as_exception
from atleastonce.adapters.kafka.partition import Assignment
from atleastonce.adapters.kafka.records import deliveries
from atleastonce.channels import Source
from atleastonce.contract import Delivery, Window
from atleastonce.errors import BrokerUnavailable
from atleastonce.offsets import Range

Span = tuple[int, int, tuple[Range, ...]]
"""First offset, end, and ranges between them that are done."""

# Records of one list. Fewer: each costs a change of threads; more: they lie in memory.
_SCAN = 1000
_FEW = 10


class Look:
    """Reads what is within ``spans``, partition by partition in order, each record once. Its methods block, and are called
    on one thread at a time.

    Args:
        settings: of the adapter.
        source: whose deliveries they are called.
        spans: by partition.
        portion: how many records are wanted at a time; the client fetches no more than twice as many ahead.
    """

    def __init__(self, settings: Settings, source: Source, spans: Mapping[int, Span], portion: int) -> None:
        self._topic = source.channel.name
        self._source = source
        self._left = {number: span[1] for number, span in spans.items() if span[0] < span[1]}
        self._patience = settings.request_timeout
        self._portion = portion
        self._assignment = Assignment(self._topic)
        for number in self._left:
            self._assignment.begin(number, spans[number][0], spans[number][2]).live = False  # nothing is settled here
        # Of few, small fetches: each brings records of every partition.
        config = settings.consumer("atleastonce-browse", Window(max(portion, 100), 1 << 24, shared=portion < _FEW))
        self._consumer = Consumer(config, logger=CLIENT_LOG)
        self._consumer.assign([TopicPartition(self._topic, number, spans[number][0]) for number in self._left])

    def read(self) -> list[Delivery]:
        """The next records, at most a portion; none when all were read.

        Raises:
            BrokerUnavailable: the broker does not hand out the rest.
            PermissionDenied: no right to read the topic.
        """
        deadline = time.monotonic() + self._patience
        while self._left:
            try:
                first = self._consumer.poll(0.1)
                batch = [] if first is None else [first, *self._consumer.consume(max(self._portion - 1, 1), 0)]
                found = self._within(batch)
                self.leave([number for number in self._left if self._reached(number)])
                self.leave([record.partition() for record in batch if _is_end(record)])  # type: ignore[misc]
            except KafkaException as error:
                raise as_exception(error, f"reading {self._topic}") from None
            if found:
                return found
            if batch:
                deadline = time.monotonic() + self._patience
            elif time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"Kafka hands out no more of {self._topic}, though not all was read; {len(self._left)} partitions are left"
                )
        return []

    def leave(self, numbers: Sequence[int]) -> None:
        """Read no more of these partitions."""
        for number in numbers:
            if self._left.pop(number, None) is not None:
                self._consumer.incremental_unassign([TopicPartition(self._topic, number)])

    def close(self) -> None:
        self._consumer.close()

    def _within(self, batch: list[Record]) -> list[Delivery]:
        ready, _, errors = deliveries(batch, self._source, self._assignment, lambda partition: partition)
        for error in errors:
            if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:  # it would be answered so until our time is over
                raise KafkaException(error)
        found = [each for each in ready if each.position < self._left.get(each.token.number, 0)]  # type: ignore[operator]
        for partition in self._assignment.live.values():
            partition.tracker.open.clear()  # it keeps what it hands out until that is settled, and this never is
        return found

    def _reached(self, number: int) -> bool:
        position = self._consumer.position([TopicPartition(self._topic, number)])[0].offset
        return bool(position >= self._left[number])


def _is_end(record: Record) -> bool:
    error = record.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF


def browse(settings: Settings, source: Source, spans: Mapping[int, Span], limit: int) -> list[Delivery]:
    """The oldest ``limit`` records within ``spans``, by their timestamps. Blocks: runs on a thread of its own.

    Timestamps are taken to rise within a partition: one is left as soon as what comes in it is younger than all that is kept, so
    that a topic of many partitions is not read ``limit`` times as often as it has them, nor kept in memory.

    Raises:
        BrokerUnavailable: the broker did not hand them out in time.
    """
    look = Look(settings, source, spans, limit)
    found: list[Delivery] = []
    newest: dict[int, float] = {}
    counts: Counter[int] = Counter()
    try:
        while batch := look.read():
            found += batch
            for delivery in batch:
                number = int(delivery.stream.rpartition("/")[2])
                newest[number] = _published(delivery)
                counts[number] += 1
            if len(found) >= limit:
                found = nsmallest(limit, found, key=_published)  # stable: one partition's records keep their order
                bar = _published(found[-1])
                look.leave([number for number, time in newest.items() if time >= bar or counts[number] >= limit])
    finally:
        look.close()
    return sorted(found, key=_published)


def _published(delivery: Delivery) -> float:
    return delivery.message.published_at or 0.0


async def scan(settings: Settings, source: Source, spans: Mapping[int, Span]) -> AsyncGenerator[list[Delivery]]:
    """All within ``spans``. See `Scans.scan`."""
    look = await asyncio.to_thread(Look, settings, source, spans, _SCAN)
    try:
        while batch := await asyncio.to_thread(look.read):
            yield batch
    finally:
        await asyncio.shield(asyncio.to_thread(look.close))
