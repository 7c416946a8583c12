"""URLs and options of the Kafka adapter, and what its error codes mean. Nothing here connects anywhere."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import KafkaError, KafkaException

from atleastonce import FailurePolicy, Queue, Service, Source, check
from atleastonce.adapters import open_adapter
from atleastonce.adapters.kafka import KafkaAdapter
from atleastonce.adapters.kafka.config import Settings, settings
from atleastonce.adapters.kafka.faults import as_exception, classify, publish_outcome
from atleastonce.adapters.kafka.share import groups
from atleastonce.adapters.kafka.transactor import is_member
from atleastonce.channels import is_derived
from atleastonce.contract import Code, Leasing, Ordering, Scope, Status, Window
from atleastonce.errors import BrokerUnavailable, ConfigurationError, NotFound, PermissionDenied
from atleastonce.urls import BrokerUrl


def parsed(url: str, **options: object) -> Settings:
    return settings(BrokerUrl.parse(url), {name.replace("__", "."): value for name, value in options.items()})


def test_hosts_and_the_default_port() -> None:
    assert parsed("kafka://a:1,b,[::1]:3").servers == "a:1,b:9092,[::1]:3"
    assert parsed("kafka://").servers == "localhost:9092"


def test_our_own_options_are_read_and_kept_from_the_client() -> None:
    made = parsed(
        "kafka://h?partitions=12&commit.interval=200ms&drain=3s&group.protocol=consumer&auto.offset.reset=latest"
    )
    assert (made.partitions, made.commit_interval, made.drain) == (12, 0.2, 3.0)
    assert (made.protocol, made.reset, made.incremental) == ("consumer", "latest", True)
    assert made.client == {}
    config = made.consumer("g", Window(1000, 1 << 20))
    assert config["group.protocol"] == "consumer"
    assert "partition.assignment.strategy" not in config  # an error with that protocol
    assert config["auto.offset.reset"] == "earliest"  # out of range must not skip


def test_share_groups_are_asked_for_by_a_connection_and_members_get_what_members_may_have() -> None:
    made = parsed(
        "kafka://h?share.groups=true&share.lock=45s&share.members=2&isolation.level=read_uncommitted&session.timeout.ms=6000"
        "&client.id=mine"
    )
    assert (made.share, made.share_lock, made.share_members, made.partitions) == (True, 45.0, 2, 1)
    config = made.sharer("g", 50)
    assert (config["group.id"], config["max.poll.records"], config["client.id"]) == ("g", 50, "mine")
    assert config["share.acknowledgement.mode"] == "explicit"
    assert "session.timeout.ms" not in config  # the client refuses it: the broker decides
    assert groups.wanted(made) == {
        "share.auto.offset.reset": "earliest",
        "share.isolation.level": "read_uncommitted",
        "share.record.lock.duration.ms": "45000",
        "share.delivery.count.limit": "10",
    }
    assert not parsed("kafka://h").share
    assert (
        groups.wanted(parsed("kafka://h"))["share.isolation.level"] == "read_committed"
    )  # the broker's default is not


def test_what_share_groups_cannot_is_not_claimed() -> None:
    can = open_adapter("kafka://h?share.groups=true").capabilities
    assert (can.order, can.transactions, can.counts_releases) == (Ordering.NONE, False, True)
    assert (can.lease, can.lease_seconds, can.lease_limit) == (Leasing.FIXED, 30.0, 30.0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ordered": True}, "order-not-across"),
    ({"transactions": True}, "no-transactions"),
    ({"failure": FailurePolicy(timeout="31s")}, "timeout-over-lease"),
]


@pytest.mark.parametrize(("asked", "code"), REFUSED)
def test_what_share_groups_cannot_is_refused(asked: dict[str, Any], code: str) -> None:
    async def handle(order: bytes) -> None: ...

    service = Service("billing")
    service.consumer(Queue[bytes]("q"), **asked)(handle)
    found = check.policy(service.consumers[0], open_adapter("kafka://h?share.groups=true").capabilities)
    assert (code, "refuse") in {(finding.code, finding.severity) for finding in found}


def test_the_rooms_of_a_source_are_told_from_what_it_reads() -> None:
    home = Source(Queue[bytes]("jobs"))
    rooms = (home.retry_channel(5), home.suspects_channel, home.redrive_channel, home.dead_letter_channel)
    assert all(map(is_derived, rooms))
    assert not is_derived(home.channel)


def test_the_clients_options_reach_it_and_code_wins_over_the_url() -> None:
    made = parsed("kafka://h?linger.ms=7&client.id=mine", linger__ms=9)
    assert made.producer()["linger.ms"] == 9
    assert made.consumer("g", Window(10, 1000))["client.id"] == "mine"


def test_the_guarantee_is_in_the_configuration() -> None:
    made = parsed("kafka://h")
    producer, consumer = made.producer(), made.consumer("g", Window(1000, 64 << 20))
    assert (producer["enable.idempotence"], producer["acks"]) == (True, "all")
    assert not consumer["enable.auto.commit"]
    assert not consumer["enable.auto.offset.store"]
    assert not consumer["allow.auto.create.topics"]
    assert 8 * 1024 <= consumer["queued.max.messages.kbytes"] <= 16 * 1024
    assert consumer["queued.min.messages"] == 2000


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("kafka://h?foo.bar=1", "foo.bar"),
        ("kafka://h?linger.ms=soon", "queue.buffering.max.ms"),  # linger.ms by its first name
        ("kafka://h?acks=1", "acks"),
        ("kafka://h?enable.idempotence=false", "enable.idempotence"),
        ("kafka://h?enable.auto.commit=true", "enable.auto.commit"),
        ("kafka://h?transactional.id=x", "transactional.id"),
        ("kafka://h?group.id=x", "group.id"),
        ("kafka://h?error_cb=x", "error_cb"),
        ("kafka://h?partitions=0", "partitions"),
        ("kafka://h?partitions=many", "partitions"),
        ("kafka://h?commit.interval=-1", "commit.interval"),
        ("kafka://h?drain=soon", "drain"),
        ("kafka://h?group.protocol=modern", "group.protocol"),
        ("kafka://h?auto.offset.reset=newest", "auto.offset.reset"),
        ("kafka://h?partition.assignment.strategy=sticky", "partition.assignment.strategy"),
        ("kafka://h/orders", "path"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(url: str, names: str) -> None:
    with pytest.raises(ConfigurationError, match=names.replace(".", r"\.")) as raised:
        open_adapter(url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.location", "sasl.oauthbearer.token.endpoint.url"],
)
def test_what_runs_code_is_not_taken_from_a_url(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not taken from a URL"):
        open_adapter(f"kafka://h?{name}=x")


def test_a_password_is_never_sent_in_clear_unless_that_is_written() -> None:
    made = parsed("kafka://ann:s3cret@h").common()
    assert made["security.protocol"] == "SASL_SSL"
    assert (made["sasl.mechanism"], made["sasl.username"], made["sasl.password"]) == ("PLAIN", "ann", "s3cret")
    clear = parsed("kafka://ann:s3cret@h?security.protocol=SASL_PLAINTEXT&sasl.mechanisms=SCRAM-SHA-512").common()
    assert clear["security.protocol"] == "SASL_PLAINTEXT"
    assert clear["sasl.mechanisms"] == "SCRAM-SHA-512"
    assert "sasl.mechanism" not in clear


def test_secrets_are_not_shown() -> None:
    adapter = open_adapter(
        "kafka://ann:s3cret@h?ssl.key.password=s3cret2", {"sasl.oauthbearer.client.secret": "s3cret3"}
    )
    assert isinstance(adapter, KafkaAdapter)
    for shown in (repr(adapter), str(adapter.url), repr(adapter.settings), repr(vars(adapter)["settings"])):
        assert "s3cret" not in shown
    with pytest.raises(ConfigurationError) as raised:
        open_adapter("kafka://ann:s3cret@h?no.such=1")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "ours", "retryable", "scope"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, Code.NOT_FOUND, False, Scope.MESSAGE),
        (KafkaError.MSG_SIZE_TOO_LARGE, Code.TOO_LARGE, False, Scope.MESSAGE),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Code.PERMISSION, False, Scope.MESSAGE),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, Code.PERMISSION, False, Scope.CONNECTION),
        (KafkaError._ALL_BROKERS_DOWN, Code.UNAVAILABLE, True, Scope.CONNECTION),
        (KafkaError._MSG_TIMED_OUT, Code.TIMEOUT, True, Scope.CONNECTION),
        (KafkaError.ILLEGAL_GENERATION, Code.STALE, False, Scope.SUBSCRIPTION),
        (KafkaError.REBALANCE_IN_PROGRESS, Code.STALE, True, Scope.SUBSCRIPTION),
        (KafkaError._QUEUE_FULL, Code.OVERLOADED, True, Scope.MESSAGE),
        (KafkaError._BAD_MSG, Code.INTERNAL, False, Scope.MESSAGE),
    ],
)
def test_error_codes(code: int, ours: Code, retryable: bool, scope: Scope) -> None:
    found = classify(KafkaException(KafkaError(code)))
    assert (found.code, found.retryable, found.scope) == (ours, retryable, scope)
    assert found.detail


def test_errors_that_are_not_kafkas() -> None:
    assert classify(BufferError("full")).code is Code.OVERLOADED
    assert classify(ValueError("x")).code is Code.INVALID
    assert classify(RuntimeError("x")).code is Code.INTERNAL


def test_only_what_is_certainly_not_in_the_log_is_rejected() -> None:
    for code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED):
        assert publish_outcome(KafkaError(code)).status is Status.REJECTED
    for code in (
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._PURGE_INFLIGHT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError._AUTHENTICATION,
        KafkaError._FAIL,
    ):
        assert publish_outcome(KafkaError(code)).status is Status.UNKNOWN


def test_exceptions_by_their_meaning() -> None:
    def raised(code: int) -> type[Exception]:
        return type(as_exception(KafkaException(KafkaError(code)), "doing it"))

    assert raised(KafkaError.UNKNOWN_TOPIC_OR_PART) is NotFound
    assert raised(KafkaError.CLUSTER_AUTHORIZATION_FAILED) is PermissionDenied
    assert raised(KafkaError.POLICY_VIOLATION) is ConfigurationError
    assert raised(KafkaError._TIMED_OUT) is BrokerUnavailable


def test_a_transactional_producer_outlives_no_transaction() -> None:
    made = parsed("kafka://h?transaction.timeout.ms=5000&delivery.timeout.ms=20000").transactional("me")
    assert (made["transactional.id"], made["transaction.timeout.ms"], made["delivery.timeout.ms"]) == ("me", 5000, 5000)
    made = parsed("kafka://h").transactional("me")
    assert (made["transaction.timeout.ms"], made["delivery.timeout.ms"]) == (10_000, 10_000)
    assert parsed("kafka://h?isolation.level=read_uncommitted").reads_uncommitted
    assert not parsed("kafka://h").reads_uncommitted


@pytest.mark.parametrize(
    ("metadata", "member"),
    [
        (b"CGMDv2:\x01\x00\x00\x00g\x00rdkafka-1\x00\x01", True),
        (b"CGMDv2:\xff\xff\xff\xffg\x00\x00\x01", False),  # never joined, or thrown out
        (b"CGMDv2:\x00\x00\x00\x00g\x00rdkafka-1\x00\x01", False),  # about to join
    ],
)
def test_only_a_members_metadata_is_one(metadata: bytes, member: bool) -> None:
    assert is_member(metadata) is member
    with pytest.raises(ConfigurationError, match="unknown form"):
        is_member(metadata.replace(b"v2", b"v3"))
