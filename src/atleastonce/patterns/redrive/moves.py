"""Redrive and purge: dead letters go back to the group that failed them and to nobody else, or away for good.

Every other subscriber of a topic would be notified a second time if the message went back to the topic. So it goes to the
group's own queue where the broker can address one, and otherwise to the group's redrive channel, which leads to the same
handler. The copy is confirmed before the dead letter is settled: a crash in between repeats a message and loses none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import msgspec

from atleastonce import wire
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Adapter, Delivery, Outcome, Outgoing, Topology
from atleastonce.errors import ConfigurationError, NotFound
from atleastonce.message import HeaderValue, Message
from atleastonce.patterns.hops import redriven_copy
from atleastonce.patterns.redrive.audit import Audit, Auditor
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.patterns.redrive.passage import Passage
from atleastonce.patterns.redrive.selection import Selection

log = logging.getLogger("atleastonce")

Wanted = Callable[[Letter], bool]
Progress = Callable[["Redriven | Purged", int, int | None], None]
"""Told after each batch: the account so far, how many letters were looked at, of how many (None: unknown)."""

# One round trip's worth. Larger moves faster and repeats more after a crash.
_BATCH = 500
# With a limit on failures: what goes first, then how often to look, and how long to wait for failures to show.
_FIRST = 50
_LOOK_EVERY = 5.0
_WATCH_SECONDS = 2.0
MAX_REDRIVES = 5


class Redriven(msgspec.Struct, frozen=True):
    """What a redrive did.

    Attributes:
        matched: dead letters looked at and wanted.
        redriven: went back, confirmed.
        skipped: looked at and left: not wanted, or redriven too often already.
        failed: wanted, but the copy was not confirmed; still dead.
        refailed: died again while the run lasted, as far as it saw them.
        looped: those of the skipped that were redriven too often already.
        dry_run: whether nothing was moved, only counted.
        stopped: why it ended before the end; "" if it did not.
        seconds: how long it took.
    """

    matched: int = 0
    redriven: int = 0
    skipped: int = 0
    failed: int = 0
    refailed: int = 0
    looped: int = 0
    dry_run: bool = False
    stopped: str = ""
    seconds: float = 0.0


class Purged(msgspec.Struct, frozen=True):
    """What a purge did.

    Attributes:
        matched: dead letters that were meant.
        purged: gone for good.
        skipped: looked at and left.
        dry_run, stopped, seconds: as of `Redriven`.
    """

    matched: int = 0
    purged: int = 0
    skipped: int = 0
    dry_run: bool = False
    stopped: str = ""
    seconds: float = 0.0


def way_back(home: Source, adapter: Adapter) -> Channel[Any] | Source:
    """Where a redriven message of ``home`` is published."""
    if not isinstance(home.channel, Topic):
        return home.channel
    return home if adapter.capabilities.addresses_groups else home.redrive_channel


async def redrive(
    adapter: Adapter,
    home: Source,
    *,
    queue: Queue[Any] | None = None,
    wanted: Wanted = Selection(),  # noqa: B008 - immutable
    to: Queue[Any] | None = None,
    limit: int | None = None,
    rate: float | None = None,
    max_redrives: int = MAX_REDRIVES,
    abort_above: float | None = None,
    change: Callable[[Letter], bytes] | None = None,
    audit: Audit | None = None,
    progress: Progress | None = None,
    stopping: asyncio.Event | None = None,
) -> Redriven:
    """Send the dead letters of ``home`` back to it, up to those that are there now.

    What fails again meanwhile is not redriven in the same run. Run twice, by two people at once, or killed at any moment,
    nothing is lost; what was moved and not yet settled goes twice, under one id.

    Args:
        adapter: open.
        home: the consumer's source.
        queue: its dead letters; default: those of `Source.dead_letter_channel`.
        wanted: which to take; the others stay.
        to: a sandbox to send the copies to, instead of the way back.
        limit: at most so many.
        rate: at most so many per second; None: as fast as it goes.
        max_redrives: a letter that has come back so often stays: it would only go round.
        abort_above: stop when this share of what went back (0.05 for 5 %) has died again, or as many others have died: 50 go
            first, and every few seconds it waits to see. Failures that take longer than that, as in a chain of long delays, it
            cannot see; give a ``rate`` with it.
        change: gives the body to send instead; the original is in the audit, which it needs.
        audit: told of every message.
        progress: told after every batch.
        stopping: once it is set, the run ends after its batch, in good order.

    Raises:
        NotFound: there is no dead-letter queue, or nothing to send its letters to.
        ConnectionLost: the broker went away; what was not moved is still there.
        ConfigurationError: ``change`` without ``audit``.
    """
    if change is not None and audit is None:
        raise ConfigurationError("an edited message needs an audit: the original body is kept there and nowhere else")
    source = Source(queue or home.dead_letter_channel)
    destination = to or way_back(home, adapter)
    await _check_there(adapter, home, destination)
    auditor = Auditor(audit, "redrive", source.name, destination.name)
    run = _Run(adapter, home, destination, wanted, max_redrives, change, auditor)
    pace = _Pace(rate)
    async with Passage(adapter, source, stopping) as passage, _Sending(run, passage) as sending:
        watch = None if abort_above is None else _Watch(passage, abort_above)
        while not passage.stopped:
            left = None if limit is None else limit - run.counts["matched"]
            if left is not None and left <= 0:
                break
            if isinstance(wanted, Selection) and wanted.ids and run.found >= wanted.ids:
                break  # each is there once, and all were seen
            if passage.yielding:
                await sending.finish()
            size = min(pace.size(_BATCH), _BATCH if watch is None else watch.size(run))
            batch = await passage.receive(size)
            if not batch:
                break
            taken = await run.take(passage, batch, left)
            moved = await sending.finish()
            sending.begin(taken)
            if rate is not None or watch is not None:  # who paces or watches wants to see each batch end
                moved += await sending.finish()
            if progress is not None:
                progress(run.account(passage.stopped), passage.seen, passage.total)
            if watch is not None:
                passage.stop(await watch.look(run))
            await passage.rest(pace.pause(moved))
        await sending.finish()
        if progress is not None:
            progress(run.account(passage.stopped), passage.seen, passage.total)
        if watch is not None:
            passage.stop(await watch.look(run, last=True))
    return run.account(passage.stopped)


async def purge(
    adapter: Adapter,
    home: Source,
    *,
    queue: Queue[Any] | None = None,
    wanted: Wanted = Selection(),  # noqa: B008 - immutable
    limit: int | None = None,
    audit: Audit | None = None,
    progress: Progress | None = None,
    stopping: asyncio.Event | None = None,
) -> Purged:
    """Remove dead letters of ``home`` for good, up to those that are there now. Arguments as of `redrive`.

    Raises:
        NotFound: there is no dead-letter queue.
        ConnectionLost: the broker went away.
    """
    source = Source(queue or home.dead_letter_channel)
    auditor = Auditor(audit, "purge", source.name)
    begun = time.monotonic()
    purged = skipped = 0
    async with Passage(adapter, source, stopping) as passage:
        while not passage.stopped and (limit is None or purged < limit):
            size = _BATCH if limit is None else min(_BATCH, limit - purged)
            batch = await passage.receive(size)
            if not batch:
                break
            taken, kept = _split(batch, wanted)
            for letter in taken:
                auditor.note(letter, "purged")
            auditor.tell()
            await passage.done([letter.delivery for letter in taken])
            await passage.keep([letter.delivery for letter in kept])
            purged += len(taken)
            skipped += len(kept)
            if progress is not None:
                account = Purged(purged, purged, skipped, False, passage.stopped, time.monotonic() - begun)
                progress(account, passage.seen, passage.total)
    return Purged(purged, purged, skipped, False, passage.stopped, time.monotonic() - begun)


def _split(batch: Sequence[Delivery], wanted: Wanted) -> tuple[list[Letter], list[Letter]]:
    taken: list[Letter] = []
    kept: list[Letter] = []
    for delivery in batch:
        letter = Letter(delivery)
        (taken if wanted(letter) else kept).append(letter)
    return taken, kept


async def _check_there(adapter: Adapter, home: Source, destination: Channel[Any] | Source) -> None:
    """Nothing is moved to where nobody reads.

    Raises:
        NotFound: names what is missing.
    """
    if isinstance(destination, Source):
        topology = Topology(sources=(destination,))
    else:
        own = (Source(destination),) if isinstance(destination, Queue) else ()
        topology = Topology(channels=(destination,), sources=own)
    drifts = await adapter.declare(topology, create=False)
    missing = sorted({drift.name for drift in drifts if drift.setting == "missing"})
    if missing:
        raise NotFound(
            f"{' and '.join(missing)} does not exist (any more), so nothing was moved: start the consumer of {home} once, which "
            "makes what it needs, or give another destination"
        )


class _Run:
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
            if (left is None or len(taken) < left) and self._wanted(letter):
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
            copy = _copy(letter, self._home)
            if self._change is not None:
                copy = _changed(copy, letter.body, self._change(letter))
            items.append(Outgoing(self._destination, copy))
            self._moved[hash(letter.id)] = letter.redrives + 1
        return items

    async def send(self, items: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._adapter.send(items)

    def sent(self, letters: Sequence[Letter], outcomes: Sequence[Outcome]) -> list[Letter]:
        """Those whose copies are confirmed; told to the audit."""
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


class _Sending:
    """The copies on their way, while the next batch is read. A context manager: one that is left early leaves what is on its
    way to be moved again."""

    def __init__(self, run: _Run, passage: Passage) -> None:
        self._run = run
        self._passage = passage
        self._letters: list[Letter] = []
        self._task: asyncio.Task[Sequence[Outcome]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def begin(self, letters: list[Letter]) -> None:
        """Send the copies of ``letters``, unless the one before had to be the last."""
        if not letters:
            return
        self._letters = letters
        if self._passage.stopped:
            self._run.counts["matched"] -= len(letters)
            self._run.counts["skipped"] += len(letters)
            return
        self._task = asyncio.create_task(self._run.send(self._run.copies(letters)), name="atleastonce-redrive")

    async def finish(self) -> int:
        """Wait for what is on its way; take out what is confirmed, keep the rest. How many went."""
        if not self._letters:
            return 0
        outcomes: Sequence[Outcome] = () if self._task is None else await self._task
        letters, self._letters = self._letters, []
        moved = self._run.sent(letters, outcomes) if self._task is not None else []
        attempted, self._task = self._task is not None, None
        await self._passage.done([letter.delivery for letter in moved])
        if len(moved) < len(letters):
            gone = set(map(id, moved))
            await self._passage.keep([letter.delivery for letter in letters if id(letter) not in gone])
            if not moved and attempted:
                self._passage.stop(f"{self._run.destination} takes nothing at present")
        return len(moved)


def _copy(letter: Letter, home: Source) -> Message:
    """The way back's copy. What was dead in this queue is this group's, whatever its headers say: without our marks it would
    not be known again, and could go round for ever."""
    copy = redriven_copy(letter.delivery)
    headers = copy.headers
    origin = (headers.get(wire.ORIGIN) or "").partition("/")[0]
    if headers.get(wire.GROUP) == home.group_name and origin == home.channel.name:
        return copy
    marks: dict[str, HeaderValue] = {wire.GROUP: home.group_name, wire.ORIGIN: home.channel.name}
    return msgspec.structs.replace(copy, headers=headers.set(marks))


def _changed(copy: Message, original: bytes, body: bytes) -> Message:
    mark: dict[str, HeaderValue] = {wire.EDITED: hashlib.sha256(original).hexdigest()}
    return msgspec.structs.replace(copy, body=body, headers=copy.headers.set(mark))


class _Pace:
    """At most so many per second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due: float | None = None

    def size(self, most: int) -> int:
        """How many to take at once: a quarter of a second's worth, so that they go evenly."""
        return most if self._rate is None else max(1, min(most, int(self._rate / 4)))

    def pause(self, moved: int) -> float:
        """How long to wait after ``moved`` went."""
        if self._rate is None or not moved:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._due = max(now, self._due or now) + moved / self._rate
        return max(0.0, self._due - now)


class _Watch:
    """Looks now and then whether what went back dies again."""

    def __init__(self, passage: Passage, share: float) -> None:
        self._passage = passage
        self._share = share
        self._next: float | None = None

    def size(self, run: _Run) -> int:
        """How many may go before the next look."""
        return _BATCH if self._next is not None else max(1, _FIRST - run.counts["redriven"])

    async def look(self, run: _Run, *, last: bool = False) -> str:
        """Why to stop; "" if there is no reason."""
        loop = asyncio.get_running_loop()
        moved = run.counts["redriven"]
        if not moved or not (last or (moved >= _FIRST if self._next is None else loop.time() >= self._next)):
            return ""
        dead = 0
        # A log counts what is not yet committed as waiting: only what is there twice is there.
        for _ in range(2):
            await self._passage.rest(_WATCH_SECONDS)
            dead = max(run.counts["refailed"], min(moved, await self._passage.arrived() or 0))
            if dead <= self._share * moved:
                break
        run.counts["refailed"] = max(run.counts["refailed"], dead)
        self._next = loop.time() + _LOOK_EVERY
        if dead <= self._share * moved:
            return ""
        return f"{dead} of {moved} died again, more than {self._share:.0%}; the rest stays where it is"
