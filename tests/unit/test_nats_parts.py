"""The pure parts of the NATS adapter: errors told apart, verdicts in words, what a subscription holds, what answers mean."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

from hypothesis import given
from hypothesis import strategies as st
from nats import errors as client

from atleastonce.adapters.nats import faults, telling
from atleastonce.adapters.nats.delivery import OVER, SETTLED, NatsDelivery, words_for
from atleastonce.adapters.nats.faults import ApiError, ApiFailure, NoResponders, as_error, classify, denied_subject
from atleastonce.adapters.nats.holding import Holding
from atleastonce.adapters.nats.publisher import _read
from atleastonce.adapters.nats.replies import Batch, Replies, error_in
from atleastonce.adapters.nats.topology import _consumer_drifts, _stream_drifts, consumer_config, stream_config
from atleastonce.adapters.nats.wire import ServerError
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, OK, RELEASE, Code, Fault, Outcome, Reject, Retry, Status, Window, unknown
from atleastonce.errors import BrokerUnavailable, ConfigurationError, ConnectionLost, NotFound, PermissionDenied

# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (ApiFailure(ApiError(404, 10059, "stream not found")), Code.NOT_FOUND, False),
        (ApiFailure(ApiError(400, 10054, "message size exceeds maximum allowed")), Code.TOO_LARGE, False),
        (ApiFailure(ApiError(400, 10097, "header size exceeds maximum allowed of 64k")), Code.TOO_LARGE, False),
        (ApiFailure(ApiError(503, 10077, "maximum messages exceeded")), Code.OVERLOADED, True),
        (ApiFailure(ApiError(503, 10008, "JetStream system temporarily unavailable")), Code.UNAVAILABLE, True),
        (ApiFailure(ApiError(400, 10058, "stream name already in use")), Code.CONFLICT, False),
        (ApiFailure(ApiError(403, 0, "denied")), Code.PERMISSION, False),
        (ApiFailure(ApiError(400, 10025, "bad request")), Code.INVALID, False),
        (ApiFailure(ApiError(500, 0, "something")), Code.INTERNAL, True),
        (NoResponders("nobody"), Code.UNAVAILABLE, True),
        (ServerError("Stale Connection"), Code.UNAVAILABLE, True),
        (client.AuthorizationError(), Code.PERMISSION, False),
        (client.Error("nats: 'Authorization Violation'"), Code.PERMISSION, False),
        (client.MaxPayloadError(), Code.TOO_LARGE, False),
        (ConnectionRefusedError(111, "refused"), Code.UNAVAILABLE, True),
        (NotFound("gone"), Code.NOT_FOUND, False),
        (PermissionDenied("no"), Code.PERMISSION, False),
        (KeyError("what"), Code.INTERNAL, False),
    ],
)
def test_errors_are_told_apart(error: Exception, code: Code, retryable: bool) -> None:
    fault = classify(error)
    assert (fault.code, fault.retryable) == (code, retryable)
    assert fault.detail


@pytest.mark.parametrize("error", [TimeoutError(), client.TimeoutError()])
def test_a_silence_has_words(error: Exception) -> None:
    assert str(as_error(error, "NATS at h:4222")) == "NATS at h:4222: no answer in time"
    assert classify(TimeoutError("no answer to X within 5 s")).detail == "no answer to X within 5 s"


@pytest.mark.parametrize(
    ("error", "lost", "kind"),
    [
        (ApiFailure(ApiError(404, 10014, "consumer not found")), False, NotFound),
        (ApiFailure(ApiError(400, 10025, "bad request")), False, ConfigurationError),
        (client.AuthorizationError(), True, PermissionDenied),
        (OSError("reset"), True, ConnectionLost),
        (OSError("reset"), False, BrokerUnavailable),
    ],
)
def test_users_catch_errors_of_ours(error: Exception, lost: bool, kind: type[Exception]) -> None:
    assert type(as_error(error, "doing", lost=lost)) is kind


def test_secrets_in_errors_are_masked() -> None:
    assert "hunter2" not in classify(OSError("nats://bob:hunter2@host refused")).detail


@pytest.mark.parametrize(
    ("said", "subject"),
    [
        ('Permissions Violation for Publish to "$JS.ACK.a.b.1.2.3.4.5"', "$JS.ACK.a.b.1.2.3.4.5"),
        ('Permissions Violation for Subscription to "_INBOX.x.*" using queue "q"', "_INBOX.x.*"),
        ("Invalid Subject", ""),
        ('half "open', ""),
    ],
)
def test_the_server_names_what_it_denies(said: str, subject: str) -> None:
    assert denied_subject(said) == subject


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_have_words() -> None:
    assert words_for(ACK) == b"+ACK"
    assert words_for(RELEASE) == words_for(Retry(0)) == b"-NAK"
    assert words_for(Retry(1.5)) == b'-NAK {"delay": 1500000000}'
    assert words_for(Reject("why")) is None


@given(st.floats(min_value=1e-9, max_value=1e9, allow_nan=False))
def test_a_delay_is_never_cut_short(seconds: float) -> None:
    words = words_for(Retry(seconds))
    assert words is not None
    nanos = int(words.split(b": ")[1][:-1])
    assert nanos >= seconds * 1e9
    assert nanos <= math.ceil(seconds * 1e9)


def delivery(sequence: int = 1, *, size: int = 10, lease: float = 60.0, count: int = 1) -> NatsDelivery:
    reply = b"$JS.ACK.s.c.%d.%d.7.1700000000000000000.0" % (count, sequence)
    source = Source(Queue[object]("q"))
    return NatsDelivery(source, 1, time.monotonic() + lease, b"q", reply, b"", b"x" * size)


@pytest.mark.parametrize(
    "reply",
    [b"$JS.ACK.s.c.3.42.7.1700000000000000000.5", b"$JS.ACK.hub.account.s.c.3.42.7.1700000000000000000.5.random"],
)
def test_both_forms_of_an_ack_subject_are_read(reply: bytes) -> None:
    found = NatsDelivery(Source(Queue[object]("q")), 1, 0.0, b"q", reply, b"", b"{}")
    assert (found.count, found.position, found.token) == (3, 42, reply)
    assert found.message.published_at == 1_700_000_000.0
    assert found.message.id == "q-42"
    assert found.raw.reply == reply


@pytest.mark.parametrize("reply", [b"$JS.ACK.", b"$JS.ACK.a.b.1.x.1.1.1", b"$JS.ACK.a.b.1.2"])
def test_what_is_no_ack_subject_is_refused(reply: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        NatsDelivery(Source(Queue[object]("q")), 1, 0.0, b"q", reply, b"", b"{}")


# -------------------------------------------------------------------------------------------------------- what is held


def test_a_window_is_full_by_number_or_by_bytes() -> None:
    holding = Holding(Window(3, 1000))
    assert holding.room == 3
    holding.arrived(delivery(1, size=999))
    assert holding.room == 2
    holding.arrived(delivery(2, size=1))
    assert holding.room == 0
    assert holding.until_room(time.monotonic()) < 61
    one, two = holding.hand_out(10)
    holding.drop(one)
    assert holding.room == 2
    holding.drop(one)
    assert holding.room == 2, "dropped twice, counted once"
    holding.drop(two)
    assert (holding.room, holding.bytes) == (3, 0)


def test_another_hand_out_of_the_same_message_ends_the_first() -> None:
    holding = Holding(Window(3, 1000))
    first, second = delivery(1), delivery(1, count=2)
    holding.arrived(first)
    assert holding.hand_out(1) == [first]
    holding.arrived(second)
    assert (first.lost, first.state) == (True, OVER)
    assert (holding.room, holding.bytes) == (2, 10)
    given_back, again = delivery(2), delivery(2, count=2)
    given_back.state = SETTLED
    holding.arrived(given_back)
    holding.arrived(again)
    assert not given_back.lost, "we gave it back ourselves"


def test_what_lay_in_the_buffer_past_its_lease_is_not_handed_out() -> None:
    holding = Holding(Window(3, 1000))
    stale, live = delivery(1, lease=-1.0), delivery(2)
    holding.arrived(stale)
    holding.arrived(live)
    assert holding.hand_out(10) == [live]
    assert holding.room == 2
    holding.arrived(delivery(3, lease=-1.0))
    holding.drop_ended()
    assert holding.room == 2
    assert holding.take_back() != []
    holding.clear()
    assert (holding.room, holding.bytes, list(holding.buffer)) == (3, 0, [])


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"", b'{"stream":"S","seq":1}', Status.OK),
        (b"", b'{"stream":"S","seq":1,"duplicate":true}', Status.OK),
        (b"", b"", Status.UNKNOWN),
        (b"", b"hello", Status.UNKNOWN),
        (b"", b'{"error":null}', Status.UNKNOWN),
        (b"", b'{"error":{"code":400,"err_code":10054,"description":"too large"}}', Status.REJECTED),
        (b"", b'{"error":{"code":503,"err_code":10077,"description":"full"}}', Status.UNKNOWN),
        (b"", b'{"error":' + b"[" * 100_000, Status.UNKNOWN),
        (b"", b'\xff"error"', Status.UNKNOWN),
        (b"NATS/1.0 503\r\n\r\n", b"", Status.UNKNOWN),
        (b"NATS/1.0\r\nx: y\r\n\r\n", b"hello", Status.UNKNOWN),
    ],
)
def test_only_a_stream_confirms_and_only_an_error_refuses(headers: bytes, body: bytes, status: Status) -> None:
    assert _read(0, headers, body).status is status


@given(st.binary())
def test_no_answer_is_too_strange_to_be_read(body: bytes) -> None:
    error_in(body)
    error_in(b'{"error":' + body)
    assert _read(0, b"", body).status in Status


class Deaf:
    """As much of a `Wire` as `Replies` needs to be told things."""

    lost: Exception | None = None

    def __init__(self) -> None:
        self.ended: list[Exception] = []
        self.on_denied: Any = None

    def listen(self, subject: str, sink: Any) -> bytes:
        self.subject, self.sink = subject, sink
        return b"1"

    def end(self, reason: Exception) -> None:
        self.ended.append(reason)


async def test_each_answer_ends_its_own_item_once() -> None:
    wire = Deaf()
    replies = Replies(wire, "_INBOX")  # type: ignore[arg-type]
    batch = Batch(3, lambda _position, _headers, body: OK if body == b"yes" else unknown(Code.INTERNAL, body.decode()))
    inboxes = [replies.expect(batch, position) for position in range(3)]
    wire.sink(inboxes[1], b"", b"", b"yes")
    wire.sink(inboxes[1], b"", b"", b"no")
    wire.sink(inboxes[0], b"", b"", b"no")
    for odd in (b"", b"abc", b"-1", b"99", b"\xff", b"1.2"):
        wire.sink(inboxes[0].rpartition(b".")[0] + b"." + odd, b"", b"", b"yes")
    assert batch.left == 1
    assert not batch.done.done()
    assert len(replies) == 1
    replies.fail(OSError("gone"), unknown(Code.UNAVAILABLE, "gone"))
    await asyncio.wait_for(batch.done, 1)
    assert [each.ok for each in batch.outcomes if each] == [False, True, False]
    assert replies.late == 7


async def test_an_inbox_that_is_denied_ends_the_connection_with_the_servers_words() -> None:
    wire = Deaf()
    Replies(wire, "_INBOX")  # type: ignore[arg-type]
    wire.on_denied(f'Permissions Violation for Subscription to "{wire.subject}"')
    (reason,) = wire.ended
    assert isinstance(reason, PermissionDenied)
    assert wire.subject in str(reason)
    assert "inbox_prefix" in str(reason)
    wire.on_denied('Permissions Violation for Subscription to "_INBOX.somebody.else.*"')
    assert len(wire.ended) == 1


async def test_a_denied_verdict_ends_its_own_item() -> None:
    told = [(delivery(number), b"+ACK") for number in range(1, 4)]
    batch = telling.TellingBatch(told)
    batch.denied(told[1][0].token.decode(), "Permissions Violation")
    batch.denied("something.else", "Permissions Violation")
    assert batch.left == 2
    outcome = batch.outcomes[1]
    assert isinstance(outcome, Outcome)
    assert outcome.fault is not None
    assert (outcome.status, outcome.fault.code) == (Status.REJECTED, Code.PERMISSION)


# -------------------------------------------------------------------------------------------------------------- drifts

CONFIG: Any = SimpleNamespace(replicas=1, topic_max_age=86400.0, duplicate_window=120.0, ack_wait=30.0)
TOPIC = Topic[object]("orders.created")
GROUP = Source(TOPIC, "billing")


def test_what_is_as_it_was_made_drifts_nowhere() -> None:
    made = stream_config(TOPIC, CONFIG)
    assert _stream_drifts(TOPIC, made, {**made, "max_msgs": -1}, True) == []
    consumer = consumer_config(GROUP, CONFIG)
    assert _consumer_drifts(GROUP, consumer, {**consumer, "num_replicas": 0}) == []


@pytest.mark.parametrize(
    ("asked", "replicas", "dead", "drifting"),
    [
        ({}, 1, False, set()),
        ({}, 1, True, {"allow_direct"}),
        ({}, 3, True, {"num_replicas"}),  # of several copies none is asked
        ({"allow_direct": True}, 1, False, {"allow_direct"}),
        ({"allow_direct": False}, 1, True, set()),
    ],
)
def test_a_queue_from_before_direct_get_drifts_where_it_is_looked_through_or_was_asked_for(
    asked: dict[str, Any], replicas: int, dead: bool, drifting: set[str]
) -> None:
    home = Queue[Any]("orders", options={"nats": asked})
    made = stream_config(home, CONFIG)
    found = {**made, "allow_direct": False, "num_replicas": replicas}
    drifts = _stream_drifts(home, made, found, True, dead)
    assert {each.setting for each in drifts} == drifting
    assert not any(each.breaks for each in drifts)


@pytest.mark.parametrize(
    ("found", "read", "breaking"),
    [
        ({"no_ack": True}, False, {"no_ack"}),
        ({"subjects": ["orders.created"]}, False, set()),
        ({"subjects": ["orders.created"]}, True, {"subjects"}),
        ({"subjects": ["_alo.orders~created.*"]}, False, {"subjects"}),
        ({"subjects": [">"]}, True, set()),
        ({"max_age": 5}, True, set()),
    ],
)
def test_which_drift_of_a_stream_breaks(found: dict[str, Any], read: bool, breaking: set[str]) -> None:
    made = stream_config(TOPIC, CONFIG)
    drifts = _stream_drifts(TOPIC, made, {**made, **found}, read)
    assert {each.setting for each in drifts if each.breaks} == breaking


@pytest.mark.parametrize(
    ("found", "breaking"),
    [
        ({"max_ack_pending": 3}, {"max_ack_pending"}),
        ({"max_ack_pending": 1000}, set()),
        ({"ack_wait": 5_000_000_000}, {"ack_wait"}),
        ({"ack_wait": 60_000_000_000}, set()),
        ({"max_deliver": 5}, {"max_deliver"}),
        ({"ack_policy": "all"}, {"ack_policy"}),
        ({"deliver_subject": "push.here"}, {"deliver_subject"}),
        ({"filter_subjects": ["orders.created"]}, {"filter_subjects"}),
        ({"filter_subjects": [">"]}, set()),
        ({"filter_subjects": []}, set()),
    ],
)
def test_which_drift_of_a_consumer_breaks(found: dict[str, Any], breaking: set[str]) -> None:
    made = consumer_config(GROUP, CONFIG)
    drifts = _consumer_drifts(GROUP, made, {**made, **found})
    assert {each.setting for each in drifts if each.breaks} == breaking


def test_an_outcome_is_certain_only_where_the_fault_is() -> None:
    for code, retryable, status in (
        (Code.INVALID, False, Status.REJECTED),
        (Code.UNAVAILABLE, True, Status.UNKNOWN),
        (Code.INTERNAL, False, Status.UNKNOWN),
    ):
        assert faults.outcome_of(Fault(code, retryable)).status is status


def test_one_message_at_a_time_where_one_reader_was_asked_for() -> None:
    """JetStream hands out what comes again behind what is out already: only one message at a time keeps an order."""
    for channel in (Queue("orders", single_active=True), Topic("orders", single_active=True)):
        source = Source(channel, "billing" if isinstance(channel, Topic) else None)
        made = consumer_config(source, CONFIG)
        assert made["max_ack_pending"] == 1
        assert _consumer_drifts(source, made, made) == []
        (drift,) = _consumer_drifts(source, made, {**made, "max_ack_pending": 1000})
        assert drift.setting == "max_ack_pending"
        assert drift.breaks
