"""Backpressure: how many records may be fetched now, and when to pause.

librdkafka throws a partition's whole prefetch away when it is paused, and does not wake its fetcher when it is resumed
(the next fetch then waits for a timer of up to a second). So: a full window first merely stops the polling, for less
time than anybody notices; only one that stays full pauses. And a resume is followed by a seek to where a partition
stands anyway, which wakes the fetcher of its broker at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection

from confluent_kafka import Consumer, KafkaException, TopicPartition

from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.contract import Window

log = logging.getLogger("atleastonce.kafka")

# How long a full window only stops the polling. Too short: every hiccup of a handler throws away the prefetch, and
# partitions flap. Too long: a rebalance waits for it, since callbacks run within poll.
GRACE_SECONDS = 0.5

# The same where partitions share a window, and the full one alone is paused. Too short: one whose records are due and being
# handled is paused and fetched anew again and again. Too long: the others' records come late by as much.
SHARE_GRACE_SECONDS = 0.03

# Most records of one fetch, and how many records may lie ready to be received. Fewer: the two threads wait for each other.
# More: records lie here as objects, which the garbage collector walks through again and again, instead of in the client's
# own memory; and the thread is away from its other duties for longer.
CHUNK = 500
AHEAD = 1000

# How long it is known which broker leads which partition. Longer: after a leader has moved, a resume may find its records a
# fetch.wait.max.ms late. Shorter: a question to the brokers more often, which the polling waits for.
LEADERS_SECONDS = 30.0


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
        self._satisfied: set[Partition] = set()  # paused alone, since they have their share of the window
        self._leaders: dict[int, int] = {}
        self._leaders_until = -math.inf
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
        if window.shared:
            room = min(room, self._shared_room())
            if not room:
                return 0
        ready = self._handover.records()
        least = self._share // 4 if window.shared else window.messages // 2
        if ready >= AHEAD or (ready and room < min(CHUNK, least)):
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
        grace = SHARE_GRACE_SECONDS if self._too_full() else GRACE_SECONDS
        return 0.0 if self.stopped else max(0.0, self._full_since + grace - now)

    def pause(self, consumer: Consumer) -> None:
        """Stop the fetching of everything, or of those partitions alone that keep the others from their share of the window;
        polling goes on, and with it the membership."""
        if not self.stopped and (full := self._too_full()):
            self._full_since = None
            self._satisfied = self._satisfied.union(full)  # replaced, not changed: the loop looks through it, too
            consumer.pause(self._named(full))
            return
        self.paused = True
        consumer.pause(self._named(self._assignment.live.values()))

    def resume(self, consumer: Consumer) -> None:
        """Let everything be fetched again, at once; what was paused alone, only if it has used up half of its share."""
        self._full_since = None
        woken: list[Partition] = []
        if self._satisfied:
            woken = self._used_up()
            live = self._assignment.live
            # One that was read from the start again is another object, and paused in the client all the same.
            gone = {partition.number for partition in self._satisfied if not partition.live}
            woken += [live[number] for number in gone if number in live]
            self._satisfied = {partition for partition in self._satisfied if partition.live}.difference(woken)
        if self.paused:
            self.paused = False
            woken = self._fetching()
        if woken:
            self._wake(consumer, woken)

    @property
    def _share(self) -> int:
        # Not quite all of it: a partition may get a fetch more than its share.
        return max(1, self._window.messages * 4 // 5 // max(1, len(self._assignment.live)))

    def _shared_room(self) -> int:
        """How many records may be fetched, whichever partitions they come from."""
        fetching, share = self._fetching(), self._share
        least = max(1, share // 4)
        if not self._assignment.live or self._used_up():
            return least
        most = max((len(partition.tracker.open) for partition in fetching), default=share)
        return max(least, share - most) if most < share else 0

    def _too_full(self) -> list[Partition]:
        """Which partitions keep the others from their share, if it is they that there is no room for."""
        if not self._window.shared or self._assignment.held() >= self._window.messages:
            return []
        share = self._share
        return [partition for partition in self._fetching() if len(partition.tracker.open) >= share]

    def _fetching(self) -> list[Partition]:
        return [partition for partition in self._assignment.live.values() if partition not in self._satisfied]

    def _used_up(self) -> list[Partition]:
        most = self._share // 2
        return [each for each in self._satisfied if each.live and len(each.tracker.open) <= most]

    def _wake(self, consumer: Consumer, those: Collection[Partition]) -> None:
        partitions = self._named(those)
        if not partitions:
            return
        consumer.resume(partitions)
        awake = False
        for partition in self._one_of_each_leader(consumer, those):
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

    def _one_of_each_leader(self, consumer: Consumer, those: Collection[Partition]) -> Collection[Partition]:
        """Whose seek wakes all of them. A seek takes its partition out of the fetches for a moment, and a fetch without the one
        that has something waits for records of the others, ``fetch.wait.max.ms``: so no more of them than there are connections."""
        started = [partition for partition in those if partition.tracker.position is not None]
        if len(started) <= 1:
            return started
        now = time.monotonic()
        if now >= self._leaders_until:
            self._leaders_until = now + LEADERS_SECONDS
            self._leaders = self._ask_for_leaders(consumer)
        return {self._leaders.get(each.number, -each.number - 1): each for each in started}.values()

    def _ask_for_leaders(self, consumer: Consumer) -> dict[int, int]:
        topic = self._assignment.topic
        try:
            found = consumer.list_topics(topic, timeout=1.0).topics[topic].partitions
        except (KafkaException, KeyError) as error:  # then each is woken by itself
            log.debug("leaders of %s: %s", topic, error)
            return {}
        return {number: each.leader for number, each in found.items() if each.leader >= 0}

    def _named(self, those: Collection[Partition]) -> list[TopicPartition]:
        return [TopicPartition(self._assignment.topic, partition.number) for partition in those]
