"""Looking at a channel of several parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from atleastonce.channels import Channel
from atleastonce.contract import Delivery
from atleastonce.parts.names import pieces


async def browse(
    channel: Channel[Any], limit: int, look: Callable[[Channel[Any]], Awaitable[Sequence[Delivery]]]
) -> Sequence[Delivery]:
    """The oldest ``limit`` messages of all parts of ``channel``, by when they were published; ``look`` says those of one."""
    first, *others = pieces(channel)
    found = await look(first)
    for one in others:
        # One after the other, so that no more than two parts' messages lie in memory.
        found = sorted([*found, *await look(one)], key=_published)[:limit]
    return found


def _published(delivery: Delivery) -> float:
    return delivery.message.published_at or 0.0
