"""Who reads which parts, when several processes read a channel.

A part has one reader at a time: the broker sees to that, and order hangs on nothing else. But who comes first has all of them. So
each reader counts, every few seconds, how many readers there are, and gives up what it holds beyond its share; the part goes to
who stands by for it, and comes to who has room in the end, since whoever has too many gives up again. Nobody has to know who the
others are, agree with them, or be told of a change.

Only a part of which something is in hand whenever it is looked at counts as held: where a part is idle half of the time, there is
nothing that another process would do sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from atleastonce.channels import Source
from atleastonce.parts.part import Part
from atleastonce.parts.readers import Readers

log = logging.getLogger("atleastonce.parts")

EVERY = 2.0
"""Seconds between two looks, more or less. Shorter: more questions to the broker. Longer: a process that joins idles for longer."""
ASIDE = 1.0
"""Seconds before who gave a part up stands by for it again: others have taken it by then."""
_BUSY = 2
"""Looks in a row at which something was in hand."""


def excess(held: int, parts: int, readers: int) -> int:
    """How many of ``held`` parts are beyond one reader's share of all ``parts``. There is always somebody with less then: what is
    given up comes to rest."""
    return max(0, held - -(-parts // max(1, readers)))


class Sharing:
    """Of one subscription.

    Args:
        source: what is read.
        parts: of it.
        readers: counts who reads it.
        failed: told what kept a part from being subscribed to again.
    """

    def __init__(
        self, source: Source, parts: Sequence[Part], readers: Readers, failed: Callable[[Exception], None]
    ) -> None:
        self._source = source
        self._parts = parts
        self._readers = readers
        self._failed = failed
        self._me = secrets.token_hex(8)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look."""
        self._spawn(self._look_after())

    async def close(self) -> None:
        """Look no more, and be counted no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            with contextlib.suppress(Exception):  # it is counted for a little longer
                await self._readers(self._source, self._me, here=False)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.75, 1.25))
            readers = await self._readers(self._source, self._me, here=True)
            for part in self._parts:
                part.busy = part.busy + 1 if part.out or part.buffer else 0
            held = [part for part in self._parts if part.busy >= _BUSY and not part.moving]
            if readers is not None and (more := excess(len(held), len(self._parts), readers)):
                log.debug("%s: %d readers, %d parts here; %d go", self._source, readers, len(held), more)
                for part in random.sample(held, more):
                    part.moving = True
                    self._spawn(self._give_up(part))

    async def _give_up(self, part: Part) -> None:
        try:
            await part.leave()
            await asyncio.sleep(ASIDE)
            await part.open()
            part.start()
        except Exception as error:  # noqa: BLE001 - whatever it is, all parts are subscribed to anew
            self._failed(error)
        finally:
            part.moving, part.busy = False, 0

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"atleastonce-sharing-{self._source}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
