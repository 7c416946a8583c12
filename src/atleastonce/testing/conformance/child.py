"""Another process with a client of its own, that can be killed: crash safety cannot be shown within one process.

The parent half is `Child`; the other half is `main` in a fresh interpreter. They speak JSON lines: one command, one
answer, and with ``"die": true`` the process sends itself SIGKILL right after the answer is written.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from atleastonce.adapters import open_adapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import ACK, RELEASE, Adapter, Delivery, Outgoing, Subscription, Verdict, Window
from atleastonce.message import Headers, Message
from atleastonce.testing.conformance.reader import Ear
from atleastonce.wire import ID


class Child:
    """The parent's handle."""

    def __init__(self, process: asyncio.subprocess.Process, patience: float) -> None:
        self._process = process
        self._patience = patience

    @classmethod
    async def start(cls, patience: float) -> Child:
        """Start the process; it does nothing yet."""
        pipe = asyncio.subprocess.PIPE
        program = f"from {__name__} import main; main()"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=pipe, stdout=pipe)
        return cls(process, patience)

    async def call(self, command: str, **arguments: Any) -> Any:
        """Run one command there and return its result.

        Raises:
            AssertionError: it failed there, or the process has ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        async with asyncio.timeout(self._patience * 2):
            line = await stdout.readline()
        assert line, f"the process ended during {command!r}"
        answer = json.loads(line)
        assert "error" not in answer, f"{command!r} failed in the other process: {answer['error']}"
        return answer["result"]

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class _Worker:
    """The other half."""

    def __init__(self) -> None:
        self.adapter: Adapter | None = None
        self.subscription: Subscription | None = None
        self.held: dict[str, Delivery] = {}

    async def open(self, url: str, options: dict[str, Any]) -> None:
        self.adapter = open_adapter(url, options)
        await self.adapter.open()

    async def send(self, queue: str, messages: list[tuple[str, str]]) -> list[str]:
        """``messages`` are pairs of id and key. Answers with each one's status."""
        assert self.adapter is not None
        batch = [Outgoing(Queue(queue), Message(id, b"{}", key.encode(), Headers([(ID, id)]))) for id, key in messages]
        return [outcome.status.value for outcome in await self.adapter.send(batch)]

    async def subscribe(self, queue: str, window: int) -> None:
        assert self.adapter is not None
        source = Source(Queue(queue))
        self.subscription = await self.adapter.subscribe(source, Window(window, 2**26), Ear())

    async def receive(self, most: int, wait: float) -> list[tuple[str, int]]:
        """Answers with pairs of id and delivery count."""
        assert self.subscription is not None
        got = await self.subscription.receive(most, wait)
        self.held.update({delivery.message.id: delivery for delivery in got})
        return [(delivery.message.id, delivery.count) for delivery in got]

    async def settle(self, ids: list[str], verdict: str) -> list[str]:
        assert self.subscription is not None
        verdicts: dict[str, Verdict] = {"ack": ACK, "release": RELEASE}
        given = verdicts[verdict]
        return [o.status.value for o in await self.subscription.settle([(self.held[id], given) for id in ids])]


async def _serve() -> None:
    worker = _Worker()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        order = json.loads(line)
        command, die = order.pop("command"), order.pop("die", False)
        try:
            answer = {"result": await getattr(worker, command)(**order)}
        except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(1, json.dumps(answer).encode() + b"\n")
        if die:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Obey commands from standard input until it ends."""
    asyncio.run(_serve())
