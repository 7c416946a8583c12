"""What the user of a store is told when its server fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from atleastonce.contract.outcomes import Code, Fault
from atleastonce.errors import AtLeastOnceError, ConfigurationError, PermissionDenied, StoreUnavailable

_T = TypeVar("_T")

IN_NO_TRANSACTION = (
    "this connection is in no transaction: each statement would be committed by itself, whatever becomes of the rest; begin one "
    "(async with outbox.transaction(), Session.begin(), transaction.atomic(), connection.transaction(), BEGIN), on a "
    "connection or engine that does not commit by itself"
)

_KINDS: dict[Code, type[AtLeastOnceError]] = {
    Code.PERMISSION: PermissionDenied,
    Code.NOT_FOUND: ConfigurationError,
    Code.INVALID: ConfigurationError,
}


def as_error(fault: Fault, store: str) -> AtLeastOnceError:
    """The exception for ``fault``. ``store`` says which one, with its address and without its secrets."""
    return _KINDS.get(fault.code, StoreUnavailable)(f"{store}: {fault.detail}")


async def told(work: Awaitable[_T], classify: Callable[[BaseException], Fault], store: str) -> _T:
    """``work``; whatever a client library makes of a failing server is raised as `as_error` has it."""
    try:
        return await work
    except AtLeastOnceError:
        raise
    except Exception as error:  # noqa: BLE001 - no client says all that it raises
        raise as_error(classify(error), store) from None
