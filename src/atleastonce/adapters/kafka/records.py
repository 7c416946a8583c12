"""Between a Kafka record and a `Message`: headers with their order, duplicates, nulls and bytes; tombstones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.message import NO_HEADERS, Headers, HeaderValue, Message
from atleastonce.wire import ID, read_id


class _Tombstone:
    """Mark of a record whose value is null, not empty: in a compacted topic it deletes its key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "TOMBSTONE"


TOMBSTONE: Final = _Tombstone()
"""`Message.native` of a record without a value; a hop writes null again. ``body`` is ``b""``."""


class RecordHeaders(Headers):
    """A record's header fields, made text where they are UTF-8 when somebody looks at them: most handlers never do.

    Args:
        fields: as the client gives them.
        size: their bytes; -1 to count when asked.
    """

    __slots__ = ("_fields",)

    def __init__(
        self, fields: Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]] = (), size: int = -1
    ) -> None:
        # The client's list is its own and stays as it is; anything else is looked through once, here.
        self._fields = fields if fields.__class__ is list else Headers(fields).items()
        self._size = size

    def get(self, name: str, default: str | None = None) -> str | None:
        found: HeaderValue = None
        for key, value in self._fields:
            if key == name:
                found = value
        if found is None:
            return default
        return found if isinstance(found, str) else found.decode("utf-8", "replace")

    def __getattr__(self, name: str) -> Any:
        if name != "_items":  # the one that is not set from the start
            raise AttributeError(name)
        self._items = tuple([(name, _text(value)) for name, value in self._fields])
        return self._items


def _text(value: HeaderValue) -> HeaderValue:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return value


def read_headers(fields: Any) -> tuple[Headers, str | None]:
    """The header fields as they came, and the message id among them if there is one."""
    size = 0
    identity: HeaderValue = None
    for name, value in fields:
        size += len(name)
        if value is not None:
            size += len(value)
        if name == ID:
            identity = _text(value)
    return RecordHeaders(fields, size), read_id(identity)


def deliveries(
    batch: Sequence[Record],
    source: Source,
    assignment: Assignment,
    rewound: Callable[[Partition], Partition],
) -> tuple[list[Delivery], int, list[KafkaError]]:
    """The deliveries of one fetch, noted in their partitions' trackers, with their bytes and the errors among them.

    The hot path of reading: everything that is the same for a run of records of one partition is done once per run.
    """
    ready: list[Delivery] = []
    errors: list[KafkaError] = []
    total = 0
    number = last = -1
    partition: Partition | None = None
    begin = size = epoch = 0
    stream = prefix = ""
    for record in batch:
        if (error := record.error()) is not None:
            errors.append(error)
            continue
        offset: int = record.offset()  # type: ignore[assignment]
        if record.partition() != number or offset <= last:
            _close_run(partition, ready, begin, size)
            number = record.partition()  # type: ignore[assignment]
            partition = assignment.live.get(number)
            if partition is not None and partition.tracker.rewound(offset):
                partition = rewound(partition)
            begin, size = len(ready), 0
            if partition is not None:
                epoch, stream = partition.epoch, partition.stream
                prefix = f"{source.channel.name}-{number}-"
        last = offset
        if partition is None:  # taken away while it was fetched
            continue
        if partition.tracker.restored and partition.tracker.skip(offset):
            continue
        body, key, fields = record.value(), record.key(), record.headers()
        kind, millis = record.timestamp()
        headers, identity = read_headers(fields) if fields else (NO_HEADERS, None)
        message = Message(
            identity or prefix + str(offset),
            body or b"",
            key,
            headers,
            millis / 1000 if kind else None,
            TOMBSTONE if body is None else None,
        )
        bytes_ = message.size
        size += bytes_
        total += bytes_
        ready.append(Delivery(message, source, stream, offset, epoch, partition, 0, 0.0, record))
    _close_run(partition, ready, begin, size)
    return ready, total, errors


def _close_run(partition: Partition | None, ready: list[Delivery], begin: int, size: int) -> None:
    if partition is not None and begin < len(ready):
        run = ready[begin:]
        partition.tracker.receive([each.position for each in run], run)  # type: ignore[misc]
        partition.bytes_in += size
