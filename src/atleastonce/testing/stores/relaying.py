"""Several relays on one outbox: in this process, where they stop and die as Hypothesis says, and in processes that are killed.
What they publish to is a list or a file, so that the store alone is under test.

As a program, ``python -m atleastonce.testing.stores.relaying`` is one relay, with its orders as JSON in the first argument:
``url``, ``options``, ``file`` (to which it appends ``ID KEY`` lines, and ``late`` as `watch` says), ``lease``, ``die`` (kill -9
itself in the n-th removal, when all is published and the rows are still there; 0 for never). It ends in good order when its input
is closed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from atleastonce.contract import OK, Code, Outcome, Outgoing, unknown
from atleastonce.patterns.outbox import Relay, RelayOptions
from atleastonce.stores import open_store
from atleastonce.stores.outbox import Holding, OutboxRow, OutboxStore


class Sink:
    """Takes messages, and answers some of them as a broker in trouble does: ``lost`` replies, ``refused`` for a while."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes | None]] = []
        self.trouble: list[str] = []

    async def send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        outcomes = []
        for item in items:
            trouble = self.trouble.pop() if self.trouble else ""
            if trouble != "refused":
                self.taken.append((item.message.id, item.message.key))
            outcomes.append(unknown(Code.TIMEOUT) if trouble else OK)
        await asyncio.sleep(0.001)
        return outcomes


def watch(store: OutboxStore, late: Callable[[], object]) -> None:
    """Call ``late`` whenever a relay's lease may have ended before its renewal, as it does on a machine that stands still: what was
    under way may then be repeated by whoever took the slots."""
    hold, leave = store.outbox_hold, store.outbox_leave
    end = math.inf

    async def watched_hold(relay: bytes, name: str, lease: float) -> Holding:
        nonlocal end
        asked = time.monotonic()
        holding = await hold(relay, name, lease)
        if time.monotonic() > end:
            late()
        end = asked + lease
        return holding

    async def watched_leave(relay: bytes, slots: Collection[int] | None = None) -> None:
        await leave(relay, slots)
        if slots is None and time.monotonic() > end:
            late()

    store.outbox_hold, store.outbox_leave = watched_hold, watched_leave  # type: ignore[method-assign]


class Flock:
    """Relays on one outbox, each with a store of its own, as in processes of their own. ``late`` counts what `watch` tells."""

    def __init__(self, url: str, options: dict[str, Any], sink: Sink) -> None:
        self._url, self._options, self._sink = url, options, sink
        self._living: list[tuple[OutboxStore, Relay]] = []
        self.late = 0

    async def start(self) -> Relay:
        store = open_store(self._url, self._options)
        assert isinstance(store, OutboxStore)
        watch(store, self._count)
        await store.open()
        relay = Relay(store, self._sink.send, options=RelayOptions(batch=4, poll="10ms", lease="1s"))
        relay.start()
        self._living.append((store, relay))
        return relay

    def _count(self) -> None:
        self.late += 1

    async def stop(self) -> None:
        if self._living:
            store, relay = self._living.pop(0)
            await relay.stop(10)
            await store.close()

    async def kill(self) -> None:
        """It ends wherever it is, and tells nobody."""
        if self._living:
            store, relay = self._living.pop(0)
            assert relay._task is not None
            relay._task.cancel()
            await asyncio.gather(relay._task, return_exceptions=True)
            await store.close()

    async def end(self) -> None:
        while self._living:
            await self.stop()


def check(taken: Iterable[tuple[str, bytes | None]], written: Sequence[tuple[str, bytes | None]], allowed: int) -> None:
    """Everything left, with at most ``allowed`` repeats, and each key's first arrivals in the order written."""
    arrived = list(taken)
    counts = Counter(id for id, _ in arrived)
    assert set(counts) == {id for id, _ in written}, "nothing lost, nothing made up"
    assert sum(counts.values()) - len(counts) <= allowed, "repeats without a reason"
    orders: dict[bytes, list[str]] = defaultdict(list)
    for id, key in dict.fromkeys(arrived):
        if key is not None:
            orders[key].append(id)
    for key, ids in orders.items():
        assert ids == [id for id, each in written if each == key], f"the order of {key!r}"


async def main(orders: dict[str, Any]) -> None:
    store = open_store(orders["url"], orders["options"])
    assert isinstance(store, OutboxStore)
    remove, left = store.outbox_remove, int(orders["die"])
    sink = os.open(orders["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def send(items: Sequence[Outgoing]) -> list[Outcome]:
        lines = b"".join(b"%s %s\n" % (each.message.id.encode(), each.message.key or b"") for each in items)
        os.write(sink, lines)
        return [OK] * len(items)

    async def remove_or_die(rows: Sequence[OutboxRow]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await remove(rows)

    store.outbox_remove = remove_or_die  # type: ignore[method-assign]
    watch(store, lambda: os.write(sink, b"late \n"))
    async with store:
        relay = Relay(store, send, options=RelayOptions(batch=20, poll="20ms", lease=orders["lease"]))
        relay.start()
        await relay.started.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        await relay.stop(10)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
