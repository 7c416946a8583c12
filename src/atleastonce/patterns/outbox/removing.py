"""What was confirmed leaves the table, and what can never be published is parked there."""

from __future__ import annotations

from atleastonce.patterns.outbox.work import Work


class Remover:
    """Removes what was sent, by the list: what came together during the last removal.

    Args:
        work: of the relay.
        blocking: whether what is parked holds up its key.
    """

    def __init__(self, work: Work, *, blocking: bool) -> None:
        self._work = work
        self._blocking = blocking

    async def run(self) -> None:
        """Remove, until cancelled."""
        work = self._work
        while True:
            await work.removing.heard()
            while work.sent or work.poison:
                await work.asking("removing what was published", self._remove)
            work.quiet.ring()

    async def _remove(self) -> None:
        work = self._work
        if sent := list(work.sent):
            await work.store.outbox_remove(sent)
            del work.sent[: len(sent)]
            work.line.forget(row.seq for row in sent)
            work.counts["published"] += len(sent)
            work.sending.ring()
        if poison := list(work.poison):
            await work.store.outbox_park([parking for _, parking in poison], blocking=self._blocking)
            del work.poison[: len(poison)]
            work.counts["parked"] += len(poison)
            for row, _ in poison:
                if self._blocking:
                    work.line.again(row)  # what waits behind it is not read again while it blocks
                else:
                    work.line.forget([row.seq])
            work.sending.ring()
