"""Names of channels, groups and what is derived from them."""

from __future__ import annotations

import pytest

from atleastonce import ConfigurationError, Queue, Source, Topic


@pytest.mark.parametrize("name", ["a", "orders.created", "A-b_c.9", "0", "x" * 200])
def test_names_that_every_broker_takes(name: str) -> None:
    assert Queue(name).name == Topic(name).name == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "a\n", "ü", "x" * 201, "a*", "a#", None, 5, b"a"])
def test_other_names_are_refused_with_the_rule(name: object) -> None:
    for kind in (Queue, Topic):
        with pytest.raises(ConfigurationError, match=f"{kind.__name__} name .* use 1 to 200 letters, digits"):
            kind(name)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="group of orders name"):
        Source(Topic("orders"), name)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, 10_001])
def test_partitions_have_a_range(count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"partitions={count} is out of range"):
        Queue("q", partitions=count)


def test_a_source_names_its_retry_and_dead_letter_channels_with_its_group() -> None:
    billing = Source(Topic("orders.created", partitions=6), "billing")
    assert (billing.name, billing.group_name, str(billing)) == (
        "orders.created.billing",
        "billing",
        "orders.created.billing",
    )
    assert billing.retry_channel(5) == Queue("orders.created.billing.retry.5s", partitions=6)
    assert billing.retry_channel(0.0015).name == "orders.created.billing.retry.2ms"
    assert billing.dead_letter_channel.name == "orders.created.billing.dlq"
    assert billing.redrive_channel.name == "orders.created.billing.redrive"
    queue = Source(Queue("quotes"))
    assert (queue.name, queue.group_name, queue.dead_letter_channel.name) == ("quotes", "quotes", "quotes.dlq")


def test_a_queue_has_no_groups_and_a_topic_needs_one() -> None:
    with pytest.raises(ConfigurationError, match="queue quotes has no groups; leave group='a' away"):
        Source(Queue("quotes"), "a")
    with pytest.raises(ConfigurationError, match="group of orders name None"):
        Source(Topic("orders"))


def test_channels_are_values() -> None:
    assert Queue("q") == Queue("q", options={})
    assert hash(Queue("q", options={"rabbitmq": {"x": 1}})) == hash(Queue("q"))
    assert Queue("q") != Topic("q")
    with pytest.raises(AttributeError):
        Queue("q").name = "other"  # type: ignore[misc]
