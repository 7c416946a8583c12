"""Why a message is dead, whoever wrote it down: our own header fields, a broker's net, another library.

Everything here comes from the wire: it is believed for being shown, grouped and sent back, parsed defensively, and safe to
print. A dead letter that says nothing has an obituary too, of which only the message itself is known.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgspec

from atleastonce import wire
from atleastonce.contract import Annotated, Delivery
from atleastonce.patterns import foreign
from atleastonce.patterns.hops import one_line

_LONGEST = 1024
# A name, a place: what a table shows in one column.
_SHORT = 256
_LONGEST_TRACE = 16_384


class Obituary(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a dead letter. Empty text and None mean that nobody said.

    Attributes:
        writer: who gave it up, as far as its marks tell: ``atleastonce``, ``rabbitmq``, ``sqs``, ``pubsub`` (their own nets),
            ``spring``, ``masstransit``, ``nservicebus``, ``wolverine``, ``smallrye``, ``kafka-connect``; "" where there is no mark.
        error_type, error_message: the exception, or the broker's reason (``delivery_limit``, ``rejected``, ``expired``).
        stage: decode, key, mismatch, handler, expired, crash-loop, parked, rejected; only ours is known.
        attempts: how often it was tried.
        origin: the channel (queue, subscription) where it failed.
        position: where in the origin: partition and offset, a sequence.
        group: whose failure it is.
        first_failed, last_failed: seconds since the epoch.
        service, host: who ran the handler.
        fingerprint: the same for failures that have one cause; never empty.
        redrives: how often it came back from the dead letters.
        raw_traceback: as it travelled, safe for nothing; `traceback` is what to show.
    """

    writer: str = ""
    error_type: str = ""
    error_message: str = ""
    stage: str = ""
    attempts: int | None = None
    origin: str = ""
    position: str = ""
    group: str = ""
    first_failed: float | None = None
    last_failed: float | None = None
    service: str = ""
    host: str = ""
    fingerprint: str = ""
    redrives: int = 0
    raw_traceback: str = ""

    @property
    def traceback(self) -> str:
        """Where it failed, in lines that are safe to print. Made when asked for: a list of many letters shows none."""
        return "\n".join(_line(line, _LONGEST) for line in self.raw_traceback[:_LONGEST_TRACE].splitlines())


def read_obituary(delivery: Delivery) -> Obituary:
    """The obituary of a message that was delivered, or looked at, in a dead-letter queue. Pure; never raises for what is
    on the wire.

    Where several wrote (a library republished what a broker's net had caught), the one that knows the error comes
    first, and the others fill in what it left open.
    """
    fields: dict[str, Any] = {**dict(delivery.message.headers.items()), **_notes(delivery)}
    facts = _ours(fields) if wire.ERROR_STAGE in fields else {}
    for name, value in foreign.facts(fields):
        facts.setdefault(name, value)
    if wire.GROUP in fields and wire.ERROR_STAGE not in fields:  # caught by a net on its way through our retries
        for name, value in _ours(fields).items():
            facts.setdefault(name, value)
    return _printable(facts)


class Brief(NamedTuple):
    """What a table of dead letters is made of.

    Attributes:
        fingerprint, first_failed: as of an `Obituary`.
        died: when it failed for the last time, or else was published to the dead letters.
    """

    fingerprint: str
    first_failed: float | None
    died: float | None


def read_brief(delivery: Delivery) -> Brief | None:
    """As much of its obituary, if fields of ours say all of it, as in nearly every letter: a list of 100 000 needs no more of each.
    None: read the obituary."""
    headers = delivery.message.headers
    if wire.ERROR_STAGE not in headers:
        return None
    fingerprint = headers.get(wire.FINGERPRINT)
    first, died = foreign.millis(headers.get(wire.FIRST_FAILED)), foreign.millis(headers.get(wire.ERROR_AT))
    if not fingerprint or first is None or died is None:
        return None
    return Brief(_line(fingerprint, _SHORT), first, died)


def _notes(delivery: Delivery) -> Mapping[str, Any]:
    """What the broker itself says about the message."""
    for place in (delivery.raw, delivery.message.native):
        kind: type = type(place)
        if _annotated(kind):
            return cast(Annotated, place).annotations()
        if isinstance(place, Mapping) and isinstance(system := place.get("Attributes"), Mapping):
            return system  # as SQS' clients show a message
    return {}


# Python looks through a protocol's members anew for every instance: a third of the time of a list of 100 000 letters.
@lru_cache(maxsize=256)
def _annotated(kind: type) -> bool:
    return issubclass(kind, Annotated)


def _attempts(value: str) -> int | None:
    return foreign.number(value, high=wire.MAX_ATTEMPT)


def _redrives(value: str) -> int | None:
    return foreign.number(value, high=wire.MAX_REDRIVES)


def _lines(value: str) -> str:
    return value.replace(" | ", "\n")


_OURS: Mapping[str, tuple[str, Callable[[str], Any] | None]] = {
    wire.ERROR_TYPE: ("error_type", None),
    wire.ERROR_MESSAGE: ("error_message", None),
    wire.ERROR_STAGE: ("stage", None),
    wire.ATTEMPT: ("attempts", _attempts),
    wire.ORIGIN: ("origin", None),
    wire.GROUP: ("group", None),
    wire.FIRST_FAILED: ("first_failed", foreign.millis),
    wire.ERROR_AT: ("last_failed", foreign.millis),
    wire.SERVICE: ("service", None),
    wire.HOST: ("host", None),
    wire.FINGERPRINT: ("fingerprint", None),
    wire.TRACEBACK: ("traceback", _lines),
    wire.REDRIVES: ("redrives", _redrives),
}


def _ours(fields: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"writer": "atleastonce"}
    for name in fields:
        if (known := _OURS.get(name)) is not None and (value := foreign.text(fields, name)):
            fact, read = known
            if read is None:
                facts[fact] = value
            elif (found := read(value)) is not None:
                facts[fact] = found
    origin, _, position = facts.pop("origin", "").partition("/")
    return facts | {name: value for name, value in (("origin", origin), ("position", position)) if value}


_LONG = {"error_message": _LONGEST}


def _printable(facts: dict[str, Any]) -> Obituary:
    trace = facts.pop("traceback", "")
    clean: dict[str, Any] = {
        name: _line(value, _LONG.get(name, _SHORT)) if isinstance(value, str) else value
        for name, value in facts.items()
    }
    if "fingerprint" not in clean:
        clean["fingerprint"] = _fingerprint(clean, trace)
    return Obituary(**clean, raw_traceback=trace)


@lru_cache(maxsize=2048)  # a type, a service, a fingerprint: a long list repeats a few
def _short_line(value: str, limit: int) -> str:
    # What nearly all are: nothing to mask, nothing to escape. A list of 100 000 entries is made of these.
    if len(value) <= limit and value.isascii() and value.isprintable() and not _MAYBE_SECRET.search(value):
        return value
    return one_line(value, limit)


def _line(value: str, limit: int) -> str:
    return _short_line(value, limit) if len(value) <= _SHORT else one_line(value, limit)


_MAYBE_SECRET = re.compile(r"[@=:]")

# The frame that raised: the first one of a Java or .NET trace, the last one of a Python trace.
_AT = re.compile(r"^\s*at (\S[^\n]{0,500})", re.MULTILINE)
_FILE = re.compile(r'File "([^"\n]{0,300})", line (\d+)')


def _fingerprint(facts: Mapping[str, Any], trace: str) -> str:
    """For letters without one of ours: who, what and, where a trace tells, the frame that raised it."""
    trace = trace[:_LONGEST_TRACE]
    frame = ""
    if (at := _AT.search(trace)) is not None:
        frame = at[1].strip()
    elif files := _FILE.findall(trace):
        frame = ":".join(files[-1])
    # Without a trace the place is all there is; the words of a message hold ids and would make a group of each.
    place = frame or f"{facts.get('origin', '')}/{facts.get('group', '')}"
    return hashlib.sha256(f"{facts.get('writer', '')} {facts.get('error_type', '')}@{place}".encode()).hexdigest()[:12]
