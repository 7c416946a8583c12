"""RabbitMQ takes our definitions, and what it made of them is what our own declaration makes."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.request
from typing import Any

import pytest
from topology_kit import Order, looked_at, needs_of, read, remove, shop, unlike

from atleastonce import Service, Topic
from atleastonce.brokers import Running
from atleastonce.topology import definitions, terraform


def ask(management: str, path: str, body: Any = None, method: str | None = None) -> Any:
    """One call of the management API."""
    request = urllib.request.Request(
        f"{management}/api/{path}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={
            "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@pytest.fixture
def management(rabbitmq_broker: Running) -> str:
    if rabbitmq_broker.management_url is None:
        pytest.skip("the management API's address is not known")
    return rabbitmq_broker.management_url


async def handled(url: str, topic: Topic[Any]) -> list[int]:
    """What reaches the service, started without the right to make anything, of one publish to its topic."""
    got: list[int] = []
    arrived = asyncio.Event()
    running = Service("billing", broker=url, create=False, wait=0)

    async def note(order: Order) -> None:
        got.append(order.order_id)
        arrived.set()

    running.consumer(topic, retry=["5s", "10m"])(note)
    async with running:
        await running.broker.publish(topic, Order(7))
        await asyncio.wait_for(arrived.wait(), 20)
    return got


@pytest.mark.parametrize("way", ["definitions", "terraform"])
async def test_what_was_imported_is_what_would_be_declared(rabbitmq_url: str, management: str, way: str) -> None:
    service = shop(rabbitmq_url)
    assert {each.state for each in await looked_at(service)} == {"missing"}
    try:
        if way == "definitions":
            ask(management, "definitions", read(definitions(needs_of(service))))
        else:
            for path, body in calls(read(terraform(needs_of(service)))["resource"]):
                ask(management, path, body, "POST" if path.startswith("bindings") else "PUT")
        assert unlike(await looked_at(service)) == []
        topic = service.consumers[0].home.channel
        assert isinstance(topic, Topic)
        assert await handled(rabbitmq_url, topic) == [7]  # through the binding, which AMQP does not tell of
    finally:
        await remove(service)


async def test_a_definition_that_differs_is_seen(rabbitmq_url: str, management: str) -> None:
    service = shop(rabbitmq_url)
    document = read(definitions(needs_of(service)))
    room = next(each for each in document["queues"] if each["name"].endswith(".retry.5s"))
    room["arguments"]["x-message-ttl"] = 3000
    try:
        ask(management, "definitions", document)
        (differs,) = unlike(await looked_at(service))
        assert (differs.name, differs.state) == (room["name"], "differs")
        assert [(drift.setting, drift.wanted, drift.found) for drift in differs.differences] == [
            ("x-message-ttl", "'5000'", "'3000'")
        ]
    finally:
        await remove(service)


def calls(found: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    """What the provider does with our resources: the management API's calls, with the references filled in."""
    names = {
        f"${{{kind}.{label}.name}}": body["name"]
        for kind, each in found.items()
        for label, body in each.items()
        if "name" in body
    }
    made: list[tuple[str, Any]] = [
        (f"exchanges/%2F/{body['name']}", body["settings"][0]) for body in found["rabbitmq_exchange"].values()
    ]
    for body in found["rabbitmq_queue"].values():
        (settings,) = body["settings"]
        arguments = json.loads(settings.pop("arguments_json"))
        made.append((f"queues/%2F/{body['name']}", {**settings, "arguments": arguments}))
    for body in found["rabbitmq_binding"].values():
        assert body["destination_type"] == "queue"
        path = f"bindings/%2F/e/{names[body['source']]}/q/{names[body['destination']]}"
        made.append((path, {"routing_key": body["routing_key"]}))
    return made
