"""How deliveries end: what is still ours, and the fewest commands that tell the server.

Redis takes an acknowledgement from anybody, also for an entry that another consumer has claimed since. What is settled well
before its lease ends is certainly still ours (nobody claims before that), so it goes out as one plain command; what is close
to the end, or over it, is acknowledged by a script that looks at the owner first.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from atleastonce.adapters.redis_streams.config import Config
from atleastonce.adapters.redis_streams.entries import EntryDelivery
from atleastonce.adapters.redis_streams.faults import FAILURES, LinkLost, ReplyError, classify
from atleastonce.adapters.redis_streams.keys import Keys
from atleastonce.adapters.redis_streams.link import Command, Line, Link
from atleastonce.adapters.redis_streams.scripts import ACK, EXTEND, PARK
from atleastonce.contract import (
    OK,
    STALE,
    Ack,
    Code,
    Delivery,
    Outcome,
    Reject,
    Release,
    Retry,
    Settlement,
    rejected,
    unknown,
)
from atleastonce.errors import AtLeastOnceError

_IDS: Final = 1000
"""In one script: it holds up every other client of the server for about two milliseconds."""
_MAX_DELAY: Final = 10 * 366 * 86400.0


class Settling:
    """The deliveries of one subscription that are out, and their ends.

    Args:
        deletes: whether what is acknowledged is removed from the stream at once: a queue has no other readers.
        exact: whether the server has ``XACKDEL``, which removes what every group has acknowledged, and says so of each id.

    Attributes:
        out: what was read and not settled, by id; read and handed out, or not yet.
    """

    def __init__(self, config: Config, keys: Keys, me: str, epoch: int, line: Line, deletes: bool, exact: bool) -> None:
        self.out: dict[bytes, EntryDelivery] = {}
        self.stale = 0
        self.on_restored: Callable[[int], None] = lambda _: None
        """Told how many deliveries of ours were nobody's on the server, and were taken again."""
        self._config = config
        self._keys = keys
        self._me = me
        self._epoch = epoch
        self._line = line
        self._deletes = deletes
        self._exact = exact
        # An answer takes up to this long before we give up: within it the server may run the command.
        self._margin = min(config.lease / 4, config.operation_timeout)

    async def ensure_allowed(self, link: Link) -> None:
        """Ask for what settling takes, of an entry that nobody has: it changes nothing, and shows what is forbidden before anything
        is handed out. Who may read and not settle would run the same entries for ever.

        Raises:
            ReplyError: the server's words for what we may not do.
            LinkLost: as `Link.call`.
        """
        stream, group, nobody = self._keys.stream, self._keys.group, b"0-0"
        commands: list[Command] = [
            ("XACK", stream, group, nobody),
            ("XCLAIM", stream, group, self._me, 0, nobody, "JUSTID"),
            ("ZADD", self._keys.parked, "XX", 0, nobody),
        ]
        if self._deletes:
            commands.append(("XDEL", stream, nobody))
        if self._exact:
            commands.append(("XACKDEL", stream, group, "ACKED", "IDS", 1, nobody))
        for reply in await link.call(commands):
            if isinstance(reply, ReplyError) and classify(reply).code is Code.PERMISSION:
                raise reply

    async def settle(self, batch: Sequence[Settlement]) -> tuple[list[Outcome], float]:
        """The outcomes, and in how many seconds the first of what was given back is due (infinity: nothing was)."""
        outcomes: list[Outcome] = [OK] * len(batch)
        plain: list[int] = []
        guarded: list[int] = []
        parked: list[int] = []
        out, epoch, horizon = self.out, self._epoch, time.monotonic() + self._margin
        for number, (delivery, verdict) in enumerate(batch):
            if delivery.epoch != epoch or delivery.__class__ is not EntryDelivery:
                self.stale += 1
                outcomes[number] = STALE
            elif delivery.verdict is not None:
                outcomes[number] = delivery.verdict
            elif out.get(delivery.token) is not delivery:
                outcomes[number] = self._lose(delivery)
            elif verdict.__class__ is Ack:
                (plain if delivery.lease_until > horizon else guarded).append(number)
                delivery.verdict = OK  # the first verdict wins, also within one list
            elif isinstance(verdict, Reject):
                outcomes[number] = rejected(Code.INVALID, "Redis has no dead-letter net; copy the message, then Ack")
            else:
                parked.append(number)
                delivery.verdict = OK
        if not (plain or guarded or parked):
            return outcomes, math.inf
        link = await self._connected()
        if isinstance(link, Outcome):
            self._unsure(batch, outcomes, [*plain, *guarded, *parked], link)
            return outcomes, math.inf
        if plain:
            await self._acknowledge(link, batch, outcomes, plain)
        for begin in range(0, len(guarded), _IDS):
            await self._guarded(link, batch, outcomes, guarded[begin : begin + _IDS])
        soonest = math.inf
        for begin in range(0, len(parked), _IDS):
            soonest = min(soonest, await self._park(link, batch, outcomes, parked[begin : begin + _IDS]))
        return outcomes, soonest

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Outcome]:
        """As `Subscription.extend`, for no longer than the lease: its length is known to others by our name."""
        outcomes: list[Outcome] = [STALE] * len(deliveries)
        mine = [n for n, each in enumerate(deliveries) if self.out.get(each.token) is each]
        if not mine:
            return outcomes
        link = await self._connected()
        keep = min(seconds, self._config.lease)
        idle = round((self._config.lease - keep) * 1000)
        for begin in range(0, len(mine), _IDS):
            part = mine[begin : begin + _IDS]
            until = time.monotonic() + keep
            if isinstance(link, Outcome):
                ends: Sequence[Any] = [link] * len(part)
            else:
                arguments: list[Any] = [self._keys.stream, self._keys.group, self._me, idle]
                for n in part:
                    arguments += (deliveries[n].token, self._known(deliveries[n]))
                ends = await self._flags(link, EXTEND, arguments, len(part))
            for n, end in zip(part, ends, strict=True):
                if isinstance(end, Outcome):
                    outcomes[n] = end
                elif end:
                    deliveries[n].lease_until = until
                    outcomes[n] = OK
                else:
                    outcomes[n] = self._lose(deliveries[n])
        return outcomes

    # ------------------------------------------------------------------------------------------------ the three ways

    async def _acknowledge(
        self, link: Link, batch: Sequence[Settlement], outcomes: list[Outcome], numbers: list[int]
    ) -> None:
        stream, group = self._keys.stream, self._keys.group
        ids = [batch[n][0].token for n in numbers]
        commands: list[Command]
        if self._exact:
            commands = [("XACKDEL", stream, group, "ACKED", "IDS", len(ids), *ids)]
        elif self._deletes:
            # In this order: what is deleted and still pending vanishes with the next claim; what is neither would be a stray.
            commands = [("XDEL", stream, *ids), ("XACK", stream, group, *ids)]
        else:
            commands = [("XACK", stream, group, *ids)]
        try:
            reply = (await link.call(commands))[-1]
        except LinkLost as error:
            reply = error
        if isinstance(reply, Exception):
            self._failed(batch, outcomes, numbers, reply)
        elif self._exact and -1 in reply:
            self._ended(batch, outcomes, numbers, [end != -1 for end in reply])
        elif reply == 0:  # the stream was emptied, or the group made anew
            self._ended(batch, outcomes, numbers, [False] * len(numbers))
        else:
            out = self.out
            for id in ids:
                del out[id]

    async def _guarded(
        self, link: Link, batch: Sequence[Settlement], outcomes: list[Outcome], numbers: list[int]
    ) -> None:
        arguments = [self._keys.stream, self._keys.group, self._me, "xdel" if self._deletes else "keep"]
        arguments += [batch[n][0].token for n in numbers]
        ends = await self._flags(link, ACK, arguments, len(numbers))
        self._ended(batch, outcomes, numbers, ends)

    async def _park(
        self, link: Link, batch: Sequence[Settlement], outcomes: list[Outcome], numbers: list[int]
    ) -> float:
        arguments: list[Any] = [self._keys.stream, self._keys.parked, self._keys.group, self._me]
        soonest = math.inf
        for n in numbers:
            delivery, verdict = batch[n]
            if isinstance(verdict, Retry) and verdict.delay > 0:
                delay = min(verdict.delay, _MAX_DELAY)
                arguments += (delivery.token, math.ceil(round(delay * 1000, 3)), -1, self._known(delivery))
                soonest = min(soonest, delay)
            else:
                back = delivery.count - 1 if isinstance(verdict, Release) and not verdict.died else -1
                arguments += (delivery.token, -1, back, self._known(delivery))
                soonest = 0.0
        self._ended(batch, outcomes, numbers, await self._flags(link, PARK, arguments, len(numbers)))
        return soonest

    @staticmethod
    def _known(delivery: Any) -> int:
        """The count of a delivery that is certainly still ours; 0 where it may have been settled, or claimed."""
        return 0 if delivery.unsure or delivery.lease_until <= time.monotonic() else delivery.count

    # ------------------------------------------------------------------------------------------------ what comes of it

    async def _connected(self) -> Link | Outcome:
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                return await self._line.get()
        except (AtLeastOnceError, TimeoutError) as error:
            return unknown(classify(error).code, f"not told: {error}")

    async def _flags(self, link: Link, script: Any, arguments: list[Any], count: int) -> Sequence[Any]:
        """Of each item whether it was still ours, or the outcome where the script could not be run."""
        try:
            (reply,) = await link.run(script, [arguments])
        except FAILURES as error:
            reply = error
        if isinstance(reply, ReplyError) and classify(reply).code is Code.NOT_FOUND:
            return [0] * count
        if isinstance(reply, Exception):
            return [self._outcome(reply)] * count
        if restored := reply.count(2):
            self.on_restored(restored)
        return list(reply)

    @staticmethod
    def _outcome(error: Exception) -> Outcome:
        fault = classify(error)
        if isinstance(error, LinkLost) or fault.retryable:
            return unknown(fault.code, fault.detail, scope=fault.scope)
        return rejected(fault.code, fault.detail, scope=fault.scope)

    def _failed(
        self, batch: Sequence[Settlement], outcomes: list[Outcome], numbers: list[int], error: Exception
    ) -> None:
        self._ended(batch, outcomes, numbers, [self._outcome(error)] * len(numbers))

    def _unsure(
        self, batch: Sequence[Settlement], outcomes: list[Outcome], numbers: list[int], outcome: Outcome
    ) -> None:
        self._ended(batch, outcomes, numbers, [outcome] * len(numbers))

    def _ended(
        self, batch: Sequence[Settlement], outcomes: list[Outcome], numbers: list[int], ends: Sequence[Any]
    ) -> None:
        now = time.monotonic()
        for n, end in zip(numbers, ends, strict=True):
            delivery: Any = batch[n][0]
            if isinstance(end, Outcome):
                delivery.verdict = None  # to be repeated
                delivery.unsure = True
                outcomes[n] = end
            elif end or (delivery.unsure and delivery.lease_until > now):
                # What is no longer ours while our lease runs was settled by the attempt whose answer was lost.
                self.out.pop(delivery.token, None)
            else:
                delivery.verdict = outcomes[n] = self._lose(delivery)

    def _lose(self, delivery: Delivery) -> Outcome:
        delivery.lost = True
        if self.out.get(delivery.token) is delivery:
            del self.out[delivery.token]
        return STALE
