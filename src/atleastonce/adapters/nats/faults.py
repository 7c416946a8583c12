"""What an error of the client, the server or JetStream means."""

from __future__ import annotations

import asyncio
import re

import msgspec
from nats import errors as nats

from atleastonce.adapters.nats.wire import ServerError
from atleastonce.contract import Code, Fault, Outcome, Scope, Status
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

STREAM_MISSING = 10059
CONSUMER_MISSING = 10014
STREAM_DIFFERS = 10058
SUBJECT_TAKEN = 10065
CONSUMER_DIFFERS = 10148
WORK_QUEUE_TAKEN = (10099, 10100)
"""Another consumer reads the same subject of a work queue."""

_FULL = frozenset({10023, 10028, 10047, 10077, 10122})
"""Stream or account limits: more may fit later."""
_TOO_LARGE = frozenset({10054, 10097})
"""The message, or its headers, which may have 64 KiB whatever is set: the key is one of them."""


class ApiError(msgspec.Struct, rename={"number": "err_code"}):
    """JetStream's own account of what is wrong."""

    code: int = 0
    number: int = 0
    description: str = ""

    def __str__(self) -> str:
        return f"{self.description} ({self.number or self.code})"


class ApiFailure(Exception):
    """A question that JetStream answered with an error."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(str(error))
        self.error = error


class NoResponders(Exception):
    """Nobody listens where JetStream, a stream or a consumer should: it is not there, or has no leader just now."""


def of_api(error: ApiError) -> Fault:
    """The fault behind JetStream's answer."""
    text = str(error)
    if error.number in _TOO_LARGE:
        return Fault(Code.TOO_LARGE, False, Scope.MESSAGE, text)
    if error.number in _FULL:
        return Fault(Code.OVERLOADED, True, Scope.MESSAGE, text)
    if error.code == 404:
        return Fault(Code.NOT_FOUND, False, Scope.SUBSCRIPTION, text)
    if error.code in (408, 503):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, text)
    if error.number in (STREAM_DIFFERS, SUBJECT_TAKEN, CONSUMER_DIFFERS, *WORK_QUEUE_TAKEN):
        return Fault(Code.CONFLICT, False, Scope.SUBSCRIPTION, text)
    if error.code in (401, 403):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, text)
    if 400 <= error.code < 500:
        return Fault(Code.INVALID, False, Scope.MESSAGE, text)
    return Fault(Code.INTERNAL, error.code >= 500, Scope.MESSAGE, text)


def outcome_of(fault: Fault) -> Outcome:
    """How an item ended that met ``fault``: what passes, and what is not understood, is not called certain."""
    certain = not fault.retryable and fault.code is not Code.INTERNAL
    return Outcome(Status.REJECTED if certain else Status.UNKNOWN, fault)


_QUOTED = re.compile(r'"([^"]*)"')


def denied_subject(said: str) -> str:
    """The subject that ``Permissions Violation for Publish to "subject"`` names; "" where there is none."""
    found = _QUOTED.search(said)
    return found.group(1) if found else ""


def _said_denied(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, nats.AuthorizationError) or "authorization violation" in text or "authentication" in text


def _text(error: BaseException) -> str:
    text = mask(str(error))
    if isinstance(error, TimeoutError | nats.TimeoutError | asyncio.TimeoutError) and text in ("", "nats: timeout"):
        return "no answer in time"
    return text or type(error).__name__


_OURS: tuple[tuple[type[AtLeastOnceError], Code, bool], ...] = (
    (NotFound, Code.NOT_FOUND, False),
    (PermissionDenied, Code.PERMISSION, False),
    (ConfigurationError, Code.INVALID, False),
    (Closed, Code.CLOSED, False),
    (BrokerUnavailable, Code.UNAVAILABLE, True),
)


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``; `Code.INTERNAL` for what is not known."""
    if isinstance(error, ApiFailure):
        return of_api(error.error)
    detail = _text(error)
    for cls, code, retryable in _OURS:
        if isinstance(error, cls):
            return Fault(code, retryable, Scope.CONNECTION, detail)
    if isinstance(error, NoResponders):
        return Fault(Code.UNAVAILABLE, True, Scope.SUBSCRIPTION, detail)
    if _said_denied(error):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, detail)
    if isinstance(error, TimeoutError | nats.TimeoutError | asyncio.TimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, detail)
    if isinstance(error, nats.MaxPayloadError):
        return Fault(Code.TOO_LARGE, False, Scope.MESSAGE, detail)
    if isinstance(error, OSError | nats.Error | ServerError | EOFError):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, detail)
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {detail}")


def as_error(error: BaseException, doing: str, *, lost: bool = False) -> AtLeastOnceError:
    """What a caller of ours is raised for ``error``."""
    if isinstance(error, AtLeastOnceError):
        return error
    fault = classify(error)
    text = f"{doing}: {fault.detail}"
    if fault.code is Code.NOT_FOUND:
        return NotFound(text)
    if fault.code is Code.PERMISSION:
        return PermissionDenied(text)
    if fault.code in (Code.INVALID, Code.CONFLICT, Code.TOO_LARGE):
        return ConfigurationError(text)
    return ConnectionLost(text) if lost else BrokerUnavailable(text)
