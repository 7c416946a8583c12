"""A check looks at a live broker, creates nothing, and says what a start says: on every backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from atleastonce import ConfigurationError, Queue, Service, Topic

pytestmark = pytest.mark.timeout(120, func_only=True)


def service_on(url: str, topic: Any, *, create: bool = True) -> Service:
    service = Service("billing", broker=url, create=create, wait=0)

    @service.consumer(topic, retry=["5s", "1m"])
    async def handle(order: dict[str, Any]) -> None: ...

    return service


def plain(text: str) -> str:
    """Without what brokers put in a name for what they do not take in one."""
    return re.sub("[._-]", "", text)


async def test_a_check_before_the_first_start_creates_nothing(
    backend_url: str, topic: Callable[[str], Topic[Any]]
) -> None:
    orders = topic("orders")
    for _ in range(2):  # the first has made nothing, or the second would find it
        found = await service_on(backend_url, orders).check()
        assert {finding.severity for finding in found} == {"note"}, found
        assert any("missing on the broker" in finding.text for finding in found), found
        assert any(plain(orders.name) in plain(finding.text) for finding in found), found
        assert any(plain(f"{orders.name}.billing.dlq") in plain(finding.text) for finding in found), found
    strict = service_on(backend_url, orders, create=False)
    refused = await strict.check()
    assert {finding.severity for finding in refused} - {"note"} == {"refuse"}, refused
    with pytest.raises(ConfigurationError) as told:
        await strict.start()
    assert str(told.value) in {finding.text for finding in refused}


async def test_what_is_as_it_should_be_gives_no_finding(backend_url: str, topic: Callable[[str], Topic[Any]]) -> None:
    service = service_on(backend_url, topic("orders"))
    async with service:
        found = await service_on(backend_url, service.consumers[0].home.channel, create=False).check()
        assert {finding.severity for finding in found} <= {"note"}, found


async def test_a_topic_that_is_there_with_other_settings_is_told_with_what_to_change(
    request: pytest.FixtureRequest, backend_url: str, topic: Callable[[str], Topic[Any]]
) -> None:
    orders = topic("orders")
    settings: dict[str, dict[str, Any]] = {
        "kafka": {"partitions": 5},
        "rabbitmq": {"options": {"rabbitmq": {"alternate-exchange": "elsewhere"}}},
        "memory": {"fifo": True},
        "sqlite": {"fifo": True},
    }
    scheme = backend_url.partition(":")[0]
    if scheme not in settings:
        pytest.skip(f"no setting of a topic that could differ is known for {scheme}")
    async with service_on(backend_url, orders):
        other = service_on(backend_url, Topic(orders.name, **{"partitions": 2, **settings[scheme]}))
        found = await other.check()
        problems = [each for each in found if orders.name in each.text and each.severity != "note"]
        assert problems
        assert all("wanted" in finding.text and "; " in finding.text for finding in problems), problems


async def test_a_queue_where_a_topic_should_be_is_found(backend_url: str, topic: Callable[[str], Topic[Any]]) -> None:
    if backend_url.partition(":")[0] not in ("memory", "sqlite"):
        pytest.skip("queues and topics do not share their names there")
    orders = topic("orders")
    mails = Service("mails", broker=backend_url)
    mails.consumer(Queue(orders.name))(lambda _: None)
    async with mails:
        (problem,) = [
            finding for finding in await service_on(backend_url, orders).check() if finding.severity != "note"
        ]
    assert problem.severity == "refuse"
    assert "rename one of them" in problem.text
