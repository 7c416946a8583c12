"""What an exception of redis-py means."""

from __future__ import annotations

import socket

from atleastonce.contract.outcomes import Code, Fault, Scope
from atleastonce.errors import AtLeastOnceError, ConfigurationError, PermissionDenied
from atleastonce.urls import mask

# The first word of an error reply.
_REPLIES = {
    "OOM": (Code.OVERLOADED, True),
    "MISCONF": (Code.OVERLOADED, True),  # it cannot write its disk
    "READONLY": (Code.UNAVAILABLE, True),  # it became a replica
    "LOADING": (Code.UNAVAILABLE, True),
    "MASTERDOWN": (Code.UNAVAILABLE, True),
    "CLUSTERDOWN": (Code.UNAVAILABLE, True),
    "NOREPLICAS": (Code.UNAVAILABLE, True),
    "BUSY": (Code.UNAVAILABLE, True),  # somebody's script runs and runs
    "TRYAGAIN": (Code.CONFLICT, True),
    "NOAUTH": (Code.PERMISSION, False),
    "NOPERM": (Code.PERMISSION, False),
    "WRONGPASS": (Code.PERMISSION, False),
    "WRONGTYPE": (Code.INVALID, False),  # the prefix is somebody else's
    "MOVED": (Code.INVALID, False),
    "CROSSSLOT": (Code.INVALID, False),
}


def no_script(reply: object) -> bool:
    """Whether the server does not know the script (any more)."""
    from redis.exceptions import NoScriptError

    return isinstance(reply, NoScriptError)


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``."""
    if isinstance(error, PermissionDenied):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, str(error))
    if isinstance(error, ConfigurationError):
        return Fault(Code.INVALID, False, Scope.CONNECTION, str(error))
    if isinstance(error, AtLeastOnceError):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, str(error))
    from redis import exceptions as client

    text = mask(str(error)) or type(error).__name__
    if isinstance(error, client.AuthenticationError | client.AuthorizationError | client.NoPermissionError):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, text)
    if isinstance(error, client.TimeoutError | TimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "no answer in time")
    if isinstance(error, client.OutOfMemoryError):
        return Fault(Code.OVERLOADED, True, Scope.CONNECTION, text)
    if isinstance(
        error, client.ReadOnlyError | client.BusyLoadingError | client.ConnectionError | socket.gaierror | OSError
    ):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, text)
    if isinstance(error, client.ResponseError):
        word = str(error).partition(" ")[0]
        if "maxmemory" in text:
            word = "OOM"
        code, retryable = _REPLIES.get(word, (Code.INVALID, False))
        return Fault(code, retryable, Scope.CONNECTION, text)
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {text}")
