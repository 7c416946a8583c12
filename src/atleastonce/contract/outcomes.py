"""How one item of IO ends, and what went wrong if it did not end well."""

from __future__ import annotations

import enum

import msgspec


class Code(enum.Enum):
    """What went wrong, as programs need to know it."""

    NOT_FOUND = "not-found"
    TOO_LARGE = "too-large"
    INVALID = "invalid"
    """The broker or client refuses the content: header types, characters, counts."""
    UNROUTABLE = "unroutable"
    PERMISSION = "permission"
    CONFLICT = "conflict"
    """It exists already with other settings."""
    UNAVAILABLE = "unavailable"
    """Not reachable, or not ready: no leader, connection refused, connection reset."""
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    """The broker asks for less: quota, blocked connection, full queue."""
    STALE = "stale"
    """The lease, channel or assignment under which this was delivered is gone."""
    CLOSED = "closed"
    INTERNAL = "internal"


class Scope(enum.Enum):
    """How far a fault reaches, and so what has to be built anew."""

    MESSAGE = "message"
    SUBSCRIPTION = "subscription"
    CONNECTION = "connection"


class Fault(msgspec.Struct, frozen=True):
    """A classified error.

    Attributes:
        code: what happened.
        retryable: whether the very same call may succeed later.
        scope: how far it reaches.
        detail: one line for people, secrets masked.
    """

    code: Code
    retryable: bool = False
    scope: Scope = Scope.MESSAGE
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}" if self.detail else self.code.value


class Status(enum.Enum):
    """How one item of IO ended."""

    OK = "ok"
    """Durable as far as the broker promises it."""
    REJECTED = "rejected"
    """Certainly did not happen, and would not happen if repeated."""
    UNKNOWN = "unknown"
    """May or may not have happened, or did not happen for a passing reason: repeat it with the same message id."""


class Outcome(msgspec.Struct, frozen=True):
    """The end of one sent, settled or extended item. Use the `OK` constant for success: nothing is created for it."""

    status: Status
    fault: Fault | None = None

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


OK = Outcome(Status.OK)


def rejected(code: Code, detail: str = "", *, scope: Scope = Scope.MESSAGE) -> Outcome:
    """It did not happen and repeating it would not help."""
    return Outcome(Status.REJECTED, Fault(code, False, scope, detail))


def unknown(code: Code, detail: str = "", *, scope: Scope = Scope.CONNECTION) -> Outcome:
    """Nobody can tell, or not now: repeat it with the same message id."""
    return Outcome(Status.UNKNOWN, Fault(code, True, scope, detail))


STALE = rejected(Code.STALE, "delivered in an earlier epoch; dropped, not sent", scope=Scope.SUBSCRIPTION)
