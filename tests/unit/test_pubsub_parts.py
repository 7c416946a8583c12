"""The parts of the Pub/Sub adapter that need no broker."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1", reason="google-cloud-pubsub is not installed")

import grpc
from google.iam.v1 import policy_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.adapters.pubsub import faults, topology
from atleastonce.adapters.pubsub.attributes import (
    MAX_ATTRIBUTES,
    Attributes,
    Refused,
    add_key,
    attributes_of,
    read_attributes,
)
from atleastonce.adapters.pubsub.config import Config
from atleastonce.adapters.pubsub.declaring import grants_agent
from atleastonce.adapters.pubsub.leases import Leases
from atleastonce.channels import Queue, Source
from atleastonce.contract import OK, STALE, Code, Status, Topology
from atleastonce.errors import ConfigurationError
from atleastonce.message import Headers, Message
from atleastonce.urls import BrokerUrl


def config(url: str, environ: dict[str, str] | None = None, **options: Any) -> Config:
    return Config.build(BrokerUrl.parse(url), options, environ or {})


class Failed(grpc.RpcError):  # type: ignore[misc]  # the library has no types
    def __init__(self, code: grpc.StatusCode, details: str = "", metadata: tuple[Any, ...] = ()) -> None:
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._metadata


@pytest.mark.parametrize(
    ("url", "environ", "endpoint", "tls", "project"),
    [
        ("pubsub://shop", {}, "pubsub.googleapis.com:443", True, "shop"),
        ("pubsub://", {"GOOGLE_CLOUD_PROJECT": "shop"}, "pubsub.googleapis.com:443", True, "shop"),
        ("pubsub://shop", {"PUBSUB_EMULATOR_HOST": "localhost:8085"}, "localhost:8085", False, "shop"),
        ("pubsub://127.0.0.1:9000/p1", {"PUBSUB_EMULATOR_HOST": "x:1"}, "127.0.0.1:9000", False, "p1"),
        ("pubsub://127.0.0.1:9000", {}, "127.0.0.1:9000", False, "atleastonce"),
        ("pubsub://europe-west1-pubsub.googleapis.com/p1", {}, "europe-west1-pubsub.googleapis.com:443", True, "p1"),
        ("pubsub://[::1]:9000/p1?tls=true", {}, "[::1]:9000", True, "p1"),
    ],
)
def test_where_a_url_leads(url: str, environ: dict[str, str], endpoint: str, tls: bool, project: str) -> None:
    found = config(url, environ)
    assert (found.endpoint, found.tls, found.project) == (endpoint, tls, project)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("pubsub://shop?leese=5s", 'did you mean "lease"'),
        ("pubsub://shop?lease=20m", "out of range"),
        ("pubsub://shop?max_delivery_attempts=3", "5 to 100"),
        ("pubsub://shop?credentials=x", "given in code"),
        ("pubsub://u:p@shop", "no user or password"),
        ("pubsub://", "no project"),
        ("pubsub://Shop_1", "no project id"),
        ("pubsub://shop?prefix=1", "begin with a letter"),
        ("pubsub://shop?credentials_file=/nowhere.json", "is no file"),
        ("pubsub://shop?tls=perhaps", "neither true nor false"),
    ],
)
def test_bad_settings_are_refused_with_what_to_write(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        config(url)


def test_credentials_are_in_no_repr() -> None:
    assert "hidden" not in repr(config("pubsub://shop", credentials="hidden"))


@pytest.mark.parametrize(
    ("name", "id"),
    [("orders", "orders"), ("q", "a~q"), ("7up", "a~7up"), ("goog.x", "a~goog.x"), ("Google", "a~Google")],
)
def test_names_that_pubsub_refuses_are_changed(name: str, id: str) -> None:
    assert config("pubsub://shop").resource(name) == id


def test_a_prefix_stands_before_every_name_and_length_has_an_end() -> None:
    assert config("pubsub://shop?prefix=ci-").topic("q") == "projects/shop/topics/ci-q"
    with pytest.raises(ConfigurationError, match="255 characters"):
        config("pubsub://shop").resource("x" * 256)


@pytest.mark.parametrize(
    ("name", "net"),
    [("q", "q.dlq"), ("t.g.retry.5s", "t.g.dlq"), ("t.g.redrive", "t.g.dlq"), ("q.suspects", "q.dlq"), ("q.dlq", None)],
)
def test_every_source_has_a_net_and_a_way_has_its_sources(name: str, net: str | None) -> None:
    assert topology.net_of(name) == net


def test_an_option_that_no_subscription_has_is_refused() -> None:
    queue: Queue[Any] = Queue("q", options={"pubsub": {"subscription": {"fliter": "x"}}})
    with pytest.raises(ConfigurationError, match="fliter"):
        topology.plan(Topology(sources=(Source(queue),)), config("pubsub://shop"))
    with pytest.raises(ConfigurationError, match="filter"):
        topology.plan(
            Topology(sources=(Source(Queue("q", options={"pubsub": {"filter": "x"}})),)), config("pubsub://shop")
        )


names = st.sampled_from(["alo-id", "b", "a", "goog-x", "alo-key", "alo-more-0", "alo-order", *string.ascii_letters])
values = st.one_of(st.none(), st.binary(max_size=40), st.text(max_size=40), st.just("y" * 1500), st.just("ü" * 600))


@given(st.lists(st.tuples(names, values), max_size=30), st.one_of(st.none(), st.binary(max_size=60)), st.booleans())
def test_headers_and_keys_come_back_as_they_went(
    fields: list[tuple[str, Any]], key: bytes | None, ordered: bool
) -> None:
    fields = [(n, v) for n, v in fields if not isinstance(v, str) or v.encode("utf-8", "ignore").decode() == v]
    message = Message("m", b"x", key, Headers(fields))
    try:
        attributes = attributes_of(message)
    except Refused:
        assert message.headers.size > 14_000  # eighteen attributes are kept for what has to be packed
        return
    ordering_key = add_key(attributes, key, ordered=ordered)
    assert len(attributes) <= MAX_ATTRIBUTES
    assert all(len(n.encode()) <= 256 and len(v.encode()) <= 1024 for n, v in attributes.items())
    shuffled = dict(reversed(list(attributes.items())))  # the service keeps no order
    headers, found = read_attributes(shuffled, ordering_key)
    assert list(headers.items()) == list(message.headers.items())
    assert found == key


ON_THE_WIRE = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**30) | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
ENTRIES = st.lists(st.tuples(st.integers() | JSON, st.text() | JSON, st.text() | JSON), max_size=4).map(json.dumps)
NAMES = st.sampled_from(["alo-order", "alo-more-0", "alo-more-1", "alo-key-64", "x"])


@given(st.dictionaries(NAMES, ON_THE_WIRE | JSON.map(json.dumps) | ENTRIES))
def test_forged_attributes_never_raise_and_can_travel_on(found: dict[str, str]) -> None:
    headers, key = read_attributes(found, "")
    again = attributes_of(Message("m", b"x", key, headers))
    assert all(name.encode() and value.encode() for name, value in again.items() if value)


@pytest.mark.parametrize(
    "more",
    [
        {"alo-more-0": f'[[{10**30},"a","b"]]'},
        {"alo-more-0": '[[-1,"a","b"]]'},
        {"alo-more-0": '[[true,"a","b"]]'},
        {"alo-more-0": '[[0,"a",[{}]]]'},
        {"alo-more-0": '[[0,"x","\\ud800"]]'},
        {"alo-more-0": '[[0,"\\ud800","x"]]'},
        {"alo-more-0": "9" * 5000},
        {f"alo-more-{number}": "[" * 1024 for number in range(90)},
    ],
    ids=["huge", "negative", "bool", "object", "surrogate", "surrogate-name", "digits", "deep"],
)
def test_what_is_packed_otherwise_than_we_do_stays_an_attribute(more: dict[str, str]) -> None:
    headers, key = read_attributes({"k": "v", **more}, "")
    assert dict(headers.items()) == {"k": "v", **more}
    assert key is None


def test_an_order_of_huge_numbers_is_no_order() -> None:
    headers, _ = read_attributes({"alo-order": f"0 {'9' * 5000}", "a": "1", "b": "2"}, "")
    assert headers.items() == (("a", "1"), ("b", "2"))


@pytest.mark.parametrize("headers", [[("x", "\ud800")], [("\ud800", "x")], [("x", "y" * 300 + "\ud800")]])
def test_half_a_surrogate_pair_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as refused:
        attributes_of(Message("m", b"x", None, Headers(headers)))
    assert refused.value.code is Code.INVALID


@pytest.mark.parametrize(
    ("code", "known", "retryable"),
    [
        (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Code.TIMEOUT, True),
        (grpc.StatusCode.PERMISSION_DENIED, Code.PERMISSION, False),
        (grpc.StatusCode.UNAUTHENTICATED, Code.PERMISSION, False),
        (grpc.StatusCode.NOT_FOUND, Code.NOT_FOUND, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.OVERLOADED, True),
        (grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID, False),
        (grpc.StatusCode.ABORTED, Code.UNAVAILABLE, True),
    ],
)
def test_status_codes_are_faults(code: grpc.StatusCode, known: Code, retryable: bool) -> None:
    fault = faults.classify(Failed(code, "why"))
    assert (fault.code, fault.retryable, fault.detail) == (known, retryable, "why")


def test_a_request_too_large_is_no_overload() -> None:
    error = Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5 vs. 4)")
    assert faults.classify(error).code is Code.TOO_LARGE


def _details(metadata: dict[str, str]) -> tuple[Any, ...]:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason="x", metadata=metadata))
    return (("grpc-status-details-bin", status_pb2.Status(details=[packed]).SerializeToString()),)


async def test_exactly_once_outcomes_are_told_for_each_id() -> None:
    told = {"a": "PERMANENT_FAILURE_INVALID_ACK_ID", "b": "TRANSIENT_FAILURE_UNORDERED_ACK_ID"}

    class Refusing:
        async def call(self, name: str, request: Any, *, seconds: float, wait: bool) -> None:
            raise Failed(grpc.StatusCode.FAILED_PRECONDITION, "some ids", _details(told))

    outcomes = await Leases(Refusing(), "s", 1.0).acknowledge(["a", "b", "c"])  # type: ignore[arg-type]
    assert outcomes[0] is STALE
    assert outcomes[1].status is Status.UNKNOWN
    assert outcomes[2] is OK


async def test_long_ids_are_told_in_requests_of_half_a_megabyte() -> None:
    asked: list[int] = []

    class Counting:
        async def call(self, name: str, request: Any, *, seconds: float, wait: bool) -> None:
            assert request.ByteSize() <= 512 * 1024
            asked.append(len(request.ack_ids))

    outcomes = await Leases(Counting(), "s", 1.0).move(["x" * 1500] * 900, 30)  # type: ignore[arg-type]
    assert sum(asked) == len(outcomes) == 900
    assert len(asked) > 1


def test_whether_the_service_agent_may_move_messages() -> None:
    agent = "serviceAccount:service-123@gcp-sa-pubsub.iam.gserviceaccount.com"
    policy = policy_pb2.Policy(bindings=[policy_pb2.Binding(role="roles/pubsub.publisher", members=[agent])])
    assert grants_agent(policy, frozenset({"roles/pubsub.publisher"}))
    assert not grants_agent(policy, frozenset({"roles/pubsub.subscriber"}))
    assert not grants_agent(policy_pb2.Policy(), frozenset({"roles/pubsub.publisher"}))


@given(
    fields=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "content-type", "alo-id", "goog", "é"]),
            st.one_of(st.none(), st.text(max_size=3), st.binary(max_size=3), st.just("x" * 1030)),
        ),
        max_size=4,
    ),
    ids=st.lists(st.one_of(st.text(max_size=3), st.just("y" * 300), st.just("y" * 1030)), min_size=2, max_size=4),
)
def test_the_attributes_of_a_list_are_those_of_its_messages_one_by_one(
    fields: list[tuple[str, str | bytes | None]], ids: list[str]
) -> None:
    base = Headers(fields)
    messages = [Message(id, b"", None, base.plus("alo-id", id)) for id in ids]
    listed = [*messages, Message("m", b"", None, base.plus("other", "m")), Message("n", b"", None, base), *messages]
    made = Attributes()
    for each in listed:
        got = made.of(each)
        assert got == attributes_of(each)
        got["alo-key"] = "changed by who got it"
