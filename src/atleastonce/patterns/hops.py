"""The copies that failures make: a retry hop's, a dead letter's, a redrive's. Body, key and the user's headers never
change."""

from __future__ import annotations

import hashlib
import socket
import traceback

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.message import HeaderValue, Message
from atleastonce.patterns.failure import Dead, Hop
from atleastonce.patterns.history import History, origin
from atleastonce.urls import mask

# All our headers together stay below 8 KiB: AMQP puts all headers in one frame, and a frame too large kills the
# connection.
_MAX_ERROR_TYPE = 256
_MAX_ERROR_MESSAGE = 1024
_MAX_TRACEBACK = 4096

_HOST = socket.gethostname()


def _text(value: str, limit: int) -> str:
    """``value`` as it may stand in a header: one line of ASCII, secrets masked, cut to ``limit``."""
    line = " | ".join(part.strip() for part in mask(value).splitlines() if part.strip())
    return line.encode("ascii", "backslashreplace").decode().replace("\x00", "\\x00")[:limit]


def _rehead(message: Message, fields: dict[str, HeaderValue]) -> Message:
    return Message(message.id, message.body, message.key, message.headers.set(fields), None, message.native)


def _common(
    delivery: Delivery, home: Source, history: History, error: BaseException, now: float
) -> dict[str, HeaderValue]:
    fields: dict[str, HeaderValue] = {
        wire.ID: delivery.message.id,
        wire.GROUP: home.group_name,
        wire.FIRST_FAILED: wire.millis(history.first_failed or now),
        wire.ERROR_TYPE: _text(type(error).__name__, _MAX_ERROR_TYPE),
        wire.ERROR_MESSAGE: _text(str(error), _MAX_ERROR_MESSAGE),
        wire.ERROR_AT: wire.millis(now),
    }
    if not history.ours:
        fields[wire.ORIGIN] = origin(delivery)
    return fields


def retry_copy(
    delivery: Delivery, home: Source, history: History, hop: Hop, error: BaseException, *, now: float
) -> Message:
    """The copy that waits for its next attempt."""
    fields = _common(delivery, home, history, error, now)
    fields[wire.ATTEMPT] = str(hop.attempt)
    fields[wire.DUE] = wire.millis(now + hop.delay)
    return _rehead(delivery.message, fields)


def dead_copy(
    delivery: Delivery, home: Source, history: History, dead: Dead, *, service: str, now: float, brief: bool = False
) -> Message:
    """The copy that waits for a person. ``brief`` leaves out all diagnostics, for brokers that refused the full one."""
    fields = _common(delivery, home, history, dead.error, now)
    fields[wire.ATTEMPT] = str(history.attempt)
    fields[wire.ERROR_STAGE] = dead.stage
    fields[wire.FINGERPRINT] = fingerprint(dead.error)
    if brief:
        del fields[wire.ERROR_MESSAGE]
    else:
        fields[wire.SERVICE] = _text(service, 128)
        fields[wire.HOST] = _text(_HOST, 128)
        if dead.error.__traceback__ is not None:
            lines = traceback.format_exception(dead.error, limit=-8)
            fields[wire.TRACEBACK] = _text("".join(lines), 10**6)[-_MAX_TRACEBACK:]
    return _rehead(_without_due(delivery.message), fields)


def redriven_copy(delivery: Delivery) -> Message:
    """A dead letter's copy for its way back: the failure is forgotten, identity, origin and the number of redrives
    are kept."""
    headers = delivery.message.headers
    redrives = wire.read_int(headers, wire.REDRIVES, default=0, low=0, high=wire.MAX_ATTEMPT - 1)
    kept = [(name, value) for name, value in headers.items() if name not in _FAILURE_FIELDS]
    message = delivery.message
    fields: dict[str, HeaderValue] = {wire.ID: message.id, wire.ATTEMPT: "1", wire.REDRIVES: str(redrives + 1)}
    return Message(message.id, message.body, message.key, type(headers)(kept).set(fields), None, message.native)


def fingerprint(error: BaseException) -> str:
    """What groups failures with one cause: the error's type and the code location that raised it, not its words."""
    place = ""
    if error.__traceback__ is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/')[2]}:{frame.name}:{frame.lineno}"
    return hashlib.sha256(f"{type(error).__qualname__}@{place}".encode()).hexdigest()[:12]


_FAILURE_FIELDS = frozenset(
    {
        wire.ATTEMPT,
        wire.DUE,
        wire.FIRST_FAILED,
        wire.ERROR_TYPE,
        wire.ERROR_MESSAGE,
        wire.ERROR_AT,
        wire.ERROR_STAGE,
        wire.FINGERPRINT,
        wire.TRACEBACK,
        wire.SERVICE,
        wire.HOST,
    }
)


def _without_due(message: Message) -> Message:
    if wire.DUE not in message.headers:
        return message
    return Message(
        message.id,
        message.body,
        message.key,
        type(message.headers)(item for item in message.headers.items() if item[0] != wire.DUE),
        None,
        message.native,
    )
