"""The one thread that calls a consumer. librdkafka's Python handle makes every call wait for the one that runs, so a
second thread would starve; there is none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.commits import Committer
from atleastonce.adapters.kafka.faults import as_exception, fault
from atleastonce.adapters.kafka.flow import Flow
from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.adapters.kafka.reach import Reach
from atleastonce.adapters.kafka.rebalance import Rebalancer
from atleastonce.adapters.kafka.records import deliveries
from atleastonce.adapters.kafka.transactor import Transactor
from atleastonce.channels import Source
from atleastonce.contract import Code
from atleastonce.errors import AtLeastOnceError, ConnectionLost

log = logging.getLogger("atleastonce.kafka")

# How long one poll waits: the latency of pausing, closing and committing while nothing arrives. Shorter costs idle CPU.
SLICE_SECONDS = 0.05

# The same while something is out that is to be settled in a transaction, which is this thread's work. Shorter costs processor time;
# longer delays every transaction.
TRANSACTION_SLICE_SECONDS = 0.005

# Without a partition: how often it is asked whether the topic is still there. In a group of the new protocol (KIP-848) the
# client is told of a deleted topic by nothing but the loss of its partitions, as if others had taken them.
VERIFY_SECONDS = 3.0

# How long a close waits for the confirmation of its last commit. A broker that is gone must not hold up a shutdown.
CLOSE_SECONDS = 5.0


class Owner(threading.Thread):
    """Polls, fetches, commits and rebalances for one subscription, from its start until `stop`.

    Args:
        consumer: the handle, not subscribed yet; closed by this thread.
        source: what is read.
        assignment, committer, flow, handover, rebalancer, reach: the subscription's parts.
        counting: whether no record may be handed out before that is noted in the commit.
        transactor: does what is published and settled in one step; None where everything is only settled.
        condition: the listener's method, to be called on the loop.
        missing: told (on this thread) that the broker does not know the topic.
        ended: told (on this thread, last) that the consumer is closed.
    """

    def __init__(
        self,
        consumer: Consumer,
        source: Source,
        assignment: Assignment,
        committer: Committer,
        flow: Flow,
        handover: Handover,
        rebalancer: Rebalancer,
        reach: Reach,
        *,
        counting: bool,
        transactor: Transactor | None,
        condition: Callable[[str, str], None],
        missing: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(name=f"atleastonce-kafka-{source.name}", daemon=True)
        self.resting = False
        """Whether it waits for room in the window: then, and only then, a settlement has to nudge it."""
        self._consumer = consumer
        self._source = source
        self._assignment = assignment
        self._committer = committer
        self._flow = flow
        self._handover = handover
        self._rebalancer = rebalancer
        self._reach = reach
        # A commit that is only perhaps stored must not be followed by a transaction, for it might arrive after that.
        self._counting = counting or transactor is not None
        self._transactor = transactor
        if transactor is not None:
            rebalancer.serve = transactor.serve
        self._condition = condition
        self._missing = missing
        self._ended = ended
        self._stopping = False
        self._nudge = threading.Event()
        self._busy = False
        self._verify_at = time.monotonic() + VERIFY_SECONDS
        self._failure: AtLeastOnceError | None = None

    # ---------------------------------------------------------------------------- from the loop

    def nudge(self) -> None:
        """There may be room, or another order: look at once."""
        self._nudge.set()

    def stop(self) -> None:
        """Commit what is done, leave the group, end."""
        self._stopping = self._rebalancer.closing = True
        self._nudge.set()

    # ------------------------------------------------------------------------------- the thread

    def run(self) -> None:
        """See `Thread.run`."""
        rebalancer = self._rebalancer
        try:
            if self._transactor is not None:
                self._transactor.open()
            self._consumer.subscribe(
                [self._assignment.topic],
                on_assign=rebalancer.assigned,
                on_revoke=rebalancer.revoked,
                on_lost=rebalancer.lost,
            )
            while not self._stopping:
                self._step()
                if failure := (self._failure or rebalancer.failure):
                    raise failure
        except AtLeastOnceError as error:
            self._fail(error)
        except Exception as error:  # a silent death of this thread would be a silent halt of the service
            log.debug("%s: polling ended", self._source, exc_info=True)
            self._fail(ConnectionLost(str(as_exception(error, f"reading {self._source}"))))
        finally:
            self._leave()
            self._ended()

    def _step(self) -> None:
        now = time.monotonic()
        if not self._reach.connected:
            self._look(now)
        if not self._assignment.live and now >= self._verify_at:
            self._verify_at = now + VERIFY_SECONDS
            self._missing()
        if self._transactor is None:
            self._committer.tick(now)
        else:
            self._transactor.serve()
            self._transactor.tick(now)
        flow = self._flow
        room = flow.room()
        if room:
            flow.resume(self._consumer)
            self._fetch(room)
        elif flow.paused:
            self._take(self._consumer.poll(0))
            self._rest(SLICE_SECONDS)
        elif patience := flow.patience():
            self._rest(min(patience, SLICE_SECONDS))
        else:
            flow.pause(self._consumer)

    def _rest(self, seconds: float) -> None:
        self._busy = False
        self.resting = True
        if not self._flow.room() and not self._stopping:
            self._nudge.wait(seconds)
        self.resting = False
        self._nudge.clear()

    def _fetch(self, room: int) -> None:
        if self._busy:
            batch = self._consumer.consume(room, 0)
            if batch:
                self._offer(batch)
                return
        self._busy = False
        # consume() waits its whole timeout unless it gets all; poll() returns with the first.
        first = self._consumer.poll(self._slice())
        if first is None:
            return
        if room == 1:
            self._offer([first])
            return
        rest = self._consumer.consume(room - 1, 0)
        self._busy = len(rest) > room // 2
        self._offer([first, *rest])

    def _slice(self) -> float:
        return TRANSACTION_SLICE_SECONDS if self._transactor and self._assignment.held() else SLICE_SECONDS

    def _take(self, record: Record | None) -> None:
        if record is not None:  # fetched before the pause took hold: it is ours
            self._offer([record])

    def _offer(self, batch: list[Record]) -> None:
        ready, size, errors = deliveries(batch, self._source, self._assignment, self._rebalancer.rewound)
        if ready:
            if unreserved := self._assignment.unreserved():
                self._reserve(unreserved)
            self._flow.seen(len(ready), size)
            self._handover.put(ready)  # no sign of a broker: they may have been fetched before it went
        for error in errors:
            self.error(error)

    def _reserve(self, partitions: list[Partition]) -> None:
        """Note that these are handed out, before they are. Where every hand-out counts, none goes without."""
        if self._committer.reserve(partitions):
            return
        if self._counting:
            raise ConnectionLost(
                f"Kafka: a hand-out of {self._source} could not be noted: {self._committer.last_error}"
            )
        log.debug("%s: not noted as handed out: %s", self._source, self._committer.last_error)

    def error(self, error: KafkaError) -> None:
        """An error event: from the client (``error_cb``) or in the place of a record."""
        code = error.code()
        found = fault(error)
        if error.fatal():
            self._failure = ConnectionLost(f"Kafka: {found.detail}")
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            self._missing()
        elif found.code is Code.PERMISSION or code == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
            self._failure = as_exception(KafkaException(error), f"reading {self._source}")
        elif code == KafkaError._ALL_BROKERS_DOWN:
            if self._reach.connected:
                self._reach.down()
                self._condition("disconnected", found.detail)
        else:
            log.debug("%s: %s", self._source, found)

    def committed(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """The client's ``on_commit``."""
        self._committer.answered(error, offsets)
        if error is None and not self._reach.connected:
            self._reach.up()
            self._condition("connected", "")

    def _look(self, now: float) -> None:
        if self._reach.look(now, self._assignment.topic):
            self._condition("connected", "")
        elif self._reach.lost:
            raise ConnectionLost(
                "Kafka: brokers answer, and this client does not find them any more; another one is made"
            )

    def _fail(self, error: AtLeastOnceError) -> None:
        self._rebalancer.closing = True
        self._handover.fail(error)

    def _leave(self) -> None:
        """The last commit, bounded; then leave the group. What is open stays uncommitted."""
        if self._transactor is not None:
            self._transactor.close()
        try:
            if self._reach.connected or self._reach.ask(self._assignment.topic, 0.5):
                self._committer.leaving = True
                self._flush()
        except KafkaException as error:
            log.debug("%s: last commit: %s", self._source, error)
        ended = self._assignment.end(list(self._assignment.live.values()))
        self._handover.purge_soon()
        log.debug("%s: %d partitions given back", self._source, len(ended))
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.debug("%s: close: %s", self._source, error)

    def _flush(self) -> None:
        # Not a synchronous commit: that one could not be given up before session.timeout.ms.
        if self._assignment.live:
            self._flow.pause(self._consumer)
        committer = self._committer
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._assignment.live and time.monotonic() < deadline:
            if not committer.pending and not committer.send(time.monotonic()):
                return
            self._consumer.poll(0.02)  # answers arrive here; a record is left for the next owner
            if (error := committer.last_error) is not None and not _passes(error):
                return


def _passes(error: KafkaError) -> bool:
    """Whether a commit that met ``error`` may be stored if it is sent again. While others join, the coordinator reads nothing more
    on our connection until all have; by then the group is of the next generation, and a commit on its way of the last one. The
    next commit is of the new one; who is no member any more is told so otherwise. One with too much beside the offset is shorter
    the next time."""
    return (
        error.code() in (KafkaError.ILLEGAL_GENERATION, KafkaError.OFFSET_METADATA_TOO_LARGE) or fault(error).retryable
    )
