"""G. Lifecycle and faults, continued: brokers that crash, and brokers that fall silent."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from atleastonce.channels import Queue
from atleastonce.contract import ACK, Adapter, Code, Outgoing, Status
from atleastonce.errors import BrokerUnavailable, ConnectionLost
from atleastonce.message import Message
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.conformance.cases import Section, requires
from atleastonce.testing.conformance.needs import OWN_BROKER
from atleastonce.testing.conformance.reader import Reader, ids
from atleastonce.testing.history import History


class Faults(Section):
    section = "G. Lifecycle and faults"

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
                await asyncio.sleep(bench.harness.newborn)
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
    async def test_55b_after_a_broker_crash_a_delivery_is_either_still_held_or_stale_and_repeated(
        self, bench: Bench
    ) -> None:
        async with bench.harness.own_broker() as broker:
            client = await bench.client(url=broker.url)
            queue = bench.queue()
            await bench.declare(queue, adapter=client)
            sent = bench.messages(10)
            await bench.send(queue, sent, adapter=client)
            reader = await bench.read(queue, adapter=client)
            old = await reader.take(10)
            await reader.settle(old[:4])
            await bench.settled()
            await asyncio.sleep(bench.harness.newborn)
            await broker.kill()
            if not bench.harness.settle_lag:
                told = await bench.within(reader.subscription.settle([(delivery, ACK) for delivery in old[4:6]]), 30)
                assert not any(outcome.ok for outcome in told), "acknowledged to a dead broker"
            await broker.start()
            await self.send_until_confirmed(bench, client, queue, after := bench.message())
            again, reader = await self.take_through_losses(bench, client, reader, {after.id})
            held = [delivery for delivery in old[4:] if delivery.message.id not in again]
            outcomes = await reader.outcomes([(delivery, ACK) for delivery in held])
            coming = {d.message.id for d, outcome in zip(held, outcomes, strict=True) if not outcome.ok}
            more, reader = await self.take_through_losses(bench, client, reader, coming)
            assert again | more <= {after.id, *(message.id for message in sent[4:])}, "acknowledged ones came again"
            late = await reader.outcomes([(d, ACK) for d in old if d.message.id in again | more])
            assert {outcome.fault.code for outcome in late if outcome.fault} <= {Code.STALE}
            assert not any(outcome.ok for outcome in late), "an old token was accepted after its message came again"
            await reader.close()
            last = await bench.read(queue, adapter=client)
            await bench.send(queue, [end := bench.message()], adapter=client)
            assert ids(await last.until([end.id])) == [end.id]
            await last.close()
            await bench.within(client.close())

    @staticmethod
    async def send_until_confirmed(bench: Bench, client: Adapter, queue: Queue[Any], message: Message) -> None:
        async def confirmed() -> bool:
            (outcome,) = await bench.within(client.send([Outgoing(queue, message)]), 60)
            return outcome.ok

        await bench.eventually(confirmed, "sending works again", 60)

    async def take_through_losses(
        self, bench: Bench, client: Adapter, reader: Reader, wanted: set[str]
    ) -> tuple[set[str], Reader]:
        """Read, acknowledge and, when the subscription dies, subscribe again, until ``wanted`` have come."""
        came: set[str] = set()
        deadline = time.monotonic() + 60
        while not wanted <= came:
            assert time.monotonic() < deadline, f"never came again: {sorted(wanted - came)}"
            try:
                got = await reader.receive(100, 1.0)
            except ConnectionLost:
                reader = await self.subscribe_again(bench, client, reader, deadline)
                continue
            outcomes = await reader.outcomes([(delivery, ACK) for delivery in got])
            came |= {delivery.message.id for delivery, outcome in zip(got, outcomes, strict=True) if outcome.ok}
        return came, reader

    @staticmethod
    async def subscribe_again(bench: Bench, client: Adapter, reader: Reader, deadline: float) -> Reader:
        """What the engine does after `ConnectionLost`: try again, with a pause, until the broker is back."""
        while True:
            try:
                return await bench.read(reader.source, adapter=client)
            except BrokerUnavailable:
                assert time.monotonic() < deadline, "could not subscribe again"
                await asyncio.sleep(0.2)

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
