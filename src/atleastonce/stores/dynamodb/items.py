"""Records as DynamoDB's items, its clock as its replies tell it, and what its errors mean."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

from atleastonce.contract.outcomes import Code, Fault, Scope
from atleastonce.errors import AtLeastOnceError
from atleastonce.stores.protocol import SECOND, Record, State
from atleastonce.urls import mask


def key(scope: str, id: str) -> dict[str, Any]:
    """Scope and id in the partition key, so that a busy handler is not one partition. No scope holds a ``#``."""
    return {"pk": {"S": f"{scope}#{id}"}}


def item(pk: dict[str, Any], record: Record) -> dict[str, Any]:
    """``k`` is the time from a lease's end to expiry; ``x`` and ``kx`` are in seconds, for DynamoDB's own deletion."""
    keep = record.expires - record.lease_until
    numbers = {
        "s": int(record.state), "f": record.fence, "a": record.attempts, "d": int(record.doubt), "u": record.lease_until,
        "c": record.created, "e": record.expires, "k": keep, "x": record.expires // SECOND + 1, "kx": keep // SECOND + 1,
    }  # fmt: skip
    return {
        **pk,
        **{name: {"N": str(value)} for name, value in numbers.items()},
        "t": {"B": record.token},
        "p": {"B": record.fingerprint},
        "r": {"B": record.result},
    }


def record(found: dict[str, Any]) -> Record:
    def number(name: str) -> int:
        return int(found[name]["N"])

    return Record(
        State(number("s")), bytes(found["t"]["B"]), number("f"), number("a"), bool(number("d")), number("u"),
        bytes(found["p"]["B"]), bytes(found["r"]["B"]), number("c"), number("e"),
    )  # fmt: skip


class ServerClock:
    """DynamoDB's time by the ``Date`` of its replies, good to about a second; between replies by the monotonic clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def heard(self, response: dict[str, Any]) -> None:
        date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if date:
            try:
                self._offset = parsedate_to_datetime(date).timestamp() + 0.5 - time.monotonic()
            except ValueError:
                return  # an emulator's idea of a date

    def now(self) -> int:
        return int((time.monotonic() + self._offset) * SECOND)


_CODES = {
    "ResourceNotFoundException": (Code.NOT_FOUND, False),
    "AccessDeniedException": (Code.PERMISSION, False),
    "UnrecognizedClientException": (Code.PERMISSION, False),
    "InvalidSignatureException": (Code.PERMISSION, False),
    "ExpiredTokenException": (Code.PERMISSION, False),
    "ValidationException": (Code.INVALID, False),
    "TransactionConflictException": (Code.CONFLICT, True),
    "ProvisionedThroughputExceededException": (Code.OVERLOADED, True),
    "ThrottlingException": (Code.OVERLOADED, True),
    "RequestLimitExceeded": (Code.OVERLOADED, True),
}


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``."""
    from botocore import exceptions as client

    text = mask(str(error))
    if isinstance(error, client.ClientError):
        name = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code, retryable = _CODES.get(name, (Code.UNAVAILABLE, True) if status >= 500 else (Code.INTERNAL, False))
        return Fault(code, retryable, Scope.CONNECTION, text)
    if isinstance(error, client.NoCredentialsError | client.PartialCredentialsError):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, text)
    if isinstance(error, client.NoRegionError | client.ParamValidationError | ValueError):
        return Fault(Code.INVALID, False, Scope.CONNECTION, text)
    if isinstance(error, client.ReadTimeoutError | client.ConnectTimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "no answer in time")
    if isinstance(error, client.HTTPClientError | client.ConnectionError | OSError | AtLeastOnceError):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, text)
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {text}")
