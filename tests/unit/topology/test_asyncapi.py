"""``topology export asyncapi``: a document that validates, with the shapes of the payloads, on every broker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from asyncapi_rules import violations
from topology_shop import URLS, Order, declared_on, send

from atleastonce import Queue, Service, Topic
from atleastonce.topology import Declared, asyncapi, declared


def exported(needs: Declared) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(asyncapi(needs, "2.1.0").document))
    return found


def needs_of(service: Service) -> Declared:
    return declared(service.name, service.consumers, service.make_broker().adapter, 25.0)


@pytest.mark.parametrize("broker", sorted(URLS))
def test_it_validates_and_holds_no_secret(broker: str) -> None:
    document = exported(declared_on(broker))
    assert violations(document) == []
    assert "s3cret" not in json.dumps(document)
    assert document["info"] == {"title": "billing", "version": "2.1.0"}


def test_the_rules_find_what_is_wrong() -> None:
    document = exported(declared_on("kafka"))
    document["operations"]["mails.receive"]["action"] = "subscribe"
    document["channels"]["mails"]["colour"] = "red"
    document["channels"]["mails"]["bindings"]["kafka"]["bindingVersion"] = "0.1.0"
    del document["components"]["schemas"]["Mail"]
    found = "\n".join(violations(document))
    for told in (
        "action subscribe",
        "no field colour",
        "version of the kafka",
        "#/components/schemas/Mail: nothing there",
    ):
        assert told in found


def test_a_handler_is_an_operation_that_receives_from_its_channel() -> None:
    document = exported(declared_on("kafka"))
    assert document["servers"] == {"broker": {"host": "kafka:9092", "protocol": "kafka-secure"}}
    orders = document["channels"]["orders.created"]
    assert orders["address"] == "orders.created"
    assert orders["bindings"] == {"kafka": {"topic": "orders.created", "partitions": 6, "bindingVersion": "0.5.0"}}
    receive = document["operations"]["orders.created.billing.receive"]
    assert receive["action"] == "receive"
    assert receive["summary"] == "Charge the card. Once."
    assert receive["bindings"]["kafka"]["groupId"]["enum"] == ["billing"]
    assert document["operations"]["orders.created.billing.dlq.send"]["action"] == "send"
    schema = document["components"]["schemas"]["Order"]
    assert schema["required"] == ["order_id"]
    assert schema["properties"]["customer"]["anyOf"] == [{"type": "string"}, {"type": "null"}]


def test_rabbitmq_has_queues_exchanges_and_the_virtual_host() -> None:
    document = exported(declared_on("rabbitmq"))
    assert document["servers"]["broker"] == {"host": "mq:5672", "protocol": "amqp", "pathname": "/shop"}
    assert document["channels"]["orders.created"]["bindings"]["amqp"]["exchange"]["type"] == "fanout"
    assert document["channels"]["mails"]["bindings"]["amqp"]["queue"]["durable"] is True


@pytest.mark.parametrize(
    ("broker", "address"),
    [
        ("kafka", "orders.created"),
        ("rabbitmq", "orders.created"),
        ("sqs", "orders--created"),
        ("nats", "orders.created"),
        ("pubsub", "orders.created"),
        ("redis", "orders.created"),
        ("memory", "orders.created"),
    ],
)
def test_an_address_is_what_a_raw_client_would_write(broker: str, address: str) -> None:
    channels = exported(declared_on(broker))["channels"]
    assert channels["orders.created"]["address"] == address
    assert channels["mails"]["address"] == "mails"


@pytest.mark.parametrize(
    ("broker", "address"),
    [("rabbitmq", "jobs.p{part}"), ("redis", "jobs.p{part}"), ("nats", "jobs.p{part}"), ("kafka", "jobs")],
)
def test_a_channel_in_parts_has_one_address_for_all_of_them(broker: str, address: str) -> None:
    service = Service("billing", broker=URLS[broker])

    @service.consumer(Queue("jobs", partitions=3, single_active=True), ordered=True)
    async def handle(body: bytes) -> None: ...

    document = exported(needs_of(service))
    assert violations(document) == []
    found = document["channels"]["jobs"]
    assert found["address"] == address
    assert found.get("parameters", {}).get("part", {}).get("enum") == (["0", "1", "2"] if broker != "kafka" else None)


def test_several_servers_are_all_named() -> None:
    document = exported(declared_on("kafka", "kafka://one,two:9093"))
    assert {name: each["host"] for name, each in document["servers"].items()} == {
        "broker1": "one:9092",
        "broker2": "two:9093",
    }
    assert len(document["channels"]["mails"]["servers"]) == 2


@dataclass
class Parcel:
    weight: float


def test_every_kind_of_payload_has_its_schema() -> None:
    service = Service("billing", broker="memory://")

    @service.consumer(Queue("raw"))
    async def raw(body: bytes) -> None: ...

    @service.consumer(Queue("free"))
    async def free(body: dict[str, Any]) -> None: ...

    @service.consumer(Queue("parcels"))
    async def parcels(parcel: Parcel) -> None: ...

    document = exported(needs_of(service))
    assert violations(document) == []
    messages = document["components"]["messages"]
    assert messages["raw"]["payload"] == {"type": "string", "format": "binary"}
    assert messages["raw"]["contentType"] == "application/octet-stream"
    assert messages["free"]["payload"] == {"type": "object"}
    assert messages["Parcel"]["payload"] == {"$ref": "#/components/schemas/Parcel"}


def test_a_model_of_pydantic_has_its_schema() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Line(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        sku: str

    class Cart(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        lines: list[Line]

    service = Service("billing", broker="memory://")

    async def buy(cart: Any) -> None: ...

    buy.__annotations__["cart"] = Cart
    service.consumer(Queue("carts"))(buy)
    document = exported(needs_of(service))
    assert violations(document) == []
    assert document["components"]["messages"]["Cart"]["payload"] == {"$ref": "#/components/schemas/Cart"}
    assert set(document["components"]["schemas"]) == {"Cart", "Line"}


def test_two_types_of_one_name_are_two_messages_and_one_type_is_one() -> None:
    other = type("Order", (msgspec.Struct,), {"__annotations__": {"total": float}})
    service = Service("billing", broker="memory://")

    async def first(order: Order) -> None: ...

    async def second(order: Any) -> None: ...

    async def third(order: Order) -> None: ...

    second.__annotations__["order"] = other
    for name, handler in (("a", first), ("b", second), ("c", third)):
        service.consumer(Queue(name))(handler)
    document = exported(needs_of(service))
    messages = {name: [each["$ref"] for each in document["channels"][name]["messages"].values()] for name in "abc"}
    assert messages["a"] == messages["c"] != messages["b"]
    shapes = [set(schema["properties"]) for schema in document["components"]["schemas"].values()]
    assert {"total"} in shapes
    assert {"order_id", "customer"} in shapes


@pytest.mark.parametrize(
    ("url", "reply"),
    [
        ("kafka://k", {"address": {"location": "$message.header#/alo-reply-to"}}),
        ("nats://n", {}),  # it is in the protocol
    ],
)
def test_a_responder_answers_to_the_address_in_the_request(url: str, reply: dict[str, Any]) -> None:
    service = Service("quotes", broker=url)
    service.responder(Topic("quotes"))(send)
    receive = exported(needs_of(service))["operations"]["quotes.quotes.receive"]
    assert receive["reply"] == reply
