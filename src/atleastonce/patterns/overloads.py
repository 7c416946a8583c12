"""Which failures are signs of overload: they shrink an adaptive concurrency, and are otherwise failures like any."""

from __future__ import annotations

from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.engine.limit import Limit
from atleastonce.errors import HandlerTimeout, Overloaded
from atleastonce.patterns.failure import causes

_SIGNS = (HandlerTimeout, Overloaded, TimeoutError)


class Overloads:
    """The limits of one consumer's readers, by what they read."""

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}

    def add(self, source: Source, limit: Limit) -> None:
        """One more reader."""
        self._limits[source.name] = limit

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """A run of ``delivery`` has ended with ``error``. From any thread."""
        limit = self._limits.get(delivery.source.name)
        if limit is not None and any(isinstance(cause, _SIGNS) for cause in causes(error)):
            limit.overload()

    @property
    def limits(self) -> dict[str, Limit]:
        """By the name of what is read."""
        return self._limits
