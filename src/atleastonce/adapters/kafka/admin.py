"""Questions and commands to the cluster, awaited. No call blocks the loop, and none creates a topic by asking for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition

# The package's type information exports only AdminClient, though all of these are its documented names.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.faults import as_exception, classify, fault, kafka_error
from atleastonce.contract import Code, Fault, Window
from atleastonce.errors import BrokerUnavailable, Closed, PermissionDenied

_Future: TypeAlias = "concurrent.futures.Future[Any]"

_EARLIEST: Any = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
# How long a broker is looked for once every address has refused us.
_ONCE_MORE_SECONDS = 0.7

# How late is noticed that credentials were refused, or that nobody waits any more.
_SLICE_SECONDS = 0.1

# How soon a question is put again that a group's coordinator has not answered; one that refuses us is heard between two.
_ANSWER_SECONDS = 1.0

MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)


class Admin:
    """One administrative handle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seconds = settings.request_timeout
        self._closed = False
        self._waiting: set[asyncio.Future[Any]] = set()
        self._errors: deque[KafkaError] = deque(maxlen=8)
        self._client = self._handle()

    def close(self) -> None:
        """Close the handle's connections; what still waits for an answer ends with `Closed`."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Closed("the Kafka adapter is closed"))
        self._client.__exit__(None, None, None)

    def _handle(self) -> AdminClient:
        # A bound method of ours would tie a knot that the garbage collector cannot undo: the handle would never close.
        config: dict[str, Any] = {**self._settings.common(), "error_cb": self._errors.append}
        return AdminClient(config, logger=CLIENT_LOG)

    async def ping(self) -> None:
        """Return once the cluster has answered.

        Raises:
            BrokerUnavailable, PermissionDenied: as named.
        """
        deadline, downs = time.monotonic() + self._seconds, False
        while True:
            try:
                return await self._identified()
            except KafkaException as error:
                failure = error
            self._client.poll(0)  # error_cb, which alone tells of refused credentials, is called within poll
            for met in self._errors:
                if fault(met).code is Code.PERMISSION:
                    raise PermissionDenied(f"Kafka: {met.str()}")
                if met.code() == KafkaError._ALL_BROKERS_DOWN and not downs:
                    # A name may have several addresses, of which the next one is tried yet.
                    downs, deadline = True, min(deadline, time.monotonic() + _ONCE_MORE_SECONDS)
            if time.monotonic() > deadline:
                break
        # The call itself only tells that its time was over. What the connections met with says more.
        for met in reversed(self._errors):
            if met.code() in (KafkaError._SSL, KafkaError._TRANSPORT, KafkaError._RESOLVE):
                raise BrokerUnavailable(f"Kafka: {met.str()}")
        raise as_exception(failure, "connecting")

    async def _identified(self) -> None:
        # The cluster's id is known with the first metadata, from any broker; describing the cluster asks its controller.
        asking = asyncio.ensure_future(asyncio.to_thread(self._client.cluster_id, _SLICE_SECONDS))
        try:
            await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait([asking])  # the handle must not be closed under it
            if not asking.cancelled():
                asking.exception()
            raise

    async def partitions(self, topics: Iterable[str]) -> dict[str, int | None]:
        """How many partitions each topic has; None for one that does not exist, 0 while one of them has no leader.

        Raises:
            BrokerUnavailable, PermissionDenied: nothing is known.
        """
        names = list(dict.fromkeys(topics))
        if not names:
            return {}
        collection = TopicCollection(names)
        answers = await self._ask(
            "looking at topics",
            lambda: self._client.describe_topics(collection, request_timeout=self._seconds),
            absent=MISSING,
        )
        return {name: None if found is None else _partitions(found) for name, found in answers.items()}

    async def writable(self, topics: Iterable[str]) -> dict[str, Fault | None]:
        """As `usable`, for publishing."""
        return await self.usable(topics, AclOperation.WRITE)

    async def usable(self, topics: Iterable[str], operation: AclOperation) -> dict[str, Fault | None]:
        """Why ``operation`` is not for us on each topic: it does not exist, or we have no right to. None where it is, or where the
        broker does not tell.

        Raises:
            BrokerUnavailable, PermissionDenied: nothing is known.
        """
        collection = TopicCollection(list(topics))
        answers = await self._ask(
            "looking at topics",
            lambda: self._client.describe_topics(
                collection, include_authorized_operations=True, request_timeout=self._seconds
            ),
            told=(*MISSING, KafkaError.TOPIC_AUTHORIZATION_FAILED),
        )
        return {name: _objection(name, found, operation) for name, found in answers.items()}

    async def create(self, topics: Sequence[NewTopic]) -> None:
        """Create those that do not exist, and return when the cluster knows them with a leader for each partition.

        Raises:
            ConfigurationError: the broker refuses a setting.
            PermissionDenied, BrokerUnavailable: as named.
        """
        if not topics:
            return
        await self._ask(
            "creating topics",
            lambda: self._client.create_topics(
                list(topics), operation_timeout=self._seconds, request_timeout=self._seconds + 5
            ),
            absent=(KafkaError.TOPIC_ALREADY_EXISTS,),
        )
        deadline = time.monotonic() + self._seconds
        while not all((await self.partitions(topic.topic for topic in topics)).values()):
            if time.monotonic() > deadline:
                raise BrokerUnavailable("Kafka: created topics have no leaders yet; try again")
            await asyncio.sleep(0.05)

    async def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """The settings of existing topics."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        if not resources:
            return {}
        answers: dict[Any, Mapping[str, Any]] = await self._ask(
            "reading the settings of topics",
            lambda: self._client.describe_configs(resources, request_timeout=self._seconds),
        )
        return {
            resource.name: {name: str(entry.value) for name, entry in entries.items()}
            for resource, entries in answers.items()
        }

    async def committed(self, group: str, topic: str, partitions: int) -> dict[int, TopicPartition]:
        """What ``group`` has committed, by partition; negative offsets where it has nothing."""
        wanted = [TopicPartition(topic, number) for number in range(partitions)]
        return {each.partition: each for each in await asyncio.to_thread(self._committed, group, wanted)}

    def _committed(self, group: str, wanted: list[TopicPartition]) -> list[TopicPartition]:
        # Through a consumer that joins nothing: the admin handle's own question kills the process where the coordinator
        # has moved or is not there yet (librdkafka issue 5040).
        config = self._settings.consumer(group, Window(1, 1))
        config.pop("group.instance.id", None)
        consumer = Consumer(config, logger=CLIENT_LOG)
        deadline = time.monotonic() + self._seconds
        try:
            while True:
                # Who may not see the group is told so beside the question, which is never answered.
                refused = consumer.poll(0)
                if (
                    refused is not None
                    and (told := refused.error()) is not None
                    and fault(told).code is Code.PERMISSION
                ):
                    raise PermissionDenied(f"Kafka: offsets of group {group}: {fault(told).detail}")
                try:
                    found = consumer.committed(
                        wanted, timeout=min(_ANSWER_SECONDS, max(0.1, deadline - time.monotonic()))
                    )
                    if failed := [each.error for each in found if each.error is not None]:
                        raise KafkaException(failed[0])
                    return found
                except KafkaException as error:
                    if not classify(error).retryable or time.monotonic() > deadline:
                        raise as_exception(error, f"offsets of group {group}") from None
                    time.sleep(0.1)
        finally:
            consumer.close()

    async def bounds(self, topic: str, partitions: int) -> dict[int, tuple[int, int]]:
        """First and next offset of each partition."""
        doing = f"offsets of {topic}"
        starts, ends = [
            await self._ask(doing, partial(self._offsets, topic, partitions, spec)) for spec in (_EARLIEST, _LATEST)
        ]
        return {each.partition: (found.offset, ends[each].offset) for each, found in starts.items()}

    async def truncate(self, topic: str, ends: Mapping[int, int]) -> None:
        """Delete all records below ``ends``."""
        wanted = [TopicPartition(topic, number, end) for number, end in ends.items()]
        await self._ask(f"emptying {topic}", lambda: self._client.delete_records(wanted, request_timeout=self._seconds))

    async def delete_topics(self, topics: Sequence[str]) -> None:
        """Delete topics with all that groups have committed for them; what is not there is fine."""
        if topics:
            await self._ask(
                "deleting topics",
                lambda: self._client.delete_topics(list(topics), request_timeout=self._seconds),
                absent=MISSING,
            )

    async def delete_group(self, group: str) -> None:
        """Delete all that ``group`` has committed for any topic; what is not there, or is in use, stays as it is."""
        await self._ask(
            "deleting groups",
            lambda: self._client.delete_consumer_groups([group], request_timeout=self._seconds),
            absent=(KafkaError.GROUP_ID_NOT_FOUND, KafkaError.NON_EMPTY_GROUP),
        )

    async def topics_of(self, group: str) -> set[str]:
        """The topics of which ``group`` has committed something. Asks for every partition of the cluster: for tools."""
        metadata = await asyncio.to_thread(self._client.list_topics, timeout=self._seconds)
        wanted = [
            TopicPartition(name, number) for name, topic in metadata.topics.items() for number in topic.partitions
        ]
        found = await asyncio.to_thread(self._committed, group, wanted) if wanted else []
        return {each.topic for each in found if each.offset >= 0}

    def _offsets(self, topic: str, partitions: int, spec: Any) -> Mapping[TopicPartition, _Future]:
        wanted = {TopicPartition(topic, number): spec for number in range(partitions)}
        return self._client.list_offsets(wanted, request_timeout=self._seconds)

    async def ask(
        self,
        doing: str,
        call: Callable[[Any, float], Mapping[Any, _Future]],
        *,
        absent: Collection[int] = (),
    ) -> dict[Any, Any]:
        """The answers to ``call``, which is given the client and the seconds that an answer may take; as `_ask`."""
        return await self._ask(doing, lambda: call(self._client, self._seconds), absent=absent)

    async def _ask(
        self,
        doing: str,
        call: Callable[[], Mapping[Any, _Future]],
        *,
        absent: Collection[int] = (),
        told: Collection[int] = (),
    ) -> dict[Any, Any]:
        """The answers to ``call``; None for one of the ``absent`` error codes, the error itself for those of ``told``. What fails
        in passing, as while leaders change, is asked again until the request's time is over.

        Raises:
            AtLeastOnceError: as `as_exception` has it.
        """
        deadline = time.monotonic() + self._seconds
        while True:
            client, answers = self._client, {}
            key: Any = None
            try:
                for key, future in call().items():
                    answers[key] = await self._answer(future, absent, told)
                return answers
            except KafkaException as error:
                found = classify(error)
                if not found.retryable or time.monotonic() > deadline:
                    if found.code in (Code.TIMEOUT, Code.UNAVAILABLE):
                        self._replace(client)
                    raise as_exception(error, _naming(doing, key)) from None
            await asyncio.sleep(0.1)

    def _replace(self, client: AdminClient) -> None:
        """The next question goes through another handle: one that has got no answer may never get one (see `Reach`)."""
        if client is self._client and not self._closed:
            self._client = self._handle()
            # Not closed under the questions that others still have to it; and on a thread, for it waits for its own.
            ending = threading.Thread(target=client.__exit__, args=(None, None, None), daemon=True)
            asyncio.get_running_loop().call_later(self._seconds + 10.0, ending.start)

    async def _answer(self, future: _Future, absent: Collection[int], told: Collection[int]) -> Any:
        try:
            return await self._awaited(future)
        except KafkaException as error:
            inner = kafka_error(error)
            if inner is not None and inner.code() in told:
                return inner
            if inner is None or inner.code() not in absent:
                raise
            return None

    async def _awaited(self, future: _Future) -> Any:
        # The client never cancels its futures and never looks whether we did; nor does it end them when it is closed.
        if self._closed:
            raise Closed("the Kafka adapter is closed")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()

        def take() -> None:
            if not waiter.done():
                error = future.exception()
                waiter.set_result(future.result()) if error is None else waiter.set_exception(error)

        def done(_: _Future) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(take)

        future.add_done_callback(done)
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)


def _naming(doing: str, key: Any) -> str:
    """``doing`` with the one thing that failed: ``key`` is a name, a resource or a partition."""
    name = str(key if isinstance(key, str) else getattr(key, "name", getattr(key, "topic", "")))
    return doing if not name or name in doing else f"{doing}: {name}"


def _objection(topic: str, found: Any, operation: AclOperation) -> Fault | None:
    if isinstance(found, KafkaError) and found.code() in MISSING:
        return Fault(Code.NOT_FOUND, detail=f"topic {topic} does not exist; declare it first")
    allowed = () if isinstance(found, KafkaError) else found.authorized_operations
    if allowed is None or operation in allowed:
        return None
    name = operation.name
    return Fault(Code.PERMISSION, detail=f"topic {topic}: this login may not {name.lower()} it; grant {name} on it")


def _partitions(topic: Any) -> int:
    led = [each for each in topic.partitions if each.leader is not None and each.leader.id >= 0]
    return len(led) if len(led) == len(topic.partitions) else 0
