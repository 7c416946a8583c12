"""G. Lifecycle and faults: clients, processes and brokers come and go."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from atleastonce.channels import Source
from atleastonce.contract import ACK, Adapter, Code, Counting, Outgoing, Status, Topology
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
from atleastonce.testing.conformance.reader import Reader, ids
from atleastonce.testing.history import History


def open_files() -> int:
    """How many files and sockets this process has open; 0 where the system does not show it."""
    table = Path("/proc/self/fd")
    return len(os.listdir(table)) if table.exists() else 0  # noqa: PTH208 - only counted


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

        await cycle()  # what is made once, for good, is made now
        tasks, threads, files = len(asyncio.all_tasks()), threading.active_count(), open_files()
        for _ in range(5):
            await cycle()
        await bench.eventually(lambda: len(asyncio.all_tasks()) <= tasks, "tasks end")
        await bench.eventually(lambda: threading.active_count() <= threads, "threads end")
        await bench.eventually(lambda: open_files() <= files + 1, "files and sockets are closed")

    @requires(OWN_BROKER)
    async def test_55_killing_the_broker_twice_loses_nothing_that_was_confirmed(self, bench: Bench) -> None:
        async with bench.harness.own_broker() as broker:
            client = await bench.client(url=broker.url)
            queue = bench.queue()
            await bench.declare(queue, adapter=client)
            history = History()
            stop = asyncio.Event()

            async def publish() -> None:
                while not stop.is_set():
                    batch = bench.messages(20)
                    waiting = batch
                    while waiting:  # an unknown outcome is answered by sending again, with the same id
                        outcomes = await bench.outcomes(queue, waiting, adapter=client)
                        for message, outcome in zip(waiting, outcomes, strict=True):
                            history.sent(message.id, outcome.status, key="k")
                        pairs = zip(waiting, outcomes, strict=True)
                        waiting = [message for message, outcome in pairs if outcome.status is not Status.OK]
                        await asyncio.sleep(0.05)

            publishing = asyncio.create_task(publish())
            try:
                for _ in range(2):
                    await self.grows(bench, history, 60)
                    await broker.kill()
                    await broker.start()
                await self.grows(bench, history, 60)
            finally:
                stop.set()
            await bench.within(publishing, 60)
            reader = await bench.read(queue, adapter=await bench.client(url=broker.url), window=1000)
            wanted = {each.id for each in history.sends if each.status is Status.OK}
            for delivery in await reader.until(wanted, within=60):
                history.received(delivery.message.id)
            found = history.check()
            assert found.ok, found
            await reader.close()
            await bench.within(client.close())

    @staticmethod
    async def grows(bench: Bench, history: History, by: int) -> None:
        """Wait for ``by`` more confirmed sends."""

        def confirmed() -> int:
            return sum(each.status is Status.OK for each in history.sends)

        before = confirmed()
        await bench.eventually(lambda: confirmed() >= before + by, "sends are confirmed again", 60)

    @requires(OWN_BROKER)
    async def test_55b_after_a_broker_crash_old_deliveries_are_stale_and_come_again(self, bench: Bench) -> None:
        async with bench.harness.own_broker() as broker:
            client = await bench.client(url=broker.url)
            queue = bench.queue()
            await bench.declare(queue, adapter=client)
            sent = bench.messages(10)
            await bench.send(queue, sent, adapter=client)
            reader = await bench.read(queue, adapter=client)
            old = await reader.take(10)
            await reader.settle(old[:5])
            await broker.kill()
            outcomes = await bench.within(reader.subscription.settle([(delivery, ACK) for delivery in old[5:]]), 30)
            assert Status.OK not in {outcome.status for outcome in outcomes}, "acknowledged to a dead broker"
            await broker.start()
            again: list[str] = []
            deadline = time.monotonic() + 60
            while len(set(again)) < 5:
                assert time.monotonic() < deadline, f"only {again} came again"
                try:
                    got = await reader.receive(100, 1.0)
                except ConnectionLost:
                    reader = await self.subscribe_again(bench, client, reader, deadline)
                    continue
                await reader.outcomes([(delivery, ACK) for delivery in got])
                again.extend(ids(got))
            assert set(again) == {message.id for message in sent[5:]}
            stale = await reader.outcomes([(delivery, ACK) for delivery in old[5:]])
            assert {outcome.fault.code for outcome in stale if outcome.fault} == {Code.STALE}
            await reader.close()
            await bench.within(client.close())

    @staticmethod
    async def subscribe_again(bench: Bench, client: Adapter, reader: Reader, deadline: float) -> Reader:
        """What the engine does after `ConnectionLost`: try again, with a pause, until the broker is back."""
        while True:
            try:
                return await bench.read(reader.source, adapter=client)
            except BrokerUnavailable:
                assert time.monotonic() < deadline, "could not subscribe again"
                await asyncio.sleep(0.2)

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

    @requires(OWN_BROKER)
    async def test_57_a_broker_that_stops_answering_confirms_nothing_and_loses_nothing(self, bench: Bench) -> None:
        async with bench.harness.own_broker() as broker:
            client = await bench.client(url=broker.url)
            queue = bench.queue()
            await bench.declare(queue, adapter=client)
            reader = await bench.read(queue, adapter=client)
            await bench.send(queue, [before := bench.message()], adapter=client)
            await reader.until([before.id])
            await broker.pause()
            sent = bench.messages(50)
            sending = asyncio.create_task(client.send([Outgoing(queue, message) for message in sent]))
            assert list(await reader.receive(10, 2.0)) == []
            if sending.done():
                assert not any(outcome.ok for outcome in sending.result()), "confirmed by a broker that is silent"
            await broker.resume()
            outcomes = await bench.within(sending, 60)
            assert not [outcome for outcome in outcomes if outcome.status is Status.REJECTED]
            again = [message for message, outcome in zip(sent, outcomes, strict=True) if not outcome.ok]
            await bench.send(queue, again, adapter=client)
            await reader.until([message.id for message in sent])
            await reader.close()
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
