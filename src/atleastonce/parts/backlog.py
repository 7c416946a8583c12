"""What waits in a channel of several parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from atleastonce.channels import Source
from atleastonce.contract import Backlog
from atleastonce.parts.names import is_parted, parts_of


async def backlog(source: Source, measure: Callable[[Source], Awaitable[Backlog]]) -> Backlog:
    """What waits in ``source``, in all its parts together; unknown where it is unknown of one of them."""
    if not is_parted(source):
        return await measure(source)
    each = await asyncio.gather(*(measure(part) for part in parts_of(source)))
    ages = [one.oldest_age for one in each]
    return Backlog(
        waiting=_sum(one.waiting for one in each),
        in_flight=_sum(one.in_flight for one in each),
        delayed=_sum(one.delayed for one in each),
        oldest_age=None if None in ages else max(age for age in ages if age is not None),
        detail="; ".join(dict.fromkeys(one.detail for one in each if one.detail)),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    each = list(counts)
    return None if None in each else sum(count for count in each if count is not None)
