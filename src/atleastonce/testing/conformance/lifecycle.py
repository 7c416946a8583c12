"""G. Lifecycle and faults: clients and processes come and go."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from atleastonce.channels import Source
from atleastonce.contract import Counting, Topology
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, ConnectionLost, NotFound, PermissionDenied
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import (
    DELETES,
    NOBODY_THERE,
    OTHER_PROCESSES,
    OWN_BROKER,
    WRONG_CREDENTIALS,
)
from atleastonce.testing.conformance.reader import ids


def open_files() -> set[str]:
    """The files and sockets that this process has open; none where the system does not show them."""
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # the directory's own, by now closed
            found.add(str(entry.readlink()))
    return found


def threads() -> int:
    """The threads of this process, those of client libraries included where the system shows them."""
    table = Path("/proc/self/task")
    return len(list(table.iterdir())) if table.exists() else threading.active_count()


class Lifecycle(Section):
    section = "G. Lifecycle and faults"

    async def test_54_opening_and_closing_leaves_no_task_thread_or_socket_behind(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)

        async def cycle() -> None:
            client = bench.harness.adapter()
            await bench.within(client.open())
            reader = await bench.read(queue, adapter=client)
            await bench.send(queue, [message := bench.message()], adapter=client)
            await reader.until([message.id])
            await reader.close()
            await bench.within(client.close())

        def left() -> tuple[int, int, int]:
            return len(asyncio.all_tasks()), threads(), len(open_files())

        for _ in range(2):
            await cycle()  # what is made once, for good, is made now
        before, files = left(), open_files()
        for _ in range(8):
            await cycle()
        most = (before[0], before[1] + 5, before[2] + 5)  # one of each cycle would be eight

        def gone() -> bool:
            return all(now <= then for now, then in zip(left(), most, strict=True))

        with suppress(AssertionError):
            await bench.eventually(gone, "tasks, threads and sockets end")
        assert gone(), f"tasks, threads, files were {before}, are {left()}; new: {sorted(open_files() - files)}"

    @requires(NOBODY_THERE)
    async def test_56_a_broker_that_is_not_there_is_reported_in_time(self, bench: Bench) -> None:
        client = bench.harness.unreachable()
        assert client is not None
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                await bench.within(client.open(), 30)
        await bench.within(client.close())

    @requires(OWN_BROKER)
    async def test_56b_a_client_opens_once_its_broker_has_come(self, bench: Bench) -> None:
        async with bench.harness.own_broker() as broker:
            await broker.kill()
            client = bench.harness.adapter(url=broker.url)
            with pytest.raises(BrokerUnavailable):
                await bench.within(client.open(), 30)
            await broker.start()
            await bench.within(client.open(), 30)
            queue = bench.queue()
            await bench.declare(queue, adapter=client)
            await bench.send(queue, [bench.message()], adapter=client)
            await bench.within(client.close())

    @requires(OTHER_PROCESSES)
    async def test_58_what_a_killed_consumer_held_reaches_another(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        sent = bench.messages(10)
        await bench.send(queue, sent)
        child = await bench.child()
        await child.call("subscribe", queue=queue.name, window=10)
        held: list[str] = []
        while len(held) < 10:
            held += [id for id, _ in await child.call("receive", most=10, wait=bench.patience)]
        await child.kill()
        reader = await bench.read(queue)
        again = await reader.until(held, within=bench.patience + bench.harness.lease)
        assert sorted(ids(again)) == sorted(held)
        if bench.capabilities.delivery_count is not Counting.NONE:
            assert {delivery.count for delivery in again} == {2}

    @requires(DELETES)
    async def test_59_a_queue_that_vanishes_under_its_reader_is_reported_or_made_again(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        reader = await bench.read(queue)
        await bench.send(queue, [message := bench.message()])
        await reader.until([message.id])
        await bench.within(bench.adapter.delete(Topology(channels=(queue,), sources=(Source(queue),))))  # type: ignore[attr-defined]

        async def ends() -> bool:
            try:
                await reader.receive(10, 0.5)
            except (NotFound, ConnectionLost):
                return True
            return False

        await bench.eventually(ends, "the reader is told that its queue is gone")
        with pytest.raises(AtLeastOnceError):
            await bench.read(queue)

    @requires(WRONG_CREDENTIALS)
    async def test_60_refused_credentials_are_no_outage(self, bench: Bench) -> None:
        client = bench.harness.unauthorised()
        assert client is not None
        with pytest.raises(PermissionDenied):
            await bench.within(client.open(), 30)
        await bench.within(client.close())
