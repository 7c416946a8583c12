"""What an exception of psycopg means. PostgreSQL's codes, from its manual's appendix A."""

from __future__ import annotations

from atleastonce.contract.outcomes import Code, Fault, Scope
from atleastonce.errors import AtLeastOnceError, ConfigurationError, PermissionDenied
from atleastonce.urls import mask

LOST_RACES = ("40001", "40P01")

# Exact codes first, then classes (the first two characters).
_CODES: dict[str, tuple[Code, bool]] = {
    "40001": (Code.CONFLICT, True),  # serialization failure
    "40P01": (Code.CONFLICT, True),  # deadlock
    "55P03": (Code.CONFLICT, True),  # lock_timeout
    "57014": (Code.TIMEOUT, True),  # statement_timeout
    "25P03": (Code.UNAVAILABLE, True),  # idle_in_transaction_session_timeout: the session is over
    "25006": (Code.UNAVAILABLE, True),  # read-only: it became a standby
    "42501": (Code.PERMISSION, False),
    "42P01": (Code.NOT_FOUND, False),  # no such table
    "3D000": (Code.NOT_FOUND, False),  # no such database
    "3F000": (Code.NOT_FOUND, False),  # no such schema
    "08": (Code.UNAVAILABLE, True),
    "57": (Code.UNAVAILABLE, True),  # shutting down, starting up
    "53": (Code.OVERLOADED, True),  # disk full, too many connections
    "58": (Code.UNAVAILABLE, True),
    "28": (Code.PERMISSION, False),
    "22": (Code.INVALID, False),
    "42": (Code.INVALID, False),
}


# Out of memory, and beyond a limit such as that of temporary files: the statement's own size, as a rule.
_OF_THE_STATEMENT = ("53200", "53400")


def is_unholdable(error: BaseException) -> bool:
    """Whether a text has characters that the database's encoding does not have, as the client or the server says."""
    if isinstance(error, UnicodeEncodeError):
        return True
    from psycopg import errors

    return isinstance(error, errors.UntranslatableCharacter | errors.CharacterNotInRepertoire)


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``."""
    if isinstance(error, PermissionDenied):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, str(error))
    if isinstance(error, ConfigurationError):
        return Fault(Code.INVALID, False, Scope.CONNECTION, str(error))
    if isinstance(error, AtLeastOnceError | OSError) and not isinstance(error, TimeoutError):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, mask(str(error)))
    if isinstance(error, TimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "no answer in time")
    import psycopg

    if not isinstance(error, psycopg.Error):
        return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {mask(str(error))}")
    text = mask(" ".join(str(error).split()))
    state = error.sqlstate
    if state is not None:
        code, retryable = _CODES.get(state) or _CODES.get(state[:2]) or (Code.INTERNAL, False)
        scope = Scope.MESSAGE if state in _OF_THE_STATEMENT else Scope.CONNECTION
        return Fault(code, retryable, scope, text)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        # Refused logins come without a code from libpq's connect.
        denied = "authentication failed" in text or "no pg_hba.conf entry" in text
        missing = "does not exist" in text
        if denied or missing:
            return Fault(Code.PERMISSION if denied else Code.NOT_FOUND, False, Scope.CONNECTION, text)
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, text)
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, text)
