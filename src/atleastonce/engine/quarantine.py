"""Runs what is suspected of having ended a process: one message at a time, while nothing else in this process runs.

A hand-out from the channel of suspects is a run alone, and nothing else: the channel is subscribed to within a turn of the
`Turnstile`, with a window of one, and left before the turn ends. So the broker's count of hand-outs from it says how often a
message ended its process, whatever else was in flight elsewhere. One that lasts longer than its turn may goes on beside the
others, and no other suspect runs until it has ended.

Room for it is kept free in the consumer's window before the turn: within it nothing else ends that would make some.
"""

from __future__ import annotations

import asyncio
import logging
import random

from atleastonce.contract import Adapter, Backlog, Leasing, Subscription
from atleastonce.engine.guest import Guest
from atleastonce.engine.turnstile import BRIEF, Turnstile
from atleastonce.engine.worker import Worker
from atleastonce.errors import PermissionDenied
from atleastonce.wake import Bell

log = logging.getLogger("atleastonce.engine")

# Between two looks at the channel while nothing is in it. Longer: what a process that never came back has left there waits
# longer; shorter: more questions to the broker, one for each handler and look.
_IDLE_SECONDS = 30.0
# The same while something is in it, or with another process; doubled, up to the one above, as long as none of it comes to us.
_BUSY_SECONDS = 1.0
# The same where the broker cannot say what waits: every look is a turn then, in which nothing else runs for a second. The first
# one after a start or a call that has found nothing is repeated once a lease is over: what a dead process had in hand is back by
# then.
_BLIND_SECONDS = 600.0
_BLIND_SLACK = 1.0
# How long a turn waits for running handlers where a suspect is known to wait: all for `BRIEF` seconds, then slow consumers alone.
# Twice as long after each time in vain, up to the longest: handlers that last longer keep this process from taking suspects; other
# processes, and its own next start, do. Where nothing is known to wait nobody is held up for longer than `BRIEF`.
_PATIENCE = 30.0
_MOST_PATIENCE = 300.0
# The pause after a wait in vain is doubled so often at most.
_DOUBLINGS = 10
# So many looks follow soon upon a call: what is being moved arrives within them, or the broker is away.
_LOOKS = 5
# How long the first message of a visit is waited for: joining a consumer group takes seconds. Where messages are leased, one that
# is there comes at once; one that is counted and does not come is in the hands of another process.
_FIRST_WAIT = 5.0
_LEASED_WAIT = 1.0
_NEXT_WAIT = 0.5
# How long one has this process for itself. What lasts longer (a long job, a handler that hangs) goes on beside the others: it may
# stop none of them. Shorter: more of what ends its process late takes neighbours with it, which then are suspects, too.
_ALONE_SECONDS = 10.0


class Quarantine:
    """Visits one channel of suspects, at the start, when called, and from time to time.

    Args:
        adapter: to subscribe on.
        worker: runs what is in it; its source is the channel, its window one message.
        turnstile: of the service.
        room: the account of ``worker``.
    """

    def __init__(self, adapter: Adapter, worker: Worker, turnstile: Turnstile, room: Guest) -> None:
        self.worker = worker
        self._room = room
        self._adapter = adapter
        self._turnstile = turnstile
        self._leased = adapter.capabilities.lease is Leasing.EXTENDABLE
        self._bell = Bell()
        self._called = True  # the first look is one
        self._expected = 0  # so many looks soon, for what was moved and has not arrived
        self._looked = asyncio.Event()
        self._pause = _BUSY_SECONDS
        self._in_vain = 0  # so many times in a row running handlers did not end
        self._shared = False  # the one that runs is no longer alone
        self._halted = False
        self._denied: PermissionDenied | None = None
        self._leaving = False  # a subscription is being closed: not to be interrupted
        self._owed = False  # where the broker cannot say what waits: one look more, a lease later
        self._known = False  # where it cannot: whether something is known to have been there
        self._task: asyncio.Task[None] | None = None

    async def start(self, within: float) -> None:
        """Begin. Returns after the first visit, or ``within`` seconds: before a process reads anything else is the best time."""
        self.worker.start()
        self.worker.state = ("running", "")
        self._task = asyncio.create_task(self._watch(), name=f"atleastonce-{self.worker.source}")
        try:
            async with asyncio.timeout(within):
                await self._looked.wait()
        except TimeoutError:
            log.info("%s: suspects go on while other messages are read", self.worker.source)

    async def wait(self) -> None:
        """Until it was stopped.

        Raises:
            PermissionDenied: what is in the channel may not be settled.
        """
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    def halt(self) -> None:
        """One of them has ended the service: take no other."""
        self._halted = True
        self._looked.set()

    def call(self) -> None:
        """Something was moved into the channel."""
        self._called = self._known = True
        self._bell.ring()

    async def stop(self, grace: float) -> bool:
        """As `Supervisor.stop`."""
        drained = await self.worker.drain_all(grace)
        await self.worker.stop()  # while what it is given back to is still there
        while self._task is not None and not self._task.done():
            if not self._leaving:
                self._task.cancel()
            await asyncio.wait([self._task], timeout=0.5)
        if self._task is not None and not self._task.cancelled():
            self._task.exception()  # told by `wait` to who asks
        self.worker.state = ("stopped", "")
        return drained

    async def _watch(self) -> None:
        pause = 0.0
        while not (self.worker.stopping or self._halted):
            await self._bell.heard(pause)
            called, self._called = self._called, False
            try:
                pause = await self._look(called)
                self.worker.state = ("running", "")
            except Exception as error:
                detail = str(error) or type(error).__name__
                self.worker.state = ("stopped" if error is self._denied else "disconnected", detail)
                if error is self._denied:
                    log.error("%s: %s; it is read no more", self.worker.source, detail)
                    raise
                # Whatever else ended the visit, what is there must be visited again.
                log.warning("%s: the visit ended (%s); again later", self.worker.source, detail)
                pause = self._later()
            finally:
                self._looked.set()

    async def _look(self, called: bool) -> float:
        """One look, and a visit if there is something; in how many seconds to look again."""
        if self.worker.paused:
            return _jittered(_BUSY_SECONDS)
        try:
            found = await self._adapter.backlog(self.worker.source)
        except Exception as error:  # noqa: BLE001 - not knowing is an answer
            found = Backlog(detail=str(error))
        if found.waiting == 0:
            self._expected = _LOOKS if called else max(0, self._expected - 1)
            return _jittered(_BUSY_SECONDS if found.in_flight or self._expected else _IDLE_SECONDS)
        blind = found.waiting is None
        self._owed = self._owed or called
        patience = self._patience() if self._known or not blind else BRIEF
        if not await self._room.reserve(patience):
            return self._vain(patience)
        try:
            async with self._turnstile.alone(patience) as alone:
                if not alone:
                    return self._vain(patience)
                self._in_vain = 0
                if await self._visit(_LEASED_WAIT if self._leased else _FIRST_WAIT):
                    self._pause, self._owed, self._known = _BUSY_SECONDS, True, True
                    return self._pause
        finally:
            self._room.release()
        return self._seldom() if blind else self._later()

    def _patience(self) -> float:
        return min(_PATIENCE * 2.0**self._in_vain, _MOST_PATIENCE)

    def _vain(self, patience: float) -> float:
        if patience > BRIEF:
            log.warning("%s: handlers ran on for %g s; suspects wait", self.worker.source, patience)
        else:
            log.info("%s: handlers ran on; it is looked for suspects later", self.worker.source)
        self._in_vain = min(self._in_vain + 1, _DOUBLINGS)
        return _jittered(min(_BUSY_SECONDS * 2.0**self._in_vain, _BLIND_SECONDS))

    def _seldom(self) -> float:
        owed, self._owed = self._owed, False
        self._known = self._known and (owed or self._called)
        return _jittered(self._adapter.capabilities.lease_seconds + _BLIND_SLACK if owed else _BLIND_SECONDS)

    def _later(self) -> float:
        self._pause = min(2 * self._pause, _IDLE_SECONDS)
        return _jittered(self._pause)

    async def _visit(self, first_wait: float) -> int:
        """Run what is there, one after the other; how many came."""
        worker = self.worker
        try:
            subscription = await self._adapter.subscribe(worker.source, worker.window, worker)
        except PermissionDenied as error:  # no other visit gets further, and what waits there would wait for ever
            self._denied = error
            raise
        came = 0
        self._shared = False
        try:
            while not (worker.stopping or worker.paused or self._halted or self._shared):
                if not await self._read_one(subscription, _NEXT_WAIT if came else first_wait):
                    break
                came += 1
                if self._room.lacks:  # its copy waits for a turn with more room
                    break
        except PermissionDenied as error:  # each further visit would run, and count, what it cannot settle
            self._denied = error
            raise
        finally:
            self._leaving = True
            worker.lost(None)
            await subscription.close()
            self._leaving = False
        return came

    async def _read_one(self, subscription: Subscription, max_wait: float) -> bool:
        sharing = asyncio.get_running_loop().call_later(max_wait + _ALONE_SECONDS, self._share)
        try:
            return await self.worker.read_one(subscription, max_wait)
        finally:
            sharing.cancel()

    def _share(self) -> None:
        if not self.worker.in_flight:
            return
        self._shared = True
        log.warning(
            "%s: a suspect has run alone for %g s; the other messages go on beside it. A `timeout` would end it",
            self.worker.source,
            _ALONE_SECONDS,
        )
        self._turnstile.share()


def _jittered(seconds: float) -> float:
    """Longer by up to a quarter: the processes of a service must not all look, and stop, at once."""
    return seconds * (1 + random.random() / 4)
