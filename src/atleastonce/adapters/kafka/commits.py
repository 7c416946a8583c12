"""When and what to commit. Everything here runs on the subscription's own thread.

Periodic commits are asynchronous, one at a time, and count as done only when the broker has confirmed that very request
for that very partition. The last commit of a partition that is taken away is synchronous. A commit that fails is never
success and never the end: the partition stays dirty and is committed again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from atleastonce.adapters.kafka.config import Settings
from atleastonce.adapters.kafka.faults import kafka_error
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.adapters.kafka.standstill import Standstill
from atleastonce.offsets import METADATA_LIMIT, Mark, Point, encode

log = logging.getLogger("atleastonce.kafka")

# Brokers forget the offsets of an idle group after 7 days (offsets.retention.minutes); as low as a day is seen.
RECOMMIT_SECONDS = 6 * 3600.0

# The client answers an asynchronous commit by itself, at the latest after session.timeout.ms. This guards against a
# lost answer, which would end all commits.
_ANSWER_SECONDS = 120.0

# How long a commit that is waited for may go unanswered before another client is worth more: a coordinator is elected within a
# few seconds. The client itself gives up after session.timeout.ms.
VAIN_SECONDS = 15.0

_CONFIRMATION = "the confirmation of a commit"

Stored = tuple[int, str]
"""Offset and metadata, as the broker keeps them."""


class Committer:
    """Commits the watermarks of one subscription.

    Args:
        consumer: the handle; only used on the thread that polls it.
        assignment: the partitions.
        settings: interval and count.
        standstill: told what is waited for.
    """

    def __init__(self, consumer: Consumer, assignment: Assignment, settings: Settings, standstill: Standstill) -> None:
        self.leaving = False
        """Whether what is committed now is the last of every partition: nothing of it runs any more."""
        self.failed = 0
        """Commit requests of a partition that were not confirmed."""
        self.last_error: KafkaError | None = None
        self._consumer = consumer
        self._assignment = assignment
        self._standstill = standstill
        self._interval = settings.commit_interval
        self._every = settings.commit_every
        self._metadata_limit = METADATA_LIMIT
        self._pending: dict[int, tuple[Partition, Stored]] = {}
        self._owed = 0  # the number of the answer to them
        self._sent_at = 0.0
        self._completed = 0
        self._stopped = False

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
            self._standstill.silence.missed(self._owed)
        if self.due(now):
            self.send(now)

    def due(self, now: float) -> bool:
        """Whether it is time for a commit; the next one is due an interval later."""
        completed = self._assignment.completed
        if now - self._sent_at < self._interval and completed - self._completed < self._every:
            return False
        self._completed = completed
        self._sent_at = now
        return True

    def dirty(self, now: float) -> dict[int, tuple[Partition, Stored]]:
        """Every watermark that the broker does not have yet, by partition."""
        found: dict[int, tuple[Partition, Stored]] = {}
        for partition, point in self._assignment.points():
            stored = self._dirty(partition, point, now, clean=self.leaving)
            if stored is not None:
                found[partition.number] = (partition, stored)
        return found

    def send(self, now: float) -> bool:
        """Ask the broker, without waiting, to store every watermark that it does not have yet; False if there is none."""
        pending = self.dirty(now)
        if not pending:
            return False
        offsets = [self.offset(*each) for each in pending.values()]
        self._pending = pending
        self._owed = self._standstill.silence.asked(_CONFIRMATION)
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._pending = {}
            self._standstill.silence.dropped(self._owed)
            self.note(*[kafka_error(error)] * len(offsets))
        return True

    def answered(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        """The client's ``on_commit``, called within poll."""
        pending, self._pending = self._pending, {}
        if error is None:
            self._standstill.silence.answered(self._owed)
        else:  # said by the broker, or by the client in its stead: nobody can tell
            self._standstill.silence.missed(self._owed)
        refused: list[KafkaError] = []
        for each in offsets:
            found = pending.get(each.partition)
            if found is None:
                continue
            partition, stored = found
            failure = error or each.error
            if failure is None and each.offset == stored[0]:
                self.confirm(partition, stored)
            elif failure is not None:
                refused.append(failure)
        self.note(*refused)

    def finish(self, ended: Sequence[tuple[Partition, Point | None]], *, kept: bool) -> None:
        """The last commit of partitions that are taken away; waits for the broker, at most ``session.timeout.ms``.

        ``kept``: with it one of those that stay. In a cooperative group the client joins anew after this, and until all members
        have, which takes a heartbeat, no commit of ours gets through.
        """
        self._pending = {key: found for key, found in self._pending.items() if found[0].live}
        now = time.monotonic()
        dirty = self.dirty(now) if kept else {}
        for partition, point in ended:
            stored = None if point is None else self._dirty(partition, point, now, clean=True)
            if stored is not None:
                dirty[partition.number] = (partition, stored)
        self._commit(dirty)

    def reserve(self, partitions: Sequence[Partition]) -> bool:
        """Store that what was received of ``partitions`` is about to be handed out; waits for the broker. Whether it was stored
        for all of them."""
        now = time.monotonic()
        dirty: dict[int, tuple[Partition, Stored]] = {}
        upto: dict[int, int] = {}
        with self._assignment.lock:
            for partition in partitions:
                point, position = partition.tracker.point(), partition.tracker.position
                if point is not None and position is not None:
                    mark, upto[partition.number] = partition.vigil.reserve(point.offset, position - 1, now)
                    dirty[partition.number] = (partition, self._encoded(point, mark))
        confirmed = self._commit(dirty)
        for number in confirmed:
            dirty[number][0].vigil.reserved = upto[number]
        return len(confirmed) == len(dirty)

    def _commit(self, dirty: Mapping[int, tuple[Partition, Stored]]) -> set[int]:
        """Commit synchronously; the partitions for which the broker has confirmed it."""
        confirmed: set[int] = set()
        if not dirty:
            return confirmed
        try:
            offsets = [self.offset(partition, stored) for partition, stored in dirty.values()]
            with self._standstill.until(_CONFIRMATION, VAIN_SECONDS):
                answers = self._consumer.commit(offsets=offsets, asynchronous=False) or ()
        except KafkaException as error:  # when all partitions failed, it raises
            self.note(*[kafka_error(error)] * len(dirty))
            return confirmed
        for each in answers:
            if each.error is None and each.partition in dirty:
                self.confirm(*dirty[each.partition])
                confirmed.add(each.partition)
        self.note(*[each.error for each in answers if each.error is not None])
        return confirmed

    def _encoded(self, point: Point, mark: Mark | None) -> Stored:
        return (point.offset, encode(point, self._metadata_limit, mark))

    def stored(self, partition: Partition, point: Point, now: float, *, clean: bool = False) -> Stored:
        """What a commit of ``point`` is to store; ``clean`` if the reader leaves in good order."""
        return self._encoded(point, partition.vigil.mark(point.offset, now, clean=clean))

    def stop(self) -> None:
        """Commit nothing any more: what is stored is not known, and may be later than what we have."""
        self._stopped = True

    def _dirty(self, partition: Partition, point: Point, now: float, *, clean: bool) -> Stored | None:
        stored = self.stored(partition, point, now, clean=clean)
        if self._stopped:
            return None
        if stored == partition.committed and now - partition.committed_at < RECOMMIT_SECONDS:
            return None
        return stored

    def offset(self, partition: Partition, stored: Stored) -> TopicPartition:
        """``stored`` as the client takes it."""
        return TopicPartition(self._assignment.topic, partition.number, stored[0], metadata=stored[1])

    def confirm(self, partition: Partition, stored: Stored) -> None:
        """The broker has it."""
        partition.committed = stored
        partition.committed_at = time.monotonic()
        self.last_error = None

    def note(self, *errors: KafkaError | None) -> None:
        """Of one request so many partitions' commits were not confirmed."""
        if not errors:
            return
        self.failed += len(errors)
        self.last_error = errors[-1]
        if any(error is not None and error.code() == KafkaError.OFFSET_METADATA_TOO_LARGE for error in errors):
            # This broker takes less than the default: keep the offsets, shorten the rest. By a half for each request, however many
            # partitions it was for: else little would be left of what is done ahead.
            self._metadata_limit //= 2
        log.debug("commit of %s not confirmed, will be repeated: %s", self._assignment.topic, self.last_error)
