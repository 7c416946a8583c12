"""Answers: one topic for all who ask, in which each process reads one partition, and of it what has its name as key.

A topic for each process would be metadata that nobody removes. Processes that happen on one partition read each other's answers
and drop them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
import threading
import time
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record
from confluent_kafka.admin import AclOperation, NewTopic  # type: ignore[attr-defined]

from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.reach import Reach
from atleastonce.adapters.kafka.records import read_message
from atleastonce.contract import Arrived, Code, Reply, Window
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, PermissionDenied
from atleastonce.message import Message
from atleastonce.wire import CORRELATION

log = logging.getLogger("atleastonce.kafka")

TOPIC: Final = "alo.replies"
_PARTITIONS: Final = 12
"""Of the topic, where we make it. Fewer: more processes read each other's answers. More: more for the cluster to keep."""
_RETENTION_MS: Final = 3_600_000
_ADDRESS = re.compile(rf"{re.escape(TOPIC)}/([0-9]{{1,4}})/([0-9a-f]{{32}})")
_WINDOW: Final = Window(1000, 1 << 24)
_POLL_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 5.0
"""How often is looked whether the topic is still there: a reader is not told when it is deleted."""


def place_of(address: str) -> tuple[int, bytes] | None:
    """The partition and the key that ``address`` stands for; None if it is no address."""
    found = _ADDRESS.fullmatch(address)
    return None if found is None else (int(found[1]), found[2].encode())


def _reply(record: Record) -> Reply:
    """What came. Anybody may have written it: what cannot be read is an answer to nothing."""
    try:
        message = read_message(record)
    except Exception as error:  # noqa: BLE001 - as above
        log.debug("a reply cannot be read: %s", error)
        message = Message(f"{TOPIC}/{record.partition()}/{record.offset()}", b"")
    return Reply(message.headers.get(CORRELATION) or "", message)


class PartitionInbox:
    """One process' share of the topic of replies."""

    def __init__(self, admin: Admin, settings: Settings, arrived: Arrived) -> None:
        self._admin = admin
        self._settings = settings
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._name = secrets.token_hex(16)
        self._key = self._name.encode()
        self._reach: Reach | None = None  # of the reader, on its thread
        self._partition = 0
        self._next = 0
        self._stop = threading.Event()
        self._again = threading.Event()
        self._ended = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen.

        Raises:
            BrokerUnavailable, PermissionDenied: as named.
        """
        count = await self._make()
        objection = (await self._admin.usable([TOPIC], AclOperation.READ))[TOPIC]
        if (
            objection is not None and objection.code is Code.PERMISSION
        ):  # answers would come and nobody would hear of them
            raise PermissionDenied(f"Kafka: {objection.detail}")
        self._partition = random.randrange(count)
        bounds = await self._admin.bounds(TOPIC, count)
        self._next = bounds[self._partition][1]  # what is asked from now on is answered behind it
        threading.Thread(
            target=self._run, args=(self._reader(),), name="atleastonce-kafka-replies", daemon=True
        ).start()
        self._watching = self._loop.create_task(self._watch(), name="kafka replies")

    def address(self, correlation: str) -> str:
        return f"{TOPIC}/{self._partition}/{self._name}"

    async def close(self) -> None:
        self._stop.set()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self._settings.request_timeout)

    async def _make(self) -> int:
        """How many partitions there are; the topic is made if it is missing."""
        count = (await self._admin.partitions([TOPIC]))[TOPIC]
        if not count:
            config = {"retention.ms": str(_RETENTION_MS), "cleanup.policy": "delete"}
            await self._admin.create([NewTopic(TOPIC, _PARTITIONS, self._settings.replication, config=config)])
            count = (await self._admin.partitions([TOPIC]))[TOPIC]
        if not count:
            raise BrokerUnavailable(f"Kafka: topic {TOPIC} has no leaders yet; try again")
        return count

    async def _watch(self) -> None:
        """Make the topic again when it is gone, and read it anew when it is another one."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                gone = (await self._admin.partitions([TOPIC]))[TOPIC] is None
                if gone:
                    log.warning("topic %s is gone; making it again", TOPIC)
                count = await self._make()
                read = self._next  # before its end is asked for: meanwhile the reader goes on
                end = (await self._admin.bounds(TOPIC, count)).get(self._partition, (0, -1))[1]
                if gone or end < read:  # a partition never shrinks
                    self._partition %= count
                    self._next = 0
                    self._again.set()
            except AtLeastOnceError as error:
                log.info("topic %s cannot be looked at: %s", TOPIC, error)

    # ------------------------------------------------------------------------------------------------- the other thread

    def _reader(self) -> Consumer:
        config = {**self._settings.consumer("atleastonce-replies", _WINDOW), "error_cb": self._failed}
        consumer = Consumer(config, logger=CLIENT_LOG)
        self._reach = Reach(consumer, self._settings)
        consumer.assign([TopicPartition(TOPIC, self._partition, self._next)])
        return consumer

    def _failed(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._reach is not None:
            self._reach.down()

    def _run(self, consumer: Consumer) -> None:
        try:
            while not self._stop.is_set():
                if self._again.is_set():
                    self._again.clear()
                    consumer.close()
                    consumer = self._reader()  # the old one knows another topic of that name
                try:
                    self._look()
                    self._read(consumer)
                except KafkaException as error:
                    log.info("replies cannot be read (%s); trying again", error)
                    self._stop.wait(_POLL_SECONDS)
                except Exception:
                    if self._loop.is_closed():  # and nobody waits any more
                        return
                    log.exception(
                        "replies cannot be read; trying again"
                    )  # without this thread nobody would ever be answered
                    self._stop.wait(_POLL_SECONDS)
        finally:
            consumer.close()
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    def _look(self) -> None:
        if self._reach is None or self._reach.connected:
            return
        self._reach.look(time.monotonic(), TOPIC)
        if self._reach.lost:
            log.warning("replies: brokers answer, and this client does not find them any more; another one is made")
            self._again.set()

    def _read(self, consumer: Consumer) -> None:
        first = consumer.poll(_POLL_SECONDS)
        if first is None:
            return
        found: list[Reply] = []
        for record in (first, *consumer.consume(_WINDOW.messages - 1, 0)):
            if record.error() is None:
                if not self._again.is_set():
                    self._next = record.offset() + 1  # type: ignore[operator]
                if record.key() == self._key:
                    found.append(_reply(record))
        if found:
            self._loop.call_soon_threadsafe(self._arrived, found)
