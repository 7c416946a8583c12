"""Why a letter is dead, whoever wrote it: ours, brokers' nets, other libraries; and nothing forged raises or reaches a terminal."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import Headers, Message, Source, Topic, wire
from atleastonce.contract import Delivery
from atleastonce.message import HeaderValue
from atleastonce.patterns.failure import Dead, Hop
from atleastonce.patterns.history import read_history
from atleastonce.patterns.hops import dead_copy, redriven_copy, retry_copy
from atleastonce.patterns.obituary import Obituary, read_brief, read_obituary
from atleastonce.patterns.redrive import Letter

HOME = Source(Topic("orders"), "billing")
NOW = 1_700_000_000.25


class Notes:
    """What an adapter gives as `Delivery.raw`."""

    def __init__(self, notes: Mapping[str, Any]) -> None:
        self._notes = notes

    def annotations(self) -> Mapping[str, Any]:
        return self._notes


def letter(fields: Mapping[str, HeaderValue] | Headers, notes: Mapping[str, Any] | None = None) -> Delivery:
    message = Message("m", b"x", None, fields if isinstance(fields, Headers) else Headers(fields))
    return Delivery(
        message, Source(HOME.dead_letter_channel), "orders.billing.dlq/0", 7, 1, None, 1, 0.0, Notes(notes or {})
    )


def ours(error: BaseException | None = None) -> Message:
    first = Delivery(Message("m", b"x", None, Headers({"tenant": "a"})), HOME, "orders/3", 41, 1, None)
    try:
        raise error or ValueError("no such sku")
    except ValueError as caught:
        dead = Dead("handler", caught)
    return dead_copy(first, HOME, read_history(first, HOME, counted=False), dead, service="shop", now=NOW)


VALUE = (
    st.none() | st.text(max_size=5) | st.binary(max_size=5) | st.sampled_from(["0", "1700000000250", "9" * 19, "-1"])
)
SAID = st.dictionaries(
    st.sampled_from([wire.ERROR_STAGE, wire.FINGERPRINT, wire.FIRST_FAILED, wire.ERROR_AT, wire.GROUP, "MT-Reason"]),
    VALUE,
)


@given(SAID, st.none() | st.floats(0, 2e9))
def test_what_groups_are_made_of_is_what_the_obituary_says(
    fields: dict[str, HeaderValue], published: float | None
) -> None:
    found = letter({**dict(ours().headers.items()), **fields})
    found.message = Message("m", b"x", None, found.message.headers, published)
    whole = read_obituary(found)
    died = published if whole.last_failed is None else whole.last_failed
    assert Letter(found).brief == (whole.fingerprint, whole.first_failed, died)
    assert read_brief(letter(ours().headers)) is not None, "the quick way is for letters of ours"


def test_ours_says_all() -> None:
    found = read_obituary(letter(ours().headers))
    assert found.writer == "atleastonce"
    assert (found.error_type, found.error_message, found.stage) == ("ValueError", "no such sku", "handler")
    assert (found.origin, found.position, found.group, found.attempts) == ("orders", "3/41", "billing", 1)
    assert found.first_failed == found.last_failed == NOW
    assert found.service == "shop"
    assert found.host
    assert found.fingerprint == ours().headers.get(wire.FINGERPRINT)
    assert found.traceback.splitlines()[-1] == "ValueError: no such sku"
    assert found.redrives == 0


def test_a_letter_that_came_back_says_how_often() -> None:
    back = redriven_copy(letter(ours().headers), HOME)
    again = Delivery(back, HOME, "orders/3", 99, 1, None)
    dead = dead_copy(
        again, HOME, read_history(again, HOME, counted=False), Dead("handler", ValueError("x")), service="s", now=NOW
    )
    assert read_obituary(letter(dead.headers)).redrives == 1


def big(value: int, size: int) -> str:
    """As adapters give it: text, for these bytes are UTF-8."""
    return value.to_bytes(size, "big").decode()


STACK = "java.lang.IllegalStateException: boom\n\tat com.shop.Orders.charge(Orders.java:12)\n\tat com.shop.Main.main(Main.java:3)"

SPRING: dict[str, HeaderValue] = {
    "kafka_dlt-original-topic": "orders",
    "kafka_dlt-original-partition": big(3, 4),
    "kafka_dlt-original-offset": struct.pack(">q", 0xF0F1F2),  # not UTF-8: stays bytes
    "kafka_dlt-original-consumer-group": "billing",
    "kafka_dlt-exception-fqcn": "org.springframework.kafka.listener.ListenerExecutionFailedException",
    "kafka_dlt-exception-cause-fqcn": "java.lang.IllegalStateException",
    "kafka_dlt-exception-message": "Listener failed; boom",
    "kafka_dlt-exception-stacktrace": STACK,
    "retry_topic-attempts": big(4, 4),
}
DEATHS = [
    {
        "queue": "orders.billing",
        "reason": "rejected",
        "count": 3,
        "exchange": "",
        "time": dt.datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - as pika gives it
    },
    {"queue": "orders.wait", "reason": "expired", "count": 3, "exchange": "", "time": dt.datetime(2026, 1, 1)},  # noqa: DTZ001
]
AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC).timestamp()
MASSTRANSIT: dict[str, HeaderValue] = {
    "MT-Reason": "fault",
    "MT-Fault-ExceptionType": "System.InvalidOperationException",
    "MT-Fault-Message": "no",
    "MT-Fault-StackTrace": "   at Shop.Charge(Order o) in Charge.cs:line 12",
    "MT-Fault-Timestamp": "2026-01-02T03:04:05.0000000Z",
    "MT-Fault-InputAddress": "rabbitmq://localhost/shop/orders?temporary=true",
    "MT-Fault-RetryCount": "2",
    "MT-Host-MachineName": "box",
    "MT-Host-ProcessName": "dotnet",
}
NSERVICEBUS: dict[str, HeaderValue] = {
    "NServiceBus.FailedQ": "orders@box",
    "NServiceBus.TimeOfFailure": "2026-01-02 03:04:05:000000 Z",
    "NServiceBus.ExceptionInfo.ExceptionType": "System.Exception",
    "NServiceBus.ExceptionInfo.Message": "no",
    "NServiceBus.ExceptionInfo.StackTrace": "   at Shop.Charge()",
    "NServiceBus.ProcessingEndpoint": "Billing",
    "NServiceBus.ProcessingMachine": "box",
}


@pytest.mark.parametrize(
    ("fields", "notes", "expected"),
    [
        pytest.param(
            SPRING,
            {},
            {
                "writer": "spring",
                "error_type": "java.lang.IllegalStateException",
                "error_message": "Listener failed; boom",
                "attempts": 4,
                "origin": "orders",
                "position": f"3/{0xF0F1F2}",
                "group": "billing",
            },
            id="spring",
        ),
        pytest.param(
            MASSTRANSIT,
            {},
            {
                "writer": "masstransit",
                "error_type": "System.InvalidOperationException",
                "error_message": "no",
                "attempts": 3,
                "origin": "orders",
                "last_failed": AT,
                "service": "dotnet",
                "host": "box",
            },
            id="masstransit",
        ),
        pytest.param(
            NSERVICEBUS,
            {},
            {
                "writer": "nservicebus",
                "error_type": "System.Exception",
                "error_message": "no",
                "origin": "orders",
                "last_failed": AT,
                "service": "Billing",
                "host": "box",
            },
            id="nservicebus",
        ),
        pytest.param(
            {
                "exception-type": "System.Exception",
                "exception-message": "no",
                "failed-at": "1700000000250",
                "attempts": "3",
                "original-destination": "kafka://topic/orders",
                "original-partition": "3",
                "original-offset": "41",
            },
            {},
            {
                "writer": "wolverine",
                "error_type": "System.Exception",
                "error_message": "no",
                "attempts": 3,
                "origin": "orders",
                "position": "3/41",
                "last_failed": NOW,
            },
            id="wolverine",
        ),
        pytest.param(
            {
                "dead-letter-topic": "orders",
                "dead-letter-partition": "3",
                "dead-letter-offset": "41",
                "dead-letter-reason": "boom",
                "dead-letter-exception-class-name": "java.lang.Error",
            },
            {},
            {
                "writer": "smallrye",
                "error_type": "java.lang.Error",
                "error_message": "boom",
                "origin": "orders",
                "position": "3/41",
            },
            id="smallrye",
        ),
        pytest.param(
            {
                "__connect.errors.topic": "orders",
                "__connect.errors.partition": "3",
                "__connect.errors.offset": "41",
                "__connect.errors.connector.name": "sink",
                "__connect.errors.exception.class.name": "DataException",
                "__connect.errors.exception.message": "boom",
            },
            {},
            {
                "writer": "kafka-connect",
                "error_type": "DataException",
                "error_message": "boom",
                "origin": "orders",
                "position": "3/41",
                "service": "sink",
            },
            id="kafka-connect",
        ),
        pytest.param(
            {},
            {"x-death": DEATHS, "x-first-death-queue": "orders.wait"},
            {
                "writer": "rabbitmq",
                "error_type": "rejected",
                "attempts": 3,
                "origin": "orders.billing",
                "first_failed": AT,
                "last_failed": AT,
            },
            id="rabbitmq",
        ),
        pytest.param(
            {},
            {
                "DeadLetterQueueSourceArn": "arn:aws:sqs:eu-west-1:123456789012:orders",
                "ApproximateReceiveCount": "6",
                "ApproximateFirstReceiveTimestamp": "1700000000250",
            },
            {
                "writer": "sqs",
                "error_type": "max_receive_count",
                "attempts": 6,
                "origin": "orders",
                "first_failed": NOW,
            },
            id="sqs",
        ),
        pytest.param(
            {
                "CloudPubSubDeadLetterSourceDeliveryCount": "5",
                "CloudPubSubDeadLetterSourceSubscription": "orders.billing",
                "CloudPubSubDeadLetterSourceSubscriptionProject": "shop",
            },
            {},
            {
                "writer": "pubsub",
                "error_type": "max_delivery_attempts",
                "attempts": 5,
                "origin": "orders.billing",
            },
            id="pubsub",
        ),
        pytest.param({"tenant": "a"}, {}, {"writer": ""}, id="nobody"),
    ],
)
def test_dialects(fields: dict[str, HeaderValue], notes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = read_obituary(letter(fields, notes))
    silent = Obituary()
    told = {
        name: getattr(found, name)
        for name in Obituary.__struct_fields__
        if getattr(found, name) != getattr(silent, name) and name not in ("fingerprint", "raw_traceback")
    }
    assert told == {name: value for name, value in expected.items() if value != ""}
    assert len(found.fingerprint) == 12


def test_a_message_as_sqs_clients_show_it() -> None:
    plain = letter({})
    plain.raw = {
        "Body": "x",
        "Attributes": {"DeadLetterQueueSourceArn": "arn:aws:sqs:eu-west-1:1:orders", "ApproximateReceiveCount": "6"},
    }
    assert (read_obituary(plain).writer, read_obituary(plain).attempts) == ("sqs", 6)
    plain.raw = {"Attributes": "strange"}
    assert read_obituary(plain).writer == ""


def test_who_knows_the_error_comes_first_and_the_net_fills_in() -> None:
    found = read_obituary(letter(MASSTRANSIT, {"x-death": DEATHS}))
    assert (found.writer, found.error_type) == ("masstransit", "System.InvalidOperationException")
    assert found.first_failed == AT
    found = read_obituary(letter(ours().headers, {"x-death": DEATHS}))
    assert (found.writer, found.origin, found.attempts) == ("atleastonce", "orders", 1)


def test_what_a_net_caught_between_our_retries_tells_both() -> None:
    first = Delivery(Message("m", b"x"), HOME, "orders/3", 41, 1, None)
    past = read_history(first, HOME, counted=False)
    waiting = retry_copy(first, HOME, past, Hop(5.0, 2), ValueError("no such sku"), now=NOW, tier=5.0)
    found = read_obituary(
        letter(waiting.headers, {"x-death": [{"queue": "orders.billing", "reason": "delivery_limit", "count": 1}]})
    )
    assert (found.writer, found.error_type, found.origin) == ("rabbitmq", "delivery_limit", "orders.billing")
    assert (found.error_message, found.group, found.attempts, found.first_failed) == ("no such sku", "billing", 2, NOW)


def test_a_fingerprint_groups_by_what_and_where_and_not_by_words() -> None:
    def mark(**changes: HeaderValue) -> str:
        renamed = {f"kafka_dlt-{name.replace('_', '-')}": value for name, value in changes.items()}
        return read_obituary(letter({**SPRING, **renamed})).fingerprint

    assert mark() == mark(exception_message="another order") == mark(original_offset=big(5, 8))
    assert mark() != mark(exception_cause_fqcn="java.lang.Error")
    assert mark() != mark(exception_stacktrace=STACK.replace("Orders.java:12", "Orders.java:13"))


def test_what_is_shown_is_safe_to_print() -> None:
    nasty = "\x1b[31mred\x00 amqp://shop:hunter2@host/ caf\u00e9\u202e"
    found = read_obituary(
        letter({**MASSTRANSIT, "MT-Fault-Message": nasty, "MT-Fault-StackTrace": f"a\n{nasty}\n{'b' * 9000}"})
    )
    for shown in (found.error_message, *found.traceback.split("\n")):
        assert shown.isascii()
        assert shown.isprintable()
        assert "hunter2" not in shown
        assert len(shown) <= 1024
    assert len(found.traceback.split("\n")) == 3


NAMES = [
    *SPRING,
    *MASSTRANSIT,
    *NSERVICEBUS,
    "exception-type",
    "failed-at",
    "dead-letter-topic",
    "__connect.errors.topic",
]
NAMES += ["CloudPubSubDeadLetterSourceSubscription", "CloudPubSubDeadLetterSourceDeliveryCount"]
NAMES += [value for value in vars(wire).values() if isinstance(value, str) and value.startswith("alo-")]
VALUES = (
    st.none()
    | st.text()
    | st.binary()
    | st.sampled_from(["9999", "-1", "9" * 400, "2026-13-99", "9999-12-31T23:59:59+23:59"])
)
ANYTHING = st.recursive(
    st.none() | st.text(max_size=5) | st.integers() | st.datetimes() | st.floats() | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["queue", "reason", "count", "time"]), inner, max_size=4)
    ),
    max_leaves=8,
)
NOTES = st.dictionaries(
    st.sampled_from(
        ["x-death", "DeadLetterQueueSourceArn", "ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp"]
    ),
    ANYTHING,
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12), NOTES)
def test_nothing_forged_raises(fields: dict[str, HeaderValue], notes: dict[str, Any]) -> None:
    found = read_obituary(letter(fields, notes))
    assert len(found.fingerprint) >= 1
    for name in Obituary.__struct_fields__:
        value = getattr(found, name)
        if isinstance(value, str) and name != "raw_traceback":
            assert value.isascii()
            assert value.isprintable() or value == ""
    for when in (found.first_failed, found.last_failed):
        assert when is None or dt.datetime.fromtimestamp(when, dt.UTC).year >= 1970
    assert found.attempts is None or found.attempts >= 0
