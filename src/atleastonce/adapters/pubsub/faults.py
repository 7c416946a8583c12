"""From gRPC's status codes to faults, outcomes and the errors that users catch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
from google.auth import exceptions as auth
from google.rpc import error_details_pb2, status_pb2

from atleastonce.contract import STALE, Code, Fault, Outcome, Scope, Status, unknown
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

_S = grpc.StatusCode
# cloud.google.com/pubsub/docs/reference/error-codes: code, and whether repeating may help.
_CODES: Final[Mapping[grpc.StatusCode, tuple[Code, bool]]] = {
    _S.CANCELLED: (Code.UNAVAILABLE, True),
    _S.UNKNOWN: (Code.INTERNAL, True),
    _S.INVALID_ARGUMENT: (Code.INVALID, False),
    _S.DEADLINE_EXCEEDED: (Code.TIMEOUT, True),
    _S.NOT_FOUND: (Code.NOT_FOUND, False),
    _S.ALREADY_EXISTS: (Code.CONFLICT, False),
    _S.PERMISSION_DENIED: (Code.PERMISSION, False),
    _S.UNAUTHENTICATED: (Code.PERMISSION, False),
    _S.RESOURCE_EXHAUSTED: (Code.OVERLOADED, True),
    _S.FAILED_PRECONDITION: (Code.INVALID, False),
    _S.ABORTED: (Code.UNAVAILABLE, True),
    _S.OUT_OF_RANGE: (Code.INVALID, False),
    _S.UNIMPLEMENTED: (Code.INVALID, False),
    _S.INTERNAL: (Code.INTERNAL, True),
    _S.UNAVAILABLE: (Code.UNAVAILABLE, True),
    _S.DATA_LOSS: (Code.INTERNAL, False),
}
_OURS: tuple[tuple[type[AtLeastOnceError], Code, bool], ...] = (
    (NotFound, Code.NOT_FOUND, False),
    (PermissionDenied, Code.PERMISSION, False),
    (ConfigurationError, Code.INVALID, False),
    (Closed, Code.CLOSED, False),
    (BrokerUnavailable, Code.UNAVAILABLE, True),
)
_MESSAGE: Final = frozenset({Code.INVALID, Code.TOO_LARGE})
_DETAILS: Final = "grpc-status-details-bin"
_PERMANENT, _TRANSIENT = "PERMANENT_FAILURE_", "TRANSIENT_FAILURE_"


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``; `Code.INTERNAL`, not retryable, for what is not known."""
    if isinstance(error, grpc.RpcError) and hasattr(error, "code"):
        code, retryable = _CODES.get(error.code(), (Code.INTERNAL, False))
        detail = mask(str(error.details() or error.code().name.lower()))
        if "larger than max" in detail:
            code, retryable = Code.TOO_LARGE, False
        elif "metadata from plugin" in detail and "invalid_" in detail:
            code, retryable = Code.PERMISSION, False  # the credentials were refused where tokens are given out
        return Fault(code, retryable, Scope.MESSAGE if code in _MESSAGE else Scope.CONNECTION, detail)
    if isinstance(error, auth.DefaultCredentialsError | auth.RefreshError):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, mask(str(error)))
    if isinstance(error, auth.TransportError):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, mask(str(error)))
    if isinstance(error, TimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "no answer in time")
    for cls, known, retryable in _OURS:
        if isinstance(error, cls):
            return Fault(known, retryable, Scope.CONNECTION, str(error))
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, mask(f"{type(error).__name__}: {error}"))


def outcome_of(error: BaseException) -> Outcome:
    """How an item ended whose request failed: what is neither passing nor understood is not called certain."""
    fault = classify(error)
    return Outcome(Status.REJECTED if certain(fault) else Status.UNKNOWN, fault)


def certain(fault: Fault) -> bool:
    """Whether it did not happen and would not if repeated."""
    return not fault.retryable and fault.code is not Code.INTERNAL


def as_error(error: BaseException, what: str, *, lost: bool = False) -> AtLeastOnceError:
    """The error that a user sees for ``error``: ``what`` was tried, and why it failed."""
    if isinstance(error, AtLeastOnceError):
        return error
    fault = classify(error)
    text = f"{what}: {fault.detail or fault.code.value}"
    if fault.code is Code.PERMISSION:
        return PermissionDenied(text)
    if fault.code is Code.NOT_FOUND:
        said = "not found" in text.lower()  # pstest names the subscription and nothing else
        return NotFound(text if said else f"{what}: not found: {fault.detail}")
    return ConnectionLost(text) if lost else BrokerUnavailable(text)


def failed_ids(error: grpc.RpcError) -> dict[str, Outcome]:
    """The acknowledgement ids that failed in an exactly-once subscription; all others of the request succeeded.

    An ``ErrorInfo`` detail names each with ``PERMANENT_FAILURE_...`` or ``TRANSIENT_FAILURE_...``
    (cloud.google.com/pubsub/docs/exactly-once-delivery). Empty where the error says nothing about single ids.
    """
    found: dict[str, Outcome] = {}
    metadata = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in metadata or ():
        if key != _DETAILS:
            continue
        status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
        for any_ in status.details:
            info = error_details_pb2.ErrorInfo()
            if any_.Unpack(info):
                for ack_id, reason in info.metadata.items():
                    if reason.startswith(_PERMANENT):
                        found[ack_id] = STALE
                    elif reason.startswith(_TRANSIENT):
                        found[ack_id] = unknown(Code.UNAVAILABLE, reason)
    return found
