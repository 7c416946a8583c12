"""NATS settings and names: bad input is one precise line, secrets stay hidden, names read back."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

from atleastonce import ConfigurationError, Queue, Topic
from atleastonce.adapters import open_adapter
from atleastonce.adapters.nats import NatsAdapter
from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.names import durable_of, group_subject, stream_of, subject_for, subject_of, subjects_of
from atleastonce.adapters.nats.topology import _covers, consumer_config, stream_config
from atleastonce.channels import Source
from atleastonce.urls import BrokerUrl


def build(url: str, **options: Any) -> Config:
    return Config.build(BrokerUrl.parse(url), options)


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("nats://h?ackwait=3", {}, "ack_wait"),
        ("nats://h?nonsense=3", {}, "known:"),
        ("nats://h?ack_wait=soon", {}, "ack_wait"),
        ("nats://h?acks=maybe", {}, "confirmed"),
        ("nats://h?replicas=7", {}, "1 to 5"),
        ("nats://h?publish_window=0", {}, "at least 1"),
        ("nats://h?publish_window=many", {}, "whole number"),
        ("nats://h/path", {}, "no databases"),
        ("nats://h?cafile=x", {}, "needs TLS"),
        ("tls://h?cafile=/nowhere", {}, 'cafile "/nowhere" cannot be read: No such file'),
        ("tls://h", {"ssl_context": "x"}, "SSLContext"),
        ("nats://h?client=x", {}, "in code"),
        ("nats://h", {"client": {"allow_reconnect": True}}, "set by this adapter"),
        ("nats://h", {"client": 3}, "dict"),
        ("nats://h", {"credentials": 3}, "text"),
        ("nats://h", {"credentials": "/nowhere/user.creds"}, "no file"),
        ("nats://h", {"nkey_seed": __file__}, "pip install nkeys"),
    ],
)
def test_bad_settings_are_named(url: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        build(url, **options)


def test_good_settings_arrive() -> None:
    config = build("nats://one,two:5?ack_wait=2m&publish_window=7&domain=hub", client={"no_echo": True})
    assert config.servers == ("nats://one:4222", "nats://two:5")
    assert (config.ack_wait, config.publish_window, config.api) == (120.0, 7, "$JS.hub.API")
    assert config.arguments()["no_echo"] is True
    assert config.arguments()["allow_reconnect"] is False


@pytest.mark.parametrize("scheme", ["tls", "natss"])
def test_tls_checks_the_peer(scheme: str) -> None:
    config = build(f"{scheme}://h")
    assert config.servers == ("tls://h:4222",)
    assert config.tls is not None
    assert config.tls.verify_mode is ssl.CERT_REQUIRED
    assert isinstance(open_adapter(f"{scheme}://h"), NatsAdapter)


def test_a_user_without_a_password_is_a_token_and_secrets_are_hidden() -> None:
    config = build("nats://s3cr3t@h")
    assert (config.user, config.token) == (None, "s3cr3t")
    for hidden in (config, build("nats://u:s3cr3t@h"), build("nats://h", token="s3cr3t")):
        assert "s3cr3t" not in repr(hidden)
        assert "s3cr3t" not in hidden.address


def test_names_are_reversible_and_do_not_meet() -> None:
    names = ["orders.created", "orders-created", "orders_created", "a..b", "a.b.", "a.b"]
    streams = [stream_of(Queue(name)) for name in names]
    assert [stream.replace("~", ".") for stream in streams] == names
    subjects = [subject_of(Queue(name)) for name in names]
    assert len(set(subjects)) == len(names)
    assert all(part for subject in subjects for part in subject.split("."))


def test_a_group_has_a_subject_of_its_own_within_its_topics_stream() -> None:
    source = Source(Topic("orders.created"), "billing.eu")
    assert subject_for(source) == group_subject(source) == "_alo.orders~created.billing~eu"
    assert subjects_of(source.channel) == ["orders.created", "_alo.orders~created.*"]
    assert all(_covers("_alo.orders~created.*", each) for each in [subject_for(source)])
    assert subject_for(Source(Queue("q"))) == "q"


def test_options_of_a_channel_are_taken_as_they_are() -> None:
    config = build("nats://h?replicas=3")
    options = {
        "subject": "ORDERS.new",
        "stream": "ORDERS",
        "durable": "us",
        "max_msgs": 5,
        "consumer": {"max_batch": 9},
    }
    queue = Queue[object]("orders", options={"nats": options})
    assert (subject_of(queue), stream_of(queue), durable_of(Source(queue))) == ("ORDERS.new", "ORDERS", "us")
    made = stream_config(queue, config)
    assert (made["max_msgs"], made["num_replicas"], made["discard"], made["retention"]) == (5, 3, "new", "workqueue")
    assert not {"stream", "subject", "durable", "consumer"} & made.keys()
    consumer = consumer_config(Source(queue), config)
    assert (consumer["max_batch"], consumer["max_ack_pending"], consumer["max_deliver"]) == (9, -1, -1)


def test_a_short_lived_topic_has_no_longer_duplicate_window() -> None:
    made = stream_config(Topic("t"), build("nats://h?topic_max_age=60"))
    assert made["max_age"] == made["duplicate_window"] == 60_000_000_000
    assert open_adapter("nats://h?topic_max_age=60").capabilities.delay.limit == 15
    assert open_adapter("nats://h?topic_max_age=0").capabilities.delay.limit is None


@pytest.mark.parametrize(
    ("pattern", "subject", "covers"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.>", "a.b.c", True),
        (">", "a", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a", False),
        ("a", "a.b", False),
        ("x.*", "x.*", True),
        ("x.y", "x.*", False),
    ],
)
def test_what_a_pattern_covers(pattern: str, subject: str, covers: bool) -> None:
    assert _covers(pattern, subject) is covers
