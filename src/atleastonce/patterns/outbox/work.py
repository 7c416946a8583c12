"""What the tasks of a relay hand to each other, and their bells."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from atleastonce.engine.backoff import Backoff
from atleastonce.patterns.hops import one_line
from atleastonce.patterns.outbox.away import Away
from atleastonce.patterns.outbox.line import Line
from atleastonce.stores.outbox import OutboxRow, OutboxStore, Parking
from atleastonce.stores.records import new_token
from atleastonce.urls import mask
from atleastonce.wake import Bell

log = logging.getLogger("atleastonce")

_STORE_AWAY = Backoff("200ms", factor=2, maximum="10s")


class Work:
    """Of one relay. Loop thread only.

    Args:
        store: open.
        batch: of the relay's options.
        ordered: of the relay's options.

    Attributes:
        token: who it is, to the store.
        line: rows that were read and not yet seen removed.
        away: destinations that take nothing now.
        slots: held now.
        sent: rows that are confirmed and not removed.
        poison: rows that can never be published, and why, not written down yet.
        read: how many rows came into the line, since the start.
        more: whether the next look will find many again, as far as is known.
        stopping: nothing more is begun.
        counts: since the start.
        store_detail: why the store is waited for; "" while it answers.
    """

    def __init__(self, store: OutboxStore, batch: int, *, ordered: bool) -> None:
        self.store = store
        self.batch = batch
        self.token = new_token()
        self.line = Line(ordered=ordered)
        self.away = Away()
        self.slots: frozenset[int] = frozenset()
        self.sent: list[OutboxRow] = []
        self.poison: list[tuple[OutboxRow, Parking]] = []
        self.read = 0
        self.more = False
        self.stopping = False
        self.counts: Counter[str] = Counter(published=0, repeated=0, parked=0)
        self.store_detail = ""
        self.keeping, self.reading, self.sending, self.removing, self.quiet = Bell(), Bell(), Bell(), Bell(), Bell()

    async def asking(self, what: str, call: Callable[[], Awaitable[None]]) -> None:
        """``call``, again and again until the store has answered."""
        tried = 0
        while True:
            try:
                await call()
            except Exception as error:  # noqa: BLE001 - whatever it is: nothing may end the relay
                tried += 1
                pause = _STORE_AWAY.wait(tried) or 0.0
                self.store_detail = f"store: {mask(one_line(str(error) or type(error).__name__))}"
                if tried == 1:
                    log.error("outbox: %s failed, trying again until it works: %s", what, self.store_detail)
                await asyncio.sleep(pause)
            else:
                if tried:
                    log.warning("outbox: the store answers again")
                self.store_detail = ""
                return
