"""What a service is doing, over HTTP: for probes of a platform, for Prometheus, and for people.

```python
from atleastonce.observe.http import StatusServer

async with StatusServer(service, "127.0.0.1:9090"):
    await service.serve()
```

``atleastonce run app:service --http 127.0.0.1:9090`` does the same. It only reads, and knows no passwords: who reaches it sees
names of channels and handlers, reasons of failures and hot keys. It runs on the event loop of the service, so that one which is
blocked does not answer: that is what a liveness probe is to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from atleastonce.errors import AtLeastOnceError, ConfigurationError
from atleastonce.observe.standing import Standing
from atleastonce.service import Service

log = logging.getLogger("atleastonce")

# What one client may send, and how long it may take for it. Less: long cookies of a browser are refused. More: whoever connects and
# says nothing keeps a connection for longer.
_LINE: Final = 8192
_LINES: Final = 100
_PATIENCE: Final = 5.0
_MOST: Final = 100
"""Connections at once. Fewer: a burst of probes is refused; more: whoever connects can use up the files of the service."""


class Page(NamedTuple):
    """An answer."""

    status: HTTPStatus
    body: bytes
    kind: str = "text/plain; charset=utf-8"


class StatusServer:
    """Answers while it is open: ``async with`` it, around `Service.serve` or within one's own loop.

    | path | answers |
    |---|---|
    | ``/status`` | JSON: `Standing.status` |
    | ``/healthz`` | 200, or 503 if a reader has ended for good or the service is to stop: a new start is what helps |
    | ``/readyz`` | 200 if every reader reads, or rests on purpose; 503 with a line for each that does neither |
    | ``/metrics`` | for Prometheus: `StatusCollector`; 501 without the extra ``prometheus`` |

    Args:
        service: what is asked: its `Service.status`, and its broker for what waits.
        address: ``HOST:PORT``; port 0 takes a free one, see ``port``.

    Attributes:
        port: that it listens at; 0 while it is closed.

    Raises:
        ConfigurationError: the address is none, or (when it is opened) cannot be listened at.
    """

    def __init__(self, service: Service, address: str) -> None:
        self.port = 0
        self._address = address
        self._host, self._wanted = _read(address)
        self._standing = Standing(service)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(self._connected, self._host, self._wanted, limit=_LINE)
        except OSError as error:
            raise ConfigurationError(
                f"the status cannot be served at {self._address}: {error.strerror or error}; give another HOST:PORT"
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("status at http://%s:%d/status", f"[{self._host}]" if ":" in self._host else self._host, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server, self.port = self._server, None, 0
        if server is not None:
            server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._standing.close()

    # ------------------------------------------------------------------------------------------------- one connection

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MOST:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="atleastonce-status")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        try:
            async with asyncio.timeout(_PATIENCE):
                method, path = await _asked(reader)
            page = await self._answer(method, path)
            head = method == "HEAD"
            async with asyncio.timeout(_PATIENCE):
                writer.write(_encoded(page, head=head))
                await writer.drain()
        except (OSError, TimeoutError, EOFError, ValueError):  # it hung up, dawdles, or speaks no HTTP
            pass
        except Exception:
            log.exception("the status could not be told")
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, method: str, path: str) -> Page:
        if method not in ("GET", "HEAD"):
            return Page(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
        pages: dict[str, Callable[[], Awaitable[Page]]] = {
            "/status": self._status,
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": self._metrics,
        }
        page = pages.get(path)
        if page is None:
            return Page(HTTPStatus.NOT_FOUND, f"there are {', '.join(pages)}\n".encode())
        return await page()

    async def _status(self) -> Page:
        return Page(HTTPStatus.OK, msgspec.json.encode(await self._standing.status()), "application/json")

    async def _health(self) -> Page:
        return _judged(self._standing.ended())

    async def _readiness(self) -> Page:
        return _judged(self._standing.unready())

    async def _metrics(self) -> Page:
        try:
            from atleastonce.observe.prometheus import exposition
        except AtLeastOnceError as missing:
            return Page(HTTPStatus.NOT_IMPLEMENTED, f"{missing}\n".encode())
        body, kind = exposition(self._standing.readers)
        return Page(HTTPStatus.OK, body, kind)


def _judged(why_not: list[str]) -> Page:
    if not why_not:
        return Page(HTTPStatus.OK, b"ok\n")
    return Page(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{line}\n" for line in why_not).encode())


async def _asked(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path of a request; its fields are read and not looked at.

    Raises:
        ValueError: it is no request, or a line of it is too long.
        EOFError: it ended early.
    """
    parts = (await reader.readline()).decode("ascii").split()
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise ValueError("no request")
    for _ in range(_LINES):
        line = await reader.readline()
        if not line:
            raise EOFError
        if line in (b"\r\n", b"\n"):
            return parts[0], parts[1].partition("?")[0]
    raise ValueError("too many fields")


def _encoded(page: Page, *, head: bool) -> bytes:
    fields = {
        "Content-Type": page.kind,
        "Content-Length": str(len(page.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        fields["Allow"] = "GET, HEAD"
    lines = [
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        *(f"{name}: {text}" for name, text in fields.items()),
    ]
    return "\r\n".join((*lines, "", "")).encode("ascii") + (b"" if head else page.body)


def _read(address: str) -> tuple[str, int]:
    host, found, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (found and host and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ConfigurationError(f'"{address}" is no address to listen at; give HOST:PORT, like 127.0.0.1:9090')
    return host, int(port)
