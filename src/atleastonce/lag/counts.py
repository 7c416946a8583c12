"""How much waits for a consumer in its source, in its retry channels, and in its dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from atleastonce.channels import Source
from atleastonce.contract import Adapter, Backlog, Dates
from atleastonce.errors import AtLeastOnceError
from atleastonce.lag.places import Place, Role
from atleastonce.patterns.hot_keys import KeyShare


class Lag(msgspec.Struct, frozen=True):
    """What waits in one channel for one group. None is *unknown*, never 0.

    Attributes:
        channel, group: what is read, and by whom; a queue's only group is None.
        role: the consumer's source, a channel where its retries wait, or its dead letters.
        waiting: ready, and handed out to nobody.
        in_flight: handed out and unsettled, over all workers.
        delayed: waiting for a due time.
        oldest_age_s: seconds since the oldest that waits was published.
        true_lag: on Kafka, records that nobody has handled yet: some of the committed lag are done already.
        detail: why something is unknown.
        hot_keys: those that stand out among the oldest messages, the most frequent first; None where nobody looked, or could.
        sampled: how many messages their shares are of; not all that wait.
        sampled_age_s: seconds since that look.
    """

    channel: str
    group: str | None
    role: Role
    waiting: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    oldest_age_s: float | None = None
    true_lag: int | None = None
    detail: str = ""
    hot_keys: list[KeyShare] | None = None
    sampled: int | None = None
    sampled_age_s: float | None = None


async def measure(adapter: Adapter, where: Iterable[Place]) -> Sequence[Lag]:
    """Ask for all of them at once. What cannot be had is None in its row, with the reason."""
    return await asyncio.gather(*(_measure(adapter, place) for place in where))


async def backlog(adapter: Adapter, source: Source) -> Backlog:
    """What waits in ``source``, with the age of the oldest where it can be had: for people, who do not ask all the time.

    Raises:
        AtLeastOnceError: what keeps it from being asked at all.
    """
    return await (adapter.dated_backlog(source) if isinstance(adapter, Dates) else adapter.backlog(source))


async def _measure(adapter: Adapter, place: Place) -> Lag:
    try:
        found = await backlog(adapter, place.source)
    except AtLeastOnceError as error:
        found = Backlog(detail=str(error))
    return Lag(
        channel=place.source.channel.name,
        group=place.group,
        role=place.role,
        waiting=found.waiting,
        in_flight=found.in_flight,
        delayed=found.delayed,
        oldest_age_s=None if found.oldest_age is None else round(found.oldest_age, 3),
        true_lag=found.true_waiting,
        detail=found.detail,
    )
