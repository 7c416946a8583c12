"""A plan: whose each difference is, though names are shared."""

from __future__ import annotations

from typing import Any

import pytest
from topology_shop import URLS, declared_on

from atleastonce.contract import Drift, Resource, Topology
from atleastonce.topology import plan, resources

QUEUE = Resource("queue", "orders", {"durable": True, "arguments": {"x-message-ttl": 5000}})
EXCHANGE = Resource("exchange", "orders", {"type": "fanout"})
BINDING = Resource("binding", "orders", {}, {"exchange": "shop", "queue": "orders"}, visible=False)
SHOP = Resource("exchange", "shop")
TOPIC = Resource("topic", "a~orders", {"labels": {"team": "a"}}, shown="orders")
SUBSCRIPTION = Resource("subscription", "a~orders", {"filter": "x"}, {"topic": "a~orders"}, shown="orders")

CASES: list[tuple[list[Resource], list[Drift], list[str]]] = [
    ([EXCHANGE, QUEUE, BINDING], [], ["there", "there", "unknown"]),
    ([SHOP, QUEUE, BINDING], [Drift("shop", "missing", "exchange", "nothing")], ["missing", "there", "missing"]),
    ([SHOP, QUEUE, BINDING], [Drift("orders", "missing", "queue", "nothing")], ["there", "missing", "missing"]),
    ([EXCHANGE, QUEUE], [Drift("orders", "missing", "queue", "nothing")], ["there", "missing"]),
    ([EXCHANGE, QUEUE], [Drift("orders", "missing", "exchange", "nothing")], ["missing", "there"]),
    ([EXCHANGE, QUEUE], [Drift("orders", "type", "fanout", "topic")], ["differs", "there"]),
    ([EXCHANGE, QUEUE], [Drift("orders", "x-message-ttl", "5000", "3000")], ["there", "differs"]),
    ([TOPIC, SUBSCRIPTION], [Drift("orders", "missing", "subscription", "nothing")], ["there", "missing"]),
    ([TOPIC, SUBSCRIPTION], [Drift("orders", "filter", "x", "y")], ["there", "differs"]),
    ([QUEUE], [Drift("redis:6379", "maxmemory-policy", "noeviction", "allkeys-lru")], ["there"]),
]


@pytest.mark.parametrize(("wanted", "drifts", "states"), CASES)
def test_each_difference_belongs_to_one_resource(
    wanted: list[Resource], drifts: list[Drift], states: list[str]
) -> None:
    found = plan(wanted, drifts)
    assert [each.state for each in found] == states
    told = [drift for each in found for drift in each.differences]
    assert told == [drift for drift in drifts if drift.setting != "missing" and drift.name == "orders"]


def test_a_missing_topic_is_no_missing_subscription_of_another_name() -> None:
    found = plan([TOPIC, SUBSCRIPTION], [Drift("orders", "missing", kind, "") for kind in ("topic", "subscription")])
    assert [each.state for each in found] == ["missing", "missing"]


@pytest.mark.parametrize("broker", sorted(URLS))
def test_every_broker_tells_each_resource_once_and_what_leads_somewhere_after_it(broker: str) -> None:
    needs = declared_on(broker)
    known = [(each.kind, each.shown or each.name) for each in needs.resources]
    assert len(set(known)) == len(known)
    seen: set[str] = set()
    for each in needs.resources:
        assert set(each.joins.values()) <= seen, each
        seen.add(each.name)


def test_an_adapter_that_does_not_tell_is_described_by_our_names() -> None:
    class Silent:
        scheme = "other"

    consumer = declared_on("memory").consumers[0]
    silent: Any = Silent()
    found = resources(silent, Topology(channels=(consumer.home.channel,), sources=(consumer.home,)))
    assert [(each.kind, each.name) for each in found] == [("topic", "orders.created"), ("group", "billing")]
