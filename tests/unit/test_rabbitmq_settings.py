"""Options, queue arguments, delays and faults of the RabbitMQ adapter, without a broker."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest

pytest.importorskip("pika", reason="pika is not installed")

from hypothesis import given
from hypothesis import strategies as st
from pika import exceptions as amqp
from pika.adapters.utils import connection_workflow as workflow

from atleastonce.adapters import open_adapter
from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.adapters.rabbitmq.faults import as_error, classify
from atleastonce.adapters.rabbitmq.topology import MAX_TTL, delay_queue, queue_arguments, tier
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import Code, Scope
from atleastonce.errors import BrokerUnavailable, ConfigurationError, ConnectionLost, NotFound, PermissionDenied
from atleastonce.urls import BrokerUrl


def config(url: str, **options: Any) -> Config:
    return Config.build(BrokerUrl.parse(url), options)


def test_the_url_says_it_all() -> None:
    built = config("rabbitmq://ann:p%40ss@one,two:1234/prod%2Feu?heartbeat=5s&send_timeout=2&publish_window=10")
    assert built.hosts == (("one", 5672), ("two", 1234))
    assert built.virtual_host == "prod/eu"
    assert (built.heartbeat, built.send_timeout, built.publish_window) == (5.0, 2.0, 10)
    assert (built.user, built.credentials.password) == ("ann", "p@ss")
    assert "p@ss" not in repr(built)
    first, second = built.parameters("publisher")
    assert (first.host, first.port, second.host, second.port) == ("one", 5672, "two", 1234)
    assert first.heartbeat == 5
    assert first.blocked_connection_timeout == 300
    assert first.tcp_options["TCP_USER_TIMEOUT"] == 15_000
    assert first.client_properties["connection_name"] == "atleastonce (publisher)"
    assert first.ssl_options is None


def test_the_defaults_are_the_brokers() -> None:
    built = config("amqp://")
    assert built.hosts == (("localhost", 5672),)
    assert built.virtual_host == "/"
    assert built.user == "guest"


def test_tls_checks_the_name_of_the_host() -> None:
    (first,) = config("amqps://broker.example/").parameters("x")
    assert first.port == 5671
    assert first.ssl_options.server_hostname == "broker.example"
    assert first.ssl_options.context.verify_mode is ssl.CERT_REQUIRED
    assert first.ssl_options.context.check_hostname
    (first,) = config("rabbitmqs://10.0.0.1/?server_hostname=broker.example").parameters("x")
    assert first.ssl_options.server_hostname == "broker.example"
    own = ssl.create_default_context()
    assert config("amqps://h/", ssl_context=own).tls is own


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("rabbitmq://h/?heartbeet=5", {}, 'did you mean "heartbeat"'),
        ("rabbitmq://h/?heartbeat=often", {}, "heartbeat"),
        ("rabbitmq://h/?heartbeat=0.1", {}, "out of range"),
        ("rabbitmq://h/?publish_window=0", {}, "at least 1"),
        ("rabbitmq://h/?publish_window=many", {}, "no whole number"),
        ("rabbitmq://h/", {"delivery_limit": True}, "no whole number"),
        ("rabbitmq://h/?max_message_bytes=big", {}, "max_message_bytes"),
        ("rabbitmq://h/?cafile=x.pem", {}, "amqps://"),
        ("amqps://h/?cafile=/nowhere/x.pem", {}, 'cafile "/nowhere/x.pem" cannot be read: No such file'),
        ("amqps://h/?verify=none", {}, "unknown option"),
        ("amqps://h/", {"ssl_context": "none"}, "not an ssl.SSLContext"),
        ("rabbitmq://h/?credentials=x", {}, "given in code"),
    ],
)
def test_bad_options_are_told_in_one_line(url: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        open_adapter(url, options)
    assert "\n" not in str(caught.value)


def test_limits_are_in_the_capabilities() -> None:
    adapter = open_adapter("rabbitmq://h/?max_message_bytes=1MiB")
    assert adapter.capabilities.max_message_bytes == 2**20
    assert adapter.capabilities.delay.covers(86_400 * 49)
    assert not adapter.capabilities.delay.covers(86_400 * 50)
    assert adapter.scheme == "rabbitmq"


@given(st.floats(0.001, MAX_TTL))
def test_delays_are_rounded_up_to_few_tiers(delay: float) -> None:
    milliseconds = tier(delay)
    assert delay * 1000 - 1e-6 <= milliseconds <= max(delay * 1000 * 1.1 + 1, 100)
    assert milliseconds <= 2**32 - 1
    assert tier(milliseconds / 1000) == milliseconds


@pytest.mark.parametrize(
    ("delay", "name"),
    [
        (0.0001, "q.delay.1ms"),
        (0.3, "q.delay.300ms"),
        (5, "q.delay.5s"),
        (90, "q.delay.90s"),
        (61.2, "q.delay.62s"),
        (900, "q.delay.15m"),
        (3600 * 36, "q.delay.36h"),
        (86_400 * 7, "q.delay.7d"),
        (12_345, "q.delay.13000s"),
    ],
)
def test_natural_delays_stay_as_they_are(delay: float, name: str) -> None:
    assert delay_queue("q", delay) == name


def test_a_queue_has_the_same_arguments_whoever_declares_it() -> None:
    arguments = queue_arguments(Source(Queue("q")), 20)
    assert arguments == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q.dlq",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    group = Source(Topic("t", options={"rabbitmq": {"x-max-length": 5, "alternate-exchange": "other"}}), "g")
    assert queue_arguments(group, 20)["x-dead-letter-routing-key"] == "t.g.dlq"
    assert queue_arguments(group, 20)["x-max-length"] == 5
    assert "alternate-exchange" not in queue_arguments(group, 20)
    assert queue_arguments(Source(Queue("q", single_active=True)), 20)["x-single-active-consumer"] is True
    assert queue_arguments(Source(Queue("q.dlq")), 20) == {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}
    classic = queue_arguments(Source(Queue("q", options={"rabbitmq": {"x-queue-type": "classic"}})), 20)
    assert "x-delivery-limit" not in classic


def closed(code: int, text: str = "text") -> Exception:
    return amqp.ChannelClosedByBroker(code, text)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (closed(403), Code.PERMISSION, False),
        (closed(404), Code.NOT_FOUND, False),
        (closed(405), Code.CONFLICT, True),
        (closed(406, "PRECONDITION_FAILED - inequivalent arg 'x'"), Code.CONFLICT, False),
        (closed(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"), Code.TIMEOUT, True),
        (
            closed(406, "PRECONDITION_FAILED - message size 9 is larger than configured max size 8"),
            Code.TOO_LARGE,
            False,
        ),
        (closed(406, "PRECONDITION_FAILED - unknown delivery tag 3"), Code.STALE, False),
        (closed(406, "PRECONDITION_FAILED - invalid expiration"), Code.INVALID, False),
        (closed(506), Code.OVERLOADED, True),
        (closed(541), Code.UNAVAILABLE, True),
        (closed(999), Code.INTERNAL, False),
        (amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), Code.UNAVAILABLE, True),
        (amqp.ConnectionClosedByBroker(501, "FRAME_ERROR"), Code.INVALID, False),
        (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost x not found"), Code.NOT_FOUND, False),
        (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED - access to vhost"), Code.PERMISSION, False),
        (amqp.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED'"), Code.PERMISSION, False),
        (amqp.ConnectionBlockedTimeout("x"), Code.OVERLOADED, True),
        (amqp.AMQPHeartbeatTimeout("x"), Code.UNAVAILABLE, True),
        (amqp.StreamLostError("x"), Code.UNAVAILABLE, True),
        (amqp.IncompatibleProtocolError("x"), Code.UNAVAILABLE, True),
        (amqp.ConnectionWrongStateError("x"), Code.UNAVAILABLE, True),
        (workflow.AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "refused")), Code.UNAVAILABLE, True),
        (workflow.AMQPConnectorStackTimeout("x"), Code.TIMEOUT, True),
        (socket.gaierror(-2, "unknown"), Code.UNAVAILABLE, True),
        (ssl.SSLError("bad"), Code.UNAVAILABLE, False),
        (TimeoutError(), Code.TIMEOUT, True),
        (BrokerUnavailable("x"), Code.UNAVAILABLE, True),
        (ZeroDivisionError("x"), Code.INTERNAL, False),
    ],
)
def test_every_error_has_a_fault(error: Exception, code: Code, retryable: bool) -> None:
    fault = classify(error)
    assert (fault.code, fault.retryable) == (code, retryable)
    assert "\n" not in fault.detail


def test_of_several_hosts_the_refusal_is_told() -> None:
    refused = workflow.AMQPConnectorAMQPHandshakeError(
        amqp.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused'")
    )
    silent = workflow.AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "Connection refused"))
    fault = classify(workflow.AMQPConnectionWorkflowFailed([refused, silent]))
    assert (fault.code, fault.scope) == (Code.PERMISSION, Scope.CONNECTION)
    assert "Login was refused" in fault.detail


def test_faults_become_the_errors_of_the_contract() -> None:
    assert isinstance(as_error(closed(403), "x"), PermissionDenied)
    assert isinstance(as_error(closed(404), "x"), NotFound)
    assert isinstance(as_error(closed(541), "x"), BrokerUnavailable)
    assert isinstance(as_error(closed(541), "x", lost=True), ConnectionLost)
    secret = amqp.StreamLostError("amqp://user:s3cret@host/")
    assert "s3cret" not in str(as_error(secret, "x"))
