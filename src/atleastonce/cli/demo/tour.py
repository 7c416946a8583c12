"""The story of the demo, from the first order to the closing account."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from atleastonce import wire
from atleastonce.broker import Broker
from atleastonce.channels import Source
from atleastonce.cli.demo.account import Account, settle_account
from atleastonce.cli.demo.crew import Crew
from atleastonce.cli.demo.ledger import Ledger
from atleastonce.cli.demo.orders import Line
from atleastonce.cli.demo.publish import Shop, broken, chunks
from atleastonce.cli.demo.services import orders_topic
from atleastonce.cli.demo.watch import Part, View, Watched, take_ids
from atleastonce.cli.demo.worker import Assignment, build
from atleastonce.contract import Deletes
from atleastonce.patterns.redrive import Letter, redrive

BILLING = "billing"
SERVICES = (BILLING, "shipping")
PROCESSES = 2
"""Consumer processes of each service."""

# Seconds between two looks at ledgers and backlogs. Shorter makes kills hit more exactly and takes CPU from the workers.
_LOOK = 0.1
# The publisher stays this far (share of all messages) ahead of the next kill, so that a kill always hits work in progress.
_LEAD = 0.1
# Seconds, at most, from there to the kill. Shorter, and the new messages are not yet there; longer, and they are done.
_AFTER_RELEASE = 0.15
# The first part of a run reaches this share of its story; the redrive is the rest.
_FIRST_PART = 0.9
# Without any movement: how long until the dead letters of a broker that tells no numbers are counted.
_COUNT_SECONDS = 3.0
# Without any movement: how long until what is missing counts as lost, if the broker says that nothing waits, and if it
# does not. The second outlasts the slowest broker's notice of a dead consumer (Kafka's session timeout, 45 s).
_LOST_SECONDS = 10.0
_STALLED_SECONDS = 90.0
_CLEANUP_SECONDS = 10.0


class Screen(Protocol):
    """Whoever watches."""

    def event(self, text: str) -> None:
        """Something happened, in a sentence."""

    def show(self, view: View) -> None:
        """How it stands."""


class Tour:
    """One run.

    Args:
        url: of the broker, tuned (see `settings`).
        lines: the orders.
        kills: when to ``kill -9`` a process, as shares of the story, 0 to 1.
        dice: chooses the victims.
        only: kill processes of this service only.
        screen: is told.
        folder: for ledgers and logs.
        cleanup: remove the run's channels from the broker at the end.
        no_wait: fail at once if the broker is not there.
    """

    def __init__(
        self,
        url: str,
        lines: Sequence[Line],
        *,
        kills: Sequence[float],
        dice: random.Random,
        only: str | None,
        screen: Screen,
        folder: Path,
        cleanup: bool,
        no_wait: bool = False,
    ) -> None:
        self._lines = broken(lines)
        self._kills = sorted(kills)
        self._dice = dice
        self._only = only
        self._screen = screen
        self._url = url
        self._suffix = f".demo-{secrets.token_hex(3)}"
        self._cleanup = cleanup
        self._broker = Broker(url, wait=0 if no_wait else "30s", waiting=screen.event)
        self._crew = Crew(folder)
        self._shop = Shop(self._broker, orders_topic(self._suffix))
        self._paths = {name: folder / f"{name}.db" for name in SERVICES}
        self._watched: list[Watched] = []
        self._may_publish = asyncio.Event()
        self._limit = 0
        self._redriving = 0
        self._since = time.monotonic()

    async def run(self) -> Account:
        """Run the whole story.

        Raises:
            AtLeastOnceError: the broker is not there, or a consumer process failed. No process is left.
        """
        try:
            await self._broker.open()
            await self._declare()
            await asyncio.gather(*(self._start(name, fixed=False) for name in SERVICES))
            await self._sell()
            await self._mend()
            while self._kills:
                await self._kill()
                await self._settle()
            await self._crew.drain()
            return await self._account()
        finally:
            await self._crew.abandon()
            with contextlib.suppress(TimeoutError, Exception):
                async with asyncio.timeout(_CLEANUP_SECONDS):
                    await self._tidy()
            for each in self._watched:
                each.ledger.close()

    # ------------------------------------------------------------------------------------------- the chapters

    async def _declare(self) -> None:
        """The topology is made before the first publish: a topic's group gets what is published after it exists."""
        for name in SERVICES:
            ledger = Ledger(self._paths[name])
            (consumer,) = build(name, self._suffix, ledger, fixed=False).consumers
            topology = consumer.topology(self._broker.adapter.capabilities)
            await self._broker.declare(topology)
            self._watched.append(Watched(name, consumer.home, topology, ledger))

    async def _start(self, service: str, *, fixed: bool) -> None:
        ledger = str(self._paths[service])
        for _ in range(PROCESSES):
            await self._crew.start(Assignment(service, self._url, self._suffix, ledger, fixed))

    async def _sell(self) -> None:
        """Publish everything while the services work, and one of their processes is killed."""
        self._screen.event(
            f"{len(self._lines)} orders for {' and '.join(SERVICES)}, {PROCESSES} processes each, at {self._broker.url}"
        )
        publishing = asyncio.create_task(self._publish())
        try:
            await self._settle(publishing)
            await publishing
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _publish(self) -> None:
        done = 0
        for chunk, twice in chunks(self._lines):
            while chunk:
                while self._limit <= done:
                    self._may_publish.clear()
                    await self._may_publish.wait()
                part, chunk = chunk[: self._limit - done], chunk[self._limit - done :]
                await self._shop.publish(part)
                done += len(part)
            await self._shop.publish(twice)
        for message_id, reason in self._shop.rejected.items():
            self._screen.event(f"{message_id} was rejected and is not in the broker: {reason}")

    async def _mend(self) -> None:
        """Deploy the release without the bug, and send what the bug killed back to billing."""
        (billing,) = (each for each in self._watched if each.name == BILLING)
        seen = await billing.look(self._broker)
        if not seen.dead and seen.known:
            self._screen.event("billing has no dead letters: nothing to redrive")
            return
        await self._crew.drain(BILLING)
        await self._start(BILLING, fixed=True)
        moved = await redrive(self._broker.adapter, billing.home, wanted=_killed_by_the_bug)
        self._redriving = moved.redriven
        self._screen.event(
            f"billing release 2 converts euros to cents rightly; {moved.redriven} dead letters redriven, "
            f"{moved.skipped} left where they are"
        )
        await self._settle()

    async def _account(self) -> Account:
        dead = {
            each.name: frozenset(await take_ids(self._broker, Source(each.home.dead_letter_channel)))
            for each in self._watched
        }
        return settle_account(
            broker=self._broker.url,
            published=self._shop.confirmed,
            unconfirmed=len(self._shop.unconfirmed),
            ledgers={each.name: each.ledger.endings() for each in self._watched},
            suppressed={each.name: each.ledger.totals().suppressed for each in self._watched},
            dead=dead,
            seconds=time.monotonic() - self._since,
        )

    async def _tidy(self) -> None:
        """Remove the run's channels from a broker that is not ours."""
        if self._cleanup and isinstance(self._broker.adapter, Deletes):
            for each in self._watched:
                await self._broker.adapter.delete(each.topology)
        await self._broker.close()

    # ------------------------------------------------------------------------------------------- in between

    async def _settle(self, publishing: asyncio.Task[None] | None = None) -> None:
        """Watch until every message has its ending, killing on the way; or until nothing moves any more."""
        last: View | None = None
        moved, counted = time.monotonic(), 0.0
        while True:
            self._crew.check()
            if publishing is not None and publishing.done():
                publishing.result()  # raises what ended it
                publishing = None
            begin = time.monotonic()
            parts = await asyncio.gather(*(each.look(self._broker) for each in self._watched))
            view = View(len(self._lines), len(self._shop.confirmed), tuple(parts))
            self._screen.show(view)
            await self._kill_when_due(view)
            now = time.monotonic()
            if view != last:
                last, moved = view, now
            if publishing is None:
                if now - moved >= _COUNT_SECONDS and counted != moved and not all(part.known for part in parts):
                    counted = moved  # once: it takes seconds, and holds the dead letters meanwhile
                    dead = await asyncio.gather(*(each.dead_letters(self._broker) for each in self._watched))
                    parts = [msgspec.structs.replace(part, dead=n) for part, n in zip(parts, dead, strict=True)]
                if self._over(parts, now - moved):
                    return
            await asyncio.sleep(max(_LOOK, 2 * (now - begin)))

    def _over(self, parts: Sequence[Part], still: float) -> bool:
        published = len(self._shop.confirmed)
        if all(part.idle and part.accounted >= published for part in parts):
            return True
        patience = _LOST_SECONDS if all(part.idle and part.known for part in parts) else _STALLED_SECONDS
        if still < patience:
            return False
        self._screen.event(f"nothing has moved for {patience:.0f} s: what is missing now is lost or stuck")
        return True

    async def _kill_when_due(self, view: View) -> None:
        while self._kills and self._moment(view) >= self._kills[0]:
            self._release(self._kills[1:])
            # The publisher goes on first: the kill hits a process with its hands full, wherever it then happens to be.
            await asyncio.sleep(self._dice.uniform(0.0, _AFTER_RELEASE))
            await self._kill()
        self._release(self._kills)

    def _release(self, kills: Sequence[float]) -> None:
        """Let the publisher go on, up to its lead before the next of ``kills``."""
        lead = kills[0] / _FIRST_PART + _LEAD if kills else 1.0
        self._limit = min(len(self._lines), math.ceil(lead * len(self._lines)))
        self._may_publish.set()

    def _moment(self, view: View) -> float:
        """How far the story is, 0 to 1."""
        if not self._redriving:
            return _FIRST_PART * view.progress
        back = sum(part.totals.redriven for part in view.parts)
        return _FIRST_PART + (1 - _FIRST_PART) * back / self._redriving

    async def _kill(self) -> None:
        del self._kills[0]
        victim, successor = await self._crew.kill(self._dice, self._only)
        self._screen.event(
            f"kill -9 {victim.name} (process {victim.pid}); {successor.name} (process {successor.pid}) takes its place"
        )


def _killed_by_the_bug(letter: Letter) -> bool:
    return letter.message.headers.get(wire.ERROR_TYPE) == "InvoiceMismatch"
