"""Addresses, options and names of SQS, without a broker."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.adapters.sqs import names
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.channels import Queue, Source, Topic
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl


def config(url: str, **options: Any) -> Config:
    return Config.build(BrokerUrl.parse(url), options)


@pytest.mark.parametrize(
    ("url", "endpoint", "region", "key"),
    [
        ("sqs://eu-west-1", None, "eu-west-1", None),
        ("sqs://?region=eu-west-1", None, "eu-west-1", None),
        ("sqs://us-gov-west-1", None, "us-gov-west-1", None),
        ("sqs://", None, None, None),
        ("sqs://127.0.0.1:9324", "http://127.0.0.1:9324", "us-east-1", "test"),
        ("sqs://localhost?region=eu-west-1", "http://localhost:4566", "eu-west-1", "test"),
        ("sqs://k:s@127.0.0.1:1", "http://127.0.0.1:1", None, "k"),
        ("sqs://[::1]:1", "http://[::1]:1", "us-east-1", "test"),
        ("sqs://elasticmq:9324?tls=false&region=x-y-1", "http://elasticmq:9324", "x-y-1", None),
        (
            "sqs://vpce-1.sqs.eu-west-1.vpce.amazonaws.com",
            "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com:443",
            None,
            None,
        ),
    ],
)
def test_addresses(url: str, endpoint: str | None, region: str | None, key: str | None) -> None:
    made = config(url)
    assert (made.endpoint, made.region, made.key) == (endpoint, region, key)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqs://eu-west-1?leese=30s", 'did you mean "lease"'),
        ("sqs://eu-west-1?lease=500ms", "at least 1 seconds"),
        ("sqs://eu-west-1?lease=13h", "at most 43200"),
        ("sqs://eu-west-1?lease=1500ms", "whole seconds"),
        ("sqs://eu-west-1?wait=21s", "at most 20"),
        ("sqs://eu-west-1?exit_wait=2m", "at most 60"),
        ("sqs://eu-west-1?pollers=0", "from 1 to 100"),
        ("sqs://eu-west-1?region=us-east-1", "two regions"),
        ("sqs://eu-west-1/queue", "no path"),
        ("sqs://eu-west-1?cafile=/nowhere", 'cafile "/nowhere" cannot be read: No such file'),
        ("sqs://eu-west-1,us-east-1", "one region"),
        ("sqs://key@eu-west-1", "needs its secret"),
        ("sqs://eu-west-1?session=x", "given in code"),
        ("sqs://eu-west-1?account=12", "12 digits"),
        ("sqs://eu-west-1?prefix=a.b", "prefix"),
        ("sqs://localhost?tls=maybe", "neither true nor false"),
        ("sqs://?tls=true", "goes with an endpoint"),
        ("sqs://eu-west-1?connections=5&threads=8", "leaves none for polls"),
        ("sqs://eu-west-1?max_message_bytes=1KiB", "at least 16KiB"),
    ],
)
def test_bad_options_say_what_to_change(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        config(url)


def test_secrets_are_in_no_text() -> None:
    made = config("sqs://AKIA:hush@eu-west-1?session_token=quiet")
    assert made.secret == "hush"
    assert "hush" not in repr(made)
    assert "quiet" not in repr(made)
    assert "hush" not in str(BrokerUrl.parse("sqs://AKIA:hush@eu-west-1?session_token=quiet"))
    with pytest.raises(ConfigurationError) as caught:
        config("sqs://AKIA:hush@eu-west-1?session_token=quiet&nonsense=1")
    assert "hush" not in str(caught.value)


def test_a_session_token_is_not_in_the_log_of_the_client(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """botocore writes down what it signs."""
    pytest.importorskip("boto3", reason="boto3 is not installed")
    url = f"sqs://AKIA:hushhush@127.0.0.1:{unused_tcp_port}?region=eu-west-1&session_token=quiet/quiet%2B1=="
    clients = Clients(config(url))
    with caplog.at_level("DEBUG", "botocore"):
        for service in (clients.sqs, clients.sts):
            with pytest.raises(Exception, match="connect to the endpoint"):
                getattr(service, "list_queues" if service is clients.sqs else "get_caller_identity")()
        with pytest.raises(Exception, match="connect to the endpoint"):
            clients.call("ReceiveMessage", QueueUrl=f"http://127.0.0.1:{unused_tcp_port}/000000000000/q")
    clients.close()
    assert caplog.text.lower().count("x-amz-security-token") > 2
    assert "quiet/quiet" not in caplog.text
    assert "hushhush" not in caplog.text


def test_the_adapter_needs_no_client_until_it_opens() -> None:
    program = """
import sys
from atleastonce.adapters import open_adapter
open_adapter("sqs://eu-west-1")
assert not {"boto3", "botocore"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("source", "spelled"),
    [
        (Source(Queue("orders")), "orders"),
        (Source(Queue("my-queue_2")), "my-queue_2"),
        (Source(Queue("orders", fifo=True)), "orders.fifo"),
        (Source(Topic("orders.created"), "billing"), "orders--created--billing"),
        (Source(Topic("orders.created", fifo=True), "billing"), "orders--created--billing.fifo"),
        (Source(Topic("orders"), "b").dead_letter_channel, "orders--b--dlq"),
        (Source(Queue("x", options={"sqs": {"name": "odd--one"}})), "odd--one"),
    ],
)
def test_names(source: Any, spelled: str) -> None:
    source = Source(source) if isinstance(source, Queue) else source
    assert names.queue_name(source, "") == spelled


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}", fullmatch=True), st.booleans())
def test_names_are_reversible_or_refused(name: str, fifo: bool) -> None:
    try:
        spelled = names.of_queue(Queue(name, fifo=fifo), "pre-")
    except ConfigurationError:
        assert "--" in name or "-." in name or ".-" in name or name.endswith(".fifo")
        return
    assert names.original(spelled, "pre-") == name


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (Queue("a--b"), "cannot be kept apart"),
        (Queue("a-.b"), "cannot be kept apart"),
        (Queue("orders.fifo", fifo=True), 'write Queue\\("orders", fifo=True\\)'),
        (Queue("x" * 81), "at most 80"),
        (Queue("x", options={"sqs": {"name": "a.b"}}), "no name on AWS"),
        (Queue("x", options={"sqs": {"name": "a.fifo"}}), "contradict"),
    ],
)
def test_names_that_cannot_be_are_refused(queue: Queue[Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        names.of_queue(queue, "")


def test_the_end_of_a_process_waits_for_one_poll_unless_told_otherwise() -> None:
    assert config("sqs://eu-west-1?wait=5s").at_exit == 6.0
    assert config("sqs://eu-west-1?exit_wait=0").at_exit == 0.0
