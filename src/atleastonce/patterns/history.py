"""What a message's headers say about its failures so far, believed only where this consumer wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.errors import DecodeError
from atleastonce.message import Headers


class History(msgspec.Struct, frozen=True):
    """A message's past with one consumer.

    Attributes:
        attempt: which attempt this delivery is, from 1.
        first_failed: seconds since the epoch; None if it never failed.
        redrives: how often it came back from the dead letters.
        ours: whether the headers were written by this consumer's own hops.
    """

    attempt: int
    first_failed: float | None
    redrives: int
    ours: bool


_NO_HISTORY = History(1, None, 0, False)


class Past(NamedTuple):
    """Of a delivery with failed attempts behind it in this process: `Delivery.past`.

    Attributes:
        history: as of its next attempt.
        tries: runs before that.
    """

    history: History
    tries: int


def undecoded(delivery: Delivery) -> DecodeError | None:
    """Why the message of ``delivery`` is not what was published: its adapter could not read it. None as nearly always."""
    delivery.message  # noqa: B018 - it is read when it is looked at
    if (unreadable := delivery.unreadable) is None:
        return None
    error = DecodeError(f"the message cannot be read: {type(unreadable).__name__}: {unreadable}")
    error.__cause__ = unreadable
    return error


def past_of(delivery: Delivery) -> Past | None:
    """What this process remembers of ``delivery``; None before its first attempt has failed here."""
    return getattr(delivery, "past", None)


def tries_of(delivery: Delivery) -> int:
    """Which run within its attempt this is, from 1."""
    past = past_of(delivery)
    return delivery.tries if past is None else delivery.tries - past.tries


def origin(delivery: Delivery) -> str:
    """Where a message first failed, for ``alo-origin``: ``channel/stream-position``."""
    place, position = _place(delivery.source.channel.name, delivery.stream), delivery.position
    return place if position == "" else f"{place}/{position}"


def origins(deliveries: Iterable[Delivery]) -> list[str]:
    """`origin` of each."""
    found: list[str] = []
    source: Source | None = None
    stream = place = ""
    for delivery in deliveries:
        if delivery.stream is not stream or delivery.source is not source:  # of a list nearly always as before
            source, stream = delivery.source, delivery.stream
            place = _place(source.channel.name, stream)
        position = delivery.position
        found.append(place if position == "" else f"{place}/{position}")
    return found


@lru_cache(1024)
def _place(channel: str, stream: str) -> str:
    rest = stream.removeprefix(channel).strip("/")
    return f"{channel}/{rest}" if rest else channel


def is_of(headers: Headers, home: Source) -> bool:
    """Whether ``headers`` say that their message has failed at the consumer of ``home`` before."""
    if headers.get(wire.GROUP) != home.group_name:
        return False
    return (headers.get(wire.ORIGIN) or "").partition("/")[0] == home.channel.name


def read_history(delivery: Delivery, home: Source, *, counted: bool) -> History:
    """The history of ``delivery`` for the consumer of ``home``.

    Args:
        delivery: as received, from ``home`` or one of its retry channels.
        home: the consumer's source.
        counted: whether the broker's own delivery count is the attempt (it redelivers natively).
    """
    headers = delivery.message.headers
    ours = headers.get(wire.GROUP) is not None and is_of(headers, home)
    # On a main channel anybody may have written them: a hop's fields count where only hops are, or the broker says so.
    # But what was given back as a copy has nobody else to say where it stood; who forges that shortens a chain of its own.
    hop = ours and (delivery.returned or delivery.source != home or (counted and wire.GIVEN_BACK in headers))
    attempt = wire.read_attempt(headers) if hop else 1
    if counted:
        attempt += max(0, delivery.count - 1)
    if not ours:
        return _NO_HISTORY if attempt == 1 else History(attempt, None, 0, False)
    first = 0 if not hop else wire.read_int(headers, wire.FIRST_FAILED, default=0, low=0, high=10**15)
    return History(attempt, first / 1000 if first else None, wire.read_redrives(headers), True)
