"""The copies that failures make: a retry hop's, a dead letter's, a redrive's. Body, key and the user's headers never
change."""

from __future__ import annotations

import hashlib
import math
import re
import socket
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.errors import DecodeError
from atleastonce.message import Composed, Headers, HeaderValue, Message, sift
from atleastonce.patterns.failure import Dead, Hop
from atleastonce.patterns.history import History, origin, origins
from atleastonce.urls import mask

# All our headers together stay below 8 KiB: AMQP puts all headers in one frame, and a frame too large kills the
# connection.
_MAX_ERROR_TYPE = 256
_MAX_ERROR_MESSAGE = 1024
_MAX_TRACEBACK = 4096

_HOST = socket.gethostname()
_ORIGIN_BYTES = len(wire.ORIGIN)


# Beyond this nobody looks, and masking takes time.
_MAX_LOOKED_AT = 16_384
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {ord("\t"): " "}


def one_line(value: str, limit: int = _MAX_ERROR_MESSAGE) -> str:
    """``value`` as it may stand in a header or a log: one line of printable ASCII, secrets masked, cut to ``limit``."""
    masked = mask(_beginning(value))
    if masked.isascii() and masked.isprintable():  # nothing to escape, as a rule
        return masked.strip()[:limit]
    line = " | ".join(part.strip() for part in masked.splitlines() if part.strip())
    return line.translate(_ESCAPES).encode("ascii", "backslashreplace").decode()[:limit]


def _beginning(text: str) -> str:
    if len(text) <= _MAX_LOOKED_AT:
        return text
    text = text[:_MAX_LOOKED_AT]
    # An address that the cut goes through would not be known as one, and its password not be masked.
    *kept, last = text.rsplit(None, 1) or ("",)
    if "://" not in last:
        return text
    return kept[0] if kept else last.partition("://")[0]


def _ending(text: str) -> str:
    if len(text) <= _MAX_LOOKED_AT:
        return text
    text = text[-_MAX_LOOKED_AT:]
    space = re.search(r"\s", text)
    return text[space.end() :] if space is not None else text.rpartition("@")[2]


def words(error: BaseException) -> str:
    """What ``error`` says; an exception that cannot even be printed still costs only its own message."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - its __str__ is anybody's code
        return f"(its text raised {type(broken).__name__})"


def _trace(error: BaseException) -> str:
    """The end of the traceback, where the cause is."""
    try:
        text = "".join(traceback.format_exception(error, limit=-8))
    except Exception as broken:  # noqa: BLE001 - diagnostics are cut, never the move
        text = f"(its traceback raised {type(broken).__name__})"
    return one_line(_ending(text), _MAX_LOOKED_AT)[-_MAX_TRACEBACK:]


def _rehead(message: Message, gone: Collection[str], fields: Iterable[tuple[str, HeaderValue]]) -> Message:
    """A copy with ``fields`` at the end and without what it said before under the names that are ``gone``."""
    kept = [item for item in message.headers.fields() if item[0] not in gone]
    return Message(message.id, message.body, message.key, Headers([*kept, *fields]), None, message.native)


@lru_cache(256)
def _type_of(name: str) -> str:
    return one_line(name, _MAX_ERROR_TYPE)


def said(text: str) -> str:
    """The ``text`` of an error as it may stand in a header."""
    plain = (
        text.__class__ is str and len(text) <= _MAX_ERROR_MESSAGE
    )  # anything else may be slow to compare, or large to keep
    return _short_text(text) if plain else one_line(text)


@lru_cache(256)  # what fails together says the same, as a rule
def _short_text(text: str) -> str:
    return one_line(text)


def _common(
    delivery: Delivery, home: Source, history: History, error: BaseException, now: float
) -> dict[str, HeaderValue]:
    at, first = wire.millis(now), history.first_failed
    fields: dict[str, HeaderValue] = {
        wire.ID: delivery.message.id,
        wire.GROUP: home.group_name,
        wire.FIRST_FAILED: at if not first or first == now else wire.millis(first),
        wire.ERROR_TYPE: _type_of(type(error).__name__),
        wire.ERROR_MESSAGE: said(words(error)),
        wire.ERROR_AT: at,
    }
    if not history.ours:
        fields[wire.ORIGIN] = origin(delivery)
    return fields


def retry_copy(
    delivery: Delivery, home: Source, history: History, hop: Hop, error: BaseException, *, now: float, tier: float
) -> Message:
    """The copy that waits for its next attempt in the channel of ``tier`` seconds."""
    at = wire.millis(now)
    first = first_at(history, now)
    shared = said_alike(home.group_name, type(error).__name__, said(words(error)), at, first or at, hop, tier)
    return waiting_copy(delivery, history, shared)


def first_at(history: History, now: float) -> str:
    """When it failed first, as it travels; "" if that is ``now``. A later time comes from another clock, or a forger."""
    first = history.first_failed
    return "" if not first or first >= now else wire.millis(first)


def waiting_copy(delivery: Delivery, history: History, shared: Headers) -> Message:
    """The copy that waits, with what it says of its failure in common with others: see `said_alike`."""
    message = delivery.message
    own, size, _ = sift(message.headers.fields(), _GONE if history.ours else _GONE_WITH_PAST)
    marks = [(wire.ID, message.id)]
    if not history.ours:
        marks.append((wire.ORIGIN, origin(delivery)))
    headers = Composed(own, size, marks, shared)
    return Message(message.id, message.body, message.key, headers, None, message.native)


def first_waiting_copies(deliveries: Sequence[Delivery], shared: Headers) -> list[Message | None]:
    """`waiting_copy` of each that never failed before, by its header fields, and so bears no mark of ours but its id; None of
    anything else. Most of what fails together is of this kind, and no history need be read, nor a message be made of it."""
    return deliveries[0].first_copies(deliveries, _GONE_WITH_PAST, wire.ORIGIN, origins(deliveries), shared)


@lru_cache(64)  # so many kinds of failures within a millisecond, beyond which all of it is made anew
def said_alike(group: str, kind: str, text: str, at: str, first: str, hop: Hop, tier: float) -> Headers:
    """What copies say that fail alike within one millisecond, as those of a list do: made once for all of them."""
    fields: list[tuple[str, HeaderValue]] = [
        (wire.GROUP, group),
        (wire.ERROR_TYPE, _type_of(kind)),
        (wire.ERROR_MESSAGE, text),
        (wire.ERROR_AT, at),
        (wire.FIRST_FAILED, first),
        (wire.ATTEMPT, str(hop.attempt)),
        (wire.DUE, str(int(at) + math.ceil(hop.delay * 1000))),
    ]
    if hop.delay > tier:
        fields.append((wire.WAIT, wire.millis(hop.delay)))
    return Headers(fields)


def parked_copy(delivery: Delivery, due: wire.Due, left: float) -> Message:
    """The copy that waits once more, ``left`` seconds, because its channel's delay was shorter than its wait. It says no later
    time than was believed, and no longer wait: so it is not believed more with each round, and comes to an end."""
    message = delivery.message
    fields: dict[str, HeaderValue] = {wire.WAIT: wire.millis(min(left, due.wait))}
    if due.clamped:
        fields[wire.DUE] = wire.millis(due.at)
    return Message(message.id, message.body, message.key, message.headers.set(fields), None, message.native)


def dead_copy(delivery: Delivery, home: Source, history: History, dead: Dead, *, service: str, now: float) -> Message:
    """The copy that waits for a person."""
    fields = _common(delivery, home, history, dead.error, now)
    fields[wire.ATTEMPT] = str(history.attempt)
    fields[wire.ERROR_STAGE] = dead.stage
    fields[wire.FINGERPRINT] = fingerprint(dead.error)
    fields[wire.SERVICE] = one_line(service, 128)
    fields[wire.HOST] = one_line(_HOST, 128)
    if dead.error.__traceback__ is not None:
        fields[wire.TRACEBACK] = _trace(dead.error)
    return _rehead(delivery.message, _GONE if history.ours else _GONE_WITH_PAST, fields.items())


def brief_copy(copy: Message) -> Message:
    """A dead letter's ``copy`` without what takes room, for brokers that refused the full one: what failed and where stays."""
    kept = [item for item in copy.headers.fields() if item[0] not in _DIAGNOSTICS]
    return Message(copy.id, copy.body, copy.key, Headers(kept), None, copy.native)


def bare_copy(delivery: Delivery) -> Message:
    """The message as it came: what still fits where even a few header fields more do not. The move is made, unexplained."""
    message = delivery.message
    return Message(message.id, message.body, message.key, message.headers, None, message.native)


def given_back_copy(
    delivery: Delivery, home: Source, history: History, first_failed: float | None, *, now: float
) -> Message:
    """The copy of what a process gives back unhandled. Its hand-outs are counted anew, and so it says as which attempt it is to
    run. It waits on for whatever it waited for."""
    fields: list[tuple[str, HeaderValue]] = [
        (wire.ID, delivery.message.id),
        (wire.GROUP, home.group_name),
        (wire.ATTEMPT, str(min(history.attempt, wire.MAX_ATTEMPT))),
        (wire.GIVEN_BACK, wire.millis(now)),
    ]
    if first_failed is not None:
        fields.append((wire.FIRST_FAILED, wire.millis(first_failed)))
    if history.ours:
        return _rehead(delivery.message, _GONE_ALONG, fields)
    return _rehead(delivery.message, _GONE_WITH_PAST, [*fields, (wire.ORIGIN, origin(delivery))])


def redriven_copies(letters: Iterable[Delivery], home: Source) -> Iterator[tuple[Message, int]]:
    """Of each dead letter of ``home`` the copy for its way back, and how often it came back before: the failure is forgotten,
    identity, origin and the number of redrives are kept. What was dead in this queue is this group's, whatever its headers say:
    without our marks it would not be known again, and could go round for ever."""
    group, place = home.group_name, home.channel.name
    for letter in letters:
        identity, own, size, gone = letter.sifted(_GONE_WITH_PAST)
        redrives = 0 if (count := gone.get(wire.REDRIVES)) is None else _counted(count)
        came = gone.get(wire.ORIGIN)
        if came is not None and _text(gone.get(wire.GROUP)) == group and _text(came).partition("/")[0] == place:
            own.append((wire.ORIGIN, came))
            headers = Composed(
                own, size + _ORIGIN_BYTES + len(came), ((wire.ID, identity),), _said_back(redrives, group)
            )
        else:
            headers = Composed(own, size, ((wire.ID, identity),), _said_back(redrives, group, place))
        yield letter.copied(identity, headers), redrives


def redriven_copy(letter: Delivery, home: Source) -> Message:
    """The copy of one: see `redriven_copies`."""
    ((copy, _),) = redriven_copies((letter,), home)
    return copy


def _text(value: HeaderValue) -> str:
    """As `Headers.get` gives it."""
    return value if isinstance(value, str) else "" if value is None else value.decode("utf-8", "replace")


@lru_cache(64)  # most of a list came back as often
def _counted(redrives: HeaderValue) -> int:
    return wire.read_redrives(Headers(((wire.REDRIVES, redrives),)))


@lru_cache(64)
def _said_back(redrives: int, group: str, place: str = "") -> Headers:
    """What copies say alike on their way back; of ``place``, too, where the letters do not say it."""
    back = str(min(redrives + 1, wire.MAX_REDRIVES))
    fields: list[tuple[str, HeaderValue]] = [(wire.GROUP, group), (wire.ATTEMPT, "1"), (wire.REDRIVES, back)]
    return Headers([*fields, (wire.ORIGIN, place)] if place else fields)


def fingerprint(error: BaseException) -> str:
    """What groups failures with one cause: the error's type and the code location that raised it, not its words."""
    place, trace = "", error.__traceback__
    if trace is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}:{code.co_name}:{trace.tb_lineno}"
    kind = type(error).__qualname__
    if isinstance(error, DecodeError) and error.__cause__ is not None:
        kind += f"({type(error.__cause__).__qualname__})"  # all are raised in one place: broken JSON, or a wrong shape
    return hashlib.sha256(f"{kind}@{place}".encode()).hexdigest()[:12]


_FAILURE_FIELDS = frozenset(
    {
        wire.ATTEMPT,
        wire.DUE,
        wire.WAIT,
        wire.FIRST_FAILED,
        wire.ERROR_TYPE,
        wire.ERROR_MESSAGE,
        wire.ERROR_AT,
        wire.ERROR_STAGE,
        wire.FINGERPRINT,
        wire.TRACEBACK,
        wire.SERVICE,
        wire.HOST,
        wire.DEATHS,
        wire.SUSPECTED_AT,
        wire.GIVEN_BACK,
    }
)

_DIAGNOSTICS = frozenset({wire.ERROR_MESSAGE, wire.TRACEBACK, wire.SERVICE, wire.HOST})

# What a copy says no more, or anew: also of its past, where other consumers wrote that, or forgers.
_GONE = _FAILURE_FIELDS | {wire.ID, wire.GROUP}
_GONE_WITH_PAST = _GONE | {wire.ORIGIN, wire.REDRIVES}
_GONE_ALONG = frozenset({wire.ID, wire.GROUP, wire.ATTEMPT, wire.GIVEN_BACK, wire.FIRST_FAILED})
