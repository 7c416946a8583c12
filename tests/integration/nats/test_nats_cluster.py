"""Three servers that replicate: what a majority has confirmed survives the death of the leader."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nats_kit import PATIENCE, Listening, cluster, eventually, opened, outgoing, prepared, raw, reading, take

from atleastonce import Queue
from atleastonce.contract import ACK, Outgoing
from atleastonce.errors import BrokerUnavailable, NotFound

PATIENT = 4 * PATIENCE
"""Seconds: elections take some."""


async def test_the_leaders_death_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    home = Queue[object]("orders")
    async with cluster(tmp_path) as servers:
        url = "nats://" + ",".join(address for address, _ in servers.values())

        async def ready() -> bool:
            try:
                async with opened(url, request_timeout=2.0) as probe:
                    await prepared(probe, Queue("probe", options={"nats": {"num_replicas": 3}}))
            except (BrokerUnavailable, NotFound):
                return False
            return True

        await eventually(ready, "the cluster takes streams", PATIENT)
        async with opened(url, replicas=3, ack_wait=5.0) as adapter:
            await prepared(adapter, home)
            listener = Listening()
            subscription = await reading(adapter, home, 50, listener)
            confirmed: set[str] = set()
            handled: set[str] = set()
            stop = asyncio.Event()

            async def publish() -> None:
                while not stop.is_set():
                    waiting = outgoing(home, 20)
                    while waiting:
                        outcomes = await adapter.send(waiting)
                        left: list[Outgoing] = []
                        for item, outcome in zip(waiting, outcomes, strict=True):
                            if outcome.ok:
                                confirmed.add(item.message.id)
                            else:
                                left.append(item)
                        waiting = left
                        await asyncio.sleep(0.01)

            async def handle() -> None:
                while True:
                    batch = await subscription.receive(50, 1.0)
                    outcomes = await subscription.settle([(each, ACK) for each in batch])
                    pairs = zip(batch, outcomes, strict=True)
                    handled.update(each.message.id for each, outcome in pairs if outcome.ok)

            publishing, handling = asyncio.create_task(publish()), asyncio.create_task(handle())
            try:
                await eventually(lambda: len(handled) > 100, "messages flow")
                async with raw(f"nats://{servers['one'][0]}") as client:
                    info = await client.jetstream().stream_info("orders")
                assert info.cluster is not None
                leader = str(info.cluster.leader)
                before = len(confirmed)
                servers[leader][1].kill()
                await eventually(lambda: len(confirmed) > before + 200, "messages flow again", PATIENT)
                stop.set()
                await asyncio.wait_for(publishing, PATIENT)
                await eventually(lambda: confirmed <= handled, "all that was confirmed is handled", PATIENT)
            finally:
                for task in (publishing, handling):
                    task.cancel()
                await asyncio.gather(publishing, handling, return_exceptions=True)
            assert listener.losses == []
            assert await take(subscription, 0) == []
