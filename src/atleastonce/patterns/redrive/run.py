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
from atleastonce.patterns.hops import redriven_copy
from atleastonce.patterns.redrive.accounts import Redriven
from atleastonce.patterns.redrive.audit import Auditor
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.patterns.redrive.passage import Passage
from atleastonce.patterns.redrive.selection import Selection

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
        self._all = isinstance(wanted, Selection) and not wanted
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

    async def take(self, passage: Passage, batch: Sequence[Delivery], left: int | None) -> list[Letter]:
        """What is to be moved of ``batch``, at most ``left``; the rest is kept."""
        taken: list[Letter] = []
        kept: list[Delivery] = []
        for delivery in batch:
            letter = Letter(delivery)
            if self._is_back(letter):
                self.counts["refailed"] += 1
                passage.later(1)
                kept.append(delivery)
                continue
            if (left is None or len(taken) < left) and (self._all or self._wanted(letter)):
                if letter.redrives < self._max_redrives:
                    taken.append(letter)
                    continue
                self.counts["looped"] += 1
            self.counts["skipped"] += 1
            kept.append(delivery)
        self.counts["matched"] += len(taken)
        if kept:
            await passage.keep(kept)
        return taken

    def _is_back(self, letter: Letter) -> bool:
        """Whether it went back in this run, and has died again: then it waits for the next one."""
        sent = self._moved.get(hash(letter.id)) if self._moved else None
        return sent is not None and letter.redrives >= sent

    def copies(self, letters: Sequence[Letter]) -> list[Outgoing]:
        """What is sent."""
        items: list[Outgoing] = []
        for letter in letters:
            redrives = letter.redrives
            copy = redriven_copy(letter.delivery, self._home, redrives)
            if self._change is not None:
                copy = _changed(copy, letter.body, self._change(letter))
            items.append(Outgoing(self._destination, copy))
            self._moved[hash(copy.id)] = min(redrives + 1, wire.MAX_REDRIVES)
        return items

    async def send(self, items: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._adapter.send(items)

    def sent(self, letters: Sequence[Letter], outcomes: Sequence[Outcome]) -> list[Letter]:
        """Those whose copies are confirmed; told to the audit."""
        told = self._auditor.wanted or self._remembers
        if not told and outcomes.count(OK) == len(outcomes) == len(letters):
            self.counts["redriven"] += len(letters)  # nobody asks for each of them
            return list(letters)
        moved: list[Letter] = []
        for letter, outcome in zip(letters, outcomes, strict=True):
            if outcome.ok:
                moved.append(letter)
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
        self.counts["failed"] += len(letters) - len(moved)
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
        self._out: deque[tuple[list[Letter], asyncio.Task[Sequence[Outcome]] | None]] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for _, task in self._out if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, letters: list[Letter]) -> None:
        """Send the copies of ``letters``, unless those before had to be the last."""
        if not letters:
            return
        task: asyncio.Task[Sequence[Outcome]] | None = None
        if self._passage.stopped:
            self._run.counts["matched"] -= len(letters)
            self._run.counts["skipped"] += len(letters)
        else:
            task = asyncio.create_task(self._run.send(self._run.copies(letters)), name="atleastonce-redrive")
        self._out.append((letters, task))

    async def finish(self, ahead: int = 0) -> int:
        """Wait for what is on its way but the last ``ahead`` lists; take out what is confirmed, keep the rest. How many went."""
        moved = 0
        while len(self._out) > ahead:
            letters, task = self._out[0]
            outcomes = None if task is None else await task
            self._out.popleft()
            moved += await self._ended(letters, outcomes)
        return moved

    async def _ended(self, letters: list[Letter], outcomes: Sequence[Outcome] | None) -> int:
        moved = [] if outcomes is None else self._run.sent(letters, outcomes)
        await self._passage.done([letter.delivery for letter in moved])
        if len(moved) < len(letters):
            gone = set(map(id, moved))
            await self._passage.keep([letter.delivery for letter in letters if id(letter) not in gone])
            if not moved and outcomes is not None:
                self._passage.stop(f"{self._run.destination} takes nothing at present")
        return len(moved)


def _changed(copy: Message, original: bytes, body: bytes) -> Message:
    mark: dict[str, HeaderValue] = {wire.EDITED: hashlib.sha256(original).hexdigest()}
    return msgspec.structs.replace(copy, body=body, headers=copy.headers.set(mark))
