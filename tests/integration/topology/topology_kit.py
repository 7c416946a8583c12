"""A service with names of one test alone, and the questions that every test of its topology asks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from atleastonce import Queue, Service, Topic
from atleastonce.contract import Deletes, Topology
from atleastonce.inspecting import looking
from atleastonce.topology import Declared, Export, Planned, declared, plan, resources, topologies


class Order(msgspec.Struct):
    order_id: int


def shop(url: str, **settings: Any) -> Service:
    """``billing`` reads a topic with a retry chain, and a queue, under names that no other run has."""
    run = uuid.uuid4().hex[:8]
    service = Service("billing", broker=url, wait=0, **settings)

    async def charge(order: Order) -> None: ...

    async def send(order: Order) -> None: ...

    service.consumer(Topic(f"orders.{run}", Order, partitions=2), retry=["5s", "10m"])(charge)
    service.consumer(Queue(f"mails.{run}", Order, partitions=3))(send)
    return service


def one_queue(url: str) -> Service:
    """``billing`` reads a queue with one retry channel: the least that has everything that Kafka keeps."""
    service = Service("billing", broker=url, wait=0)

    async def send(order: Order) -> None: ...

    service.consumer(Queue(f"mails.{uuid.uuid4().hex[:8]}", Order, partitions=3), retry=["5s"])(send)
    return service


def needs_of(service: Service) -> Declared:
    return declared(service.name, service.consumers, service.make_broker().adapter, service.drain_seconds)


def read(export: Export) -> Any:
    """The document, as the program that it is for reads it."""
    return json.loads(msgspec.json.encode(export.document)) if isinstance(export.document, Mapping) else export.document


async def looked_at(service: Service) -> list[Planned]:
    """What is needed, with what is there; nothing is made."""
    broker = service.make_broker()
    async with looking(broker):
        whole = Topology.joined(topologies(service.consumers, broker.adapter.capabilities))
        return plan(resources(broker.adapter, whole), await broker.adapter.declare(whole, create=False))


async def remove(service: Service) -> None:
    """All that was made for it."""
    async with service.make_broker() as broker:
        if isinstance(broker.adapter, Deletes):
            await broker.adapter.delete(Topology.joined(topologies(service.consumers, broker.adapter.capabilities)))


def unlike(found: list[Planned]) -> list[Planned]:
    """What is not as it should be. What a broker has no question for may be."""
    return [each for each in found if each.state in ("missing", "differs")]
