"""One reader of a group: a connection of its own for reads that wait, and turns of housekeeping between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from atleastonce.adapters.redis_streams.config import Config
from atleastonce.adapters.redis_streams.entries import EntryDelivery, Layout
from atleastonce.adapters.redis_streams.faults import FAILURES, LinkLost, ReplyError, as_error, classify
from atleastonce.adapters.redis_streams.keys import Keys
from atleastonce.adapters.redis_streams.link import Line, Link, pack
from atleastonce.adapters.redis_streams.scripts import ALONE, LEAVE, TURN
from atleastonce.adapters.redis_streams.server import Server
from atleastonce.adapters.redis_streams.settling import Settling
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import RELEASE, STALE, Delivery, Listener, Outcome, Settlement, Subscription, Window
from atleastonce.errors import AtLeastOnceError, Closed, ConnectionLost, NotFound, PermissionDenied
from atleastonce.silence import Owed

_EPOCHS: Final = itertools.count(1)
_BACKOFF: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_GRACE: Final = 5.0
"""Seconds that the answer to a read may take beyond its own waiting; also what a goodbye may take."""
_PAGE: Final = 1000
_STAND_BY: Final = 0.1
"""Seconds between two looks whether the one reader of a channel is gone. Longer: a longer pause when it goes. Shorter: more
questions to the server, from each of those who stand by."""
_FIRST: Final = 8
"""Entries that a read may bring after a silence. Each full one doubles it: how large they are is known only once they came."""

log = logging.getLogger("atleastonce.redis")


class RedisSubscription(Subscription):
    """From `RedisAdapter.subscribe`. Leases do not hang on the connection: a lost one is made anew, and nothing is lost."""

    def __init__(
        self,
        config: Config,
        source: Source,
        window: Window,
        listener: Listener,
        layout: Layout,
        control: Line,
        server: Server,
    ) -> None:
        self.on_end: Callable[[RedisSubscription], None] = lambda _: None
        self._config = config
        self._source = source
        self._window = window
        self._listener = listener
        self._layout = layout
        self._control = control
        self._keys = Keys(source)
        self._epoch = next(_EPOCHS)
        self._lease_ms = max(1, round(config.lease * 1000))
        host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())[:60]
        self.consumer = f"{config.client_name}-{host}-{os.getpid()}-{secrets.token_hex(4)}~{self._lease_ms}"
        deletes = not isinstance(source.channel, Topic)
        self._settling = Settling(config, self._keys, self.consumer, self._epoch, control, deletes, server.xackdel)
        self._settling.on_restored = self._restored
        self._xnack = int(server.xnack)
        self._alone = isinstance(source.channel, Queue | Topic) and source.channel.single_active
        self._queue = int(deletes)
        self._line = Line(config, "reader", control.silence)
        self._link: Link | None = None
        self._client_id = 0
        self._poll = min(config.poll, config.lease / 4)
        self._tick_ms = max(10, round(min(1.0, config.lease / 4) * 1000))
        self._turn_due = 0.0
        self._buffer: deque[list[EntryDelivery]] = deque()  # of one lease end each
        self._more = False  # whether the last read was as long as it might be
        self._reach = _FIRST  # how many the next read may bring, whatever the window has room for
        self._largest = self._typical = 0  # bytes of what came, the latter of late
        self._reading: asyncio.Task[None] | None = None
        self._blocked_until = 0.0
        self._changed = asyncio.Event()
        self._failures = 0
        self._paused = False
        self._closed = False
        self._error: AtLeastOnceError | None = None

    async def begin(self) -> None:
        """Connect, and see that the group is there and that what is read may be settled.

        Raises:
            NotFound, BrokerUnavailable, PermissionDenied: as named.
        """
        try:
            link = await self._connected()
            await self._turn(link, 0)
            await self._settling.ensure_allowed(link)
        except FAILURES as error:
            raise self._failed(error) from error

    @property
    def stale(self) -> int:
        """Settlements of earlier epochs that were dropped."""
        return self._settling.stale

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + max_wait
        first = True
        while True:
            if self._closed:
                raise Closed(f"{self._source.name}: the subscription is closed")
            if self._error is not None:
                raise self._error
            if self._buffer and (found := self._hand_out(max_messages)):
                if (
                    self._more
                    and not self._paused
                    and self._reading is None
                    and (room := self._room(self._window.messages)) > 0
                ):
                    # The server reads on while these are handled, within the window.
                    _ = self._begin_read(room, self._poll)
                return found
            left = deadline - time.monotonic()
            if left <= 0 and not first:
                return ()
            first = False
            self._changed.clear()
            if self._reading is None and not self._paused and (room := self._room(max_messages)) > 0:
                reading = self._begin_read(room, left)
                if left <= 0:  # does not wait: one round trip
                    await asyncio.wait([reading])
                    continue
            if self._reading is not None:
                await asyncio.wait([self._reading], timeout=max(0.0, left))
            else:
                await self._wait(min(left, self._lease_ends()))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _room(self, most: int) -> int:
        out = self._settling.out
        if len(out) >= self._window.messages:
            # A lease that is over counts no longer: others may have it.
            now = time.monotonic()
            for delivery in [each for each in out.values() if each.lease_until <= now]:
                del out[delivery.token]
        # A quarter of the window at once: the rest is read while this is handled and acknowledged.
        count = min(most, (self._window.messages + 3) // 4, self._window.messages - len(out), self._reach)
        if count <= 0 or (len(out) + count) * self._largest <= self._window.bytes:
            return count
        left = self._window.bytes - sum(each.size for each in out.values())
        return max(1, min(count, left // max(1, self._typical))) if left > 0 else 0

    def _came(self, batch: Sequence[EntryDelivery], asked: int) -> None:
        """Learn from what a read has brought. Redis cannot be asked for so many bytes, only for so many entries."""
        sizes = [delivery.size for delivery in batch]
        self._largest = max(self._largest, *sizes)
        mean = sum(sizes) // len(sizes)
        self._typical = max(mean, (3 * self._typical + mean) // 4)  # up at once, down slowly
        reach = 2 * (self._reach if len(batch) == asked else len(batch))
        self._reach = min(max(_FIRST, reach), self._window.messages)

    def _lease_ends(self) -> float:
        """Seconds until a full window has room again by itself."""
        ends = (delivery.lease_until for delivery in self._settling.out.values())
        return max(0.01, min(ends, default=math.inf) - time.monotonic())

    def _hand_out(self, most: int) -> list[EntryDelivery]:
        buffer, now = self._buffer, time.monotonic()
        while buffer:
            batch = buffer.popleft()
            if batch[0].lease_until <= now:  # they lay here until their lease was over; they will come again
                self._forget(batch)
            elif len(batch) <= most:
                return batch
            else:
                buffer.appendleft(batch[most:])
                return batch[:most]
        return []

    def _forget(self, batch: Sequence[EntryDelivery]) -> None:
        out = self._settling.out
        for delivery in batch:
            if out.get(delivery.token) is delivery:
                del out[delivery.token]

    # ------------------------------------------------------------------------------------------------------- one reading

    def _begin_read(self, count: int, patience: float) -> asyncio.Task[None]:
        self._reading = asyncio.create_task(self._read(count, patience), name=f"redis read {self._source.name}")
        return self._reading

    async def _read(self, count: int, patience: float) -> None:
        """One look for messages, waiting for at most ``patience`` seconds and never longer than a poll. Never raises."""
        try:
            link = await self._connected()
            if time.monotonic() >= self._turn_due and await self._turn(link, count):
                return
            look = self._next_alone if self._alone else self._next
            await look(link, count, min(patience, self._poll, self._turn_due - time.monotonic()))
            self._failures = 0
        except LinkLost as error:
            await self._disconnected(str(error))
        except AtLeastOnceError as error:
            if isinstance(error, NotFound | PermissionDenied | Closed):
                self._error = error
            else:
                await self._disconnected(str(error))
        except FAILURES as error:
            if classify(error).retryable:
                await self._disconnected(str(error))
            else:
                self._error = self._failed(error)
        finally:
            self._blocked_until = 0.0
            self._reading = None
            self._changed.set()

    def _failed(self, error: BaseException) -> AtLeastOnceError:
        found = as_error(error, f"{self._source.name}", lost=True)
        return found if isinstance(found, NotFound | PermissionDenied) else ConnectionLost(str(found))

    async def _disconnected(self, why: str) -> None:
        self._failures += 1
        if self._failures == 1:
            self._listener.condition("disconnected", why)
        if not self._closed:
            await asyncio.sleep(_BACKOFF[min(self._failures, len(_BACKOFF)) - 1])

    async def _next(self, link: Link, count: int, wait: float) -> None:
        """What is new in the stream."""
        command: list[Any] = ["XREADGROUP", "GROUP", self._keys.group, self.consumer, "COUNT", count]
        block = math.ceil(wait * 1000)
        asked = time.monotonic()
        if block > 0:  # BLOCK 0 is for ever
            command += ("BLOCK", block)
            self._blocked_until = asked + wait
        wait = max(0.0, wait)
        reply = await link.ask(*command, "STREAMS", self._keys.stream, ">", within=wait + _GRACE, waits=wait)
        if not reply:
            self._more = False
            self._reach = _FIRST
            return
        entries = reply[0][1]
        self._more = len(entries) == count
        layout, source, name = self._layout, self._source, self._source.channel.name
        epoch, until = self._epoch, asked + self._config.lease
        batch = [EntryDelivery(layout, source, name, epoch, id, fields, 1, until) for id, fields in entries]
        self._came(batch, count)
        self._settling.out.update(zip([id for id, _ in entries], batch, strict=True))
        self._buffer.append(batch)

    async def _next_alone(self, link: Link, count: int, wait: float) -> None:
        """What is next in the stream, unless somebody else reads it: see `ALONE`."""
        keys, asked = self._keys, time.monotonic()
        (reply,) = await link.run(ALONE, [[keys.stream, keys.parked, keys.group, self.consumer, count, self._lease_ms]])
        if isinstance(reply, ReplyError):
            raise reply
        found, free, last = reply
        self._more = len(found) == count
        if found:
            self._claimed(found, asked + self._config.lease)
            return
        self._reach = _FIRST
        if not free:
            await asyncio.sleep(max(0.0, min(wait, _STAND_BY)))
        elif (
            last and (block := math.ceil(wait * 1000)) > 0
        ):  # a look that takes nothing: whoever sees it first asks again
            self._blocked_until = time.monotonic() + wait
            look = ("XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", keys.stream, last)
            await link.ask(*look, within=wait + _GRACE, waits=wait)

    async def _turn(self, link: Link, count: int) -> bool:
        """Everything that is not new: see `TURN`. Whether it brought something."""
        keys, asked = self._keys, time.monotonic()
        arguments: list[Any] = [keys.stream, keys.parked, keys.later, keys.due, keys.tick, keys.strays, keys.about]
        arguments += [keys.group, self.consumer, count, self._lease_ms, self._tick_ms, self._xnack, self._queue]
        arguments.append(int(not self._alone))
        (reply,) = await link.run(TURN, [arguments])
        if isinstance(reply, ReplyError):
            raise reply
        found, wake, strayed = reply
        if strayed:
            self._tell(
                f"{strayed} entries were pending for nobody (XGROUP DELCONSUMER takes them along) and are handed out again"
            )
        self._turn_due = asked + (self._poll if wake < 0 else min(self._poll, wake / 1000 + 0.001))
        self._claimed(found, asked + self._config.lease)
        if len(found) >= count > 0:
            self._turn_due = asked  # there may be more
        return bool(found)

    def _claimed(self, found: Sequence[tuple[bytes, list[bytes], int]], until: float) -> None:
        if not found:
            return
        out, layout, source, name = self._settling.out, self._layout, self._source, self._source.channel.name
        batch = []
        for id, fields, count in sorted(found, key=_place):
            if (earlier := out.get(id)) is not None:
                earlier.lost = True
            out[id] = delivery = EntryDelivery(layout, source, name, self._epoch, id, fields, count, until)
            batch.append(delivery)
        self._came(batch, len(batch))
        self._buffer.append(batch)

    def _restored(self, count: int) -> None:
        text = "of ours had been taken out of the pending list (XGROUP DELCONSUMER does that) and were put back"
        self._tell(f"{count} deliveries {text}")

    def _tell(self, text: str) -> None:
        """What somebody did to the group, and what was done about it: for the log and for status."""
        log.warning("%s: %s", self._source.name, text)
        self._listener.condition("connected", text)

    # -------------------------------------------------------------------------------------------------------- connection

    async def _connected(self) -> Link:
        link = await self._line.get()
        if link is not self._link:
            client_id, group = await link.call([("CLIENT", "ID"), ("XPENDING", self._keys.stream, self._keys.group)])
            if isinstance(group, ReplyError):
                raise group
            self._client_id = client_id if isinstance(client_id, int) else 0
            if self._link is not None:
                await self._recover(link)
            self._link = link
            self._failures = 0
            self._listener.condition("connected", self._config.address)
        return link

    async def _recover(self, link: Link) -> None:
        """What was read by a command whose reply was lost is ours on the server, and nobody has seen it."""
        stream, group = self._keys.stream, self._keys.group
        start = b"-"
        while True:
            held = await link.ask("XPENDING", stream, group, start, "+", _PAGE, self.consumer)
            asked = time.monotonic()
            unseen = [
                (id, count)
                for id, _, idle, count in held
                if id not in self._settling.out and idle < self._lease_ms  # older ones come back by themselves
            ]
            commands = [("XCLAIM", stream, group, self.consumer, 0, id, "RETRYCOUNT", count) for id, count in unseen]
            replies = await link.call(commands) if commands else []
            found = [
                (reply[0][0], reply[0][1], count)
                for reply, (_, count) in zip(replies, unseen, strict=True)
                if isinstance(reply, list) and reply and reply[0]
            ]
            self._claimed(found, asked + self._config.lease)
            if len(held) < _PAGE:
                return
            start = b"(" + held[-1][0]

    def _nudge(self) -> None:
        """End the read that waits, so that the next turn comes now."""
        self._turn_due = 0.0
        link = self._control.current
        if self._blocked_until > time.monotonic() and self._client_id and link is not None and link.closed is None:
            # Nobody waits for the answer: where it is not permitted, the read ends by itself, after a poll.
            _ = link.submit(pack(("CLIENT", "UNBLOCK", self._client_id)), 1)

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(batch)
        outcomes, soonest = await self._settling.settle(batch)
        if soonest < math.inf:
            self._come_back(soonest)
        self._changed.set()  # the window has room
        return outcomes

    def _come_back(self, seconds: float) -> None:
        """Something that was given back is due in ``seconds``."""
        if seconds <= 0:
            self._nudge()
        elif seconds < self._poll:
            asyncio.get_running_loop().call_later(seconds + 0.001, self._nudge)
        self._turn_due = min(self._turn_due, time.monotonic() + seconds + 0.001)

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        return [STALE] * len(deliveries) if self._closed else await self._settling.extend(deliveries, seconds)

    # -------------------------------------------------------------------------------------------------------- lifecycle

    @property
    def overdue(self) -> Owed | None:
        return self._control.silence.look()

    async def pause(self) -> None:
        self._paused = True
        if self._reading is not None:
            self._nudge()
            await asyncio.wait([self._reading], timeout=_GRACE)

    async def resume(self) -> None:
        self._paused = False
        self._turn_due = 0.0
        self._changed.set()

    async def leave(self) -> None:
        await self.pause()
        await self._read_out()
        with contextlib.suppress(*FAILURES):  # `close` tries once more
            async with asyncio.timeout(_GRACE):
                await self._give_back()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        await self._read_out()
        link = self._control.current
        if link is not None and link.closed is None:
            try:
                async with asyncio.timeout(_GRACE):
                    await self._give_back()
                    await link.run(LEAVE, [[self._keys.stream, self._keys.group, self.consumer]], _GRACE)
            except FAILURES:
                pass  # what could not be released comes back when its lease ends
        self._buffer.clear()
        self._line.close()
        self.on_end(self)

    async def _read_out(self) -> None:
        """Have the read that is under way end, soon."""
        if (reading := self._reading) is not None:
            self._nudge()
            done, _ = await asyncio.wait([reading], timeout=self._poll + 1.0)
            if not done:
                reading.cancel()
                await asyncio.wait([reading])

    async def _give_back(self) -> None:
        """What was fetched and never handed out. Raises what the connection raises."""
        kept = [delivery for batch in self._buffer for delivery in batch]
        if kept:
            await self._settling.settle([(delivery, RELEASE) for delivery in kept])
            self._buffer.clear()


def _place(found: tuple[bytes, Any, Any]) -> tuple[int, int]:
    milliseconds, _, number = found[0].partition(b"-")
    return int(milliseconds), int(number)
