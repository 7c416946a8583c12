"""Asking the broker again and again while it is away. The caller's timeout is what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pika import exceptions as amqp

from atleastonce.adapters.rabbitmq.connection import Connection, Link
from atleastonce.adapters.rabbitmq.faults import classify
from atleastonce.adapters.rabbitmq.properties import Refused
from atleastonce.contract import Code

T = TypeVar("T")

_BACKOFF: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between attempts; the last one again and again."""


class Patience:
    """Attempts over one link.

    Attributes:
        trouble: why the last attempt failed.
    """

    def __init__(self, link: Link) -> None:
        self.trouble = ""
        self._link = link

    async def insist(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """``work`` with an open connection, begun anew when the connection goes.

        Raises:
            Refused: the broker does not let us in, or ``work`` raised it.
        """
        attempt = 0
        while True:
            try:
                connection = await self._link.get()
            except Exception as error:  # noqa: BLE001  # whatever pika makes of a failing network
                fault = classify(error)
                if fault.code in (Code.PERMISSION, Code.NOT_FOUND):
                    raise Refused(fault.code, fault.detail) from None
                self.trouble = fault.detail
            else:
                try:
                    return await work(connection)
                except (amqp.AMQPError, TimeoutError) as error:
                    self.trouble = classify(error).detail
            await asyncio.sleep(_BACKOFF[min(attempt, len(_BACKOFF) - 1)])
            attempt += 1
