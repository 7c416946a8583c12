"""Publishing: ``XADD`` by the list on one connection, an outcome for each message."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Final

from atleastonce.adapters.redis_streams import keys
from atleastonce.adapters.redis_streams.config import Config
from atleastonce.adapters.redis_streams.entries import Layout
from atleastonce.adapters.redis_streams.faults import LinkLost, ReplyError, classify
from atleastonce.adapters.redis_streams.link import Line, Link, pack
from atleastonce.adapters.redis_streams.scripts import LATER, ONCE
from atleastonce.channels import Channel, Source
from atleastonce.contract import OK, Code, Outcome, Outgoing, ReplyTo, Scope, rejected, unknown
from atleastonce.errors import AtLeastOnceError, Closed, PermissionDenied
from atleastonce.message import Message
from atleastonce.wire import PREFIX

_CHUNK: Final = 500
"""Messages written in one go: between two of these the event loop has its turn, and what a lost connection leaves unknown is
no more than these."""
_CHUNK_BYTES: Final = 1 << 20
_MOST_FIELDS: Final = 7000
"""Values that a script can pass on to a command (Lua's stack). A foreign entry with more than that is moved all the same, without
being remembered by ``dedupe``: stored twice is better than never."""
_BACKOFF: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class _Chunk:
    """Commands that are written together, each with its message's number in the list."""

    __slots__ = ("commands", "numbers", "size")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.commands: list[bytes] = []
        self.size = 0

    def add(self, number: int, command: bytes) -> None:
        self.numbers.append(number)
        self.commands.append(command)
        self.size += len(command)

    @property
    def full(self) -> bool:
        return len(self.commands) >= _CHUNK or self.size >= _CHUNK_BYTES


class Publisher:
    """All that one adapter sends."""

    def __init__(self, config: Config, line: Line, layout: Layout) -> None:
        self._config = config
        self._line = line
        self._layout = layout
        self._turn = asyncio.Lock()  # lists go out whole, so that each destination keeps its order
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        """As `atleastonce.contract.Adapter.send`."""
        if self._closed:
            raise Closed("the adapter is closed")
        self._active += 1
        self._idle.clear()
        try:
            return await self._send(items)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def close(self) -> None:
        """Take no more, and wait for what is being sent."""
        self._closed = True
        await self._idle.wait()

    async def _send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(items)
        written: list[tuple[_Chunk, asyncio.Future[list[Any]]]] = []
        stopped = unknown(Code.UNAVAILABLE, "not sent: the connection was lost before its turn")
        link: Link | None = None
        begin = 0
        async with self._turn:
            while begin < len(items):
                chunk = _Chunk()
                while begin < len(items) and not chunk.full:
                    command = self._command(items[begin])
                    if isinstance(command, Outcome):
                        outcomes[begin] = command
                    else:
                        chunk.add(begin, command)
                    begin += 1
                if not chunk.commands:
                    continue
                if link is None:
                    found = await self._connected()
                    if isinstance(found, Outcome):
                        stopped = found
                        break
                    link = found
                elif link.closed is not None:
                    break  # what was written is unknown, and nothing may overtake its repetition
                written.append((chunk, link.submit(b"".join(chunk.commands), len(chunk.commands))))
                await link.writable()
        for chunk, replies in written:
            if link is not None:
                await self._answers(items, outcomes, chunk, replies, link)
        return [each or stopped for each in outcomes]

    # ------------------------------------------------------------------------------------------------- writing

    def _command(self, item: Outgoing) -> bytes | Outcome:
        """What publishes ``item``, packed; or why it cannot be."""
        message, channel = item.message, item.destination
        if message.size > self._config.max_message_bytes:
            return rejected(
                Code.TOO_LARGE, f"{message.size} bytes; max_message_bytes is {self._config.max_message_bytes}"
            )
        if isinstance(channel, Source):
            if channel.group is not None:
                return rejected(Code.INVALID, "Redis addresses a stream, not one group of it")
            channel = channel.channel
        try:
            fields = self._layout.fields(message)
            dedupe = self._config.dedupe > 0 and not isinstance(channel, ReplyTo)
            if item.delay > 0 or (dedupe and len(fields) <= _MOST_FIELDS):
                if len(fields) > _MOST_FIELDS:
                    text = f"{len(fields) // 2} fields; with a delay {_MOST_FIELDS // 2} are the most"
                    return rejected(Code.INVALID, text)
                return self._scripted(channel, item, fields)
            return pack(("XADD", channel.name, "NOMKSTREAM", "*", *fields))
        except (TypeError, UnicodeEncodeError) as error:
            return rejected(Code.INVALID, str(error))

    def _scripted(self, channel: Channel[Any], item: Outgoing, fields: list[Any]) -> bytes:
        delay = math.ceil(round(item.delay * 1000, 3))
        places = keys.later(channel)
        if not self._config.dedupe:
            return pack(("EVALSHA", LATER.sha, LATER.keys, channel.name, *places, delay, *fields))
        window = math.ceil(self._config.dedupe * 1000)
        names = (channel.name, keys.seen(channel, _digest(item.message)), *places)
        return pack(("EVALSHA", ONCE.sha, ONCE.keys, *names, window, delay, *fields))

    async def _connected(self) -> Link | Outcome:
        """The link, tried for again and again for the time of a send; or what comes of it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.send_timeout
        attempt = 0
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._line.get()
            except (PermissionDenied, Closed) as error:
                fault = classify(error)
                return rejected(fault.code, fault.detail, scope=Scope.CONNECTION)
            except (AtLeastOnceError, TimeoutError) as error:
                pause = _BACKOFF[min(attempt, len(_BACKOFF) - 1)]
                if loop.time() + pause >= deadline:
                    waited = f"no connection within {self._config.send_timeout:g} s"
                    return unknown(Code.UNAVAILABLE, f"{waited}: {error}")
            await asyncio.sleep(pause)
            attempt += 1

    # ------------------------------------------------------------------------------------------------- answers

    async def _answers(
        self,
        items: Sequence[Outgoing],
        outcomes: list[Outcome | None],
        chunk: _Chunk,
        replies: asyncio.Future[list[Any]],
        link: Link,
    ) -> None:
        try:
            answers = await link.answered(replies)
            missing = [n for n, each in enumerate(answers) if isinstance(each, ReplyError) and each.code == "NOSCRIPT"]
            if missing:  # a new server, or its scripts were flushed: none of these was run
                load = [pack(("SCRIPT", "LOAD", script.text)) for script in (LATER, ONCE)]
                again = b"".join([*load, *(chunk.commands[n] for n in missing)])
                late = await link.answered(link.submit(again, len(load) + len(missing)))
                for n, answer in zip(missing, late[len(load) :], strict=True):
                    answers[n] = answer
        except LinkLost as error:
            answers = [error] * len(chunk.numbers)
        for number, reply in zip(chunk.numbers, answers, strict=True):
            outcomes[number] = OK if reply.__class__ is bytes else _outcome(items[number], reply)


def _digest(message: Message) -> str:
    """What a publish is known by within the window: the id, and the history that every hop changes. By the id alone, a letter
    that is redriven would be taken for the message that it once was, and dropping it would lose it."""
    digest = hashlib.blake2b(message.id.encode("utf-8", "surrogatepass"), digest_size=16)
    for name, value in message.headers.items():
        if name.startswith(PREFIX):
            data = value if isinstance(value, bytes) else (value or "").encode("utf-8", "surrogatepass")
            digest.update(b"\0%b\0%b" % (name.encode("utf-8", "surrogatepass"), data))
    return digest.hexdigest()


def _outcome(item: Outgoing, reply: Any) -> Outcome:
    if reply is None:
        return rejected(Code.NOT_FOUND, f"no stream {item.destination.name}; declare it", scope=Scope.SUBSCRIPTION)
    if isinstance(reply, LinkLost):
        return unknown(Code.UNAVAILABLE, f"no answer: {reply}")
    fault = classify(reply)
    ends = unknown if fault.retryable else rejected
    return ends(fault.code, fault.detail, scope=fault.scope)
