"""Between a Kafka record and a `Message`: headers with their order, duplicates, nulls and bytes; tombstones."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from operator import methodcaller
from typing import Any, Final

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.errors import DecodeError
from atleastonce.message import NO_HEADERS, Composed, Headers, HeaderValue, Message, sift
from atleastonce.wire import ID, read_id


class _Tombstone:
    """Mark of a record whose value is null, not empty: in a compacted topic it deletes its key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "TOMBSTONE"


TOMBSTONE: Final = _Tombstone()
"""`Message.native` of a record without a value; a hop writes null again. ``body`` is ``b""``."""


# So many fields are looked through faster than a dict is made of them, which the garbage collector would count besides.
_FEW = 4


class RecordHeaders(Headers):
    """A record's header fields, made text where they are UTF-8 when somebody looks at all of them: a look at one is
    cheaper.

    Args:
        fields: as the client gives them.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]] = ()) -> None:
        # The client's list is its own and stays as it is; anything else is looked through once, here.
        self._fields = fields if fields.__class__ is list else Headers(fields).items()
        self._items = ()
        self._last = None
        self._size = -1

    def fields(self) -> Sequence[tuple[str, HeaderValue]]:
        """See `Headers.fields`."""
        return self._fields

    def last(self, name: str) -> HeaderValue:
        """The last value of ``name`` as it came; None if it is absent or null."""
        if self._last is not None:
            return self._last.get(name)
        if len(self._fields) > _FEW:
            self._last = dict(self._fields)
            return self._last.get(name)
        found: HeaderValue = None
        for key, value in self._fields:
            if key == name:
                found = value
        return found

    def get(self, name: str, default: str | None = None) -> str | None:
        """See `Headers.get`."""
        value = self.last(name)
        if value is None:
            return default
        return value if isinstance(value, str) else value.decode("utf-8", "replace")

    @property
    def size(self) -> int:
        """See `Headers.size`."""
        if self._size < 0:
            self._size = header_bytes(self._fields)
        return self._size

    # No ``__getattr__`` that makes them: beside one, Python looks up every attribute the slow way.
    def items(self) -> tuple[tuple[str, HeaderValue], ...]:
        """See `Headers.items`."""
        if not self._items:
            self._items = tuple([(name, _text(value)) for name, value in self._fields])
        return self._items


def _text(value: HeaderValue) -> HeaderValue:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return value


# Called by C and not by the interpreter, whose fast path for a method in a loop does not see an error beside a result.
_headers: Final = methodcaller("headers")
_UNREADABLE: Final[list[tuple[str, str | bytes | None]]] = [("", None)]  # told by its identity


def fields_of(record: Record) -> Any:
    """The header fields of ``record`` as the client gives them, None where there are none. For every look at them.

    The client has no text for a name that is not UTF-8: it gives an error beside a list that lacks an object at the first
    question, and that list alone at the second, whose use ends the process (confluent-kafka 2.16). So it is asked once.

    Raises:
        DecodeError: they cannot be read.
    """
    try:
        fields = _headers(record)
    except Exception as error:
        record.set_headers(_UNREADABLE)
        raise DecodeError("a header field's name is not UTF-8") from error
    if fields is _UNREADABLE:
        raise DecodeError("a header field's name is not UTF-8")
    return fields


def bytes_of_fields(record: Record) -> int:
    """The bytes of the header fields of ``record``; 0 if they cannot be read, which whoever looks at them is told."""
    try:
        return header_bytes(fields_of(record))
    except DecodeError:
        return 0


def header_bytes(fields: Any) -> int:
    """The bytes of header fields, names and values."""
    return sum(len(name) + (0 if value is None else len(value)) for name, value in fields or ())


def read_headers(fields: Any) -> tuple[Headers, str | None]:
    """The header fields as they came, and the message id among them if there is one."""
    headers = RecordHeaders(fields)
    if len(fields) > _FEW:
        headers._last = dict(fields)
    return headers, read_id(_text(headers.last(ID)))


def read_message(record: Record) -> Message:
    """The message in ``record``."""
    body, fields = record.value(), fields_of(record)
    kind, millis = record.timestamp()
    headers, identity = read_headers(fields) if fields else (NO_HEADERS, None)
    return Message(
        identity or _place_of(record),
        body or b"",
        record.key(),
        headers,
        millis / 1000 if kind else None,
        TOMBSTONE if body is None else None,
    )


def _place_of(record: Record) -> str:
    """The id of a message whose producer gave it none."""
    return f"{record.topic()}-{record.partition()}-{record.offset()}"


class RecordDelivery(Delivery):
    """A hand-out of a record. Its message is made when somebody looks at it: reading a record's headers costs more than
    everything else on the way to a handler, and most handlers take the payload and nothing else."""

    __slots__ = ()

    def __init__(
        self, source: Source, stream: str, position: int, epoch: int, token: Partition, size: int, record: Record
    ) -> None:
        self.source = source
        self.stream = stream
        self.position = position
        self.epoch = epoch
        self.token = token
        self.count = 0
        self.lease_until = 0.0
        self.lost = False
        self.raw = record
        self.returned = False
        self.size = size
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None

    def read(self) -> Message:
        """See `Delivery.read`."""
        return read_message(self.raw)

    @staticmethod
    def first_copies(
        deliveries: Sequence[Delivery], marks: Container[str], mark: str, values: Sequence[str], shared: Headers
    ) -> list[Message | None]:
        """See `Delivery.first_copies`."""
        copies: list[Message | None] = []
        marked = len(ID) + len(mark)
        for delivery, value in zip(deliveries, values, strict=True):
            if delivery._message is not None:
                copies += Delivery.first_copies([delivery], marks, mark, [value], shared)
                continue
            record = delivery.raw
            try:
                fields = fields_of(record)
            except DecodeError:  # whoever looks at the message is told
                copies.append(None)
                continue
            own, size, gone = sift(fields or (), marks)
            identity = read_id(_text(gone.pop(ID, None))) or _place_of(record)
            if gone:
                copies.append(None)
                continue
            own.append((ID, identity))
            own.append((mark, value))
            headers = Composed(own, size + marked + len(identity) + len(value), (), shared)
            body = record.value()
            native = TOMBSTONE if body is None else None
            copies.append(Message(identity, body or b"", record.key(), headers, None, native))
        return copies

    def sifted(self, names: Container[str]) -> tuple[str, list[tuple[str, HeaderValue]], int, dict[str, HeaderValue]]:
        """See `Delivery.sifted`."""
        record = self.raw
        if self._message is not None:
            return super().sifted(names)
        try:
            fields = fields_of(record)
        except DecodeError:  # the message is made without them, and says why
            return super().sifted(names)
        own, size, gone = sift(fields or (), names)
        return read_id(_text(gone.get(ID))) or _place_of(record), own, size, gone

    def copied(self, identity: str, headers: Headers) -> Message:
        """See `Delivery.copied`."""
        if self._message is not None:
            return super().copied(identity, headers)
        record = self.raw
        body = record.value()
        return Message(identity, body or b"", record.key(), headers, None, TOMBSTONE if body is None else None)

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        return self.raw.value() or b""

    @property
    def key(self) -> bytes | None:
        """See `Delivery.key`."""
        return self.raw.key() if self.raw is not None else self.message.key

    def shed(self) -> None:
        """See `Delivery.shed`. It cannot be handed out again: it is for what stays unsettled."""
        super().shed()
        self.raw = None

    def again(self) -> RecordDelivery:
        """A new hand-out of the same record; this one is settled and stays so."""
        offset: int = self.position  # type: ignore[assignment]
        new = RecordDelivery(self.source, self.stream, offset, self.epoch, self.token, self.size, self.raw)
        new.count = self.count
        return new


def deliveries(
    batch: Sequence[Record],
    source: Source,
    assignment: Assignment,
    rewound: Callable[[Partition], Partition],
) -> tuple[list[Delivery], int, list[KafkaError]]:
    """The deliveries of one fetch, noted in their partitions' trackers, with their bytes and the errors among them.

    The hot path of reading: everything that is the same for a run of records of one partition is done once per run. That
    goes for the bytes of header fields, too: each record is taken to have as many as the first of its run.

    The end of a partition, told as an error, moves the tracker past what lies there and is no record.
    """
    ready: list[Delivery] = []
    errors: list[KafkaError] = []
    ends: list[Record] = []
    total = 0
    number = last = -1
    partition: Partition | None = None
    begin = size = epoch = fields = 0
    stream = ""
    restored = False
    for record in batch:
        if (error := record.error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                ends.append(record)
            else:
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
                epoch, stream, restored = partition.epoch, partition.stream, partition.tracker.restored
                fields = bytes_of_fields(record)
        last = offset
        if partition is None:  # taken away while it was fetched
            continue
        if restored and partition.tracker.skip(offset):
            continue
        key = record.key()
        bytes_ = len(record) + fields if key is None else len(record) + fields + len(key)
        size += bytes_
        total += bytes_
        ready.append(RecordDelivery(source, stream, offset, epoch, partition, bytes_, record))
    _close_run(partition, ready, begin, size)
    for end in ends:
        ended = assignment.live.get(end.partition())  # type: ignore[arg-type]
        if ended is not None:
            ended.tracker.reached(end.offset())  # type: ignore[arg-type]
    return ready, total, errors


def _close_run(partition: Partition | None, ready: list[Delivery], begin: int, size: int) -> None:
    if partition is not None and begin < len(ready):
        run = ready[begin:]
        partition.tracker.receive([each.position for each in run], run)  # type: ignore[misc]
        partition.bytes_in += size
        if run[0].position < partition.vigil.suspects_below:  # type: ignore[operator]
            for delivery in run:
                delivery.count = partition.vigil.count(delivery.position)  # type: ignore[arg-type]
