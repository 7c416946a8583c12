"""Every rule of a check: a case that breaks it, told with what to change, and one beside it that does not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from confluent_kafka.admin import AclOperation
from front_kit import FakeAdapter
from google.iam.v1 import policy_pb2

from atleastonce import Backoff, FailurePolicy, Lease, MemoryStore, Queue, RetryChain, Service, Topic, check
from atleastonce.adapters.kafka import inspecting as kafka
from atleastonce.adapters.nats import inspecting as nats
from atleastonce.adapters.pubsub import declaring
from atleastonce.adapters.pubsub import inspecting as pubsub
from atleastonce.adapters.rabbitmq import inspecting as rabbitmq
from atleastonce.adapters.redis_streams import inspecting as redis
from atleastonce.check import RULES, Finding
from atleastonce.contract import (
    Ability,
    Capabilities,
    Counting,
    Drift,
    Fact,
    Leasing,
    Level,
    Ordering,
    Trait,
)
from atleastonce.errors import ConfigurationError

PLAIN = FakeAdapter.capabilities
NATIVE = msgspec.structs.replace(
    PLAIN,
    delay=Ability(Level.NATIVE, 3600.0),
    delivery_count=Counting.EXACT,
    lease=Leasing.EXTENDABLE,
    lease_limit=7200.0,
    order=Ordering.GROUP,
)
SESSION = msgspec.structs.replace(PLAIN, lease_limit=1800.0, order=Ordering.STREAM)
ALONE = msgspec.structs.replace(SESSION, single_active=True)
FILE = msgspec.structs.replace(ALONE, single_file=True)
PARTS = msgspec.structs.replace(FILE, parts=True)
KEYED = msgspec.structs.replace(PLAIN, order=Ordering.KEY)
EMULATED = msgspec.structs.replace(PLAIN, delay=Ability(Level.EMULATED, 600.0))
TRANSACTIONS = msgspec.structs.replace(SESSION, transactions=True)
DAY = 86_400


async def handle(order: dict[str, Any]) -> None: ...


def stuck(order: dict[str, Any]) -> None: ...


def policy(capabilities: Capabilities, *, handler: Any = handle, channel: Any = None, **settings: Any) -> list[Finding]:
    service = Service("billing")
    service.consumer(channel or Queue("q"), **settings)(handler)
    return check.policy(service.consumers[0], capabilities)


def failure(*delays: str, **rest: Any) -> FailurePolicy:
    return FailurePolicy(chain=RetryChain(*delays) if delays else None, **rest)


def settings(capabilities: Capabilities, *facts: Fact, **policy: Any) -> list[Finding]:
    """Of a consumer of queue "q" with a chain of 1m and 5m."""
    service = Service("billing")
    service.consumer(Queue("q"), failure=failure("1m", "5m", **policy))(handle)
    (consumer,) = service.consumers
    topology = consumer.topology(capabilities)
    return check.broker(facts) + check.settings(consumer, capabilities, topology, facts)


def remembered(*facts: Fact, **lease: Any) -> list[Finding]:
    """Of a consumer of queue "q" with a chain of 1m and 5m and a lease."""
    service = Service("billing")
    service.consumer(Queue("q"), failure=failure("1m", "5m"), idempotency=Lease(MemoryStore(), **lease))(handle)
    (consumer,) = service.consumers
    return check.settings(consumer, PLAIN, consumer.topology(PLAIN), facts)


@pytest.mark.parametrize(
    ("facts", "lease", "days"),
    [
        ([], {}, 7.0),
        ([("q", 14.0)], {}, 14.0),
        ([("q", 3.0), ("q.dlq", 14.0)], {}, 14 + 6 / 1440),
        ([("q", 3.0), ("q.dlq", 14.0)], {"redrive_within": "1d"}, 7.0),
        ([("q.dlq", 14.0)], {"redrive_within": "20d"}, 20 + 6 / 1440),
        ([("q.dlq", 365.0)], {}, 92.0),
        ([("q.dlq", 14.0)], {"ttl": "10d"}, 10.0),
        (None, {}, 31.0),
    ],
)
def test_how_long_is_remembered(facts: list[tuple[str, float]] | None, lease: dict[str, Any], days: float) -> None:
    service = Service("billing")
    service.consumer(Queue("q"), failure=failure("1m", "5m"), idempotency=Lease(MemoryStore(), **lease))(handle)
    (consumer,) = service.consumers
    found = None if facts is None else [fact(name, Trait.RETENTION, kept * DAY) for name, kept in facts]
    memory = check.memory(consumer, PLAIN, consumer.topology(PLAIN), found)
    assert memory == pytest.approx(days * DAY)


def two(first: Queue[Any], second: Queue[Any]) -> list[Finding]:
    service = Service("billing")
    service.consumer(first, retry=["1m"])(handle)
    service.consumer(second)(handle)
    return check.together(service.consumers, PLAIN)


def fact(name: str, trait: Trait, amount: float | None = None, *, found: str = "", detail: str = "") -> Fact:
    return Fact(name, trait, "setting", found or f"{amount}", amount, detail)


class Case(NamedTuple):
    code: str
    wrong: Callable[[], list[Finding]]
    change: str
    right: Callable[[], list[Finding]]


CASES = [
    # ------------------------------------------------------------------------------------------------------- the policy
    Case(
        "delay-over-limit",
        lambda: policy(EMULATED, retry=["5s", "1h"]),
        "shorten the retry delay 1h",
        lambda: policy(EMULATED, retry=["5s", "10m"]),
    ),
    Case(
        "chain-out-of-time",
        lambda: policy(PLAIN, failure=failure("5m", "10m", give_up_after="1m")),
        "raise give_up_after to more than 15m",
        lambda: policy(PLAIN, failure=failure("5m", "10m", give_up_after="16m")),
    ),
    Case(
        "chain-cut-short",
        lambda: policy(PLAIN, failure=failure("1m", "5m", "10m", give_up_after="6m30s")),
        "raise give_up_after to more than 16m",
        lambda: policy(PLAIN, failure=failure("1m", "5m", give_up_after="6m")),
    ),
    Case(
        "forgotten-too-early",
        lambda: policy(PLAIN, retry=["2d", "3d"], idempotency=Lease(MemoryStore(), ttl="7d")),
        "raise Lease's ttl to 8d or more",
        lambda: policy(PLAIN, retry=["2d", "3d"], idempotency=Lease(MemoryStore(), ttl="8d")),
    ),
    Case(
        "timeout-over-lease",
        lambda: policy(NATIVE, failure=failure(timeout="3h")),
        "shorten timeout=",
        lambda: policy(NATIVE, failure=failure(timeout="30m")),
    ),
    Case(
        "timeout-over-server-limit",
        lambda: policy(SESSION, failure=failure(timeout="1h")),
        "raise the broker's limit",
        lambda: policy(SESSION, failure=failure(timeout="5m")),
    ),
    Case(
        "in-place-over-lease",
        lambda: policy(NATIVE, failure=failure(timeout="1h", in_place=Backoff("1s", max_attempts=3))),
        "shorten in_place=",
        lambda: policy(NATIVE, failure=failure(timeout="1h", in_place=Backoff("1s", max_attempts=1))),
    ),
    Case(
        "in-place-over-lease",
        lambda: policy(SESSION, failure=failure(in_place=Backoff("10m", maximum="10m", max_attempts=4))),
        "move its waits to the chain",
        lambda: policy(SESSION, failure=failure(in_place=Backoff("10m", maximum="10m", max_attempts=2))),
    ),
    Case(
        "timeout-of-a-thread",
        lambda: policy(PLAIN, handler=stuck, failure=failure(timeout="5s")),
        "make it an async def",
        lambda: policy(PLAIN, failure=failure(timeout="5s")),
    ),
    Case(
        "order-impossible",
        lambda: policy(PLAIN, channel=Topic("t", fifo=True)),
        "leave fifo away",
        lambda: policy(NATIVE, channel=Topic("t", fifo=True)),
    ),
    Case(
        "order-lost-in-chain",
        lambda: policy(SESSION, channel=Queue("q", fifo=True), retry=["5s"]),
        "leave the chain away and retry in place",
        lambda: policy(NATIVE, channel=Queue("q", fifo=True), retry=["5s"]),
    ),
    Case(
        "order-lost-in-chain",
        lambda: policy(NATIVE, channel=Queue("q", fifo=True), retry=["5s", "2h"]),
        "do without order",
        lambda: policy(NATIVE, channel=Queue("q", fifo=True), retry=["5s", "1h"]),
    ),
    Case(
        "order-lost-in-chain",
        lambda: policy(SESSION, channel=Queue("q", single_active=True), retry=["5s"]),
        "do without order",
        lambda: policy(SESSION, channel=Queue("q", single_active=True)),
    ),
    Case(
        "order-not-across",
        lambda: policy(NATIVE, ordered=True),
        'declare Queue("q", fifo=True)',
        lambda: policy(NATIVE, channel=Queue("q", fifo=True), ordered=True, retry=["5s", "30m"]),
    ),
    Case(
        "order-not-across",
        lambda: policy(ALONE, channel=Topic("t"), ordered=True),
        'declare Topic("t", single_active=True)',
        lambda: policy(ALONE, channel=Topic("t", single_active=True), ordered=True, retry=["5s"]),
    ),
    Case(
        "order-not-across",
        lambda: policy(SESSION, channel=Queue("q", fifo=True, single_active=True), ordered=True),
        "leave ordered= away: this broker hands the messages of one key to any process",
        lambda: policy(KEYED, ordered=True, retry=["5s"]),
    ),
    Case(
        "order-with-lease",
        lambda: policy(KEYED, ordered=True, idempotency=Lease(MemoryStore())),
        "use an Inbox",
        lambda: policy(KEYED, idempotency=Lease(MemoryStore())),
    ),
    Case(
        "chain-over-lease",
        lambda: policy(ALONE, channel=Queue("q", single_active=True), ordered=True, retry=["5s", "30m"]),
        "shorten the chain",
        lambda: policy(ALONE, channel=Queue("q", single_active=True), ordered=True, retry=["5s", "20m"]),
    ),
    Case(
        "order-in-single-file",
        lambda: policy(FILE, channel=Queue("q", single_active=True), ordered=True, concurrency=8),
        "set concurrency=1",
        lambda: policy(FILE, channel=Queue("q", single_active=True), ordered=True, concurrency=1),
    ),
    Case(
        "order-in-single-file",
        lambda: policy(PARTS, channel=Queue("q", single_active=True, partitions=4), ordered=True, concurrency=8),
        "set concurrency=4, or declare partitions=8",
        lambda: policy(PARTS, channel=Queue("q", single_active=True, partitions=8), ordered=True, concurrency=8),
    ),
    Case(
        "order-by-payload",
        lambda: policy(KEYED, ordered="customer_id"),
        "with the same message key",
        lambda: policy(ALONE, channel=Queue("q", single_active=True), ordered="customer_id"),
    ),
    Case(
        "no-transactions",
        lambda: policy(PLAIN, transactions=True),
        "leave transactions away",
        lambda: policy(TRANSACTIONS, transactions=True),
    ),
    Case(
        "two-transactions",
        lambda: policy(TRANSACTIONS, transactions=True, idempotency=Lease(MemoryStore())),
        "keep transactions=True where all effects are messages",
        lambda: policy(TRANSACTIONS, idempotency=Lease(MemoryStore())),
    ),
    Case(
        "channel-in-two-roles",
        lambda: two(Queue("q"), Queue("q.retry.1m")),
        "rename one of the two channels",
        lambda: two(Queue("q"), Queue("q.retry.5m")),
    ),
    Case(
        "channel-in-two-roles",
        lambda: two(Queue("q"), Queue("q.suspects")),
        "rename one of the two channels",
        lambda: two(Queue("q"), Queue("suspects")),
    ),
    Case(
        "dead-letters-consumed",
        lambda: two(Queue("q"), Queue("q.dlq")),
        "give that handler a channel of its own",
        lambda: two(Queue("q"), Queue("dlq")),
    ),
    Case(
        "no-dead-letters",
        lambda: policy(PLAIN, dead_letter=None),
        "leave dead_letter=None away",
        lambda: policy(PLAIN),
    ),
    # ----------------------------------------------------------------------------------------------------- the topology
    Case(
        "name-impossible",
        lambda: policy(PLAIN, channel=Queue("q" * 198)),
        "",
        lambda: policy(PLAIN, channel=Queue("q" * 180)),
    ),
    Case(
        "name-impossible",
        lambda: [check.impossible(ConfigurationError("q: too long for this broker; shorten it"))],
        "shorten it",
        list,
    ),
    Case(
        "channel-missing",
        lambda: check.topology([Drift("q", "missing", "queue", "", breaks=True)], create=False),
        "create=True",
        list,
    ),
    Case(
        "channel-to-be-made",
        lambda: check.topology([Drift("q", "missing", "queue", "", breaks=True)], create=True),
        "created at the start",
        list,
    ),
    Case(
        "setting-unsupported",
        lambda: check.topology([Drift("q", "fifo", "True", "unsupported; use one key", breaks=True)], create=True),
        "use one key",
        list,
    ),
    Case(
        "setting-ignored",
        lambda: check.topology([Drift("q", "priority", "9", "unsupported")], create=True),
        "leave priority away",
        list,
    ),
    Case(
        "setting-breaks",
        lambda: check.topology([Drift("q", "x-queue-type", "quorum", "classic", breaks=True)], create=True),
        "change it on the broker",
        list,
    ),
    Case(
        "setting-differs",
        lambda: check.topology([Drift("q", "partitions", "2", "4")], create=True),
        "write partitions=4 in the code",
        list,
    ),
    # ----------------------------------------------------------------------------------------------------- the settings
    Case(
        "retention-below-delay",
        lambda: settings(PLAIN, fact("q.retry.5m", Trait.RETENTION, 299)),
        "to more than 1d5m",
        lambda: settings(PLAIN, fact("q.retry.5m", Trait.RETENTION, DAY + 300)),
    ),
    Case(
        "retention-near-delay",
        lambda: settings(PLAIN, fact("q.retry.5m", Trait.RETENTION, 300)),
        "to 1d5m or more",
        lambda: settings(PLAIN, fact("q.retry.5m", Trait.RETENTION, DAY + 300)),
    ),
    Case(
        "retention-below-chain",
        lambda: settings(NATIVE, fact("q", Trait.RETENTION, 360)),
        "to more than 1d6m, or shorten the chain",
        lambda: settings(NATIVE, fact("q", Trait.RETENTION, 361)) + settings(PLAIN, fact("q", Trait.RETENTION, 10)),
    ),
    Case(
        "dead-letters-short",
        lambda: settings(PLAIN, fact("q", Trait.RETENTION, 7 * DAY), fact("q.dlq", Trait.RETENTION, 2 * DAY)),
        "to 7d or more",
        lambda: settings(PLAIN, fact("q", Trait.RETENTION, 7 * DAY), fact("q.dlq", Trait.RETENTION, 7 * DAY)),
    ),
    Case(
        "dead-letters-short",
        lambda: settings(PLAIN, fact("q.dlq", Trait.RETENTION, 3600)),
        "to 1d or more",
        lambda: settings(PLAIN, fact("q.dlq", Trait.RETENTION, DAY)),
    ),
    Case(
        "forgotten-before-deleted",
        lambda: remembered(fact("q", Trait.RETENTION, 14 * DAY), fact("q.dlq", Trait.RETENTION, 3 * DAY), ttl="7d"),
        "raise Lease's ttl to 14d or more",
        lambda: remembered(fact("q", Trait.RETENTION, 14 * DAY), ttl="14d"),
    ),
    Case(
        "forgotten-before-deleted",
        lambda: remembered(fact("q", Trait.RETENTION, 365 * DAY)),
        "set Lease's ttl to 365d or more",
        lambda: remembered(fact("q", Trait.RETENTION, 92 * DAY)),
    ),
    Case(
        "forgotten-before-redrive",
        lambda: remembered(fact("q", Trait.RETENTION, 7 * DAY), fact("q.dlq", Trait.RETENTION, 7 * DAY), ttl="7d"),
        "raise Lease's ttl to 7d6m or more, or say with redrive_within=",
        lambda: remembered(fact("q.dlq", Trait.RETENTION, 31 * DAY), ttl="7d", redrive_within="3d"),
    ),
    Case(
        "forgotten-before-redrive",
        lambda: remembered(fact("q.dlq", Trait.RETENTION, 365 * DAY)),
        "set Lease's ttl to 365d6m or more, or say with redrive_within=",
        lambda: remembered(fact("q", Trait.RETENTION, 14 * DAY), fact("q.dlq", Trait.RETENTION, 31 * DAY)),
    ),
    Case(
        "copies-too-small",
        lambda: settings(PLAIN, fact("q", Trait.MAX_BYTES, 5000), fact("q.dlq", Trait.MAX_BYTES, 4999)),
        "to 13192 or more",
        lambda: settings(PLAIN, fact("q.dlq", Trait.MAX_BYTES, 10)),  # nothing is known of the source's
    ),
    Case(
        "copies-tight",
        lambda: settings(PLAIN, fact("q", Trait.MAX_BYTES, 5000), fact("q.retry.1m", Trait.MAX_BYTES, 5000)),
        "to 13192 or more",
        lambda: settings(
            PLAIN,
            fact("q", Trait.MAX_BYTES, 5000),
            fact("q.retry.1m", Trait.MAX_BYTES, 13_192),
            fact("q.suspects", Trait.MAX_BYTES, 5000),
            fact("q.dlq", Trait.MAX_BYTES, 5000, detail="most"),
        ),
    ),
    Case(
        "copies-compacted",
        lambda: settings(PLAIN, fact("q.dlq", Trait.COMPACTS, found="compact")),
        "set setting=delete",
        lambda: settings(PLAIN, fact("elsewhere", Trait.COMPACTS, found="compact")),
    ),
    Case(
        "source-compacted",
        lambda: settings(PLAIN, fact("q", Trait.COMPACTS, found="compact")),
        "no key has two messages",
        lambda: settings(PLAIN),
    ),
    Case(
        "drops-when-full",
        lambda: settings(PLAIN, fact("q.dlq", Trait.DROPS, 100)),
        "let it refuse instead",
        lambda: settings(PLAIN),
    ),
    Case(
        "net-below-attempts",
        lambda: settings(NATIVE, fact("q", Trait.NET, 2, detail="q.dlq")),
        "to 6 or more, or shorten the chain",
        lambda: settings(NATIVE, fact("q", Trait.NET, 5, detail="q.dlq")),
    ),
    Case(
        "net-below-crash-limit",
        lambda: settings(NATIVE, fact("q", Trait.NET, 4, detail="q.dlq")),
        "to 6 or more",
        lambda: settings(PLAIN, fact("q", Trait.NET, 3, detail="q.dlq")),  # retries are copies, which count anew
    ),
    Case(
        "net-below-crash-limit",
        lambda: settings(NATIVE, fact("q.suspects", Trait.NET, 3, detail="q.suspects.dlq"), crash_limit=3),
        "raise setting to 5 or more",
        lambda: settings(NATIVE, fact("q.suspects", Trait.NET, 4, detail="q.suspects.dlq"), crash_limit=3),
    ),
    Case(
        "net-elsewhere",
        lambda: settings(NATIVE, fact("q", Trait.NET, 100, detail="theirs")),
        "let it lead to q.dlq",
        lambda: settings(NATIVE, fact("q", Trait.NET, 100, detail="q.dlq")),
    ),
    Case(
        "net-powerless",
        lambda: settings(NATIVE, fact("q", Trait.NET_POWERLESS, found="roles/x", detail="roles/x to it")),
        "grant it: roles/x to it",
        lambda: settings(NATIVE),
    ),
    Case(
        "not-permitted",
        lambda: settings(PLAIN, fact("q.dlq", Trait.DENIED, found="write")),
        "grant setting on it",
        lambda: settings(PLAIN, fact("q", Trait.DENIED, found="write")),
    ),
    Case(
        "retries-hold-up",
        lambda: settings(NATIVE, fact("q", Trait.HOLDS, 50)),
        "make it unlimited",
        lambda: settings(NATIVE, fact("q.dlq", Trait.HOLDS, 50)),
    ),
    Case("never-confirmed", lambda: settings(PLAIN, fact("q", Trait.REFUSES, 2)), "lower setting to 2 or less", list),
    Case("confirmed-by-one", lambda: settings(PLAIN, fact("q", Trait.ONE_CONFIRMS, 3)), "set setting=2", list),
    Case("unclean-leaders", lambda: settings(PLAIN, fact("q", Trait.UNCLEAN)), "set setting=false", list),
    Case("one-copy", lambda: settings(PLAIN, fact("q", Trait.ONE_COPY, 3)), "keep three copies", list),
    Case("one-node", lambda: settings(PLAIN, fact("q", Trait.ONE_NODE, 1)), "", list),
    Case("volatile", lambda: settings(PLAIN, fact("q", Trait.VOLATILE)), "on disk", list),
    Case("late-sync", lambda: settings(PLAIN, fact("here", Trait.LATE_SYNC, 1)), "", list),
    Case("evicts", lambda: settings(PLAIN, fact("here", Trait.EVICTS)), "set setting=noeviction", list),
    Case("vanishes", lambda: settings(PLAIN, fact("q", Trait.VANISHES, 90)), "take setting away", list),
    Case("process-bound", lambda: settings(PLAIN, fact("here", Trait.PROCESS)), "", list),
    Case("auto-create", lambda: settings(PLAIN, fact("here", Trait.AUTO_CREATES)), "", list),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.code}" for number, case in enumerate(CASES)])
def test_what_breaks_a_rule_is_found_with_what_to_change_and_what_keeps_it_is_not(case: Case) -> None:
    (finding,) = [finding for finding in case.wrong() if finding.code == case.code]
    (rule,) = [rule for rule in RULES if rule.code == case.code]
    assert case.change in finding.change
    assert (finding.severity, finding.why) == (rule.severity, rule.why)
    assert finding.what
    assert finding.subject or case.code == "name-impossible"
    assert "\n" not in finding.text
    if rule.severity != "note" and case.code != "name-impossible":
        assert finding.change, "nothing says what to change"
    assert case.code not in {finding.code for finding in case.right()}


def test_every_rule_has_a_case_and_a_code_of_its_own() -> None:
    codes = [rule.code for rule in RULES]
    assert len(set(codes)) == len(codes)
    assert set(codes) == {case.code for case in CASES}


def test_refusals_are_many() -> None:
    assert sum(rule.severity == "refuse" for rule in RULES) >= 12


def test_a_difference_is_not_told_beside_what_follows_from_it() -> None:
    drift = check.topology([Drift("q.dlq", "setting", "9", "1")], create=True)
    grave = check.topology([Drift("q.dlq", "setting", "9", "1", breaks=True)], create=True)
    follows = settings(PLAIN, fact("q.dlq", Trait.RETENTION, 3600))
    assert check.merge([*drift, *follows, *follows]) == follows
    assert check.merge([*grave, *follows]) == [*grave, *follows], "a refusal must not be softened"


def test_channels_with_one_setting_in_common_are_told_together() -> None:
    (finding,) = check.broker([fact(name, Trait.ONE_NODE, 1) for name in "edcba"])
    assert finding.subject == "a, b, c and 2 more"


# ------------------------------------------------------------------------------------------------- what brokers' words mean


def traits(facts: Any) -> dict[Trait, float | None]:
    return {fact.trait: fact.amount for fact in facts}


def kafka_topic(replicas: int, operations: list[AclOperation] | None = None) -> Any:
    partition = SimpleNamespace(replicas=[object()] * replicas)
    return SimpleNamespace(partitions=[partition, partition], authorized_operations=operations)


@pytest.mark.parametrize(
    ("replicas", "config", "nodes", "expected"),
    [
        (1, {}, 1, {Trait.ONE_NODE: 1}),
        (1, {}, 3, {Trait.ONE_COPY: 3}),
        (1, {}, 0, {}),
        (3, {"min.insync.replicas": "1"}, 3, {Trait.ONE_CONFIRMS: 3}),
        (3, {"min.insync.replicas": "2"}, 3, {}),
        (3, {"min.insync.replicas": "4"}, 3, {Trait.REFUSES: 3}),
        (
            3,
            {"min.insync.replicas": "2", "unclean.leader.election.enable": "true"},
            3,
            {Trait.UNCLEAN: None},
        ),
        (3, {"min.insync.replicas": "2", "retention.ms": "-1", "retention.bytes": "-1"}, 3, {}),
        (3, {"min.insync.replicas": "2", "cleanup.policy": "compact", "retention.ms": "5"}, 3, {Trait.COMPACTS: None}),
        (3, {"min.insync.replicas": "2", "retention.ms": "5000"}, 3, {Trait.RETENTION: 5.0}),
    ],
)
def test_kafka(replicas: int, config: dict[str, str], nodes: int, expected: dict[Trait, float | None]) -> None:
    assert traits(kafka._topic("t", kafka_topic(replicas), config, nodes)) == expected


def test_kafka_tells_what_a_login_may_not_do() -> None:
    config = {"min.insync.replicas": "2"}
    (denied,) = kafka._topic("t", kafka_topic(3, [AclOperation.READ, AclOperation.DESCRIBE]), config, 3)
    assert (denied.trait, denied.found, denied.setting) == (Trait.DENIED, "write", "WRITE")
    assert not list(kafka._topic("t", kafka_topic(3, [AclOperation.READ, AclOperation.WRITE]), config, 3))


@pytest.mark.parametrize(
    ("answer", "nodes", "expected"),
    [
        ({"type": "quorum", "members": ["a"], "arguments": {}}, 1, {Trait.ONE_NODE: 1}),
        ({"type": "quorum", "members": ["a"], "arguments": {}}, 3, {Trait.ONE_COPY: 3}),
        ({"type": "quorum", "members": ["a", "b", "c"], "arguments": {}}, 3, {}),
        ({"type": "classic", "arguments": {}, "durable": False}, 0, {Trait.VOLATILE: None}),
        ({"arguments": {"x-message-ttl": 5000}}, 0, {Trait.RETENTION: 5.0}),
        ({"arguments": {"x-message-ttl": 5000, "x-dead-letter-exchange": ""}}, 0, {}),
        ({"arguments": {"x-max-length": 9}}, 0, {Trait.DROPS: 9}),
        ({"arguments": {"x-max-length": 9, "x-overflow": "reject-publish"}}, 0, {}),
        (
            {"arguments": {"x-max-length": 9}, "effective_policy_definition": {"max-length": 5}},
            0,
            {Trait.DROPS: 5},
        ),
        ({"arguments": {"x-dead-letter-exchange": "", "x-delivery-limit": 20}}, 0, {Trait.NET: 21}),
        ({"arguments": {"x-expires": 60_000}}, 0, {Trait.VANISHES: 60.0}),
    ],
)
def test_rabbitmq(answer: dict[str, Any], nodes: int, expected: dict[Trait, float | None]) -> None:
    assert traits(rabbitmq.queue_facts("q", answer, nodes)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"config": {"num_replicas": 1}}, {Trait.ONE_NODE: None}),
        ({"config": {"num_replicas": 1}, "cluster": {"name": "c1"}}, {Trait.ONE_COPY: None}),
        ({"config": {"num_replicas": 3}}, {}),
        ({"config": {"num_replicas": 3, "max_bytes": 9, "discard": "new"}}, {}),
        ({"config": {"num_replicas": 3, "max_bytes": 9, "discard": "old"}}, {Trait.DROPS: 9}),
        ({"config": {"num_replicas": 3, "max_msg_size": 9, "discard": "new"}}, {Trait.MAX_BYTES: 9}),
    ],
)
def test_nats(answer: dict[str, Any], expected: dict[Trait, float | None]) -> None:
    assert traits(nats.stream_facts("q", answer)) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, {}),
        ({"appendonly": "yes", "appendfsync": "always"}, {}),
        ({"appendonly": "yes", "appendfsync": "everysec"}, {Trait.LATE_SYNC: 1.0}),
        ({"appendonly": "yes", "appendfsync": "no"}, {Trait.LATE_SYNC: None}),
        ({"appendonly": "no", "save": "300 10 60 1000"}, {Trait.LATE_SYNC: 300.0}),
        ({"appendonly": "no", "save": ""}, {Trait.VOLATILE: None}),
        ({"appendonly": "no"}, {}),
        ({"maxmemory": "5", "maxmemory-policy": "allkeys-lfu"}, {Trait.EVICTS: None}),
        ({"maxmemory": "0", "maxmemory-policy": "allkeys-lfu"}, {}),
        ({"maxmemory": "5", "maxmemory-policy": "volatile-lru"}, {}),
    ],
)
def test_redis(found: dict[str, str], expected: dict[Trait, float | None]) -> None:
    assert traits(redis.facts(found, "here")) == expected


def test_pubsub_tells_a_net_that_may_not_move_anything() -> None:
    nobody, agent = policy_pb2.Policy(), policy_pb2.Policy()
    agent.bindings.add(role="roles/pubsub.publisher", members=[f"serviceAccount:service-1{declaring.AGENT}"])
    (powerless,) = pubsub.net_facts("q", nobody, declaring.PUBLISH, "publisher", "projects/p/topics/q.dlq")
    assert powerless.trait is Trait.NET_POWERLESS
    assert "roles/pubsub.publisher on q.dlq" in powerless.found
    assert not list(pubsub.net_facts("q", agent, declaring.PUBLISH, "publisher", "projects/p/topics/q.dlq"))
    assert not list(pubsub.net_facts("q", None, declaring.PUBLISH, "publisher", "projects/p/topics/q.dlq"))
