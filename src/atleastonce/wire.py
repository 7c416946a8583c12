"""The headers that we add, and how they are read back: ASCII, lower case, replaced and never appended.

Everything that arrives is untrusted: values are parsed defensively and clamped, never raised about. On a main channel they are
ignored altogether unless a redrive put them there, since any producer could have written them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from atleastonce.message import Headers

PREFIX = "alo-"

ID = "alo-id"
ATTEMPT = "alo-attempt"
"""The attempt that will run next, from 1."""
DUE = "alo-due"
"""Not before this, in milliseconds since the epoch."""
WAIT = "alo-wait"
"""How long it was asked to wait in all, in milliseconds; only where that is longer than its channel's delay."""
FIRST_FAILED = "alo-first-failed"
ORIGIN = "alo-origin"
"""Where the message first failed: ``channel`` or ``channel/position``. Written by the first hop, never overwritten."""
GROUP = "alo-group"
ERROR_TYPE = "alo-error-type"
ERROR_MESSAGE = "alo-error-message"
ERROR_AT = "alo-error-at"
ERROR_STAGE = "alo-error-stage"
"""decode | key | mismatch | handler | expired | crash-loop | rejected."""
FINGERPRINT = "alo-fingerprint"
TRACEBACK = "alo-traceback"
SERVICE = "alo-service"
HOST = "alo-host"
REDRIVES = "alo-redrives"
DEATHS = "alo-deaths"
"""How often a suspect has ended its process without a hand-out that the broker counts."""
SUSPECTED_AT = "alo-suspected-at"
"""When a copy was made for the channel of suspects: each is another publish, also to brokers that drop repetitions."""
GIVEN_BACK = "alo-given-back"
"""When a process that stopped made this copy of what it had not handled, because its broker counts each hand-out as an attempt. As
which attempt it is to run is in `ATTEMPT`."""
EDITED = "alo-edited"
"""SHA-256 of the body before a person changed it for a redrive."""
REPLY_TO = "alo-reply-to"
CORRELATION = "alo-correlation"
DEADLINE = "alo-deadline"
"""When whoever asks stops waiting for an answer, in milliseconds since the epoch."""
RESPONDER = "alo-responder"
"""In an answer: which source's handler gives it."""
CONTENT_TYPE = "content-type"

MAX_ID = 256
"""Characters of the longest message id."""

MAX_ATTEMPT = 32_767
"""Counters above this are forged or broken: they count as 1."""


MAX_REDRIVES = 999
"""A redrive counter above this is forged or broken, and counts as none: otherwise who forges it would make a letter that no redrive
takes, since `dlq redrive --max-redrives` goes up to one more."""

CLOCK_SLACK = 60.0
"""Clocks of different hosts differ: a due time this many seconds beyond its channel's delay is believed."""

_MAX_WAIT = 366 * 86_400_000
# What is this close to the furthest time that is believed needs no other: it is believed a moment later.
_CLOSE = 1.0


class Due(NamedTuple):
    """When a message may run.

    Attributes:
        at: not before this, in seconds since the epoch; 0.0: now.
        wait: how long it may wait in all, in seconds from now: what is written further ahead is not believed.
        clamped: whether its header says a later time than ``at``. It has to be replaced where the message waits once more, or
            the header is believed no more then than now, and it waits for ever.
    """

    at: float
    wait: float
    clamped: bool


def read_int(headers: Headers, name: str, *, default: int, low: int, high: int) -> int:
    """The decimal in header ``name``; ``default`` where it is absent, malformed or outside ``low``..``high``."""
    text = headers.get(name)
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        return default
    value = int(text)
    return value if low <= value <= high else default


def read_attempt(headers: Headers) -> int:
    """Which attempt this delivery is by its headers, from 1."""
    return read_int(headers, ATTEMPT, default=1, low=1, high=MAX_ATTEMPT)


def read_redrives(headers: Headers) -> int:
    """How often this message came back from the dead letters."""
    return read_int(headers, REDRIVES, default=0, low=0, high=MAX_REDRIVES)


def read_due(headers: Headers, *, now: float, delay: float) -> Due:
    """When this message is due if it waits in a channel of ``delay`` seconds.

    A due time further ahead than its channel's delay (or than the longer wait it was sent away for) comes from a wrong
    clock or a forger and is clamped, so that it waits no longer than an honest one. A malformed one is due now.
    """
    wait = max(delay, read_int(headers, WAIT, default=0, low=0, high=_MAX_WAIT) / 1000)
    text = headers.get(DUE)
    if text is None or not (text.isascii() and text.isdigit()):
        return Due(0.0, wait, False)
    latest = now + wait + CLOCK_SLACK
    at = math.inf if len(text) > 18 else int(text) / 1000
    return Due(min(at, latest), wait, at > latest + _CLOSE)


_LATEST = 10**17


def read_deadline(headers: Headers) -> float | None:
    """When the asker stops waiting, in seconds since the epoch; None where it did not say, or nothing that makes sense. What is
    below zero is as long past as zero."""
    text = headers.get(DEADLINE) or ""
    if text.isascii() and text.isdigit():
        value = _LATEST + 1 if len(text) > 18 else int(text)
        return value / 1000 if value <= _LATEST else None
    sign, minus, digits = text.partition("-")
    return 0.0 if minus and not sign and digits.isascii() and digits.isdigit() else None


def read_id(value: object) -> str | None:
    """``value`` if it can be a message's identity: 1 to 256 printable ASCII characters. None otherwise: an id stands in
    logs, keys and headers, and a foreign one may be anything."""
    if isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isascii() and value.isprintable():
        return value
    return None


NOISE = 0.0005
"""Milliseconds that are the arithmetic's and not the wait's: 1.1 s are not 1101 ms."""


def millis(timestamp: float) -> str:
    """A time in seconds since the epoch, as it travels: decimal milliseconds, rounded up, so that no wait is cut short."""
    return str(math.ceil(timestamp * 1000 - NOISE))
