"""One connection on which commands are pipelined and replies are handed back in order, by the batch.

redis-py connects (addresses, TLS, login, database); after that its socket is ours. Its own reading and writing cost more for
each command than everything else here, and a command of it that is cancelled leaves a reply behind for the next one to take
as its own (CVE-2023-28858). Here a reply belongs to its place in the queue, whether anybody still waits for it or not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from atleastonce.adapters.redis_streams.config import Config
from atleastonce.adapters.redis_streams.faults import GONE, LinkLost, ReplyError, as_error, classify
from atleastonce.adapters.redis_streams.scripts import Script
from atleastonce.contract import Code
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed
from atleastonce.silence import Silence

Command = tuple[Any, ...]
pack: Callable[[Command], bytes] = hiredis.pack_command

_NOT_ENOUGH: Final = object()


class _Call:
    """Commands written together, and the future of all their replies."""

    __slots__ = ("future", "replies", "wanted")

    def __init__(self, wanted: int, future: asyncio.Future[list[Any]]) -> None:
        self.wanted = wanted
        self.future = future
        self.replies: list[Any] = []


class Link(asyncio.Protocol):
    """From `Link.open`; dead for good once ``closed`` says why."""

    def __init__(self, connection: Any, patience: float, silence: Silence) -> None:
        self._patience = patience
        self._silence = silence
        self.closed: LinkLost | None = None
        self._connection = connection  # its writer would close the socket if it were collected
        self._transport: Any = connection._writer.transport
        self._reader = hiredis.Reader(protocolError=LinkLost, replyError=ReplyError, notEnoughData=_NOT_ENOUGH)
        self._calls: deque[_Call] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(cls, config: Config, purpose: str, silence: Silence) -> Link:
        """Connect to the first host that serves; ``silence`` is told what is owed, and of all that comes.

        Raises:
            AtLeastOnceError: none does.
        """
        failure: AtLeastOnceError | None = None
        for host, port in config.hosts:
            connection = config.connect(host, port, purpose)
            try:
                async with asyncio.timeout(config.connect_timeout):
                    await connection.connect()  # type: ignore[no-untyped-call]
                    link = cls(connection, config.operation_timeout, silence)
                    link._transport.set_protocol(link)
                    if len(config.hosts) > 1:
                        await link._refuse_a_replica(host)
            except Exception as error:  # noqa: BLE001 - whatever redis-py makes of a failing network
                if connection._writer is not None:
                    connection._writer.transport.abort()
                found = as_error(error, f"Redis at {host}:{port}")
                # Of several hosts' failures the one that explains most: a refusal before a silence.
                if failure is None or classify(error).code is Code.PERMISSION:
                    failure = found
            except BaseException:
                if connection._writer is not None:
                    connection._writer.transport.abort()
                raise
            else:
                return link
        raise failure or BrokerUnavailable("no host to connect to")

    async def _refuse_a_replica(self, host: str) -> None:
        (role,) = await self.submit(pack(("ROLE",)), 1)
        if isinstance(role, list) and role and role[0] != b"master":
            raise LinkLost(f"{host} is a {role[0].decode()}")

    # ------------------------------------------------------------------------------------------------ commands

    def submit(self, data: bytes, wanted: int) -> asyncio.Future[list[Any]]:
        """Write packed commands; the future is of their ``wanted`` replies, errors among them as `ReplyError`."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.closed is not None:
            future.set_exception(LinkLost(str(self.closed)))
            future.exception()  # nobody may ask
            return future
        self._calls.append(_Call(wanted, future))
        self._transport.write(data)
        return future

    async def call(self, commands: Sequence[Command], within: float | None = None) -> list[Any]:
        """The replies to ``commands``, errors among them as `ReplyError`.

        Raises:
            LinkLost: the connection ended, or did not answer in time and was ended.
        """
        return await self.answered(self.submit(b"".join(map(pack, commands)), len(commands)), within)

    async def answered(
        self, replies: asyncio.Future[list[Any]], within: float | None = None, *, waits: float = 0.0
    ) -> list[Any]:
        """The result of ``replies``. Cancelled, it leaves the replies to come and be dropped."""
        seconds = self._patience if within is None else within
        timer = self._loop.call_later(seconds, self._too_late, replies, seconds)
        try:
            with self._silence.until("a reply", allowed=waits):
                return await asyncio.shield(replies)
        finally:
            timer.cancel()

    async def ask(self, *command: Any, within: float | None = None, waits: float = 0.0) -> Any:
        """The reply to one command, with which the server may wait for so many seconds.

        Raises:
            ReplyError: it is an error.
            LinkLost: as `call`.
        """
        (reply,) = await self.answered(self.submit(pack(command), 1), within, waits=waits)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def run(self, script: Script, calls: Sequence[Sequence[Any]], within: float | None = None) -> list[Any]:
        """The replies of ``script``, run once for each of ``calls`` (keys, then arguments)."""
        count = script.keys
        packed = [pack(("EVALSHA", script.sha, count, *arguments)) for arguments in calls]
        replies = await self.answered(self.submit(b"".join(packed), len(packed)), within)
        missing = [at for at, reply in enumerate(replies) if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT"]
        if missing:  # a new server, or its scripts were flushed: none of these was run
            load = pack(("SCRIPT", "LOAD", script.text))
            again = b"".join([load, *(packed[at] for at in missing)])
            _, *late = await self.answered(self.submit(again, 1 + len(missing)), within)
            for at, reply in zip(missing, late, strict=True):
                replies[at] = reply
        return replies

    async def writable(self) -> None:
        """Until the socket takes more."""
        await self._writable.wait()

    def _too_late(self, replies: asyncio.Future[list[Any]], timeout: float) -> None:
        if not replies.done():
            self.end(LinkLost(f"no answer within {timeout:g} s"))

    def end(self, reason: LinkLost) -> None:
        """Drop the connection; what is unanswered fails with ``reason``."""
        if self.closed is not None:
            return
        self.closed = reason
        self._transport.abort()
        calls, self._calls = self._calls, deque()
        for call in calls:
            if not call.future.done():
                call.future.set_exception(LinkLost(str(reason)))
                call.future.exception()  # nobody may be waiting any more
        self._writable.set()
        if not self.ended.done():
            self.ended.set_result(None)

    # ------------------------------------------------------------------------------------------ asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._silence.heard()
        reader = self._reader
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not _NOT_ENOUGH:
                self._take(reply)
                reply = reader.gets()
        except LinkLost as error:
            self.end(LinkLost(f"what came is not Redis's protocol: {error}"))

    def _take(self, reply: Any) -> None:
        if not self._calls:
            self.end(LinkLost(f"the server spoke unasked: {reply!r:.100}"))
            return
        call = self._calls[0]
        call.replies.append(reply)
        if len(call.replies) == call.wanted:
            self._calls.popleft()
            if not call.future.done():
                call.future.set_result(call.replies)
        if reply.__class__ is ReplyError and reply.code in GONE:
            self.end(LinkLost(str(reply)))

    def connection_lost(self, error: Exception | None) -> None:
        self.end(LinkLost(str(error) if error else "the server closed the connection"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


class Line:
    """A link that is made anew when it is gone, for one purpose. ``silence`` may be shared by lines to one server."""

    def __init__(self, config: Config, purpose: str, silence: Silence | None = None) -> None:
        self.current: Link | None = None
        self.silence = silence or Silence()
        self._config = config
        self._purpose = purpose
        self._turn = asyncio.Lock()
        self._shut = False

    async def get(self) -> Link:
        """The open link.

        Raises:
            AtLeastOnceError: as `Link.open`.
            Closed: `close` was called.
        """
        if self._shut:
            raise Closed("the adapter is closed")
        link = self.current
        if link is not None and link.closed is None:
            return link
        async with self._turn:
            if self.current is None or self.current.closed is not None:
                link = await Link.open(self._config, self._purpose, self.silence)
                self.current = link
                self._refuse_if_shut(link)
            return self.current

    def _refuse_if_shut(self, link: Link) -> None:
        if self._shut:  # meanwhile
            link.end(LinkLost("closed by us"))
            raise Closed("the adapter is closed")

    def close(self) -> None:
        """End the link for good."""
        self._shut = True
        if self.current is not None:
            self.current.end(LinkLost("closed by us"))
