"""A connection that is made again, for ever, as long as the adapter is open."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Protocol

from atleastonce.adapters.nats import faults
from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.replies import Replies
from atleastonce.adapters.nats.wire import Wire
from atleastonce.contract import Code, Scope, unknown
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed, PermissionDenied

_OLDEST = (2, 10)
"""The first with consumers of several subjects."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Guest(Protocol):
    """Who lives on a link."""

    def connected(self, replies: Replies) -> None: ...

    def disconnected(self, reason: Exception) -> None: ...

    def denied(self, subject: str, said: str) -> None: ...

    def after_read(self) -> None: ...


class Link:
    """The one connection of an adapter.

    Attributes:
        replies: of the connection that is up; None while there is none.
        trouble: why there is none.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.replies: Replies | None = None
        self.trouble = "not opened"
        self.guests: set[Guest] = set()
        self._servers = list(config.servers)
        self._up = asyncio.Event()
        self._wanted = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            BrokerUnavailable, PermissionDenied: no server lets us.
        """
        if self._closed:
            raise Closed("the adapter is closed")
        if self.replies is None:
            self._take(await self._connect())

    async def get(self, seconds: float) -> Replies:
        """The connection, waiting for it at most so many ``seconds``.

        Raises:
            BrokerUnavailable: there is none, and why.
            Closed: the adapter is.
        """
        if self.replies is not None:
            return self.replies
        if self._keeper is not None:
            try:
                async with asyncio.timeout(seconds):
                    await self._up.wait()
            except TimeoutError:
                raise BrokerUnavailable(f"NATS at {self.config.address}: {self.trouble}") from None
        return self._present()

    def _present(self) -> Replies:
        if self._closed or self._keeper is None:
            raise Closed("the adapter is closed, or was not opened")
        if self.replies is None:  # lost again before we had our turn
            raise BrokerUnavailable(f"NATS at {self.config.address}: {self.trouble}")
        return self.replies

    async def ask(self, subject: str, question: object = None) -> dict[str, Any]:
        """A question to JetStream's API, without its prefix. Raises as `Replies.ask` and `get`."""
        timeout = self.config.request_timeout
        replies = await self.get(timeout)
        return await replies.ask(f"{self.config.api}.{subject}", question, timeout)

    async def ask_all(self, subject: str, questions: Sequence[object]) -> list[dict[str, Any] | faults.ApiFailure]:
        """Several at once. Raises as `Replies.ask_all` and `get`."""
        timeout = self.config.request_timeout
        replies = await self.get(timeout)
        return await replies.ask_all(f"{self.config.api}.{subject}", questions, timeout)

    async def close(self) -> None:
        self._closed = True
        self._up.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self.replies is not None:
            wire = self.replies.wire
            await wire.goodbye(self.config.request_timeout)
            await asyncio.sleep(0)  # the cancelled tasks of the client end

    async def _connect(self) -> Replies:
        """To the first server that lets us, and that lets us hear its answers."""
        error: AtLeastOnceError = BrokerUnavailable("no servers")
        for server in list(self._servers):
            where = f"NATS at {server.partition('://')[2]}"
            try:
                wire = await Wire.open(server, self.config.arguments(), self.config.connect_timeout)
            except Exception as reason:  # noqa: BLE001 - whatever a failing network or a strange server makes of it
                error = faults.as_error(reason, where)
                continue
            if wire.server_version < _OLDEST:
                await wire.goodbye(1.0)
                version = ".".join(map(str, wire.server_version))
                error = BrokerUnavailable(f"{where}: nats-server {version} is too old; 2.10 or later is needed")
                continue
            replies = Replies(wire, self.config.inbox_prefix)
            try:
                async with asyncio.timeout(self.config.connect_timeout):
                    await wire.ping()  # a refusal to let us listen comes before its answer
            except PermissionDenied as denied:
                error = PermissionDenied(f"{where}: {denied}")
            except Exception as reason:  # noqa: BLE001 - as above
                error = faults.as_error(reason, where)
            else:
                return replies
            wire.end(ConnectionError("not taken"))
        raise error

    def _take(self, replies: Replies) -> None:
        wire = replies.wire
        scheme = self.config.servers[0].partition("://")[0]
        known = [f"{scheme}://{each}" for each in wire.discovered]
        self._servers = list(dict.fromkeys([*self.config.servers, *known]))
        self.replies = replies
        wire.on_denied = self._denied
        wire.after_read = self._after_read
        wire.on_lost = self._lost
        self._up.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="nats link")
        for guest in tuple(self.guests):
            guest.connected(replies)
        if wire.lost is not None:  # already
            self._lost(wire.lost)

    def _lost(self, reason: Exception) -> None:
        replies = self.replies
        if replies is None:
            return
        self.replies = None
        self._up.clear()
        if self._closed:
            self._up.set()
        self.trouble = faults.classify(reason).detail
        replies.fail(
            reason, unknown(Code.UNAVAILABLE, f"the connection was lost: {self.trouble}", scope=Scope.CONNECTION)
        )
        for guest in tuple(self.guests):
            guest.disconnected(reason)
        self._wanted.set()

    def _denied(self, said: str) -> None:
        subject = faults.denied_subject(said)
        if self.replies is not None:
            self.replies.denied(subject, said)
        for guest in tuple(self.guests):
            guest.denied(subject, said)

    def _after_read(self) -> None:
        for guest in self.guests:
            guest.after_read()

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            pause = _FIRST_PAUSE
            while self.replies is None:
                try:
                    self._take(await self._connect())
                except Exception as error:  # noqa: BLE001 - it is tried for ever, and what failed is told to who asks
                    self.trouble = str(error)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, _LONGEST_PAUSE)
