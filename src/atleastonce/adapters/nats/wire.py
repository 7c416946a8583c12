"""nats-py's client with its reading replaced: bytes are taken apart in one go as the socket brings them, and messages go to sinks,
not through streams and queues.

nats-py connects, greets, authenticates, upgrades to TLS and pings. It is told not to reconnect: a connection has one life, and
everything that ends it ends in one place, whatever nats-py would have made of it (closing for good, reconnecting, or a reader
that stopped without a word).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.transport import Transport

from atleastonce.adapters.nats.reading import Reading, take_over
from atleastonce.errors import PermissionDenied
from atleastonce.silence import Silence

Sink = Callable[[bytes, bytes, bytes, bytes], None]
"""Told of each message: subject, reply subject, header block, body. Must not raise."""

# nats-py reports through callbacks and, where it gives up, through its logger. What matters of it travels in exceptions,
# conditions and outcomes; a program that wants nats-py's account as well configures its logger.
_nats = logging.getLogger("nats")
_nats.addHandler(logging.NullHandler())
log = logging.getLogger("atleastonce.nats")

_LONGEST_LINE = 1 << 20
"""Bytes of a control line: an INFO of a large cluster is the longest."""
_PASSING = ("invalid subject", "invalid publish subject", "permissions violation")


class ServerError(Exception):
    """The server said ``-ERR``, and hangs up."""


class Wire(Client):
    """One connection. Dead once ``lost`` is set. ``silence`` is told of all that is read; of what is waited for by who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: Exception | None = None
        self.on_lost: Callable[[Exception], None] = lambda _: None
        self.on_denied: Callable[[str], None] = lambda _: None
        """Told what the server may have dropped, as it says it: ``permissions violation for publish to "x"``."""
        self.after_read: Callable[[], None] = lambda: None
        self.silence = Silence()
        self.discovered: tuple[str, ...] = ()
        self._sinks: dict[bytes, Sink] = {}
        self._last_sid = 0
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._needed = 0
        self._must_be_tls = False
        self._reading: Reading | None = None

    def _connect_command(self) -> bytes:
        # nats-py upgrades where the server demands it, and else goes on in the clear, credentials and all.
        writer = getattr(self._transport, "_io_writer", None)
        if self._must_be_tls and (writer is None or writer.get_extra_info("ssl_object") is None):
            raise ConnectionError("the server offers no TLS, which the URL asks for; no credentials were sent")
        command: bytes = super()._connect_command()
        return command

    @classmethod
    async def open(cls, server: str, arguments: dict[str, Any], seconds: float) -> Wire:
        """Connect to ``server`` and greet it.

        Raises:
            Exception: nats-py's, for `atleastonce.adapters.nats.faults`.
        """
        wire = cls()
        wire._must_be_tls = server.startswith("tls://")
        try:
            async with asyncio.timeout(seconds):  # a peer that accepts and never answers
                await wire.connect(servers=[server], error_cb=wire._told, **arguments)
        except BaseException as error:
            wire.end(error if isinstance(error, Exception) else ConnectionError("cancelled"))
            raise
        return wire

    # ------------------------------------------------------------------------------------------------------- for us

    @property
    def server_version(self) -> tuple[int, ...]:
        """The server's."""
        text = str(self._server_info.get("version", "")).partition("-")[0]
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    @property
    def largest(self) -> int:
        """Bytes of header block and body together that the server takes; more ends the connection."""
        return int(self._server_info.get("max_payload", 1024 * 1024))

    @property
    def _stream(self) -> Transport:
        if self._transport is None:
            raise ConnectionError("not connected")
        return self._transport

    def listen(self, subject: str, sink: Sink, group: str = "") -> bytes:
        """Subscribe, as one of ``group`` if it has a name; returns what `mute` wants."""
        self._last_sid += 1
        sid = b"%d" % self._last_sid
        self._sinks[sid] = sink
        self.put(f"SUB {subject} {f'{group} ' if group else ''}".encode() + b"%s\r\n" % sid)
        return sid

    def mute(self, sid: bytes) -> None:
        """Tell the server to send no more. What was on its way still reaches the sink, until `forget`."""
        self.put(b"UNSUB %s\r\n" % sid)

    def forget(self, sid: bytes) -> None:
        """Let go of a sink."""
        self._sinks.pop(sid, None)

    def put(self, data: bytes) -> None:
        """Send whole protocol lines; into the void if the connection is gone."""
        if self.lost is None:
            self._stream.write(data)

    async def drained(self) -> None:
        """Until the socket has taken most of what was put.

        Raises:
            OSError: the connection is gone.
        """
        if self.lost is not None:
            raise ConnectionResetError(str(self.lost))
        if self._reading is not None and not self._reading.full:
            return
        try:
            await self._stream.drain()  # type: ignore[no-untyped-call]
        except OSError as error:
            self.end(error)
            raise

    def ping(self) -> asyncio.Future[Any]:
        """Done when the server has read all that was put before; fails with the connection."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.lost is not None:
            answer.set_exception(self.lost)
        else:
            self._pongs.append(answer)
            self.put(b"PING\r\n")
        return answer

    async def goodbye(self, seconds: float) -> None:
        """Flush and hang up. Silent if it is dead already."""
        if self.lost is None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(seconds):
                    await self.ping()
        self.end(ConnectionError("closed"))

    # --------------------------------------------------------------------------------------------- nats-py's own hooks

    async def _select_next_server(self) -> None:
        server = self._server_pool[0]
        await self._connect_to_server(server)
        self._current_server = server

    async def _told(self, error: Exception) -> None:
        log.debug("nats-py: %r", error)

    async def _process_op_err(self, e: Exception) -> None:
        self.end(e)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self.end(ConnectionError("closed"))

    async def _read_loop(self) -> None:
        """Begin to read. Nothing of nats-py's own reading is left running."""
        stream: Any = self._stream
        try:
            self._reading = await take_over(stream._io_reader, stream._io_writer.transport, self.came, self.end)
        except Exception as error:  # noqa: BLE001 - a reader that does not begin, and says no word, would hang everything above it
            self.end(error)

    def end(self, reason: Exception) -> None:
        """The one end of a connection."""
        if self.lost is not None:
            return
        self.lost = reason
        self._status = Client.CLOSED
        current = asyncio.current_task()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not current:
                task.cancel()
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()  # a polite close waits for a peer that may be gone
        pongs, self._pongs = self._pongs, []
        for answer in pongs:
            if not answer.done():
                answer.set_exception(reason)
                answer.exception()  # whoever waits is told; nobody has to
        self._sinks.clear()
        self.on_lost(reason)

    # ------------------------------------------------------------------------------------------------------ reading

    def came(self, data: bytes) -> None:
        """Bytes from the socket. Never raises: what cannot be read ends the connection."""
        try:
            self.feed(data)
        except Exception as error:  # noqa: BLE001 - whatever a strange server sends
            self.end(error)

    def feed(self, data: bytes) -> None:
        """Take what came apart. What is not whole yet is kept, without a copy for each piece of it."""
        self.silence.heard()
        if self._kept_size:
            self._kept.append(data)
            self._kept_size += len(data)
            if self._kept_size < self._needed:
                return
            data = b"".join(self._kept)
        at = self._parse(data)
        left = len(data) - at
        self._kept = [data[at:]] if left else []
        self._kept_size = left
        self.after_read()

    def _parse(self, data: bytes) -> int:
        """Handle all whole messages; returns how far it came, and leaves in ``_needed`` how many bytes to wait for."""
        find, sinks, end = data.find, self._sinks, len(data)
        at = 0
        self._needed = 0
        while at < end:
            eol = find(b"\r\n", at)
            if eol < 0:
                if end - at > _LONGEST_LINE:
                    raise ValueError("a control line without an end")
                break
            kind = data[at]
            if kind == 72:  # HMSG subject sid [reply] header-bytes total-bytes
                parts = data[at + 5 : eol].split()
                start = eol + 2
                stop = start + int(parts[-1])
                if stop + 2 > end:
                    self._needed = stop + 2 - at
                    break
                sink = sinks.get(parts[1])
                if sink is not None:
                    body = start + int(parts[-2])
                    sink(parts[0], parts[2] if len(parts) == 5 else b"", data[start:body], data[body:stop])
                at = stop + 2
            elif kind == 77:  # MSG subject sid [reply] bytes
                parts = data[at + 4 : eol].split()
                start = eol + 2
                stop = start + int(parts[-1])
                if stop + 2 > end:
                    self._needed = stop + 2 - at
                    break
                sink = sinks.get(parts[1])
                if sink is not None:
                    sink(parts[0], parts[2] if len(parts) == 4 else b"", b"", data[start:stop])
                at = stop + 2
            else:
                self._control(data[at:eol])
                at = eol + 2
        return at

    def _control(self, line: bytes) -> None:
        if line.startswith(b"PING"):
            self.put(b"PONG\r\n")
        elif line.startswith(b"PONG"):
            self._pings_outstanding = 0
            if self._pongs:
                answer = self._pongs.pop(0)
                if not answer.done():
                    answer.set_result(True)
        elif line.startswith(b"INFO "):
            self._server_info.update(msgspec.json.decode(line[5:], type=dict[str, Any]))
            self.discovered = tuple(self._server_info.get("connect_urls") or ())
        elif line.startswith(b"-ERR"):
            self._error(line[4:].decode("utf-8", "replace").strip().strip("'"))
        elif not line.startswith(b"+OK") and line:
            raise ValueError(f"the server speaks another protocol: {line[:40]!r}")

    def _error(self, text: str) -> None:
        said = text.lower()
        if said.startswith(_PASSING):
            self.on_denied(text)
        elif said.startswith(("authorization", "authentication", "user authentication", "account authentication")):
            self.end(PermissionDenied(text))
        else:  # the server hangs up after these; so do we, and begin anew
            self.end(ServerError(text))
