"""Looking at a topic without being a member of any group."""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.faults import as_exception
from atleastonce.adapters.kafka.partition import Assignment
from atleastonce.adapters.kafka.records import deliveries
from atleastonce.channels import Source
from atleastonce.contract import Delivery, Window
from atleastonce.offsets import Range

Span = tuple[int, int, tuple[Range, ...]]
"""First offset, end, and ranges between them that are done."""


def browse(settings: Settings, source: Source, spans: Mapping[int, Span], limit: int) -> list[Delivery]:
    """The oldest ``limit`` records within ``spans``, by their timestamps. Blocks: runs on a thread of its own.

    Raises:
        BrokerUnavailable: the broker did not hand them out in time.
    """
    topic = source.channel.name
    left = {number: span[1] for number, span in spans.items() if span[0] < span[1]}
    assignment = Assignment(topic)
    for number in left:
        assignment.begin(number, spans[number][0], spans[number][2])
    config = settings.consumer("atleastonce-browse", Window(max(limit, 100), 1 << 24))
    consumer = Consumer(config, logger=CLIENT_LOG)
    found: list[Delivery] = []
    counts = dict.fromkeys(left, 0)
    try:
        consumer.assign([TopicPartition(topic, number, spans[number][0]) for number in left])
        deadline = time.monotonic() + settings.request_timeout
        while left:
            first = consumer.poll(0.1)
            batch: list[Record] = [] if first is None else [first, *consumer.consume(max(limit - 1, 1), 0)]
            ready, _, _ = deliveries(batch, source, assignment, lambda partition: partition)
            for delivery in ready:
                number = delivery.token.number
                if number in left and delivery.position < left[number]:  # type: ignore[operator]
                    found.append(delivery)
                    counts[number] += 1
            for number in [n for n in left if counts[n] >= limit or _reached(consumer, topic, n, left[n])]:
                del left[number]
                consumer.incremental_unassign([TopicPartition(topic, number)])
            if batch:
                deadline = time.monotonic() + settings.request_timeout
            elif time.monotonic() > deadline:
                break
    except KafkaException as error:
        raise as_exception(error, f"browsing {topic}") from None
    finally:
        consumer.close()
    found.sort(key=lambda delivery: delivery.message.published_at or 0.0)
    for delivery in found:
        delivery.token.live = False  # they cannot be settled
    return found[:limit]


def _reached(consumer: Consumer, topic: str, number: int, end: int) -> bool:
    return consumer.position([TopicPartition(topic, number)])[0].offset >= end
