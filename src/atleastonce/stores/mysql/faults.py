"""What an exception of a MySQL driver means. The numbers are the server's, from the manuals of MySQL and MariaDB."""

from __future__ import annotations

from collections.abc import Mapping

from atleastonce.contract.outcomes import Code, Fault, Scope
from atleastonce.errors import AtLeastOnceError, ConfigurationError, PermissionDenied
from atleastonce.urls import mask

NO_TABLE = 1146
NO_SAVEPOINT = 1305
# A deadlock, also one that a cluster finds when it certifies; changed since the snapshot.
LOST_RACES = (1213, 1180, 1020)
_NO_CONNECTION = 2003

_NUMBERS: Mapping[int, tuple[Code, bool]] = {
    number: (code, retryable)
    for code, retryable, numbers in (
        # Deadlock, lock wait timeout, changed since the snapshot (MariaDB), not locked at once, certification (Galera).
        (Code.CONFLICT, True, (1213, 1205, 1020, 3572, 1180)),
        # Not reachable, gone, lost, no more packets, shutting down, killed, idle for too long, read-only: it became a replica.
        (Code.UNAVAILABLE, True, (2002, 2003, 2005, 2006, 2013, 2055, 1152, 1158, 1159, 1160, 1161, 1184)),
        (Code.UNAVAILABLE, True, (1053, 1077, 1079, 1080, 1317, 1927, 4031, 1290, 1836, 1047)),
        (Code.TIMEOUT, True, (1969, 3024)),
        # Too many connections, out of memory, disk full, table full.
        (Code.OVERLOADED, True, (1040, 1203, 1226, 1037, 1041, 1021, 1026, 1114)),
        (Code.PERMISSION, False, (1044, 1045, 1130, 1142, 1143, 1227, 1251, 1275, 1370, 1524, 1698)),
        (Code.NOT_FOUND, False, (1049, NO_TABLE)),
        (Code.INVALID, False, (1054, 1064, 1115, 1136, 1153, 1264, 1364, 1366, 1406, 2026)),
    )
    for number in numbers
}
# Out of memory: the statement's own size, as a rule.
_OF_THE_STATEMENT = (1037, 1041)
_DRIVERS = ("pymysql", "aiomysql", "asyncmy", "MySQLdb", "mysql")
_DISK_FULL = " 28 "  # errno ENOSPC in an error of the storage engine


def number_of(error: BaseException) -> int | None:
    """The error's number; None if it has none, or is no error of a MySQL driver."""
    if type(error).__module__.partition(".")[0] not in _DRIVERS:
        return None
    first = error.args[0] if error.args else None
    if isinstance(first, int):
        return first
    return (
        0 if type(error).__name__ == "InterfaceError" else None
    )  # aiomysql: "Cancelled during execution", and no number


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``."""
    if isinstance(error, PermissionDenied):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, str(error))
    if isinstance(error, ConfigurationError):
        return Fault(Code.INVALID, False, Scope.CONNECTION, str(error))
    if isinstance(error, TimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "no answer in time")
    if isinstance(error, AtLeastOnceError | OSError):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, mask(str(error)))
    number = number_of(error)
    if number is None:
        return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {mask(str(error))}")
    text = mask(" ".join(str(part) for part in error.args[1:])) or "the connection is closed"
    if number == _NO_CONNECTION and error.__cause__ is not None:  # aiomysql keeps to itself that it was a certificate
        text = f"{text}: {mask(str(error.__cause__))}"
    if number in (3, 1030) and _DISK_FULL in f"{text.replace(')', ' ')} ".replace(":", " "):
        return Fault(Code.OVERLOADED, True, Scope.CONNECTION, f"{text} ({number})")
    if number == 0:  # the drivers' own, of a connection that has ended
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, text)
    code, retryable = _NUMBERS.get(number, (Code.INTERNAL, False))
    scope = Scope.MESSAGE if number in _OF_THE_STATEMENT else Scope.CONNECTION
    return Fault(code, retryable, scope, f"{text} ({number})")
