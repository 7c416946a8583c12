"""When and what to commit. Everything here runs on the subscription's own thread.

Periodic commits are asynchronous, one at a time, and count as done only when the broker has confirmed that very request
for that very partition. The last commit of a partition that is taken away is synchronous. A commit that fails is never
success and never the end: the partition stays dirty and is committed again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from atleastonce.adapters.kafka.config import Settings
from atleastonce.adapters.kafka.faults import kafka_error
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.offsets import METADATA_LIMIT, Point, encode

log = logging.getLogger("atleastonce.kafka")

# Brokers forget the offsets of an idle group after 7 days (offsets.retention.minutes); as low as a day is seen.
RECOMMIT_SECONDS = 6 * 3600.0

# The client answers an asynchronous commit by itself, at the latest after session.timeout.ms. This guards against a
# lost answer, which would end all commits.
_ANSWER_SECONDS = 120.0

_Stored = tuple[int, str]


class Committer:
    """Commits the watermarks of one subscription.

    Args:
        consumer: the handle; only used on the thread that polls it.
        assignment: the partitions.
        settings: interval and count.
    """

    def __init__(self, consumer: Consumer, assignment: Assignment, settings: Settings) -> None:
        self.failed = 0
        """Commit requests of a partition that were not confirmed."""
        self.last_error: KafkaError | None = None
        self._consumer = consumer
        self._assignment = assignment
        self._interval = settings.commit_interval
        self._every = settings.commit_every
        self._metadata_limit = METADATA_LIMIT
        self._pending: dict[int, tuple[Partition, _Stored]] = {}
        self._sent_at = 0.0
        self._completed = 0

    @property
    def pending(self) -> bool:
        """Whether an answer is outstanding."""
        return bool(self._pending)

    def tick(self, now: float) -> None:
        """Commit if it is time to."""
        since = now - self._sent_at
        if self._pending:
            if since < _ANSWER_SECONDS:
                return
            self._pending = {}
        completed = self._assignment.completed
        if since >= self._interval or completed - self._completed >= self._every:
            self._completed = completed
            self._sent_at = now
            self.send(now)

    def send(self, now: float) -> bool:
        """Ask the broker, without waiting, to store every watermark that it does not have yet; False if there is none."""
        offsets: list[TopicPartition] = []
        pending: dict[int, tuple[Partition, _Stored]] = {}
        for partition, point in self._assignment.points():
            stored = self._dirty(partition, point, now)
            if stored is not None:
                offsets.append(self._offset(partition, stored))
                pending[partition.number] = (partition, stored)
        if not offsets:
            return False
        self._pending = pending
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._pending = {}
            self._note(kafka_error(error), len(offsets))
        return True

    def answered(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        """The client's ``on_commit``, called within poll."""
        pending, self._pending = self._pending, {}
        for each in offsets:
            found = pending.get(each.partition)
            if found is None:
                continue
            partition, stored = found
            failure = error or each.error
            if failure is None and each.offset == stored[0]:
                self._confirm(partition, stored)
            elif failure is not None:
                self._note(failure, 1)

    def finish(self, ended: Sequence[tuple[Partition, Point | None]]) -> None:
        """The last commit of partitions that are taken away; waits for the broker, at most ``session.timeout.ms``."""
        self._pending = {key: found for key, found in self._pending.items() if found[0].live}
        now = time.monotonic()
        dirty: dict[int, tuple[Partition, _Stored]] = {}
        for partition, point in ended:
            stored = None if point is None else self._dirty(partition, point, now)
            if stored is not None:
                dirty[partition.number] = (partition, stored)
        if not dirty:
            return
        try:
            offsets = [self._offset(partition, stored) for partition, stored in dirty.values()]
            answers = self._consumer.commit(offsets=offsets, asynchronous=False) or ()
        except KafkaException as error:  # when all partitions failed, it raises
            self._note(kafka_error(error), len(dirty))
            return
        for each in answers:
            if each.error is not None:
                self._note(each.error, 1)
            elif each.partition in dirty:
                self._confirm(*dirty[each.partition])

    def _dirty(self, partition: Partition, point: Point, now: float) -> _Stored | None:
        stored = (point.offset, encode(point, self._metadata_limit))
        if stored == partition.committed and now - partition.committed_at < RECOMMIT_SECONDS:
            return None
        return stored

    def _offset(self, partition: Partition, stored: _Stored) -> TopicPartition:
        return TopicPartition(self._assignment.topic, partition.number, stored[0], metadata=stored[1])

    def _confirm(self, partition: Partition, stored: _Stored) -> None:
        partition.committed = stored
        partition.committed_at = time.monotonic()
        self.last_error = None

    def _note(self, error: KafkaError | None, count: int) -> None:
        self.failed += count
        self.last_error = error
        if error is not None and error.code() == KafkaError.OFFSET_METADATA_TOO_LARGE:
            self._metadata_limit //= 2  # this broker takes less than the default: keep the offset, shorten the rest
        log.debug("commit of %s not confirmed, will be repeated: %s", self._assignment.topic, error)
