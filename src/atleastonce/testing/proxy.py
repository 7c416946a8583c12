"""A fault proxy between a client and its broker, for tests: toxiproxy with one method for each thing a network does.

::

    proxy = FaultProxy(toxiproxy_url, upstream="127.0.0.1:5672")
    async with proxy:
        service = Service("billing", broker=f"rabbitmq://guest:guest@{proxy.address}")
        ...
        async with proxy.black_hole():
            ...  # nothing arrives, nothing is refused

Every connection that goes through it has the fault from its first moment; it ends with the block.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

# For one call of toxiproxy's own HTTP interface, which is on this machine.
_CALL_SECONDS = 10.0


class FaultProxy:
    """One proxy. An async context manager: it listens within the block.

    Args:
        control: toxiproxy's own address, ``http://127.0.0.1:8474``.
        upstream: the broker, ``host:port``.
        listen: where clients connect; by default a free port. Kafka needs the address that its listener advertises.
    """

    def __init__(self, control: str, upstream: str, listen: str = "127.0.0.1:0") -> None:
        self._control = control
        self._upstream = upstream
        self._listen = listen
        self._name = f"alo-{uuid.uuid4().hex[:12]}"
        self.address = listen
        """Where clients connect, ``host:port``; known within the block."""

    async def __aenter__(self) -> Self:
        made = await self._call(
            "POST",
            "/proxies",
            {"name": self._name, "listen": self._listen, "upstream": self._upstream, "enabled": True},
        )
        self.address = made["listen"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._call("DELETE", f"/proxies/{self._name}")

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Connections are closed, and new ones refused at once: a broker that is down."""
        await self._call("POST", f"/proxies/{self._name}", {"enabled": False})
        try:
            yield
        finally:
            await self._call("POST", f"/proxies/{self._name}", {"enabled": True})

    @asynccontextmanager
    async def black_hole(self) -> AsyncIterator[None]:
        """Connections stay open, new ones are accepted, and nothing passes: a cable that was pulled.

        With the end of the block its connections are closed: what disappeared does not arrive later.
        """
        # Both ways: with one alone, the hole ends as soon as the other side closes.
        async with self._toxics({"type": "timeout", "attributes": {"timeout": 0}}):
            yield

    @asynccontextmanager
    async def deaf(self) -> AsyncIterator[None]:
        """What clients send arrives and is acted on; no reply comes back. Connections are closed with the end of the block."""
        async with self._toxics({"type": "timeout", "attributes": {"timeout": 0}}, streams=("downstream",)):
            yield

    @asynccontextmanager
    async def slow(self, latency: float, *, kilobytes: int | None = None) -> AsyncIterator[None]:
        """Everything arrives ``latency`` seconds later, each way, and at most ``kilobytes`` per second."""
        toxics: list[dict[str, Any]] = [{"type": "latency", "attributes": {"latency": round(latency * 1000)}}]
        if kilobytes is not None:
            toxics.append({"type": "bandwidth", "attributes": {"rate": kilobytes}})
        async with self._toxics(*toxics):
            yield

    async def reset(self) -> None:
        """Every connection ends now with a TCP reset; new ones are welcome."""
        async with self._toxics({"type": "reset_peer", "attributes": {"timeout": 0}}):
            await asyncio.sleep(0.1)  # a toxic acts when something is sent; clients that are busy send all the time

    @asynccontextmanager
    async def _toxics(
        self, *toxics: dict[str, Any], streams: tuple[str, ...] = ("upstream", "downstream")
    ) -> AsyncIterator[None]:
        named = [
            {**toxic, "stream": stream, "name": f"{toxic['type']}-{stream}"} for toxic in toxics for stream in streams
        ]
        for toxic in named:
            await self._call("POST", f"/proxies/{self._name}/toxics", toxic)
        try:
            yield
        finally:
            for toxic in named:
                await self._call("DELETE", f"/proxies/{self._name}/toxics/{toxic['name']}")

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        def call() -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(self._control + path, data, method=method)  # noqa: S310 - a given address
            request.add_header("Content-Type", "application/json")
            try:
                with urllib.request.urlopen(request, timeout=_CALL_SECONDS) as answer:  # noqa: S310 - as above
                    text = answer.read()
            except urllib.error.HTTPError as error:  # its own words: mostly that the address to listen on is taken
                words = error.read().decode(errors="replace").strip()
                raise RuntimeError(f"toxiproxy: {method} {path}: {error.code} {words}") from None
            return json.loads(text) if text else None

        return await asyncio.to_thread(call)
