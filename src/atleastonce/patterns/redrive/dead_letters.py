"""`DeadLetters`: what a person does with the dead letters of one source."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from atleastonce.channels import Queue, Source
from atleastonce.contract import Adapter, Purges
from atleastonce.durations import per_second, whole
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.redrive.accounts import Purged, Redriven
from atleastonce.patterns.redrive.audit import Audit
from atleastonce.patterns.redrive.groups import Group, Groups
from atleastonce.patterns.redrive.letters import Letter, read_letters
from atleastonce.patterns.redrive.moves import MAX_REDRIVES, Progress, purge, redrive
from atleastonce.patterns.redrive.native import redrive_natively
from atleastonce.patterns.redrive.selection import Selection


class DeadLetters:
    """The dead letters of one source, from `Broker.dead_letters`.

    Args:
        adapter: open.
        home: the source whose they are, and to which they go back.
        queue: where they are; default: `Source.dead_letter_channel`.
    """

    def __init__(self, adapter: Adapter, home: Source, queue: Queue[Any] | None = None) -> None:
        self.home = home
        self.queue: Queue[Any] = queue or home.dead_letter_channel
        self._adapter = adapter

    async def letters(self, selection: Selection | None = None) -> AsyncGenerator[Letter]:
        """Each one that ``selection`` means, up to those that are there now; all stay. For showing and exporting. Close it
        (`contextlib.aclosing`) if you leave early.

        Raises:
            NotFound: there is no such queue.
            BrokerUnavailable: the broker went away.
        """
        async with contextlib.aclosing(read_letters(self._adapter, self.queue)) as lists:
            async for batch in lists:
                for letter in batch:
                    if selection is None or selection(letter):
                        yield letter.kept()

    async def groups(
        self, selection: Selection | None = None, progress: Callable[[int], None] | None = None
    ) -> list[Group]:
        """By what failed, most frequent first; all stay. ``progress`` is told how many were read. Raises as `letters`."""
        groups, seen = Groups(self.home), 0
        async with contextlib.aclosing(read_letters(self._adapter, self.queue)) as lists:
            async for batch in lists:
                groups.add(batch if selection is None else filter(selection, batch))
                seen += len(batch)
                if progress is not None:
                    progress(seen)
        return groups.rows()

    async def count(self) -> int | None:
        """How many there are; None where the broker cannot say."""
        backlog = await self._adapter.backlog(Source(self.queue))
        return backlog.waiting if backlog.true_waiting is None else backlog.true_waiting

    async def redrive(
        self,
        selection: Selection | None = None,
        *,
        dry_run: bool = False,
        to: Queue[Any] | None = None,
        limit: int | None = None,
        rate: str | float | None = None,
        max_redrives: int = MAX_REDRIVES,
        abort_if_refailed: float | None = None,
        change: Callable[[Letter], bytes] | None = None,
        audit: Audit | None = None,
        progress: Progress | None = None,
        stopping: asyncio.Event | None = None,
    ) -> Redriven:
        """Send them back to the group that failed them.

        Args:
            selection: which; default: all.
            dry_run: count only. `groups` says what they are.
            rate: at most so many, such as ``"100/s"``.
            abort_if_refailed: as ``abort_above`` of `patterns.redrive.redrive`: 0.05 for 5 %.

        The other arguments and errors are those of `patterns.redrive.redrive`.
        """
        if limit is not None:
            whole(limit, name="limit")
        whole(max_redrives, name="max_redrives", high=1000)
        if abort_if_refailed is not None and not 0 <= abort_if_refailed < 1:
            raise ConfigurationError(f"abort_if_refailed={abort_if_refailed:g} is no share; give 0.05 for 5 %")
        pace = None if rate is None else per_second(rate)
        if dry_run:
            return await self._count(selection or Selection(), limit, max_redrives)
        return await redrive(
            self._adapter,
            self.home,
            queue=self.queue,
            wanted=selection or Selection(),
            to=to,
            limit=limit,
            rate=pace,
            max_redrives=max_redrives,
            abort_above=abort_if_refailed,
            change=change,
            audit=audit,
            progress=progress,
            stopping=stopping,
        )

    async def redrive_natively(
        self,
        *,
        to: Queue[Any] | None = None,
        rate: str | float | None = None,
        progress: Progress | None = None,
        stopping: asyncio.Event | None = None,
    ) -> Redriven:
        """Have the broker itself send all of them back: SQS can. For millions, when nobody wants to wait beside it.

        What `redrive` promises beyond that, it does not: see `patterns.redrive.native.redrive_natively`, also for the errors.
        """
        pace = None if rate is None else per_second(rate)
        return await redrive_natively(
            self._adapter, self.home, queue=self.queue, to=to, rate=pace, progress=progress, stopping=stopping
        )

    async def purge(
        self,
        selection: Selection | None = None,
        *,
        dry_run: bool = False,
        limit: int | None = None,
        audit: Audit | None = None,
        progress: Progress | None = None,
        stopping: asyncio.Event | None = None,
    ) -> Purged:
        """Remove them for good.

        Without a choice, a limit or an audit the broker empties the queue in one go, what arrives at that moment included.
        """
        if limit is not None:
            whole(limit, name="limit")
        begun = time.monotonic()
        if dry_run:
            account = await self._count(selection or Selection(), limit, None)
            return Purged(account.matched, 0, account.skipped, dry_run=True, seconds=account.seconds)
        if not selection and limit is None and audit is None and isinstance(self._adapter, Purges):
            before = await self._adapter.backlog(Source(self.queue))
            count = await self._adapter.purge(self.queue)
            if before.true_waiting is not None:  # a log's own count has in it what was redriven or purged before
                count = before.true_waiting
            elif count < 0:
                count = before.waiting or 0
            return Purged(count, count, seconds=time.monotonic() - begun)
        return await purge(
            self._adapter,
            self.home,
            queue=self.queue,
            wanted=selection or Selection(),
            limit=limit,
            audit=audit,
            progress=progress,
            stopping=stopping,
        )

    async def _count(self, selection: Selection, limit: int | None, max_redrives: int | None) -> Redriven:
        begun = time.monotonic()
        matched = skipped = looped = 0
        async with contextlib.aclosing(read_letters(self._adapter, self.queue)) as lists:
            async for batch in lists:
                for letter in batch:
                    if (limit is not None and matched >= limit) or not selection(letter):
                        skipped += 1
                    elif max_redrives is not None and letter.obituary.redrives >= max_redrives:
                        looped += 1
                        skipped += 1
                    else:
                        matched += 1
        return Redriven(matched, 0, skipped, looped=looped, dry_run=True, seconds=time.monotonic() - begun)
