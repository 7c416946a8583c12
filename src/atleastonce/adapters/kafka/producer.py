"""Publishing: one idempotent producer with its poll thread, and one outcome for each message of a list."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.faults import fault, kafka_error, publish_outcome
from atleastonce.adapters.kafka.reach import Reach
from atleastonce.contract import OK, Code, Outcome, rejected, unknown

log = logging.getLogger("atleastonce.kafka")

# How long a close waits for confirmations; what is unconfirmed then ends as unknown.
CLOSE_SECONDS = 10.0

# The loop gets a turn after this many: a produce() costs about 1.5 us.
_TURN = 1000

# How long a flush may hold up the reports' thread: it is only to tell the client that no more will come now.
_FLUSH_SECONDS = 0.001
_POLL_SECONDS = 0.1

_UNREPORTED = unknown(Code.TIMEOUT, "no delivery report")


# The garbage collector runs by how many objects of its kind are made and kept: those that are kept for each record in a list
# are none (``gc=False``). They hold nothing that refers to them.


class Publish(msgspec.Struct, frozen=True, gc=False):
    """One record to be sent, and the place of its outcome in the caller's list."""

    place: int
    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, Any]]
    partition: int = -1
    """-1: as the key says."""


class Tally:
    """Counts the delivery reports of one list, and wakes its sender once.

    Reports come on the poll thread, which alone writes ``outcomes`` and ``reported`` then; the loop alone writes ``expected``.
    """

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        self.reported = 0
        self.expected: int | None = None
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()

    def whole(self) -> None:
        """All reports are there."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the sender is gone
            self._loop.call_soon_threadsafe(self._finish)

    def expect(self, count: int) -> None:
        """So many were handed to the client; no more will be."""
        self.expected = count
        if self.reported == count:
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _Report(msgspec.Struct, frozen=True, gc=False):
    """The client's ``on_delivery`` of one record: it was delivered, or was not."""

    tally: Tally
    place: int

    def __call__(self, error: KafkaError | None, _: Record) -> None:
        tally = self.tally
        tally.outcomes[self.place] = OK if error is None else publish_outcome(error)
        tally.reported += 1
        if tally.reported == tally.expected:
            tally.whole()


class Pump:
    """A `Producer` and the thread that serves its delivery reports.

    Args:
        settings: of the adapter.
        extra: settings of this client alone.
        name: of the thread.

    While a list is handed to the client, that collects: one request for each partition costs both sides much less than one for
    each millisecond (``linger.ms``). When it was handed over whole it leaves at once; unless the user has set how long to wait.
    """

    def __init__(self, settings: Settings, extra: Mapping[str, Any], name: str) -> None:
        config = {**settings.producer(), **extra}
        self.broken = False
        """The client has given up for good; a new pump is needed."""
        self._loop = asyncio.get_running_loop()
        self._producer = Producer({**config, "error_cb": self._on_error}, logger=CLIENT_LOG)
        self._reach = Reach(self._producer, settings)
        self._topic: str | None = None  # one that was published to
        self._timeout = int(config["delivery.timeout.ms"]) / 1000
        self._room: set[asyncio.Future[None]] = set()
        self._leaves_at_once = not settings.lingers and "linger.ms" not in extra
        self._whole = threading.Event()  # a list was handed over
        self._stopping = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def send(self, records: Iterable[Publish], outcomes: list[Outcome]) -> None:
        """Publish ``records`` in order and put each one's outcome into ``outcomes`` at its place. Each record is handed to the
        client before the next is asked for, and not kept."""
        tally = Tally(outcomes)
        produce = self._producer.produce
        expected = 0
        deadline = time.monotonic() + self._timeout
        for record in records:
            place, self._topic = record.place, record.topic
            outcomes[place] = _UNREPORTED
            report = _Report(tally, place)
            try:  # all by place: names cost 0.3 us a record
                produce(record.topic, record.value, record.key, record.partition, report, None, 0, record.headers)
            except Exception as error:  # noqa: BLE001 - sorted there
                refused = await self._again(record, report, error, deadline)
                if refused is not None:
                    outcomes[place] = refused
                    continue
            expected += 1
            if expected % _TURN == 0:
                await asyncio.sleep(0)
        tally.expect(expected)
        self._whole.set()
        try:
            # The client reports every record within delivery.timeout.ms; the margin only guards against a lost report.
            async with asyncio.timeout(self._timeout + 10.0):
                await tally.done
        except TimeoutError:
            log.warning("Kafka: %d records without a delivery report", expected)

    async def _again(self, record: Publish, report: _Report, error: Exception, deadline: float) -> Outcome | None:
        """What becomes of ``record``, which the client did not take for ``error``: while there is no room it is tried again.
        None: it was taken."""
        while True:
            match error:
                case BufferError():
                    if self._stopping or not await self._wait_for_room(deadline):
                        return unknown(Code.OVERLOADED, "the client's queue of unconfirmed messages stayed full")
                case KafkaException():
                    inner = kafka_error(error)
                    return unknown(Code.INTERNAL, str(error)) if inner is None else publish_outcome(inner)
                case TypeError() | ValueError():
                    return rejected(Code.INVALID, str(error))
                case RuntimeError():  # closed under us
                    return unknown(Code.CLOSED, str(error))
                case _:
                    raise error
            try:
                produce = self._producer.produce
                produce(record.topic, record.value, record.key, record.partition, report, None, 0, record.headers)
            except Exception as another:  # noqa: BLE001 - sorted above
                error = another
            else:
                return None

    async def close(self) -> None:
        """Flush, within `CLOSE_SECONDS`, then end the thread."""
        self._stopping = True
        self._whole.set()
        self._open_room()
        await self._ended.wait()
        self._thread.join()

    def _run(self) -> None:
        producer = self._producer
        try:
            while not self._stopping and not self.broken:
                if self._serve() and self._room:
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._open_room)
                if not self._reach.connected:
                    self._look()
            if self.broken or not self._flushed():
                producer.purge()  # each that is left is reported, and so ends as unknown
            while not self._stopping or len(producer):
                self._poll()
            producer.close()
        finally:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    def _flushed(self) -> bool:
        try:
            return not self._producer.flush(CLOSE_SECONDS)
        except KafkaException:  # it is broken for good, which whoever published was told
            return False

    def _look(self) -> None:
        self._reach.look(time.monotonic(), self._topic)
        if self._reach.lost:
            self.broken = True
            log.warning("Kafka producer: brokers answer, and it does not find them any more; it is replaced")

    def _serve(self) -> bool:
        """Wait for reports, or for something to be reported. Returns whether there may have been any."""
        idle = not len(self._producer)
        if not self._whole.wait(_POLL_SECONDS if idle else 0):
            return self._poll(0 if idle else _POLL_SECONDS)
        self._whole.clear()
        if self._leaves_at_once:
            self._ask(lambda: self._producer.flush(_FLUSH_SECONDS))
        return True

    def _poll(self, seconds: float = _POLL_SECONDS) -> bool:
        return self._ask(lambda: self._producer.poll(seconds)) != 0

    def _ask(self, call: Callable[[], int]) -> int:
        """Serve reports by ``call``."""
        try:
            return call()
        except KafkaException as error:  # a fatal error also comes this way, and once
            inner = kafka_error(error)
            if inner is not None:
                self._on_error(inner)
            return 1

    async def _wait_for_room(self, deadline: float) -> bool:
        """Until reports have come in; False when the time for the whole list is over."""
        waiter = asyncio.get_running_loop().create_future()
        self._room.add(waiter)
        self._whole.set()  # no more comes before there is room
        try:
            async with asyncio.timeout(min(0.5, deadline - time.monotonic())):
                await waiter
        except TimeoutError:
            return time.monotonic() < deadline
        finally:
            self._room.discard(waiter)
        return True

    def _open_room(self) -> None:
        for waiter in self._room:
            if not waiter.done():
                waiter.set_result(None)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self.broken = True
            # Who may write nowhere, and does not, need not hear of it.
            level = logging.DEBUG if self._topic is None and fault(error).code is Code.PERMISSION else logging.WARNING
            log.log(level, "Kafka producer failed and is replaced: %s", error.str())
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._reach.down()
