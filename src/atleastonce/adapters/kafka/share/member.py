"""One member of a share group: a client, and the one thread that calls it.

The client hands out nothing more until all that it handed out last is acknowledged. So a member takes turns: it polls, and then it
acknowledges until nothing is left. A subscription has several, so that a slow message holds up the places of one alone.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from confluent_kafka import AcknowledgeType, KafkaError, KafkaException

from atleastonce.adapters.kafka.faults import as_exception, classify, fault, kafka_error
from atleastonce.adapters.kafka.share.batch import Batch, ShareDelivery, deliveries, place_of
from atleastonce.channels import Source
from atleastonce.contract import OK, STALE, Code, Outcome, Status, unknown
from atleastonce.errors import AtLeastOnceError, ConnectionLost

log = logging.getLogger("atleastonce.kafka")

# How long one poll waits: the latency of pausing and closing while nothing arrives. Shorter costs idle CPU.
_SLICE_SECONDS = 0.1

# How long the answer to an acknowledgement is waited for. Then nobody can tell whether it was done.
_COMMIT_SECONDS = 10.0

# By how much earlier than the broker a lock is taken for over: a fifth of it, and not more than this. Less than an acknowledgement
# takes to get there: it comes too late.
_MARGIN_SECONDS = 1.0

# How soon it is looked again whether there is room. Longer: others of this subscription work alone meanwhile.
_FULL_SECONDS = 0.1

# How soon a poll is repeated that failed in passing.
_AGAIN_SECONDS = 0.2

_UNSAID = unknown(Code.UNAVAILABLE, "the broker did not say what became of the acknowledgement")

_COUNT = attrgetter("count")


class Wanted(enum.Enum):
    """What a subscription wants of a member that has nothing in hand."""

    MORE = enum.auto()
    NO_MORE = enum.auto()
    """There is enough; what comes all the same will be received."""
    NOTHING = enum.auto()
    """Nobody receives. A question that is on its way would bring records that nobody takes, from the hands of those who would. So
    it is taken back, by leaving the group: each such hand-out counts, and the processes of a service may all be busy at once."""


class Job:
    """Deliveries of one `Subscription.settle` that one member has to acknowledge.

    Args:
        batch: with the place of each in the list that is settled.
        done: called on the loop when ``outcomes`` is filled.
    """

    def __init__(self, batch: Sequence[tuple[int, ShareDelivery]], done: Callable[[], None]) -> None:
        self.batch = batch
        self.outcomes: dict[int, Outcome] = {}
        self.done = done


class Member(threading.Thread):
    """Polls and acknowledges for one subscription, from its start until `stop`.

    Args:
        make: a new client, not subscribed yet; the thread closes it.
        source: what is read.
        lock: seconds for which a record is its member's.
        door: the one of its subscription, through which one member at a time leaves when nobody receives.
        wanted: asked before each poll.
        offer: takes what came.
        answer: calls on the loop.
        withdraw: asked, on the loop, to give back what of ours nobody has begun.
        over: told, on the loop, that locks are over.
        error: told, on this thread, of an error event.
        fail: told, on this thread, what has ended it.
        ended: told, on this thread, last, which member has ended.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        source: Source,
        number: int,
        lock: float,
        *,
        door: threading.Lock,
        wanted: Callable[[], Wanted],
        offer: Callable[[list[Any]], None],
        answer: Callable[..., None],
        withdraw: Callable[[Member], None],
        over: Callable[[], None],
        error: Callable[[KafkaError], None],
        fail: Callable[[AtLeastOnceError], None],
        ended: Callable[[Member], None],
    ) -> None:
        super().__init__(name=f"atleastonce-kafka-share-{source.name}-{number}", daemon=True)
        self.batch = Batch()
        self._make = make
        self._source = source
        self._lock = lock
        self._door = door
        self._wanted = wanted
        self._offer = offer
        self._answer = answer
        self._withdraw = withdraw
        self._over = over
        self._error = error
        self._fail = fail
        self._ended = ended
        self._stopping = self._gone = False
        self._wake = threading.Event()
        self._jobs: deque[Job] = deque()
        self._back: deque[list[Any]] = deque()
        self._epoch = 0
        self._since = 0.0
        self._asking = False
        self._asked = False  # for what of this batch nobody has begun
        self._consumer: Any = None

    # ---------------------------------------------------------------------------- from the loop

    def settle(self, job: Job) -> None:
        """Acknowledge; the job is answered in any case."""
        self._jobs.append(job)
        self._wake.set()
        if self._gone:
            self._turn_away()

    def give_back(self, unstarted: list[Any]) -> None:
        """These were never handed out, and will not be."""
        self._back.append(unstarted)
        self._wake.set()

    def nudge(self) -> None:
        """Another order: look at once."""
        self._wake.set()

    def stop(self) -> None:
        """Acknowledge what was settled, leave the group, end."""
        self._stopping = True
        self._wake.set()

    # ------------------------------------------------------------------------------- the thread

    def run(self) -> None:
        """See `Thread.run`."""
        try:
            self._join_group()
            while not self._stopping:
                self._step()
        except AtLeastOnceError as error:
            self._fail(error)
        except Exception as error:  # a silent death of this thread would be a silent halt of the service
            log.debug("%s: polling ended", self._source, exc_info=True)
            self._fail(ConnectionLost(str(as_exception(error, f"reading {self._source}"))))
        finally:
            self._leave()
            self._ended(self)

    def _step(self) -> None:
        self._wake.clear()
        if self._jobs:
            self._acknowledge()
        while self._back:
            self.batch.lose(self._back.popleft())
        now = time.monotonic()
        if not self.batch:
            wanted = self._wanted()
            if wanted is Wanted.MORE or (wanted is Wanted.NO_MORE and self._asking):
                self._poll()
            elif self._asking:
                self._depart()
            else:
                self._wake.wait(_FULL_SECONDS if wanted is Wanted.NO_MORE else 1.0)
        elif not self.batch.live:
            self._release()
        elif now >= self.batch.until:
            if self.batch.end():
                self._answer(self._over)
        elif not self._asked and now >= self.batch.until - self._lock / 2:
            self._asked = True
            self._answer(self._withdraw, self)
        else:
            ends = self.batch.until - (0.0 if self._asked else self._lock / 2)
            self._wake.wait(max(0.0, ends - now))

    def _poll(self) -> None:
        if self._consumer is None:
            self._join_group()
        # A question without an answer goes on in the background: what comes now may have been locked since the last look.
        since = self._since if self._asking else time.monotonic()
        try:
            records = self._consumer.poll(_SLICE_SECONDS)
        except KafkaException as error:
            self._failed(error)
            return
        now = time.monotonic()
        until = since + self._lock - min(_MARGIN_SECONDS, self._lock / 5)
        self._since, self._asking = now, not records
        if not records:
            return
        self._epoch += 1
        self._asked = False
        good = [record for record in records if record.error() is None]
        came = deliveries(good, self._source, self._epoch, self, until)
        self.batch.add(came)
        for record in records:
            if (found := record.error()) is not None:
                self._error(found)
        if until - now < self._lock / 2:
            self.batch.end()
        elif came:
            self._offer(sorted(came, key=_COUNT, reverse=True))  # first what the broker will not hand out much longer

    def _failed(self, error: KafkaException) -> None:
        inner = kafka_error(error)
        if inner is None:
            raise error
        self._error(inner)
        if inner.fatal() or not classify(error).retryable:
            raise ConnectionLost(str(as_exception(error, f"reading {self._source}")))
        self._wake.wait(_AGAIN_SECONDS)

    def _acknowledge(self) -> None:
        jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        topic, sent = self._source.channel.name, []
        for job in jobs:
            for place, delivery in job.batch:
                job.outcomes[place] = STALE
                if self.batch.settled(delivery):
                    number, offset = place_of(delivery)
                    try:
                        self._consumer.acknowledge_offset(topic, number, offset, AcknowledgeType.ACCEPT)
                    except RuntimeError as error:  # the client has forgotten it
                        log.debug("%s: %s: %s", self._source, delivery, error)
                    else:
                        sent.append((job, place, number))
        if sent:
            lost, (answers, otherwise) = False, self._commit()
            for job, place, number in sent:
                job.outcomes[place] = outcome = answers.get(number, otherwise)
                lost = lost or outcome.status is Status.UNKNOWN
            if lost and self.batch.end():  # with its connection a member loses all that it held
                self._answer(self._over)
        for job in jobs:
            self._answer(job.done)

    def _release(self) -> None:
        """Give back what is open here and nobody settles any more. Of what others have by now, the broker takes no notice."""
        for partition, offset in self.batch.clear():
            with contextlib.suppress(RuntimeError):  # the client has forgotten it
                self._consumer.acknowledge_offset(self._source.channel.name, partition, offset, AcknowledgeType.RELEASE)
        self._commit()

    def _commit(self) -> tuple[Mapping[int, Outcome], Outcome]:
        """The outcome of each partition that was answered, and that of all others."""
        try:
            answers = self._consumer.commit_sync(_COMMIT_SECONDS)
        except KafkaException as error:
            found = classify(error)
            log.debug("%s: acknowledgements: %s", self._source, found)
            return {}, Outcome(Status.UNKNOWN, found)
        told = {each.partition: OK if error is None else self._refused(error) for each, error in answers.items()}
        return told, _UNSAID

    def _refused(self, error: KafkaException) -> Outcome:
        inner = kafka_error(error)
        log.debug("%s: acknowledgements: %s", self._source, error)
        if inner is not None and (found := fault(inner)).code in (Code.UNAVAILABLE, Code.TIMEOUT):
            return Outcome(Status.UNKNOWN, found)
        return STALE

    # ---------------------------------------------------------------------------------- the group

    def _join_group(self) -> None:
        self._consumer = self._make()
        self._consumer.subscribe([self._source.channel.name])
        self._asking = False

    def _depart(self) -> None:
        # Whoever leaves may be handed records all the same, and gives them back. If all left at once, each would get them in turn
        # and each hand-out counts: so the others go on asking, and one of them keeps what it gets.
        if not self._door.acquire(blocking=False):
            self._poll()
            return
        try:
            self._close()
        finally:
            self._door.release()

    def _leave(self) -> None:
        try:
            if self._jobs and self._consumer is not None:
                self._acknowledge()
        except Exception as error:  # noqa: BLE001 - what is not acknowledged comes again
            log.debug("%s: last acknowledgements: %s", self._source, error)
        self._gone = True
        self.batch.end()
        self._turn_away()
        self._close()

    def _close(self) -> None:
        consumer, self._consumer, self._asking = self._consumer, None, False
        try:
            if consumer is not None:
                consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.debug("%s: close: %s", self._source, error)

    def _turn_away(self) -> None:
        """Answer what comes when nobody acknowledges any more; called on both threads."""
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                return
            job.outcomes.update((place, STALE) for place, _ in job.batch)
            self._answer(job.done)
