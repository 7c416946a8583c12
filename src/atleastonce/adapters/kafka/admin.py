"""Questions and commands to the cluster, awaited. No call blocks the loop, and none creates a topic by asking for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicCollection, TopicPartition

# The package's type information exports only AdminClient, though all of these are its documented names.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.faults import as_exception, fault, kafka_error
from atleastonce.contract import Code
from atleastonce.errors import BrokerUnavailable, PermissionDenied

T = TypeVar("T")

_ENDS: tuple[Any, Any] = (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
_MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)


class Admin:
    """One administrative handle."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.request_timeout
        self._errors: deque[KafkaError] = deque(maxlen=8)
        # A bound method of ours would tie a knot that the garbage collector cannot undo: the handle would never close.
        config: dict[str, Any] = {**settings.common(), "error_cb": self._errors.append}
        self._client = AdminClient(config, logger=CLIENT_LOG)

    def close(self) -> None:
        """Close the handle's connections."""
        self._client.__exit__(None, None, None)

    async def ping(self) -> None:
        """Return once the cluster has answered.

        Raises:
            BrokerUnavailable, PermissionDenied: as named.
        """
        # The cluster's id is known with the first metadata, from any broker; describing the cluster asks its controller.
        asking = asyncio.ensure_future(asyncio.to_thread(self._client.cluster_id, self._seconds))
        while not asking.done():
            self._client.poll(0)  # error_cb, which alone tells of refused credentials, is called within poll
            for error in self._errors:
                if fault(error).code is Code.PERMISSION:
                    asking.add_done_callback(lambda done: done.exception())
                    raise PermissionDenied(f"Kafka: {error.str()}")
            await asyncio.wait([asking], timeout=0.02)
        try:
            asking.result()
        except KafkaException as error:
            raise as_exception(error, "connecting") from None

    async def partitions(self, topics: Iterable[str]) -> dict[str, int | None]:
        """How many partitions each topic has; None for one that does not exist.

        Raises:
            BrokerUnavailable, PermissionDenied: nothing is known.
        """
        names = list(dict.fromkeys(topics))
        if not names:
            return {}
        futures = self._client.describe_topics(TopicCollection(names), request_timeout=self._seconds)
        found: dict[str, int | None] = {}
        for name in names:
            try:
                described = await _awaited(futures[name])
            except KafkaException as error:
                inner = kafka_error(error)
                if inner is None or inner.code() not in _MISSING:
                    raise as_exception(error, f"looking at {name}") from None
                found[name] = None
            else:
                led = [each for each in described.partitions if each.leader is not None and each.leader.id >= 0]
                found[name] = len(described.partitions) if len(led) == len(described.partitions) else 0
        return found

    async def create(self, topics: Sequence[NewTopic]) -> None:
        """Create those that do not exist, and return when the cluster knows them with a leader for each partition.

        Raises:
            ConfigurationError: the broker refuses a setting.
            PermissionDenied, BrokerUnavailable: as named.
        """
        if not topics:
            return
        futures = self._client.create_topics(
            list(topics), operation_timeout=self._seconds, request_timeout=self._seconds + 5
        )
        for name, future in futures.items():
            try:
                await _awaited(future)
            except KafkaException as error:
                inner = kafka_error(error)
                if inner is None or inner.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise as_exception(error, f"creating {name}") from None
        deadline = time.monotonic() + self._seconds
        while not all((await self.partitions(topic.topic for topic in topics)).values()):
            if time.monotonic() > deadline:
                raise BrokerUnavailable("Kafka: created topics have no leaders yet; try again")
            await asyncio.sleep(0.05)

    async def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """The settings of existing topics."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        found: dict[str, dict[str, str]] = {}
        if resources:
            futures = self._client.describe_configs(resources, request_timeout=self._seconds)
            for resource, future in futures.items():
                entries: Mapping[str, Any] = await self._result(future, f"settings of {resource.name}")
                found[resource.name] = {name: str(entry.value) for name, entry in entries.items()}
        return found

    async def committed(self, group: str, topic: str, partitions: int) -> dict[int, TopicPartition]:
        """What ``group`` has committed, by partition; negative offsets where it has nothing."""
        wanted = [TopicPartition(topic, number) for number in range(partitions)]
        futures = self._client.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=self._seconds
        )
        answer: ConsumerGroupTopicPartitions = await self._result(futures[group], f"offsets of group {group}")
        for each in answer.topic_partitions or ():
            if each.error is not None:
                raise as_exception(KafkaException(each.error), f"offsets of group {group}")
        return {each.partition: each for each in answer.topic_partitions or ()}

    async def bounds(self, topic: str, partitions: int) -> dict[int, tuple[int, int]]:
        """First and next offset of each partition."""
        wanted = [TopicPartition(topic, number) for number in range(partitions)]
        ends: list[dict[int, int]] = []
        for spec in _ENDS:
            futures = self._client.list_offsets(dict.fromkeys(wanted, spec), request_timeout=self._seconds)
            ends.append(
                {each.partition: (await self._result(f, f"offsets of {topic}")).offset for each, f in futures.items()}
            )
        return {number: (start, ends[1][number]) for number, start in ends[0].items()}

    async def truncate(self, topic: str, ends: Mapping[int, int]) -> None:
        """Delete all records below ``ends``."""
        wanted = [TopicPartition(topic, number, end) for number, end in ends.items()]
        for future in self._client.delete_records(wanted, request_timeout=self._seconds).values():
            await self._result(future, f"emptying {topic}")

    async def delete(self, topics: Sequence[str], groups: Sequence[str]) -> None:
        """Delete topics, and the offsets of groups; what is not there, or still in use, stays as it is."""
        gone = (*_MISSING, KafkaError.GROUP_ID_NOT_FOUND, KafkaError.NON_EMPTY_GROUP)
        futures: list[concurrent.futures.Future[Any]] = []
        if topics:
            futures += self._client.delete_topics(list(topics), request_timeout=self._seconds).values()
        if groups:
            futures += self._client.delete_consumer_groups(list(groups), request_timeout=self._seconds).values()
        for future in futures:
            try:
                await _awaited(future)
            except KafkaException as error:
                inner = kafka_error(error)
                if inner is None or inner.code() not in gone:
                    raise as_exception(error, "deleting") from None

    async def _result(self, future: concurrent.futures.Future[T], doing: str) -> T:
        try:
            return await _awaited(future)
        except KafkaException as error:
            raise as_exception(error, doing) from None


async def _awaited(future: concurrent.futures.Future[T]) -> T:
    # Shielded: the client sets its futures without asking whether somebody has cancelled them.
    return await asyncio.shield(asyncio.wrap_future(future))
