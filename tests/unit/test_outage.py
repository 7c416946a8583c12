"""A store that is away, as its consumer sees it."""

from __future__ import annotations

import asyncio
from typing import Any

from atleastonce.contract import Code, Fault, Scope
from atleastonce.patterns.once.outage import Outage

GONE = Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, "gone")


class Reader:
    """A worker that takes its time to go on."""

    def __init__(self) -> None:
        self.paused = False
        self.resuming, self.may_resume = asyncio.Event(), asyncio.Event()
        self.flawed = False

    async def pause(self, reason: str) -> None:
        self.paused = True
        if self.flawed:
            raise ConnectionError("its channel is closed")

    async def resume(self, reason: str) -> None:
        self.resuming.set()
        await self.may_resume.wait()
        self.paused = False

    def hasten(self, wanted: object) -> None: ...


def outage_of(reader: Any) -> tuple[Outage, asyncio.Event]:
    async def probe() -> None:
        return None

    over = asyncio.Event()
    outage = Outage("orders", probe)
    outage.add(reader)
    outage.on_end(over.set)
    return outage, over


async def test_one_that_begins_while_the_last_one_ends_ends_too() -> None:
    reader = Reader()
    outage, over = outage_of(reader)
    outage.begin(GONE)
    await asyncio.wait_for(reader.resuming.wait(), 10)
    outage.begin(GONE)  # a run that was undone just now
    await asyncio.sleep(0)
    reader.may_resume.set()
    await asyncio.wait_for(over.wait(), 10)
    over.clear()
    await asyncio.wait_for(over.wait(), 10)
    assert not outage.active
    assert not reader.paused


async def test_a_reader_that_cannot_be_told_does_not_keep_it_for_ever() -> None:
    reader = Reader()
    reader.flawed = True
    reader.may_resume.set()
    outage, over = outage_of(reader)
    outage.begin(GONE)
    await asyncio.wait_for(over.wait(), 10)
    assert not outage.active
