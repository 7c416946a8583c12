"""One transaction after the other, on one transactional producer, and what the failure of each step means.

Every method blocks, and is called on the subscription's own thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.config import CLIENT_LOG
from atleastonce.adapters.kafka.faults import as_exception, fault, kafka_error, publish_outcome
from atleastonce.adapters.kafka.producer import Publish
from atleastonce.contract import Code, Fault, Outcome, Scope, rejected
from atleastonce.errors import ConfigurationError, PermissionDenied

log = logging.getLogger("atleastonce.kafka")

# How long one call to the client lasts at most: how late a stop is noticed. What was not answered by then goes on in the client,
# and is asked for again.
_SLICE = 0.25

# How long a failed record's neighbours are still waited for: the more refusals are known, the fewer attempts it takes.
_MORE_FAILURES = 0.2

# How long beyond the transaction's own timeout a call is waited for that should have returned by then.
_STUCK_SECONDS = 1.0

# How long it may take beyond the transaction's own timeout to be told how it ended: a coordinator that is being elected.
_VERDICT_SECONDS = 15.0


class NotCommitted(Exception):
    """Nothing of the transaction happened, and it may be repeated. ``fault`` says why, ``error`` in the client's words."""

    def __init__(self, error: KafkaException) -> None:
        self.error = kafka_error(error)
        self.fault = (
            Fault(Code.INTERNAL, True, Scope.CONNECTION, str(error)) if self.error is None else fault(self.error)
        )
        super().__init__(str(self.fault))


class Doubtful(Exception):
    """The transaction may have been committed. The committed offsets tell, once it is over."""


class Transactions:
    """The producer of one subscription. Made by `open`, and made anew when it was fenced or is beyond repair: the
    same identity ends what the one before has left open.

    Args:
        config: the client's, with its ``transactional.id``.
        ending: whether nobody waits for an answer any more.
    """

    def __init__(self, config: Mapping[str, Any], ending: Callable[[], bool]) -> None:
        self._config = config
        self._timeout = int(config["transaction.timeout.ms"]) / 1000
        self._ending = ending
        self._producer: Producer | None = None

    def open(self) -> None:
        """Have a producer, and an end of what an earlier one of this identity has left open.

        Raises:
            NotCommitted: not now.
            PermissionDenied: not under this identity.
            ConfigurationError: not with this timeout.
        """
        if self._producer is not None:
            return
        producer = Producer(dict(self._config), logger=CLIENT_LOG)
        try:
            self._insist(producer.init_transactions, time.monotonic() + self._timeout)
        except KafkaException as error:
            failure = as_exception(error, f"beginning transactions as {self._config['transactional.id']}")
            if isinstance(failure, PermissionDenied | ConfigurationError):
                raise failure from None
            raise NotCommitted(error) from None
        self._producer = producer

    def commit(
        self,
        records: Sequence[Publish],
        alone: Collection[int],
        offsets: list[TopicPartition],
        group: bytes,
    ) -> dict[int, Outcome]:
        """Publish ``records`` and store ``offsets`` for ``group``, in one transaction.

        Args:
            records: in order.
            alone: the places of those that travel in a batch of their own.
            offsets: with their metadata.
            group: the consumer's metadata, by which the broker knows whether they are still its own.

        Returns:
            By place, how records ended that have failed; nothing was committed then. Empty: all is committed.

        Raises:
            NotCommitted, Doubtful: as named.
            PermissionDenied, ConfigurationError: as `open`.
        """
        self.open()
        producer = self._producer
        assert producer is not None  # noqa: S101 - just opened
        deadline = time.monotonic() + self._timeout
        failed: dict[int, Outcome] = {}
        try:
            producer.begin_transaction()
            self._produce(producer, records, alone, failed, deadline)
            if not failed:
                # While the records travel: both need the coordinator, and it is slow right after a commit.
                self._send_offsets(producer, offsets, group, deadline)
            self._flush(producer, failed, deadline)
        except KafkaException as error:
            return self._aborted(producer, failed, error)
        if failed:
            return self._aborted(producer, failed, None)
        try:
            self._insist(producer.commit_transaction, deadline + _VERDICT_SECONDS)
        except KafkaException as error:
            inner = kafka_error(error)
            if inner is not None and inner.txn_requires_abort():
                return self._aborted(producer, failed, error)
            self._discard()
            raise Doubtful(str(error)) from None
        return failed

    def close(self) -> None:
        """End the producer."""
        self._discard()

    def _produce(
        self,
        producer: Producer,
        records: Sequence[Publish],
        alone: Collection[int],
        failed: dict[int, Outcome],
        deadline: float,
    ) -> None:
        produce = producer.produce
        for record in records:
            place, headers = record.place, record.headers
            if alone and place in alone:
                self._flush(producer, failed, deadline)
            while True:
                try:
                    note = partial(_note, failed, place)
                    produce(record.topic, record.value, record.key, record.partition, note, headers=headers)
                except BufferError:
                    producer.poll(0.1)
                    if time.monotonic() > deadline or self._ending():
                        raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None
                    continue
                except KafkaException as error:
                    inner = kafka_error(error)
                    if inner is None or inner.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                        raise
                    failed[place] = publish_outcome(inner)
                except (TypeError, ValueError) as error:
                    failed[place] = rejected(Code.INVALID, str(error))
                break
            if alone and place in alone:
                self._flush(producer, failed, deadline)

    def _send_offsets(self, producer: Producer, offsets: list[TopicPartition], group: bytes, deadline: float) -> None:
        """Add ``offsets`` to the transaction, on a thread that may be left behind.

        Once it waits for the group's coordinator, the client's call knows no timeout, and it goes on only when some broker comes or
        goes. The coordinator that it remembers from before an outage may never come: the same broker is up under another handle by
        then. A new producer remembers nothing.
        """
        failures: list[Exception] = []

        def send() -> None:
            try:
                self._insist(partial(producer.send_offsets_to_transaction, offsets, group), deadline)
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                failures.append(error)

        sender = threading.Thread(target=send, name="atleastonce-kafka-offsets", daemon=True)
        sender.start()
        sender.join(_SLICE)
        while sender.is_alive():
            if time.monotonic() > deadline + _STUCK_SECONDS or self._ending():
                log.debug("offsets of %s: the client does not return", self._config["transactional.id"])
                self._producer = None  # it takes no abort, either: the next one of this identity sees to it
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            sender.join(_SLICE)
        if failures:
            raise failures[0]

    def _flush(self, producer: Producer, failed: dict[int, Outcome], deadline: float) -> None:
        """Until every record is confirmed, or one has failed."""
        until = deadline
        while len(producer):
            producer.flush(min(_SLICE, _MORE_FAILURES) if failed else _SLICE)
            now = time.monotonic()
            if failed:
                until = min(until, now + _MORE_FAILURES)
            if now >= until or self._ending():
                if not failed:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                return

    def _insist(self, call: Callable[[float], object], deadline: float) -> None:
        """Call until there is an answer."""
        while True:
            try:
                call(_SLICE)
            except KafkaException as error:
                inner = kafka_error(error)
                if inner is None or inner.fatal() or inner.txn_requires_abort() or not inner.retriable():
                    raise
                if time.monotonic() > deadline or self._ending():
                    raise
            else:
                return

    def _aborted(
        self, producer: Producer, failed: Mapping[int, Outcome], error: KafkaException | None
    ) -> dict[int, Outcome]:
        known = dict(failed)  # what the abort throws away is reported as failed, too
        if self._producer is producer:
            self._abort(producer)
        if known:
            # The refused have left a gap in its sequence numbers; the client mends that by failing the next transaction, too.
            self._discard()
        if error is not None and not known:
            raise NotCommitted(error) from None
        return known

    def _abort(self, producer: Producer) -> None:
        """Let go of the open transaction; with its producer, where the broker does not answer: the next one sees to it."""
        try:
            self._insist(producer.abort_transaction, time.monotonic() + self._timeout)
        except KafkaException as error:
            log.debug("abort of a transaction of %s: %s", self._config["transactional.id"], error)
            self._discard()

    def _discard(self) -> None:
        # Not closed, but let go of: the client's close waits for an abort without end, and for a broker that may be gone.
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()


def _note(failed: dict[int, Outcome], place: int, error: KafkaError | None, _: Record) -> None:
    if error is not None:
        failed.setdefault(place, publish_outcome(error))
