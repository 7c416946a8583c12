"""Backpressure: how many records may be fetched now, and when to pause.

librdkafka throws a partition's whole prefetch away when it is paused, and does not wake its fetcher when it is resumed
(the next fetch then waits for a timer of up to a second). So: a full window first merely stops the polling, for less
time than anybody notices; only one that stays full pauses. And a resume is followed by a seek to where the partition
stands anyway, which wakes the fetcher at once.
"""

from __future__ import annotations

import logging
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.partition import Assignment
from atleastonce.contract import Window

log = logging.getLogger("atleastonce.kafka")

# How long a full window only stops the polling. Too short: every hiccup of a handler throws away the prefetch, and
# partitions flap. Too long: a rebalance waits for it, since callbacks run within poll.
GRACE_SECONDS = 0.5

# Most records of one fetch, and how many records may lie ready to be received. Fewer: the two threads wait for each other.
# More: records lie here as objects, which the garbage collector walks through again and again, instead of in the client's
# own memory; and the thread is away from its other duties for longer.
CHUNK = 500
AHEAD = 1000


class Flow:
    """Decides what the polling thread may fetch.

    Args:
        window: the bound on what is received and unsettled.
        assignment: what is held, by partition.
        handover: what of it is still buffered.
    """

    def __init__(self, window: Window, assignment: Assignment, handover: Handover) -> None:
        self.paused = False
        """Whether the partitions are paused in the client, as far as we did it."""
        self.stopped = False
        """Whether the user paused the subscription; written by the loop."""
        self._window = window
        self._assignment = assignment
        self._handover = handover
        self._full_since: float | None = None
        self._mean = 16_384.0  # bytes of a record, until some have been seen; cautious, for windows of few bytes

    def room(self) -> int:
        """How many records may be fetched now; 0 while it is not worth a fetch."""
        if self.stopped:
            return 0
        window = self._window
        room = window.messages - self._assignment.held()
        spare = window.bytes - self._assignment.held_bytes()
        if room <= 0 or spare <= 0:
            return 0
        ready = self._handover.records()
        if ready >= AHEAD or (ready and room < min(CHUNK, window.messages // 2)):
            return 0  # there is work to hand out; single records are not worth a round
        return min(room, CHUNK, max(1, int(spare / self._mean)))

    def seen(self, records: int, size: int) -> None:
        """Learn how large records are."""
        self._mean = max(1.0, 0.8 * self._mean + 0.2 * size / records)

    def patience(self) -> float:
        """Seconds for which the polling may still rest before the partitions must be paused; 0.0 when it is time."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        return 0.0 if self.stopped else max(0.0, self._full_since + GRACE_SECONDS - now)

    def pause(self, consumer: Consumer) -> None:
        """Stop the fetching of everything; polling goes on, and with it the membership."""
        self.paused = True
        consumer.pause(self._partitions())

    def resume(self, consumer: Consumer) -> None:
        """Let everything be fetched again, at once."""
        self._full_since = None
        if not self.paused:
            return
        self.paused = False
        partitions = self._partitions()
        if not partitions:
            return
        consumer.resume(partitions)
        awake = False
        for partition in self._assignment.live.values():
            position = partition.tracker.position
            if position is not None:
                try:
                    consumer.seek(TopicPartition(self._assignment.topic, partition.number, position))
                    awake = True
                except KafkaException as error:  # not fetching yet; it will start by itself
                    log.debug("wake-up of %s: %s", partition.stream, error)
        if not awake:
            try:  # any request wakes the connection's thread
                consumer.get_watermark_offsets(partitions[0], timeout=1.0)
            except KafkaException as error:
                log.debug("wake-up of %s: %s", self._assignment.topic, error)

    def _partitions(self) -> list[TopicPartition]:
        return [TopicPartition(self._assignment.topic, number) for number in self._assignment.live]
