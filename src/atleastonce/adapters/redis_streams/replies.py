"""Answers: a stream for each process that asks, read without a group, which vanishes by itself soon after its owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from atleastonce.adapters.redis_streams.config import Config
from atleastonce.adapters.redis_streams.entries import Layout
from atleastonce.adapters.redis_streams.faults import LinkLost, ReplyError
from atleastonce.adapters.redis_streams.link import Line, Link
from atleastonce.contract import Arrived, Reply
from atleastonce.errors import AtLeastOnceError, Closed
from atleastonce.wire import CORRELATION

log = logging.getLogger("atleastonce.redis")

_ADDRESS = re.compile(r"alo\.reply\.[0-9a-f]{32}")

LIFE: Final = 60
"""Seconds that the stream outlives the last sign of its owner. Shorter: a pause of the owner loses the answers meanwhile. Longer:
the streams of processes that were killed stay as long."""
_SIGN: Final = 3.0
"""Seconds between such signs; a stream that was deleted is noticed by one, and made again. Longer: answers to who asks meanwhile
are lost for as long. Shorter: two commands more each time, of each process."""
_MANY: Final = 1000
"""Answers of one read. As many are left in the stream before they are trimmed."""
_LAST_ID: Final = b"%d-%d" % (2**64 - 1, 2**64 - 1)
"""Behind it a stream takes nothing more."""
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)


def is_inbox(address: str) -> bool:
    """Whether ``address`` is a stream for replies."""
    return _ADDRESS.fullmatch(address) is not None


class StreamInbox:
    """The stream of one process, made anew should it vanish."""

    def __init__(self, config: Config, layout: Layout, arrived: Arrived, ask: Callable[..., Awaitable[Any]]) -> None:
        self._ask = ask  # over a connection that is not busy reading
        self._line = Line(config, "replies")
        self._layout = layout
        self._arrived = arrived
        self._name = f"alo.reply.{secrets.token_hex(16)}"
        self._last: bytes = b"0-0"
        self._read = 0
        self._signed = 0.0
        self._spoilt = False  # by somebody: no answer can be added any more
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen.

        Raises:
            AtLeastOnceError, LinkLost, ReplyError: the server does not let us.
        """
        try:
            await self._make(await self._line.get())
        except BaseException:
            self._line.close()  # the stream, if it was made, ends by itself
            raise
        self._reading = asyncio.create_task(self._keep(), name="redis replies")

    def address(self, correlation: str) -> str:
        return self._name

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
            with contextlib.suppress(AtLeastOnceError):
                await self._ask("UNLINK", self._name)
        self._line.close()

    async def _make(self, link: Link) -> None:
        """Answers are only ever added to a stream that is there: so a responder knows when nobody waits."""
        group = ("XGROUP", "CREATE", self._name, "owner", "$", "MKSTREAM")
        made, kept = await link.call([group, ("EXPIRE", self._name, LIFE)])
        for reply in (made, kept):
            if isinstance(reply, ReplyError) and reply.code != "BUSYGROUP":
                raise reply
        self._last, self._read, self._signed, self._spoilt = b"0-0", 0, time.monotonic(), False

    async def _keep(self) -> None:
        attempt = 0
        while True:
            try:
                link = await self._line.get()
                while True:
                    await self._once(link)
                    attempt = 0
            except Closed:
                return
            except (AtLeastOnceError, LinkLost, ReplyError, OSError) as error:
                log.info("the stream of replies cannot be read (%s); trying again", error)
                self._spoilt = isinstance(error, ReplyError) and error.code == "WRONGTYPE"
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1

    async def _once(self, link: Link) -> None:
        """One read, and now and then a sign of life."""
        if self._spoilt:
            log.warning("the stream of replies was spoilt by somebody; making it again")
            _good(await link.call([("UNLINK", self._name)]))
            await self._make(link)
        left = self._signed + _SIGN - time.monotonic()
        if self._read >= _MANY or left <= 0:
            await self._sign(link)
            left = _SIGN
        # No longer than until the next sign: nothing wakes who reads a stream that is not there.
        wait = max(1, math.ceil(left * 1000))  # 0 would be for ever
        block = ("XREAD", "COUNT", _MANY, "BLOCK", wait, "STREAMS", self._name, self._last)
        (found,) = _good(await link.call([block], left + 10.0))
        if found:
            self._take(found[0][1])

    async def _sign(self, link: Link) -> None:
        """Not together with the read: its answer would come with that of the read, and be that much later."""
        now = time.monotonic()
        # An exact trim of what was read, and only of that.
        trim = ("XTRIM", self._name, "MINID", self._after())
        kept, _ = _good(await link.call([("EXPIRE", self._name, LIFE), trim]))
        self._read, self._signed = 0, now
        if not kept:  # it was deleted, or the server has lost it
            log.warning("the stream of replies is gone; making it again")
            await self._make(link)

    def _after(self) -> str:
        millis, _, sequence = self._last.decode().partition("-")
        return f"{millis}-{int(sequence) + 1}"

    def _take(self, entries: list[tuple[bytes, list[bytes]]]) -> None:
        self._last = entries[-1][0]
        self._spoilt = self._last == _LAST_ID
        self._read += len(entries)
        found = []
        for id, fields in entries:
            message = self._layout.message(self._name, id, fields)
            found.append(Reply(message.headers.get(CORRELATION) or "", message))
        self._arrived(found)


def _good(replies: Sequence[Any]) -> Sequence[Any]:
    """The answers, if none is an error. Else raises the first one."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies
