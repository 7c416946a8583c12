"""Assignments coming and going. Every method is called by the client within poll, on the subscription's own thread.

The order of what happens at a revoke is the delivery guarantee: stop handing out, let running work end while the loop
goes on, end the epoch and take the last watermark in one step, commit it, and only then let go.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from atleastonce.adapters.kafka.commits import Committer
from atleastonce.adapters.kafka.config import Settings
from atleastonce.adapters.kafka.faults import as_exception
from atleastonce.adapters.kafka.flow import Flow
from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.adapters.kafka.standstill import Standstill
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable
from atleastonce.offsets import decode, read_mark

log = logging.getLogger("atleastonce.kafka")

# The committed offsets must be known before anything is read. Longer than one election of a coordinator; well below
# max.poll.interval.ms, since nothing polls meanwhile.
COMMITTED_SECONDS = 30.0

# How long one question for them may take.
ANSWER_SECONDS = 5.0

# How often what a drain waits for is looked at. Shorter costs processor time, longer makes the group wait.
_SERVE_SECONDS = 0.002

Drain = Callable[[Sequence[Partition], float], "concurrent.futures.Future[None]"]


class Rebalancer:
    """The three rebalance callbacks of one subscription.

    Args:
        settings: drain time, start position, protocol.
        assignment, committer, flow, handover, standstill: of the subscription.
        drain: starts the loop's drain of partitions; the future ends with it.
        tell: runs a function on the loop.
        lost, condition: the listener's methods, to be called on the loop.
    """

    def __init__(
        self,
        settings: Settings,
        assignment: Assignment,
        committer: Committer,
        flow: Flow,
        handover: Handover,
        standstill: Standstill,
        *,
        drain: Drain,
        lost: Callable[[Sequence[str]], None],
        condition: Callable[[str, str], None],
    ) -> None:
        self.closing = False
        self.serve: Callable[[], None] | None = None
        """Does on this thread what the loop waits for, while this one waits for the loop."""
        self.failure: AtLeastOnceError | None = None
        self.foreign = 0
        """Commit metadata that was not believed."""
        self._settings = settings
        self._assignment = assignment
        self._committer = committer
        self._flow = flow
        self._handover = handover
        self._standstill = standstill
        self._drain = drain
        self._lost = lost
        self._condition = condition

    def assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Find out where each partition stands, then start it there."""
        try:
            starts = (
                [self._start(consumer, each) for each in self._committed(consumer, partitions)] if partitions else []
            )
        except (AtLeastOnceError, KafkaException) as error:
            # Without the committed offset nothing may be read: the wrong start would skip or repeat a whole log.
            self.failure = as_exception(error, f"committed offsets of {self._assignment.topic}")
            starts = []
        if self._settings.incremental:
            consumer.incremental_assign(starts)
        else:
            consumer.assign(starts)
        if starts:
            consumer.resume(starts)  # a pause survives in the client from an earlier assignment
            if self._flow.paused:
                consumer.pause(starts)
        numbers = ",".join(str(number) for number in sorted(self._assignment.live))
        self._condition("assigned", f"{self._assignment.topic}: {numbers or 'no partitions'}")

    def revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Let running work end, commit, let go."""
        ours = self._ours(partitions)
        if ours and not self.closing:
            self._drained(ours)
        ended = self._assignment.end(ours)
        self._handover.purge_soon()
        # With transactions what stays is committed by them alone.
        self._committer.finish([(partition, point) for partition, point, _ in ended], kept=self.serve is None)
        if left := [partition.stream for partition, _, open_ in ended if open_]:
            self._lost(left)
        self._release(consumer, partitions)

    def lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """They belong to others already: no drain, no commit."""
        ended = self._assignment.end(self._ours(partitions))
        self._handover.purge_soon()
        if ended:
            self._lost([partition.stream for partition, _, _ in ended])
        self._release(consumer, partitions)

    def rewound(self, partition: Partition) -> Partition:
        """Records come again from an earlier offset: the log or the group was reset, and what is known is void."""
        log.warning("%s went back to an earlier offset; all of it is read again", partition.stream)
        self._assignment.end([partition])
        self._handover.purge_soon()
        self._lost([partition.stream])
        return self._assignment.begin(partition.number, None)

    def _ours(self, partitions: Sequence[TopicPartition]) -> list[Partition]:
        live = self._assignment.live
        return [live[each.partition] for each in partitions if each.partition in live]

    def _release(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._settings.incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _drained(self, partitions: Sequence[Partition]) -> None:
        grace = min(self._settings.drain, self._settings.max_poll_interval / 2)
        deadline = time.monotonic() + grace + 1.0
        try:
            draining = self._drain(partitions, grace)
            while self.serve is not None and not draining.done() and time.monotonic() < deadline:
                self.serve()
                time.sleep(_SERVE_SECONDS)
            draining.result(max(0.0, deadline - time.monotonic()))
        except AtLeastOnceError as error:
            self.failure = error
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, RuntimeError) as error:
            log.warning("%s: drain of %d partitions: %r", self._assignment.topic, len(partitions), error)

    def _committed(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        # Offsets of an open transaction are not told: its end is waited for, or its producer's timeout.
        limit = COMMITTED_SECONDS + self._settings.transaction_timeout
        with self._standstill.until("the committed offsets", limit + ANSWER_SECONDS):
            return self._insist(consumer, partitions, time.monotonic() + limit)

    def _insist(self, consumer: Consumer, partitions: list[TopicPartition], deadline: float) -> list[TopicPartition]:
        while True:
            try:
                found = consumer.committed(partitions, timeout=ANSWER_SECONDS)
                failed = next((each.error for each in found if each.error is not None), None)
                if failed is None:
                    return found
                raise KafkaException(failed)
            except KafkaException as error:
                if self.closing or time.monotonic() > deadline:
                    raise
                log.debug("committed offsets of %s: %s", self._assignment.topic, error)
                time.sleep(0.1)

    def _start(self, consumer: Consumer, found: TopicPartition) -> TopicPartition:
        topic, number = found.topic, found.partition
        if found.offset >= 0:
            ahead = decode(found.metadata, found.offset)
            if ahead is None:
                self.foreign += 1
                log.warning("%s/%d: commit metadata is not ours or damaged; ignored", topic, number)
            partition = self._assignment.begin(
                number, found.offset, ahead or (), read_mark(found.metadata, found.offset)
            )
            partition.committed = (found.offset, found.metadata or "")
            partition.committed_at = time.monotonic()
            return TopicPartition(topic, number, found.offset)
        if self._settings.reset == "latest":
            bounds = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10.0)
            if bounds is None:
                raise BrokerUnavailable(f"Kafka: no answer about the end of {topic}/{number}")
            # Known to the tracker, and so committed at once: a restart must not jump to an even later end.
            self._assignment.begin(number, bounds[1])
            return TopicPartition(topic, number, bounds[1])
        self._assignment.begin(number, None)
        return TopicPartition(topic, number, OFFSET_BEGINNING)
