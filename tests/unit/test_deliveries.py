"""What every delivery is, with its header fields: looked at again and again on the hot path, its message perhaps never."""

from __future__ import annotations

import importlib

import pytest

from atleastonce.channels import Queue, Source
from atleastonce.contract import Delivery
from atleastonce.message import Message

# The client without which an adapter cannot be imported, its module, its class.
KINDS = (
    ("msgspec", "atleastonce.contract", "Delivery"),
    ("confluent_kafka", "atleastonce.adapters.kafka.records", "RecordDelivery"),
    ("nats", "atleastonce.adapters.nats.delivery", "NatsDelivery"),
    ("google.cloud.pubsub_v1", "atleastonce.adapters.pubsub.records", "PubSubDelivery"),
    ("redis", "atleastonce.adapters.redis_streams.entries", "EntryDelivery"),
    ("boto3", "atleastonce.adapters.sqs.records", "SQSDelivery"),
    ("msgspec", "atleastonce.contract", "AskingHeaders"),
    ("confluent_kafka", "atleastonce.adapters.kafka.records", "RecordHeaders"),
    ("nats", "atleastonce.adapters.nats.envelope", "_Text"),
)


class Late(Delivery):
    """Its message is made when somebody looks at it."""

    __slots__ = ("reads",)

    def __init__(self) -> None:
        super().__init__(Message("m", b"body"), Source(Queue("q")), "s", "7", 1, "t")
        self._message = None
        self.reads = 0

    @property
    def body(self) -> bytes:
        return b"body"

    def read(self) -> Message:
        self.reads += 1
        return Message(f"read-{self.reads}", b"body")


def test_a_message_is_made_once_and_when_somebody_looks_at_it() -> None:
    late = Late()
    assert late.reads == 0
    assert late.message is late.message
    assert (late.message.id, late.reads) == ("read-1", 1)
    assert late.unreadable is None


def test_what_was_shed_keeps_its_name() -> None:
    late = Late()
    late.shed()
    assert (late.message.id, late.message.body, late.reads) == ("read-1", b"", 1)


@pytest.mark.parametrize(("client", "module", "name"), KINDS)
def test_no_attribute_is_looked_up_the_slow_way(client: str, module: str, name: str) -> None:
    """A class with ``__getattr__`` has all of its attributes looked up so, not only those that are missing."""
    pytest.importorskip(client)
    assert not hasattr(getattr(importlib.import_module(module), name), "__getattr__")
