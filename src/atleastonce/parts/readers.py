"""Who else reads a channel: all that sharing its parts out needs to know."""

from __future__ import annotations

from typing import Protocol

from atleastonce.channels import Source


class Readers(Protocol):
    """Counts them, with the broker's help."""

    async def __call__(self, source: Source, me: str, *, here: bool) -> int | None:
        """How many subscriptions read ``source``, that of ``me`` included; None where it cannot be told.

        Asked every few seconds. ``here=False``: ``me`` reads no more; the answer does not matter then. Never raises for a broker
        that does not answer.
        """
