"""One redrive: what happens to each batch of dead letters, and the account of it all."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import msgspec

from atleastonce import wire
from atleastonce.channels import Channel, Source
from atleastonce.contract import OK, Adapter, Delivery, Outcome, Outgoing
from atleastonce.message import HeaderValue, Message
from atleastonce.patterns.hops import redriven_copies
from atleastonce.patterns.redrive.accounts import Redriven
from atleastonce.patterns.redrive.audit import Auditor
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.patterns.redrive.passage import Passage
from atleastonce.patterns.redrive.selection import Selection
from atleastonce.patterns.redrive.taken import Taken

log = logging.getLogger("atleastonce")

Wanted = Callable[[Letter], bool]


class Run:
    """What happens to a batch, and the account of it all."""

    def __init__(
        self,
        adapter: Adapter,
        home: Source,
        destination: Channel[Any] | Source,
        wanted: Wanted,
        max_redrives: int,
        change: Callable[[Letter], bytes] | None,
        auditor: Auditor,
    ) -> None:
        self.counts = Counter[str]()
        self.found: set[str] = set()
        """Ids of what was moved."""
        self._adapter = adapter
        self._home = home
        self._destination = destination
        self._wanted = wanted
        self._max_redrives = max_redrives
        self._change = change
        self._auditor = auditor
        self._begun = time.monotonic()
        # Whether anybody is asked or told of a letter: of all that a letter can say, a redrive of everything needs next to nothing.
        everything = isinstance(wanted, Selection) and not wanted
        self._asks = not everything or change is not None or auditor.wanted
        self._remembers = isinstance(wanted, Selection) and bool(wanted.ids)
        # Of what went back: how often it had by then. Hashes, for there may be a million.
        self._moved: dict[int, int] = {}

    def account(self, stopped: str) -> Redriven:
        """So far."""
        counts, took = self.counts, time.monotonic() - self._begun
        return Redriven(
            matched=counts["matched"],
            redriven=counts["redriven"],
            skipped=counts["skipped"],
            failed=counts["failed"],
            refailed=counts["refailed"],
            looped=counts["looped"],
            stopped=stopped,
            seconds=took,
        )

    async def take(self, passage: Passage, batch: Sequence[Delivery], left: int | None) -> Taken:
        """What is to be moved of ``batch``, at most ``left``; the rest is kept."""
        taken = Taken()
        kept: list[Delivery] = []
        room = len(batch) if left is None else left
        copies = None if self._asks else redriven_copies(batch, self._home)
        moved = self._moved
        for delivery in batch:
            letter: Letter | None = None
            copy: Message | None = None
            if copies is None:
                letter = Letter(delivery)
                identity, redrives = letter.id, letter.redrives
            else:  # whoever makes the copy has learned all that is asked here
                copy, redrives = next(copies)
                identity = copy.id
            sent = moved.get(hash(identity))
            if sent is not None and redrives >= sent:
                # It went back in this run, and has died again: it waits for the next one.
                self.counts["refailed"] += 1
                passage.later(1)
                kept.append(delivery)
                continue
            if len(taken.deliveries) < room and (letter is None or self._wanted(letter)):
                if redrives < self._max_redrives:
                    taken.deliveries.append(delivery)
                    if copy is not None:
                        taken.copies.append(copy)
                        taken.redrives.append(redrives)
                    elif letter is not None:
                        taken.letters.append(letter)
                    continue
                self.counts["looped"] += 1
            self.counts["skipped"] += 1
            kept.append(delivery)
        self.counts["matched"] += len(taken)
        if kept:
            await passage.keep(kept)
        return taken

    def copies(self, taken: Taken) -> list[Outgoing]:
        """What is sent."""
        if taken.letters:
            found = redriven_copies(taken.deliveries, self._home)
            for letter, (copy, redrives) in zip(taken.letters, found, strict=True):
                edited = copy if self._change is None else _changed(copy, letter.body, self._change(letter))
                taken.copies.append(edited)
                taken.redrives.append(redrives)
        items: list[Outgoing] = []
        for copy, redrives in zip(taken.copies, taken.redrives, strict=True):
            items.append(Outgoing(self._destination, copy))
            self._moved[hash(copy.id)] = redrives + 1 if redrives < wire.MAX_REDRIVES else redrives
        return items

    async def send(self, items: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._adapter.send(items)

    def sent(self, taken: Taken, outcomes: Sequence[Outcome]) -> list[Delivery]:
        """Those whose copies are confirmed; told to the audit."""
        told = self._auditor.wanted or self._remembers
        if not told and outcomes.count(OK) == len(outcomes) == len(taken):
            self.counts["redriven"] += len(taken)  # nobody asks for each of them
            return taken.deliveries
        moved: list[Delivery] = []
        letters = taken.letters or [Letter(delivery) for delivery in taken.deliveries]
        for letter, outcome in zip(letters, outcomes, strict=True):
            if outcome.ok:
                moved.append(letter.delivery)
                if self._remembers:
                    self.found.add(letter.id)
                original = None if self._change is None else letter.body
                self._auditor.note(letter, "redriven", redrives=letter.redrives + 1, original=original)
                continue
            self._moved.pop(hash(letter.id), None)
            log.warning("%s stays dead: its copy was not confirmed (%s)", letter.id, outcome.fault)
            self._auditor.note(letter, "failed", redrives=letter.redrives, detail=str(outcome.fault))
        self._auditor.tell()
        self.counts["redriven"] += len(moved)
        self.counts["failed"] += len(taken) - len(moved)
        return moved

    @property
    def destination(self) -> str:
        """Where the copies go."""
        return self._destination.name


class Sending:
    """The copies on their way, list after list, while the next letters are read. A context manager: one that is left early leaves
    what is on its way to be moved again."""

    def __init__(self, run: Run, passage: Passage) -> None:
        self._run = run
        self._passage = passage
        self._out: deque[tuple[Taken, asyncio.Task[Sequence[Outcome]] | None]] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for _, task in self._out if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, taken: Taken) -> None:
        """Send the copies of ``taken``, unless those before had to be the last."""
        if not taken:
            return
        task: asyncio.Task[Sequence[Outcome]] | None = None
        if self._passage.stopped:
            self._run.counts["matched"] -= len(taken)
            self._run.counts["skipped"] += len(taken)
        else:
            task = asyncio.create_task(self._run.send(self._run.copies(taken)), name="atleastonce-redrive")
        self._out.append((taken, task))

    async def finish(self, ahead: int = 0) -> int:
        """Wait for what is on its way but the last ``ahead`` lists; take out what is confirmed, keep the rest. How many went."""
        moved = 0
        while len(self._out) > ahead:
            taken, task = self._out[0]
            outcomes = None if task is None else await task
            self._out.popleft()
            moved += await self._ended(taken, outcomes)
        return moved

    async def _ended(self, taken: Taken, outcomes: Sequence[Outcome] | None) -> int:
        moved = [] if outcomes is None else self._run.sent(taken, outcomes)
        await self._passage.done(moved)
        if len(moved) < len(taken):
            gone = set(moved)
            await self._passage.keep([delivery for delivery in taken.deliveries if delivery not in gone])
            if not moved and outcomes is not None:
                self._passage.stop(f"{self._run.destination} takes nothing at present")
        return len(moved)


def _changed(copy: Message, original: bytes, body: bytes) -> Message:
    mark: dict[str, HeaderValue] = {wire.EDITED: hashlib.sha256(original).hexdigest()}
    return msgspec.structs.replace(copy, body=body, headers=copy.headers.set(mark))
