"""From error replies and redis-py's exceptions to faults, and from faults to the errors that users catch."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from redis import exceptions as client

from atleastonce.contract import Code, Fault, Scope
from atleastonce.errors import (
    AtLeastOnceError,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PermissionDenied,
)
from atleastonce.urls import mask


class ReplyError(Exception):
    """An error that the server answered with: ``code`` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class LinkLost(Exception):
    """The connection ended; what was sent and not answered may have been done."""


# First words of error replies: code, whether repeating may help, and how far it reaches.
_REPLIES: Final = {
    "OOM": (Code.OVERLOADED, True, Scope.MESSAGE),
    "NOGROUP": (Code.NOT_FOUND, False, Scope.SUBSCRIPTION),
    "UNBLOCKED": (Code.NOT_FOUND, False, Scope.SUBSCRIPTION),  # the stream was deleted while it was waited for
    "WRONGTYPE": (Code.CONFLICT, False, Scope.MESSAGE),
    "NOPERM": (Code.PERMISSION, False, Scope.CONNECTION),
    "NOAUTH": (Code.PERMISSION, False, Scope.CONNECTION),
    "WRONGPASS": (Code.PERMISSION, False, Scope.CONNECTION),
    "DENIED": (Code.PERMISSION, False, Scope.CONNECTION),
    "READONLY": (Code.UNAVAILABLE, True, Scope.CONNECTION),  # it became a replica
    "LOADING": (Code.UNAVAILABLE, True, Scope.CONNECTION),
    "MASTERDOWN": (Code.UNAVAILABLE, True, Scope.CONNECTION),
    "CLUSTERDOWN": (Code.UNAVAILABLE, True, Scope.CONNECTION),
    "TRYAGAIN": (Code.UNAVAILABLE, True, Scope.MESSAGE),
    "NOREPLICAS": (Code.UNAVAILABLE, True, Scope.MESSAGE),
    "MISCONF": (Code.OVERLOADED, True, Scope.MESSAGE),  # it cannot write its disk
    "BUSY": (Code.UNAVAILABLE, True, Scope.MESSAGE),  # somebody's script runs and runs
}
# What the servers say of a command, or of a key, that the user may not use and a script does: newer ones, older ones.
_DENIED_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script can't")
_ELSEWHERE: Final = frozenset({"MOVED", "ASK"})

GONE: Final = frozenset({"READONLY", "LOADING", "MASTERDOWN", "MOVED"})
"""The connection leads to a server that does not serve (any more): another one has to be made."""


def _reply(text: str) -> Fault:
    word = text.partition(" ")[0]
    # An error inside one of our scripts carries the cause's own text.
    if word == "ERR" and "maxmemory" in text:
        word = "OOM"
    if word == "ERR" and any(said in text for said in _DENIED_IN_SCRIPT):
        word = "NOPERM"
    if word in _ELSEWHERE:
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, f"this node of a cluster has other keys ({mask(text)})")
    code, retryable, scope = _REPLIES.get(word, (Code.INVALID, False, Scope.MESSAGE))
    if word == "ERR" and ("no such key" in text or "requires the key to exist" in text):
        code, scope = Code.NOT_FOUND, Scope.SUBSCRIPTION
    return Fault(code, retryable, scope, mask(text))


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``; `Code.INTERNAL` for what is not known."""
    unavailable, connection = Code.UNAVAILABLE, Scope.CONNECTION
    if isinstance(error, ReplyError):
        return _reply(str(error))
    if isinstance(error, LinkLost):
        return Fault(unavailable, True, connection, mask(str(error)))
    if isinstance(error, client.AuthenticationError | client.AuthorizationError | client.NoPermissionError):
        return Fault(Code.PERMISSION, False, connection, mask(str(error)) or "the server refuses the credentials")
    if isinstance(error, client.TimeoutError | TimeoutError | asyncio.TimeoutError):
        return Fault(Code.TIMEOUT, True, connection, "no answer in time")
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return Fault(unavailable, False, connection, f"TLS: {mask(str(error))}")
    if isinstance(error, socket.gaierror):
        return Fault(unavailable, True, connection, f"the host's name does not resolve: {error.strerror}")
    if isinstance(error, client.OutOfMemoryError):
        return Fault(Code.OVERLOADED, True, Scope.MESSAGE, mask(str(error)))
    if isinstance(error, client.ConnectionError | OSError):
        return Fault(unavailable, True, connection, mask(str(error)))
    if isinstance(error, client.ResponseError):
        if "DB index" in str(error) or "database" in str(error).lower():
            return Fault(Code.NOT_FOUND, False, connection, mask(str(error)))
        return _reply(str(error))
    if isinstance(error, ConfigurationError):
        return Fault(Code.INVALID, False, connection, str(error))
    if isinstance(error, PermissionDenied):
        return Fault(Code.PERMISSION, False, connection, str(error))
    if isinstance(error, NotFound):
        return Fault(Code.NOT_FOUND, False, Scope.SUBSCRIPTION, str(error))
    if isinstance(error, BrokerUnavailable):
        return Fault(unavailable, True, connection, str(error))
    if isinstance(error, Closed):
        return Fault(Code.CLOSED, False, connection, str(error))
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, mask(f"{type(error).__name__}: {error}"))


def as_error(error: BaseException, what: str, *, lost: bool = False) -> AtLeastOnceError:
    """The error that a user sees for ``error``: ``what`` was tried, and why it failed."""
    if isinstance(error, AtLeastOnceError):
        return error
    fault = classify(error)
    text = f"{what}: {fault.detail or fault.code.value}"
    if fault.code is Code.PERMISSION:
        return PermissionDenied(text)
    if fault.code is Code.NOT_FOUND:
        return NotFound(text)
    return ConnectionLost(text) if lost else BrokerUnavailable(text)


FAILURES: Final = (ReplyError, LinkLost, client.RedisError, OSError, TimeoutError)
"""All that talking to a server can raise."""
