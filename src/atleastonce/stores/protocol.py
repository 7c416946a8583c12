"""The lease protocol without IO: one record, one request, one clock reading in; the answer and the new record out.

The stores that think in Python (memory, SQLite, DynamoDB's answers) call this; those that think in the server (SQL, Lua)
say the same in their language, and the contract suite holds them to it. Times are microseconds of the store's clock.
"""

from __future__ import annotations

import enum
from typing import TypeGuard

import msgspec

from atleastonce.contract.outcomes import Code, Fault
from atleastonce.stores.records import MISMATCH, Claim, ClaimRequest, Lease, Status

SECOND = 1_000_000


class State(enum.IntEnum):
    """As stored, in every store."""

    HELD = 1
    FREE = 2
    DONE = 3


class Record(msgspec.Struct):
    """What is known of one id.

    Attributes:
        token: of the last holder; kept after the end, so that a repeated `complete` or `release` is recognised.
        doubt: a lease of it ended without a word. Stays until it is done: giving it back does not undo an effect.
        expires: when it may be forgotten; never before its lease ends.
    """

    state: State
    token: bytes
    fence: int
    attempts: int
    doubt: bool
    lease_until: int
    fingerprint: bytes
    result: bytes
    created: int
    expires: int


def micros(seconds: float) -> int:
    return round(seconds * SECOND)


def claim(record: Record | None, request: ClaimRequest, now: int) -> tuple[Claim, Record | None]:
    """The answer, and the record to write (None: nothing changes)."""
    if record is None or record.expires <= now:
        last = record.fence if record is not None else 0
        fresh = _grant(request, now, last, attempts=1, doubt=False, created=now)
        return granted(request, fresh), fresh
    if record.fingerprint != request.fingerprint:
        return MISMATCH, None
    if record.state is State.DONE:
        return Claim(Status.DONE, result=record.result), None
    if record.state is State.HELD and record.lease_until > now:
        if record.token == request.token:
            return granted(request, record), None
        return busy((record.lease_until - now) / SECOND), None
    doubt = record.doubt or record.state is State.HELD
    taken = _grant(request, now, record.fence, attempts=record.attempts + 1, doubt=doubt, created=record.created)
    return granted(request, taken), taken


def _grant(request: ClaimRequest, now: int, last: int, *, attempts: int, doubt: bool, created: int) -> Record:
    until = now + micros(request.lease)
    return Record(
        state=State.HELD,
        token=request.token,
        # The clock, so that it goes on rising where the record was purged, or lost in a failover.
        fence=max(last + 1, now),
        attempts=attempts,
        doubt=doubt,
        lease_until=until,
        fingerprint=request.fingerprint,
        result=b"",
        created=created,
        expires=until + micros(request.ttl),
    )


def granted(request: ClaimRequest, record: Record) -> Claim:
    return grant(request, record.fence, record.attempts, doubt=record.doubt)


def grant(request: ClaimRequest, fence: int, attempts: int, *, doubt: bool) -> Claim:
    """The answer to whom it now belongs."""
    status = Status.RECLAIMED if doubt else Status.NEW
    return Claim(status, Lease(request.scope, request.id, request.token), fence, attempts)


def answer(
    request: ClaimRequest,
    state: int,
    token: bytes,
    fence: int,
    attempts: int,
    *,
    doubt: bool,
    fingerprint: bytes,
    result: bytes,
    left: float,
) -> Claim:
    """The answer of a store that thinks in the server, from the record as it is there after the claim; ``left`` in seconds."""
    if fingerprint != request.fingerprint:
        return MISMATCH
    if state == State.DONE:
        return Claim(Status.DONE, result=result)
    if state == State.HELD and token == request.token:
        return grant(request, fence, attempts, doubt=doubt)
    return busy(left)


GONE = Claim(Status.UNKNOWN, fault=Fault(Code.CONFLICT, True, detail="purged meanwhile"))
"""The answer where there is no record after the claim."""


def busy(seconds: float) -> Claim:
    return Claim(Status.BUSY, retry_after=max(seconds, 0.001))


def extend(record: Record | None, token: bytes, span: float, now: int) -> bool:
    """Whether the token holds it; if so the lease lasts ``span`` seconds from now."""
    if not _holds(record, token):
        return False
    until = now + micros(span)
    record.expires += until - record.lease_until
    record.lease_until = until
    return True


def complete(record: Record | None, token: bytes, result: bytes, ttl: float, now: int) -> bool:
    """Whether it is done by this token, now or before. The first result stays.

    The token decides and not the time: a holder that is late, where nobody has taken over, has had its effect, and to write
    that down is what prevents a second one.
    """
    if record is not None and record.state is State.DONE and record.token == token:
        return True
    if not _holds(record, token):
        return False
    record.state, record.result = State.DONE, result
    record.lease_until, record.expires = now, now + micros(ttl)
    return True


def release(record: Record | None, token: bytes, now: int) -> bool:
    """Whether it is given back by this token, now or before. What is known of it stays: attempts, fence, doubt."""
    if record is not None and record.state is State.FREE and record.token == token:
        return True
    if not _holds(record, token):
        return False
    record.state = State.FREE
    record.expires += now - record.lease_until
    record.lease_until = now
    return True


def _holds(record: Record | None, token: bytes) -> TypeGuard[Record]:
    return record is not None and record.state is State.HELD and record.token == token
