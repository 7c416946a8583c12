"""What an exception of the sqlite3 module means."""

from __future__ import annotations

import sqlite3

from atleastonce.contract import Code, Fault, Outcome, Scope, Status
from atleastonce.errors import (
    AtLeastOnceError,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    NotFound,
    PermissionDenied,
)

_BY_CODE = {
    sqlite3.SQLITE_FULL: Fault(Code.OVERLOADED, True, Scope.MESSAGE, "the disk or the file's max_size is full"),
    sqlite3.SQLITE_BUSY: Fault(Code.OVERLOADED, True, Scope.MESSAGE, "another process held the file for too long"),
    sqlite3.SQLITE_LOCKED: Fault(Code.OVERLOADED, True, Scope.MESSAGE, "another connection held a table for too long"),
    sqlite3.SQLITE_IOERR: Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, "the disk refused a read or write"),
    sqlite3.SQLITE_READONLY: Fault(Code.PERMISSION, False, Scope.CONNECTION, "the file has become read-only"),
    sqlite3.SQLITE_CORRUPT: Fault(Code.INTERNAL, False, Scope.CONNECTION, "the file is damaged; restore it"),
    sqlite3.SQLITE_NOTADB: Fault(Code.INTERNAL, False, Scope.CONNECTION, "the file is no database any more"),
    sqlite3.SQLITE_TOOBIG: Fault(Code.TOO_LARGE, False, Scope.MESSAGE, "more than SQLite puts into one row"),
}
_OURS: tuple[tuple[type[AtLeastOnceError], Code, bool], ...] = (
    (NotFound, Code.NOT_FOUND, False),
    (PermissionDenied, Code.PERMISSION, False),
    (ConfigurationError, Code.INVALID, False),
    (Closed, Code.CLOSED, False),
    (BrokerUnavailable, Code.UNAVAILABLE, True),
)


def fault_of(error: BaseException) -> Fault:
    """The fault behind ``error``; `Code.INTERNAL` for what is not known."""
    for cls, code, retryable in _OURS:
        if isinstance(error, cls):
            return Fault(code, retryable, Scope.CONNECTION, str(error))
    number = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.Error) and number is not None and (known := _BY_CODE.get(number & 0xFF)) is not None:
        return Fault(known.code, known.retryable, known.scope, f"{known.detail} ({error})")
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {error}")


def outcome_of(error: BaseException) -> Outcome:
    """How an item ended whose call raised ``error``: what is neither passing nor understood is not called certain."""
    fault = fault_of(error)
    certain = not fault.retryable and fault.code is not Code.INTERNAL
    return Outcome(Status.REJECTED if certain else Status.UNKNOWN, fault)
