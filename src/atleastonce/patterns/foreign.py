"""Dead letters that others wrote, each in its own dialect: brokers' own nets, and other libraries.

One function for each, from the header fields and the broker's annotations together to the facts of an `Obituary`; empty where its
mark is missing. Nothing raises: the fields may be anybody's.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Fields: TypeAlias = Mapping[str, Any]
Facts: TypeAlias = dict[str, Any]
Reader: TypeAlias = Callable[[Fields], Facts]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Year 9999: beyond it a time cannot be shown.
_LATEST = 253_402_300_799


def text(fields: Mapping[str, Any], name: str) -> str:
    """Field ``name`` as text; "" where it is absent or nothing that has a text."""
    value = fields.get(name)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def number(value: object, *, high: int = 2**53) -> int | None:
    """``value`` as a whole number from 0 to ``high``; None if it is none."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) <= 18 else None
    # int(): pika has a kind of its own, which no encoder knows
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= high else None


def millis(value: object) -> float | None:
    """Seconds since the epoch of a number of milliseconds."""
    found = number(value, high=_LATEST * 1000)
    return None if found is None else found / 1000


def moment(value: object) -> float | None:
    """Seconds since the epoch of a time: a datetime, or ISO 8601 text. Without a zone it is UTC."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, dt.datetime):
        return None
    try:
        when = (value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)) - _EPOCH
    except OverflowError:
        return None
    seconds = when.total_seconds()
    return seconds if 0 <= seconds <= _LATEST else None


def binary(fields: Fields, name: str) -> int | None:
    """A big-endian Java number. Adapters make text of bytes that are UTF-8, which small numbers are."""
    value = fields.get(name)
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if raw is None or len(raw) not in (1, 2, 4, 8):
        return None
    return number(int.from_bytes(raw, "big", signed=True))


def _place(partition: object, offset: object) -> str:
    return "/".join(str(part) for part in (partition, offset) if part not in (None, ""))


def _last(address: str) -> str:
    """The queue in an address like ``rabbitmq://host/vhost/queue?durable=true``."""
    return address.partition("?")[0].rstrip("/").rpartition("/")[2]


def _spring(fields: Fields) -> Facts:
    """Spring Kafka: ``kafka_dlt-*`` in a dead-letter topic, ``kafka_*`` in a retry topic; numbers are big-endian."""
    prefix = "kafka_dlt-" if "kafka_dlt-original-topic" in fields else "kafka_"
    if f"{prefix}original-topic" not in fields:
        return {}
    failed = text(fields, f"{prefix}exception-fqcn") or text(fields, f"{prefix}key-exception-fqcn")
    return {
        "writer": "spring",
        # The outer one is always the listener's wrapper; its cause is what failed.
        "error_type": text(fields, f"{prefix}exception-cause-fqcn") or failed,
        "error_message": text(fields, f"{prefix}exception-message") or text(fields, f"{prefix}key-exception-message"),
        "traceback": text(fields, f"{prefix}exception-stacktrace"),
        "attempts": binary(fields, "retry_topic-attempts"),
        "origin": text(fields, f"{prefix}original-topic"),
        "position": _place(binary(fields, f"{prefix}original-partition"), binary(fields, f"{prefix}original-offset")),
        "group": text(fields, f"{prefix}original-consumer-group"),
    }


def _masstransit(fields: Fields) -> Facts:
    if "MT-Reason" not in fields and "MT-Fault-ExceptionType" not in fields:
        return {}
    retries = number(text(fields, "MT-Fault-RetryCount"))
    return {
        "writer": "masstransit",
        "error_type": text(fields, "MT-Fault-ExceptionType"),
        "error_message": text(fields, "MT-Fault-Message") or text(fields, "MT-Reason"),
        "traceback": text(fields, "MT-Fault-StackTrace"),
        "attempts": None if retries is None else retries + 1,
        "origin": _last(text(fields, "MT-Fault-InputAddress")),
        "last_failed": moment(text(fields, "MT-Fault-Timestamp")),
        "service": text(fields, "MT-Host-Assembly") or text(fields, "MT-Host-ProcessName"),
        "host": text(fields, "MT-Host-MachineName"),
    }


_NSB_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d):(\d{6}) Z")


def _nservicebus(fields: Fields) -> Facts:
    if "NServiceBus.FailedQ" not in fields:
        return {}
    failed = _NSB_TIME.fullmatch(text(fields, "NServiceBus.TimeOfFailure").strip())
    info = "NServiceBus.ExceptionInfo."
    return {
        "writer": "nservicebus",
        "error_type": text(fields, f"{info}ExceptionType"),
        "error_message": text(fields, f"{info}Message"),
        "traceback": text(fields, f"{info}StackTrace"),
        "origin": text(fields, "NServiceBus.FailedQ").partition("@")[0],
        "last_failed": moment(f"{failed[1]}.{failed[2]}+00:00") if failed else None,
        "service": text(fields, "NServiceBus.ProcessingEndpoint"),
        "host": text(fields, "NServiceBus.ProcessingMachine"),
    }


def _wolverine(fields: Fields) -> Facts:
    if "exception-type" not in fields or "failed-at" not in fields:
        return {}
    return {
        "writer": "wolverine",
        "error_type": text(fields, "exception-type"),
        "error_message": text(fields, "exception-message"),
        "traceback": text(fields, "exception-stack"),
        "attempts": number(text(fields, "attempts")),
        "origin": _last(text(fields, "original-destination")),
        "position": _place(text(fields, "original-partition"), text(fields, "original-offset")),
        "last_failed": millis(text(fields, "failed-at")),
        "service": text(fields, "source"),
    }


def _smallrye(fields: Fields) -> Facts:
    if "dead-letter-topic" not in fields:
        return {}
    return {
        "writer": "smallrye",
        "error_type": text(fields, "dead-letter-exception-class-name"),
        "error_message": text(fields, "dead-letter-cause") or text(fields, "dead-letter-reason"),
        "origin": text(fields, "dead-letter-topic"),
        "position": _place(text(fields, "dead-letter-partition"), text(fields, "dead-letter-offset")),
    }


def _connect(fields: Fields) -> Facts:
    """Kafka Connect with ``errors.deadletterqueue.context.headers.enable``."""
    mark = "__connect.errors."
    if f"{mark}topic" not in fields:
        return {}
    return {
        "writer": "kafka-connect",
        "error_type": text(fields, f"{mark}exception.class.name"),
        "error_message": text(fields, f"{mark}exception.message"),
        "traceback": text(fields, f"{mark}exception.stacktrace"),
        "origin": text(fields, f"{mark}topic"),
        "position": _place(text(fields, f"{mark}partition"), text(fields, f"{mark}offset")),
        "service": text(fields, f"{mark}connector.name"),
    }


def _rabbitmq(fields: Fields) -> Facts:
    """RabbitMQ's ``x-death``: one table for each queue and reason, the latest first.

    ``count`` counts how often the message died of that reason there, which for rejections is how often it was tried.
    """
    deaths = fields.get("x-death")
    deaths = [death for death in deaths if isinstance(death, Mapping)] if isinstance(deaths, list) else []
    if not deaths:
        return {}
    latest = deaths[0]
    origin = text(latest, "queue")
    mine = [death for death in deaths if death.get("queue") == origin]
    times = [when for death in mine if (when := moment(death.get("time"))) is not None]
    rejections = [number(death.get("count")) for death in mine if death.get("reason") == "rejected"]
    return {
        "writer": "rabbitmq",
        "error_type": text(latest, "reason"),
        "attempts": next((count for count in rejections if count), None),
        "origin": origin,
        "first_failed": min(times, default=None),
        "last_failed": max(times, default=None),
    }


def _sqs(fields: Fields) -> Facts:
    """SQS' redrive policy: the queue it came from is an attribute that SQS itself sets, and it goes on counting receives.

    The count includes those from the dead-letter queue itself, so it is an upper bound.
    """
    source = text(fields, "DeadLetterQueueSourceArn")
    if not source:
        return {}
    return {
        "writer": "sqs",
        "error_type": "max_receive_count",
        "attempts": number(text(fields, "ApproximateReceiveCount")),
        "origin": source.rpartition(":")[2],
        "first_failed": millis(text(fields, "ApproximateFirstReceiveTimestamp")),
    }


def _pubsub(fields: Fields) -> Facts:
    """Pub/Sub's dead-letter policy: attributes that it adds when it forwards."""
    mark = "CloudPubSubDeadLetterSource"
    subscription = text(fields, f"{mark}Subscription")
    if not subscription:
        return {}
    return {
        "writer": "pubsub",
        "error_type": "max_delivery_attempts",
        "error_message": text(fields, f"{mark}DeliveryErrorMessage"),
        "attempts": number(text(fields, f"{mark}DeliveryCount")),
        "origin": subscription.rpartition("/")[2],
    }


_READERS: tuple[Reader, ...] = (
    _spring,
    _masstransit,
    _nservicebus,
    _wolverine,
    _smallrye,
    _connect,
    _rabbitmq,
    _sqs,
    _pubsub,
)
# Libraries first: they know the error. Brokers' nets only know that there were too many.

# Of each reader the fields without which it finds nothing: most letters have none of them, and nobody is asked.
_MARKS = frozenset(
    {
        "kafka_dlt-original-topic",
        "kafka_original-topic",
        "MT-Reason",
        "MT-Fault-ExceptionType",
        "NServiceBus.FailedQ",
        "exception-type",
        "dead-letter-topic",
        "__connect.errors.topic",
        "x-death",
        "DeadLetterQueueSourceArn",
        "CloudPubSubDeadLetterSourceSubscription",
    }
)


def facts(fields: Fields) -> Iterator[tuple[str, Any]]:
    """What others than us say, who knows most first."""
    if _MARKS.isdisjoint(fields):
        return
    for reader in _READERS:
        for name, value in reader(fields).items():
            if value not in ("", None):
                yield name, value
