"""`Transacts.hand_off`: what is published and what is committed of one subscription, as one transaction after the other.

They run on the thread that polls, so no partition comes or goes while one is under way: what is ours when it begins is ours by the
group's generation that goes with it, and a broker that knows of a later one refuses it. That generation is the fence; the
producer's identity only ends what its own predecessor has left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from confluent_kafka import Consumer

from atleastonce.adapters.kafka.commits import Committer, Stored
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.adapters.kafka.producer import Publish
from atleastonce.adapters.kafka.publisher import LOOK_AGAIN
from atleastonce.adapters.kafka.transactions import Doubtful, NotCommitted, Transactions
from atleastonce.contract import OK, STALE, Code, Delivery, Fault, Outcome, Scope, Status, unknown
from atleastonce.errors import ConfigurationError, ConnectionLost

log = logging.getLogger("atleastonce.kafka")

# How often the same batch is tried within one call. Each attempt but the last ends with something learnt: a record that is
# refused, one that must travel alone.
_ATTEMPTS = 6

# How many records are sent in batches of their own at a time, the largest first. More: each costs a round trip, within the
# transaction's timeout. Fewer: more attempts where many are too large.
_ALONE = 32

_NOT_A_MEMBER = Fault(Code.UNAVAILABLE, True, Scope.SUBSCRIPTION, "not a member of the group at the moment")


class Request(NamedTuple):
    """One hand-off.

    Attributes:
        deliveries: to be settled.
        records: to be published, their places ascending.
        owners: by place, which of ``deliveries`` a record belongs to.
        answer: one outcome for each of ``deliveries``.
    """

    deliveries: Sequence[Delivery]
    records: Sequence[Publish]
    owners: Sequence[int]
    answer: asyncio.Future[list[Outcome]]


class Transactor:
    """The transactions of one subscription.

    Args:
        consumer: the handle; only used on the thread that polls it.
        assignment, committer: of the subscription.
        transactions: its producer.
        missing: told (on the polling thread) which topics a record was refused for.
    """

    def __init__(
        self,
        consumer: Consumer,
        assignment: Assignment,
        committer: Committer,
        transactions: Transactions,
        *,
        missing: Callable[[Collection[str]], None],
    ) -> None:
        self._consumer = consumer
        self._assignment = assignment
        self._committer = committer
        self._transactions = transactions
        self._missing = missing
        self._requests: deque[Request] = deque()
        self._closed = False

    # ------------------------------------------------------------------------------------- on the loop

    async def submit(
        self,
        deliveries: Sequence[Delivery],
        records: Sequence[Publish],
        owners: Sequence[int],
        told: Callable[[], None],
    ) -> list[Outcome]:
        """One outcome for each of ``deliveries``; ``told`` is called when the thread has something to do."""
        answer: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        request = Request(deliveries, records, owners, answer)
        self._requests.append(request)
        if self._closed:
            self._refuse()
        told()
        return await answer

    # -------------------------------------------------------------------------------------- the thread

    def open(self) -> None:
        """End what an earlier producer of the same identity has left open, before anything is read; and who may have no
        transactions is handed nothing.

        Raises:
            PermissionDenied, ConfigurationError: as named.
        """
        with contextlib.suppress(NotCommitted):  # the first transaction tries again
            self._transactions.open()

    def serve(self) -> None:
        """Do what was asked for.

        Raises:
            ConnectionLost: it is not known how a transaction has ended: nothing may be committed any more.
            PermissionDenied, ConfigurationError: as named.
        """
        while self._requests:
            request = self._requests[0]
            outcomes = self._handled(request)
            self._requests.popleft()
            _answer(request, outcomes)

    def tick(self, now: float) -> None:
        """Commit what changed without a hand-off, if it is time to: in a transaction as well, so that no commit can arrive after
        a later one.

        Raises:
            ConnectionLost, PermissionDenied, ConfigurationError: as `serve`.
        """
        if not self._committer.due(now):
            return
        dirty = self._committer.dirty(now)
        if dirty:
            self._attempt(dirty, (), ())

    def close(self) -> None:
        """Refuse what waits and what comes, and end the producer."""
        self._closed = True
        self._refuse()
        self._transactions.close()

    def _refuse(self) -> None:
        while self._requests:
            request = self._requests.popleft()
            _answer(request, [unknown(Code.CLOSED, "the subscription has ended")] * len(request.deliveries))

    def _handled(self, request: Request) -> list[Outcome]:
        deliveries = request.deliveries
        outcomes = [OK] * len(deliveries)
        left = list(range(len(deliveries)))
        alone: set[int] = set()
        reason = _NOT_A_MEMBER
        for _ in range(_ATTEMPTS):
            left = self._ours(deliveries, left, outcomes)
            if not left:
                return outcomes
            wanted = set(left)
            records = [record for record in request.records if request.owners[record.place] in wanted]
            result = self._attempt(self._points([deliveries[index] for index in left]), records, alone)
            if isinstance(result, Fault):
                reason = result
                if result.code is Code.PERMISSION:
                    self._missing({record.topic for record in records})
                if result.code is Code.INTERNAL:  # the client's own trouble after an abort: once more
                    continue
                break
            if not result:
                self._done([deliveries[index] for index in left])
                return outcomes
            reason = self._learn(request, result, alone, outcomes)
            left = [index for index in left if outcomes[index] is OK]
            if any(outcome.status is Status.UNKNOWN for outcome in result.values()):
                break
        for index in left:
            outcomes[index] = Outcome(Status.UNKNOWN, reason)
        return outcomes

    def _ours(self, deliveries: Sequence[Delivery], left: Sequence[int], outcomes: list[Outcome]) -> list[int]:
        """Those whose partition is still ours under the same epoch; what was settled before stays so."""
        ours = []
        for index in left:
            delivery = deliveries[index]
            partition: Partition | None = delivery.token
            if partition is None:
                continue
            if partition.live and partition.epoch == delivery.epoch:
                ours.append(index)
            else:
                delivery.lost = True
                outcomes[index] = STALE
        return ours

    def _points(self, deliveries: Sequence[Delivery]) -> dict[int, tuple[Partition, Stored]]:
        """Where their partitions stand once ``deliveries`` are done."""
        done: dict[Partition, set[int]] = {}
        for delivery in deliveries:
            done.setdefault(delivery.token, set()).add(delivery.position)  # type: ignore[arg-type]
        now = time.monotonic()
        with self._assignment.lock:
            points = [(partition, partition.tracker.point(offsets)) for partition, offsets in done.items()]
        return {
            partition.number: (partition, self._committer.stored(partition, point, now))
            for partition, point in points
            if point is not None
        }

    def _attempt(
        self, stored: dict[int, tuple[Partition, Stored]], records: Sequence[Publish], alone: Collection[int]
    ) -> dict[int, Outcome] | Fault:
        """One transaction. By place, how records failed, empty where it is committed; or why it was not."""
        group = self._consumer.consumer_group_metadata()
        if not is_member(group):
            return _NOT_A_MEMBER
        offsets = [self._committer.offset(*each) for each in stored.values()]
        try:
            failed = self._transactions.commit(records, alone, offsets, group)
        except NotCommitted as error:
            self._committer.note(*[error.error] * len(stored))
            log.debug("transaction of %s not committed: %s", self._assignment.topic, error)
            return error.fault
        except Doubtful as error:
            self._committer.stop()
            raise ConnectionLost(
                f"Kafka: it is not known whether a transaction of {self._assignment.topic} was committed ({error})"
            ) from None
        if not failed:
            for partition, what in stored.values():
                self._committer.confirm(partition, what)
        return failed

    def _learn(self, request: Request, failed: dict[int, Outcome], alone: set[int], outcomes: list[Outcome]) -> Fault:
        """Make of ``failed`` what the next attempt does otherwise; the worst of it."""
        reason = _NOT_A_MEMBER
        gone: set[str] = set()
        suspects: list[tuple[int, int]] = []
        for record in request.records:
            if (outcome := failed.get(record.place)) is None:
                continue
            reason = outcome.fault or reason
            if reason.code is Code.TOO_LARGE and record.place not in alone:
                suspects.append((len(record.value or b""), record.place))
                continue
            if reason.code in LOOK_AGAIN:
                gone.add(record.topic)
            if outcome.status is Status.REJECTED:
                outcomes[request.owners[record.place]] = outcome
        # The broker measures whole batches: a neighbour may be the one that is too large.
        alone.update(place for _, place in sorted(suspects, reverse=True)[:_ALONE])
        if gone:
            self._missing(gone)
        return reason

    def _done(self, deliveries: Sequence[Delivery]) -> None:
        with self._assignment.lock:
            for delivery in deliveries:
                partition: Partition = delivery.token
                delivery.token = None
                partition.tracker.open.pop(delivery.position, None)  # type: ignore[arg-type]
                partition.bytes_out += delivery.size


def is_member(group: bytes) -> bool:
    """Whether a consumer's metadata is that of a member: the broker takes offsets without a generation from anybody, whoever owns
    the partitions.

    Raises:
        ConfigurationError: the client tells it in a form that is not known here.
    """
    head = b"CGMDv2:"
    if not group.startswith(head):
        raise ConfigurationError(
            f"Kafka: this confluent-kafka tells of its group in an unknown form ({group[:8]!r}); transactions need one like 2.16"
        )
    return int.from_bytes(group[len(head) : len(head) + 4], "little", signed=True) > 0


def _answer(request: Request, outcomes: list[Outcome]) -> None:
    def finish() -> None:
        if not request.answer.done():
            request.answer.set_result(outcomes)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        request.answer.get_loop().call_soon_threadsafe(finish)
