"""THE outbox contract: what a database does so that messages leave if, and only if, the transaction that wrote them committed.

A row is appended in the user's own transaction. A *relay* reads what has become visible, publishes it, and removes it when the
broker has confirmed it. A relay that dies in between leaves the row: it is published again, with the same id.

Rules that hold for every store
    **No last id.** Numbers are given out in another order than transactions commit in, so a row may become visible *before* the
    rows that were read. Each fetch begins at the first row that is left; what a relay has read and not removed yet it names.

    **Slots.** Each row belongs to one of `SLOTS` slots, by its destination and key (without a key: by its destination). A relay
    holds slots by lease, and only their rows are given to it, so the rows of one key are read by one relay at a time, in the
    order of their numbers. That is all the coordination there is: reading writes nothing, and removing asks nobody.

    **The store's clock.** As for leases: no time of a client enters a decision.

    **Removing is always right.** Who removes a row knows that the broker has confirmed it, slot or no slot.

    **Parked is not lost.** A row that the broker will never take stays, with the reason, until somebody redrives or discards it.
    It may *block*: later rows of its key then wait for it.
"""

from __future__ import annotations

import asyncio
import enum
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from atleastonce.channels import Channel, Queue, Topic
from atleastonce.contract.moves import Outgoing
from atleastonce.errors import ConfigurationError, InvalidMessage
from atleastonce.message import NO_HEADERS, Added, Headers, HeaderValue, Message
from atleastonce.stores.contract import TransactionalStore
from atleastonce.stores.texts import as_text, shown
from atleastonce.wire import ID

SLOTS = 8
"""How many relays of one outbox can work at a time; more of them stand by. Part of the schema."""

FETCHED_BYTES = 32 << 20
"""Bytes of header fields and bodies that one look brings, and one row more. Fewer: more looks at large rows. More: memory, on
SQLite twice as much as this."""

FETCHED_ROWS = 20_000
"""Rows that one look brings unless it is told another number."""


class State(enum.IntEnum):
    """Of a row."""

    READY = 0
    DELAYED = 1
    PARKED = 2
    BLOCKING = 3
    """Parked, and later rows of its key wait."""


class Stored(NamedTuple):
    """One message as the columns of its row, in this order; besides them ``seq`` (rising), ``created`` and ``due``."""

    slot: int
    state: int
    delay: float
    """Seconds from now until it is ready: ``due`` is ``created`` plus this."""
    id: str
    destination: str
    """``queue:NAME`` or ``topic:NAME``."""
    settings: str | None
    """What else the channel says of itself, as JSON: a relay may have to create it."""
    key: bytes | None
    headers: str
    """A JSON list of names and values; bytes are ``{"base64": ...}``."""
    body: bytes


FETCHED = ("seq", "slot", "destination", "settings", "id", "key", "headers", "body")
"""The columns of which `OutboxRow.of` makes rows, in this order."""


class OutboxRow(msgspec.Struct, frozen=True, gc=False):
    """One row as a relay has it.

    Attributes:
        seq: its number.
        slot: by which it is held.
        destination: ``queue:NAME`` or ``topic:NAME``.
        id: of its message, since after a failover that lost commits a number may be another row's; None if it is no text.
        key: of its message.
        outgoing: what to publish; None if the row does not say.
        flaw: why not.
    """

    seq: int
    slot: int
    destination: str
    id: str | None
    key: bytes | None
    outgoing: Outgoing | None
    flaw: str = ""

    @classmethod
    def of(cls, found: Iterable[Sequence[Any]]) -> list[OutboxRow]:
        """From the columns in `FETCHED`, row by row. One that somebody else's SQL has written badly is given with its flaw."""
        rows = []
        # Of the row before, which the next one is like as a rule: its channel, and its header fields but the id.
        like: tuple[object, object] = (None, None)
        channel: Channel[Any] | None = None
        front, base = "\0", NO_HEADERS
        for seq, slot, destination, settings, id, key, headers, body in found:
            name: str | None = None
            try:
                where = destination if destination.__class__ is str else as_text(destination)
                name = id if id.__class__ is str else as_text(id)
                if channel is None or destination != like[0] or settings != like[1]:
                    channel = _channel(where, None if settings is None else as_text(settings))
                    like = (destination, settings)
                text = headers if headers.__class__ is str else as_text(headers)
                if text == f'{front}{_ID_FIELD}{name}"]]' and "\\" not in name:
                    fields: Headers = Added(base, ID, name)
                else:
                    fields = _headers(text, name)
                    if fields.__class__ is Added:
                        front, base = text[: -len(f'{_ID_FIELD}{name}"]]')], fields.base
            except (msgspec.MsgspecError, ConfigurationError, TypeError, ValueError) as error:
                flaw = f"the row cannot be read: {error}"
                rows.append(cls(seq, slot, shown(destination), name, key, None, flaw))
            else:
                rows.append(cls(seq, slot, where, name, key, Outgoing(channel, Message(name, body, key, fields))))
        return rows


class Holding(msgspec.Struct, frozen=True):
    """What a relay may read.

    Attributes:
        slots: these are its own until the lease ends.
        share: how many it should have, with the relays that there are; what it holds beyond them it gives back.
    """

    slots: frozenset[int]
    share: int


class Parking(msgspec.Struct, frozen=True):
    """A row to be parked, by its number and its message's id (None: by the number alone), and why."""

    seq: int
    id: str | None
    reason: str


class ParkedRow(msgspec.Struct, frozen=True):
    """A parked row, for people.

    Attributes:
        seq, id, destination, key: of the row; the key as text, as far as it is one.
        size: of its body, in bytes.
        reason: what the broker said.
        blocking: whether later rows of its key wait for it.
        age: seconds since it was appended.
        parked_for: seconds since it was parked.
    """

    seq: int
    id: str
    destination: str
    key: str | None
    size: int
    reason: str
    blocking: bool
    age: float
    parked_for: float

    @classmethod
    def of(
        cls,
        seq: int,
        id: str | bytes,
        destination: str | bytes,
        key: bytes | None,
        size: int,
        reason: str | bytes,
        blocking: bool,
        *ages: float,
    ) -> ParkedRow:
        """From columns, in the attributes' order."""
        text = None if key is None else shown(key)
        age, parked_for = (max(0.0, float(each)) for each in ages)
        return cls(seq, shown(id), shown(destination), text, size, shown(reason), bool(blocking), age, parked_for)


class OutboxStats(msgspec.Struct, frozen=True):
    """How far behind the relays are.

    Attributes:
        waiting: rows that are ready and not removed: to be published, or being published.
        oldest: seconds since the oldest of them, the one with the lowest number, was appended; None without any.
        delayed: rows that are not due yet.
        parked: rows that the broker has refused.
        relays: how many are alive.
        blocked: of ``waiting``, rows that wait for a parked one of their key.
    """

    waiting: int
    oldest: float | None
    delayed: int
    parked: int
    relays: int
    blocked: int = 0


class OutboxStore(TransactionalStore):
    """A database that can also be an outbox.

    All but `outbox_append` raise `StoreUnavailable`, `PermissionDenied`, and `ConfigurationError` where its tables are missing
    (they come with `init`), and may be repeated.
    """

    @abstractmethod
    async def outbox_append(self, tx: Any, outputs: Sequence[Outgoing]) -> None:
        """Write rows in the transaction ``tx``, which may be the user's own: one statement, in order (see `stored`).

        Args:
            tx: the driver's connection, inside a transaction.
            outputs: to channels; ``delay`` is the outbox's to keep, whatever the broker can.

        Raises:
            ConfigurationError, InvalidMessage: before anything was written.
            The driver's own errors: as `TransactionalStore.claim_in`.
        """

    @abstractmethod
    async def outbox_hold(self, relay: bytes, name: str, lease: float) -> Holding:
        """Say that ``relay`` lives, keep its slots for ``lease`` more seconds, and take free ones up to its share.

        Free is what nobody holds, or whose lease is over. The share is `share` of the relays whose lease runs.
        """

    @abstractmethod
    async def outbox_leave(self, relay: bytes, slots: Collection[int] | None = None) -> None:
        """Give back these slots, as far as they are ``relay``'s; None: all, for it ends."""

    @abstractmethod
    async def outbox_fetch(
        self,
        relay: bytes,
        slots: Collection[int],
        limit: int,
        *,
        held: Collection[int],
        paused: Collection[str],
        most: int = FETCHED_ROWS,
    ) -> list[OutboxRow]:
        """Ready rows, by number: at most ``limit`` of each of ``slots`` that ``relay`` holds now, and of those the first ``most``,
        as far as all before them have less than `FETCHED_BYTES`; writes nothing.

        Not given: the rows with the numbers ``held``, those to a destination in ``paused``, and those whose destination and
        key have a row that blocks.
        """

    @abstractmethod
    async def outbox_remove(self, rows: Sequence[OutboxRow]) -> None:
        """Delete what was published, as far as number and id are still one row's: after a failover that lost commits the numbers
        are given again. Need not survive a power cut: what comes back is published again."""

    @abstractmethod
    async def outbox_park(self, rows: Sequence[Parking], *, blocking: bool) -> None:
        """Put aside what the broker will never take, by number and id as `outbox_remove`. Keyless rows block nothing."""

    @abstractmethod
    async def outbox_promote(self) -> None:
        """Make what is due ready. It keeps its number; its order against others of its key is not promised."""

    async def outbox_wait(self, within: float) -> None:
        """Return when rows may have been appended, at the latest after ``within`` seconds. A store that is away is no error."""
        await asyncio.sleep(within)

    @abstractmethod
    async def outbox_stats(self) -> OutboxStats:
        """The lag, counted now."""

    @abstractmethod
    async def outbox_parked(self, limit: int = 100) -> list[ParkedRow]:
        """The parked rows, by number."""

    @abstractmethod
    async def outbox_redrive(self, ids: Sequence[str] | None = None) -> int:
        """Make parked rows ready again, at their old numbers; these message ids, or all. Returns how many."""

    @abstractmethod
    async def outbox_discard(self, ids: Sequence[str]) -> int:
        """Delete parked rows for good. Returns how many."""


def share(relays: int) -> int:
    """How many slots each of so many relays should have; no less than all together."""
    return -(-SLOTS // max(1, relays))


def slot_of(destination: str, key: bytes | None) -> int:
    """Where all rows of one key are."""
    start = crc32(destination.encode())
    return (start if key is None else crc32(key, start)) % SLOTS


_RUNS = 16


def runs(numbers: Iterable[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """The runs of consecutive ``numbers`` by their first and last, as far as each has a good part of all (a `_RUNS`-th); and all
    others. What a relay holds are thousands, mostly in a few runs: a database compares each row faster with those than with a
    list, but faster with a list than with many short ones."""
    found: list[tuple[int, int]] = []
    ordered = sorted(numbers)
    if ordered and ordered[-1] - ordered[0] == len(ordered) - 1:  # as nearly always: then none is looked at
        return [(ordered[0], ordered[-1])], []
    first = last = -2
    for number in ordered:
        if number != last + 1:
            if first != -2:
                found.append((first, last))
            first = number
        last = number
    if first != -2:
        found.append((first, last))
    long = [run for run in found if (run[1] - run[0] + 1) * _RUNS >= len(ordered)]
    if len(long) == len(found):
        return long, []
    rest = [number for run in found if run not in long for number in range(run[0], run[1] + 1)]
    return long, rest


_LEAST, _MOST = 1 - (1 << 63), (1 << 63) - 1  # one more than the least, which PostgreSQL takes for no bigint


def gaps(numbers: Iterable[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """As `runs`, but what lies between the runs, before the first and after the last, by its first and last number."""
    long, others = runs(numbers)
    found, first = [], _LEAST
    for begin, end in long:
        if first < begin:
            found.append((first, begin - 1))
        first = end + 1
    found.append((first, _MOST))
    return found, others


def stored(outputs: Sequence[Outgoing]) -> list[Stored]:
    """The rows of ``outputs``.

    Raises:
        ConfigurationError: a destination that is no channel, or whose options are no JSON.
        InvalidMessage: header values that are neither text nor bytes.
    """
    rows = []
    for each in outputs:
        destination, settings = _named(each.destination)
        message = each.message
        rows.append(
            Stored(
                slot_of(destination, message.key),
                State.DELAYED if each.delay > 0 else State.READY,
                float(each.delay),
                message.id,
                destination,
                settings,
                message.key,
                _encode_headers(message.headers),
                message.body,
            )
        )
    return rows


class _Bytes(msgspec.Struct):
    base64: bytes


class _Settings(msgspec.Struct, omit_defaults=True):
    partitions: int | None = None
    fifo: bool = False
    single_active: bool = False
    options: dict[str, dict[str, Any]] = {}


_decode_texts: Callable[[str], list[tuple[str, HeaderValue]]] = msgspec.json.Decoder(
    list[tuple[str, str | None]]
).decode  # type: ignore[assignment]
_decode_headers = msgspec.json.Decoder(list[tuple[str, str | _Bytes | None]]).decode
_encode = msgspec.json.Encoder().encode


# What comes before the id in the header fields of rows, and those fields: a program writes few of them for many messages.
_known: dict[str, Headers] = {}
_MOST_KNOWN = 1024
_LONGEST_KNOWN = 1024  # characters
_ID_FIELD = f',["{ID}","'


def _headers(text: str, id: str) -> Headers:
    """The fields in ``text``. Where the last is the message's id, as in all that `Outbox` has written, the others are looked up."""
    own = f'{_ID_FIELD}{id}"]]'
    if not text.endswith(own) or len(text) > _LONGEST_KNOWN or "\\" in id:  # which JSON writes otherwise
        return Headers(_decoded(text))
    front = text[: -len(own)]
    base = _known.get(front)
    if base is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        base = _known[front] = Headers(_decoded(f"{front}]"))
    return base.plus(ID, id)


def _decoded(headers: str) -> list[tuple[str, HeaderValue]]:
    if "{" not in headers:  # as nearly all are
        return _decode_texts(headers)
    return [(name, value.base64 if isinstance(value, _Bytes) else value) for name, value in _decode_headers(headers)]


def _encode_headers(headers: Headers) -> str:
    fields: list[tuple[str, HeaderValue | _Bytes]] = list(headers.items())
    if any(value.__class__ is bytes for _, value in fields):
        fields = [(name, _Bytes(value) if isinstance(value, bytes) else value) for name, value in fields]
    try:
        encoded = _encode(fields)
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidMessage(f"headers: {error}") from None
    # Escaped, since a database's encoding need not have what is in it.
    return encoded.decode() if encoded.isascii() else json.dumps(msgspec.json.decode(encoded), separators=(",", ":"))


def _named(destination: object) -> tuple[str, str | None]:
    if not isinstance(destination, Queue | Topic):
        raise ConfigurationError(f"an outbox publishes to a Queue or Topic, not to {destination!r}")
    settings = None
    more = _Settings(
        destination.partitions,
        destination.fifo,
        destination.single_active,
        {name: dict(options) for name, options in destination.options.items()} if destination.options else {},
    )
    if more != _PLAIN:
        try:
            settings = _encode(more).decode()
        except (TypeError, UnicodeEncodeError) as error:
            raise ConfigurationError(f"{destination.name}: its options are no JSON: {error}") from None
    return f"{'queue' if isinstance(destination, Queue) else 'topic'}:{destination.name}", settings


_PLAIN = _Settings()


@lru_cache(maxsize=1024)
def _channel(destination: str, settings: str | None) -> Channel[Any]:
    kind, _, name = destination.partition(":")
    more = msgspec.json.decode(settings, type=_Settings) if settings is not None else _PLAIN
    if kind == "queue":
        return Queue(
            name,
            partitions=more.partitions,
            fifo=more.fifo,
            single_active=more.single_active,
            options=more.options,
        )
    if kind == "topic":
        return Topic(
            name,
            partitions=more.partitions,
            fifo=more.fifo,
            single_active=more.single_active,
            options=more.options,
        )
    raise ConfigurationError(f'destination "{destination}" is neither queue:NAME nor topic:NAME')
