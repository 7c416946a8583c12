"""The work bench of one case: channels of its own, clients, readers and other processes, all cleared away at its end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import (
    Adapter,
    DelayChannel,
    Deletes,
    Delivery,
    Drift,
    Leasing,
    Ordering,
    Outcome,
    Outgoing,
    Status,
    Topology,
    Window,
)
from atleastonce.errors import AtLeastOnceError
from atleastonce.message import Headers, HeaderValue, Message
from atleastonce.testing.conformance.child import Child
from atleastonce.testing.conformance.harness import Harness
from atleastonce.testing.conformance.reader import Ear, Reader
from atleastonce.testing.history import History
from atleastonce.wire import ID

T = TypeVar("T")


class Bench:
    """What a case is handed. ``adapter`` is open; ``tag`` is unique to this run of this case."""

    def __init__(self, harness: Harness, adapter: Adapter, case: str) -> None:
        self.harness = harness
        self.adapter = adapter
        self.capabilities = adapter.capabilities
        self.patience = harness.patience
        self.tag = f"{case}-{secrets.token_hex(4)}"
        self._topologies: list[Topology] = []
        self._stack = AsyncExitStack()
        self._numbers = 0

    # ---------------------------------------------------------------------------------------------- names and messages

    def queue(self, stem: str = "q", **settings: Any) -> Queue[Any]:
        """A queue nobody else uses, not yet declared."""
        return Queue(f"alo-{self.tag}-{stem}", **settings)

    def topic(self, stem: str = "t", **settings: Any) -> Topic[Any]:
        """A topic nobody else uses, not yet declared."""
        return Topic(f"alo-{self.tag}-{stem}", **settings)

    def message(
        self,
        body: bytes = b"{}",
        *,
        key: bytes | str | None = b"k",
        headers: Iterable[tuple[str, HeaderValue]] = (),
        id: str | None = None,
    ) -> Message:
        """A message as the layers above hand it down: checked, and with its ``alo-id``."""
        self._numbers += 1
        name = id or f"m{self._numbers:05}-{self.tag}"
        return Message(name, body, key.encode() if isinstance(key, str) else key, Headers([(ID, name), *headers]))

    def messages(self, count: int, *, keys: Sequence[str] = ("k",)) -> list[Message]:
        """``count`` numbered messages, their keys taking turns."""
        return [self.message(b'{"n": %d}' % n, key=keys[n % len(keys)]) for n in range(count)]

    @property
    def ordered(self) -> dict[str, Any]:
        """The settings of a channel that keeps order: of any, or of one that is declared as first in, first out."""
        return {"fifo": True} if self.capabilities.order is Ordering.GROUP else {}

    def assert_came(self, came: Sequence[Delivery], sent: Sequence[Message]) -> None:
        """Just these messages came, in their order where every channel of the broker keeps it."""
        got, wanted = [delivery.message.id for delivery in came], [message.id for message in sent]
        if self.capabilities.order in (Ordering.GROUP, Ordering.NONE):
            got, wanted = sorted(got), sorted(wanted)
        assert got == wanted

    # -------------------------------------------------------------------------------------------------- making things

    async def declare(
        self,
        *what: Channel[Any] | Source,
        delays: Sequence[DelayChannel] = (),
        dead_letters: Sequence[Queue[Any]] = (),
        adapter: Adapter | None = None,
    ) -> Sequence[Drift]:
        """Make these exist. A queue stands for itself as a source, as it does in a service that reads it."""
        sources = tuple(
            Source(each) if isinstance(each, Queue) else each for each in what if not isinstance(each, Topic)
        )
        topology = Topology(
            channels=tuple(dict.fromkeys(each.channel if isinstance(each, Source) else each for each in what)),
            sources=tuple(each for each in sources if isinstance(each, Source)),
            delays=tuple(delays),
            dead_letters=tuple(dead_letters),
        )
        if adapter is None:
            self._topologies.append(topology)
        return await self.within((adapter or self.adapter).declare(topology))

    async def client(self, *, url: str | None = None, short_lease: bool = False) -> Adapter:
        """Another client of the broker, open, closed at the end."""
        adapter = self.harness.adapter(url=url, short_lease=short_lease)
        await self.within(adapter.open())
        self.at_end(adapter.close)
        return adapter

    async def read(self, what: Source | Queue[Any], *, adapter: Adapter | None = None, window: int = 200) -> Reader:
        """Subscribe."""
        source = Source(what) if isinstance(what, Queue) else what
        ear = Ear()
        made = (adapter or self.adapter).subscribe(source, Window(window, 64 * 1024 * 1024), ear)
        reader = Reader(await self.within(made), source, ear, self.patience)
        self.at_end(reader.close)
        return reader

    async def child(self) -> Child:
        """Another process with a client of its own and short leases, killed at the end."""
        child = await Child.start(self.patience)
        self.at_end(child.kill)
        await child.call("open", url=self.harness.url, options={**self.harness.options, **self.harness.short_lease})
        return child

    # ---------------------------------------------------------------------------------------------------------- sending

    async def outcomes(
        self,
        destination: Channel[Any] | Source,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
        adapter: Adapter | None = None,
    ) -> Sequence[Outcome]:
        """One `Adapter.send`, which must answer each item, in time."""
        batch = [Outgoing(destination, message, delay) for message in messages]
        outcomes = await self.within((adapter or self.adapter).send(batch))
        assert len(outcomes) == len(batch), f"send answered {len(outcomes)} of {len(batch)} items"
        return outcomes

    async def send(
        self,
        destination: Channel[Any] | Source,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
        adapter: Adapter | None = None,
    ) -> None:
        """Send; all must be confirmed."""
        outcomes = await self.outcomes(destination, messages, delay=delay, adapter=adapter)
        failed = [(m.id, o) for m, o in zip(messages, outcomes, strict=True) if o.status is not Status.OK]
        assert not failed, f"{len(failed)} of {len(messages)} sends failed: {failed[:3]}"

    async def others(self, reader: Reader, *, key: bytes | str | None = b"k") -> list[str]:
        """Publish a last message and read up to it: the ids of what came before it. The way to see that something does
        *not* come again without waiting for it."""
        last = self.message(b"last", key=key)
        await self.send(reader.source.channel, [last])
        came = await reader.until([last.id])
        reader.log = [delivery for delivery in reader.log if delivery.message.id != last.id]
        return [delivery.message.id for delivery in came if delivery.message.id != last.id]

    # ---------------------------------------------------------------------------------------------------------- waiting

    async def within(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """The result of ``work``, or `TimeoutError`: no case hangs."""
        async with asyncio.timeout(self.patience if seconds is None else seconds):
            return await work

    async def eventually(self, condition: Callable[[], Any], what: str, seconds: float | None = None) -> None:
        """Wait until ``condition()`` (plain or async) is true.

        Raises:
            AssertionError: it is not, in time.
        """
        deadline = time.monotonic() + (self.patience if seconds is None else seconds)
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            assert time.monotonic() < deadline, f"did not happen in time: {what}"
            await asyncio.sleep(0.02)

    async def settled(self) -> None:
        """Let settlements that were answered be stored."""
        if self.harness.settle_lag:
            await asyncio.sleep(self.harness.settle_lag)

    async def leases_end(self) -> None:
        """Let every short lease end that is held now, where there are leases: nothing but time shows what comes back."""
        if self.capabilities.lease is Leasing.EXTENDABLE:
            await asyncio.sleep(self.harness.lease * 1.2)

    # ----------------------------------------------------------------------------------------------------------- ending

    def removes(self, topology: Topology) -> None:
        """Remove ``topology`` at the end, where the broker can: for what others declare, as services do."""
        self._topologies.append(topology)

    def at_end(self, finish: Callable[[], Awaitable[None]]) -> None:
        """Call ``finish`` at the end of the case, in reverse order, whatever happened before."""
        self._stack.push_async_callback(self._finish, finish)

    async def _finish(self, finish: Callable[[], Awaitable[None]]) -> None:
        await self.within(finish())

    async def close(self) -> None:
        """Close readers and clients; remove what was declared, where the broker can."""
        await self._stack.aclose()
        if isinstance(self.adapter, Deletes):
            for topology in self._topologies:
                with suppress(AtLeastOnceError):  # left-overs have names of their own and disturb nobody
                    await self.within(self.adapter.delete(topology))
        await self.within(self.adapter.close())


def log_of(sent: Iterable[Message], *readers: Reader) -> History:
    """The history of confirmed sends and of everything that ``readers`` were handed."""
    history = History()
    for message in sent:
        history.sent(message.id, Status.OK, key=(message.key or b"").decode())
    for number, reader in enumerate(readers):
        for delivery in reader.log:
            history.received(delivery.message.id, consumer=str(number), count=delivery.count)
    return history


def assert_same(received: Message, sent: Message) -> None:
    """Id, key, headers and body exactly as they were sent."""
    assert received.id == sent.id
    assert received.key == sent.key
    assert list(received.headers.items()) == list(sent.headers.items())
    assert received.body == sent.body
