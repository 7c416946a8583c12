"""Ends the reading of what may not be settled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from atleastonce.contract import Code, Delivery, Outcome, Status
from atleastonce.errors import PermissionDenied

T = TypeVar("T")


class Denial:
    """Whether the broker lets one worker settle. Who may not would be handed the same messages for ever, run them each time, and
    copy them each time they fail.

    Args:
        source: what the worker reads, for the error's text.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._scope: asyncio.Timeout | None = None  # of the reading; with a deadline once it was denied
        self._error: PermissionDenied | None = None

    def look(self, delivery: Delivery, what: str, outcome: Outcome) -> None:
        """Take note of how it ended to do ``what`` with ``delivery``."""
        fault = outcome.fault
        if fault is None or fault.code is not Code.PERMISSION or outcome.status is not Status.REJECTED:
            return
        if (
            self._scope is None or self._error is not None or delivery.lost
        ):  # what is lost was an earlier subscription's
            return
        self._error = PermissionDenied(f"{self._source}: may not {what}: {fault.detail or fault.code.value}")
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def until(self, reading: Awaitable[T]) -> T:
        """What ``reading`` returns or raises.

        Raises:
            PermissionDenied: a settlement was refused meanwhile. ``reading`` is cancelled then.
        """
        self._error = None
        try:
            async with asyncio.timeout(None) as self._scope:
                result = await reading
        except TimeoutError:
            if self._error is None:
                raise
        finally:
            self._scope = None
        if self._error is not None:
            raise self._error
        return result
