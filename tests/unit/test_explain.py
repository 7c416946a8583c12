"""An explanation follows from the policy and from what the broker can; it is the same for brokers that can the same."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from front_kit import FakeAdapter

from atleastonce import (
    Backoff,
    ConfigurationError,
    Context,
    DeadLetterPolicy,
    FailurePolicy,
    Inbox,
    Ordered,
    Queue,
    RetryChain,
    Service,
    SQLiteStore,
    Topic,
)
from atleastonce.adapters import open_adapter
from atleastonce.cli.app import run
from atleastonce.contract import Ability, Capabilities, Counting, Fact, Leasing, Level, Ordering, Trait
from atleastonce.explain import Explanation, explain, lines
from atleastonce.explain.crashes import crashes
from atleastonce.patterns.failure import Again, Dead, Hop, decide

CHANNELS = FakeAdapter.capabilities
NATIVE = msgspec.structs.replace(
    CHANNELS,
    delay=Ability(Level.NATIVE, 3600.0),
    delivery_count=Counting.EXACT,
    lease=Leasing.EXTENDABLE,
    lease_seconds=30.0,
    order=Ordering.GROUP,
)
POINTS = [
    "before-handler",
    "in-handler",
    "before-settle",
    "hop-before-settle",
    "dead-letter-before-settle",
    "in-redrive",
    "after-settle",
]


async def handle(order: dict[str, Any]) -> None: ...


def stuck(order: dict[str, Any]) -> None: ...


def explained(
    capabilities: Capabilities = CHANNELS,
    *,
    channel: Any = None,
    handler: Any = handle,
    facts: list[Fact] | None = None,
    **settings: Any,
) -> Explanation:
    service = Service("billing")
    service.consumer(channel or Topic("orders"), **settings)(handler)
    return explain(service.consumers[0], capabilities, drain=25.0, facts=facts)


def text(explanation: Explanation) -> str:
    return re.sub(r"\s+", " ", " ".join(lines(explanation)))


# ----------------------------------------------------------------------------------------------------------- the timeline

POLICIES = [
    FailurePolicy(),
    FailurePolicy(in_place=None, chain=RetryChain("5s", "30s", "5m")),
    FailurePolicy(in_place=Backoff("50ms", factor=3, max_attempts=3), chain=RetryChain("5s", "30s", "5m")),
    FailurePolicy(in_place=None, chain=RetryChain("5s", "30s", "5m"), give_up_after="1m"),
    FailurePolicy(in_place=None, chain=RetryChain("5s", "30s", "5m"), give_up_after="35s"),
    FailurePolicy(in_place=None, chain=RetryChain("5s", "30s", "5m"), give_up_after="1s"),
    FailurePolicy(chain=RetryChain(drain_only=["5s"])),
]


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_the_attempts_are_those_that_the_policy_decides(policy: FailurePolicy) -> None:
    now, attempt, starts = 0.0, 1, [0.0]
    tries = 1
    runs = {1: 1}
    for _ in range(100):
        step = decide(policy, ValueError(), attempt=attempt, tries=tries, now=now, first_failed=0.0, rand=lambda: 0.0)
        if isinstance(step, Again):
            now += step.wait
            tries += 1
            runs[attempt] += 1
        elif isinstance(step, Hop):
            now += step.delay
            attempt, tries = step.attempt, 1
            starts.append(now)
            runs[attempt] = 1
        else:
            assert isinstance(step, Dead)
            break
    else:
        pytest.fail("it never ends")
    found = explained(failure=policy)
    assert [each.number for each in found.attempts] == list(range(1, len(starts) + 1))
    assert [each.after for each in found.attempts] == pytest.approx(starts)
    most = runs[1]
    assert (f"up to {most} times" in found.tries) is (most > 1)
    assert any(end.startswith(f"Attempt {len(starts)} fails") for end in found.ends)
    expires = policy.give_up_after is not None
    assert any("(stage expired)" in end for end in found.ends) is expires


def test_a_wait_names_its_channel_where_it_has_one() -> None:
    found = explained(retry=["5s", "2h"])
    assert [each.where for each in found.attempts] == ["", "orders.billing.retry.5s", "orders.billing.retry.2h"]
    found = explained(NATIVE, retry=["5s", "2h"])
    assert [each.where for each in found.attempts] == ["", "", "orders.billing.retry.2h"]


# -------------------------------------------------------------------------------------------------------------- the crashes


@pytest.mark.parametrize("capabilities", [CHANNELS, NATIVE], ids=["channels", "native"])
@pytest.mark.parametrize("settings", [{}, {"retry": ["5s"]}, {"dead_letter": None}], ids=["plain", "chain", "no-dlq"])
def test_every_crash_point_is_told(capabilities: Capabilities, settings: dict[str, Any]) -> None:
    found = {crash.point: crash for crash in explained(capabilities, **settings).crashes}
    wanted = [point for point in POINTS if point != "in-redrive" or "dead_letter" not in settings]
    assert list(found) == wanted
    assert not found["before-handler"].repeats
    assert found["in-handler"].repeats
    assert found["before-settle"].repeats
    assert found["hop-before-settle"].repeats is ("retry" in settings)
    assert ("two letters" in found["dead-letter-before-settle"].then) is ("dead_letter" not in settings)
    assert all(crash.repeats is ("runs again" in crash.then) for crash in found.values())


def test_a_hop_is_a_copy_only_where_the_broker_does_not_delay_by_itself() -> None:
    (copied,) = [each for each in explained(retry=["5s"]).crashes if each.point == "hop-before-settle"]
    assert "in two places" in copied.then
    assert "orders.billing.retry.5s" in copied.then
    (native,) = [each for each in explained(NATIVE, retry=["5s"]).crashes if each.point == "hop-before-settle"]
    assert "There is no copy" in native.then


def test_a_crash_costs_an_attempt_only_where_the_broker_counts_them() -> None:
    assert "cost one of its attempts" in text(explained(NATIVE, retry=["5s"]))
    assert "cost one of its attempts" not in text(explained(CHANNELS, retry=["5s"]))


def test_ends_of_processes_are_told_from_retries_where_the_broker_counts_both() -> None:
    assert "after 3 such ends, its retries counted in, it runs alone" in text(explained(NATIVE, retry=["5s"]))
    assert "after 2 such ends it runs alone" in text(explained(NATIVE))
    assert "after 2 such ends it runs alone" in text(explained(CHANNELS, retry=["5s"]))


def test_what_is_settled_late_comes_again() -> None:
    late = msgspec.structs.replace(CHANNELS, settled_within=1.0)
    (crash,) = [each for each in explained(late).crashes if each.point == "after-settle"]
    assert crash.repeats
    assert "1s" in crash.then
    (crash,) = [each for each in explained().crashes if each.point == "after-settle"]
    assert crash.then == "Nothing is repeated."


class Remembering:
    """An idempotency with words of its own."""

    def on_repeat(self) -> str:
        return "It is found in the inbox, and its handler does not run."


def test_an_idempotent_consumer_has_its_own_words_for_a_repeat() -> None:
    service = Service("billing")
    service.consumer(Topic("orders"))(handle)
    guarded: Any = Remembering()
    consumer = msgspec.structs.replace(service.consumers[0], idempotency=guarded)
    told = [each for each in crashes(consumer, CHANNELS) if each.repeats]
    assert told
    assert all("found in the inbox" in each.then for each in told)
    assert not any("runs again" in each.then for each in told)
    silent: Any = object()
    consumer = msgspec.structs.replace(consumer, idempotency=silent)
    assert "idempotency=object(...)" in crashes(consumer, CHANNELS)[1].then


async def test_what_a_handler_publishes_is_told_apart_with_and_without_an_outbox(tmp_path: Path) -> None:
    service = Service("billing")

    @service.consumer(Topic("plain"))
    async def plain(order: dict[str, Any], ctx: Context) -> None: ...

    @service.consumer(Topic("boxed"), idempotency=Inbox(SQLiteStore(tmp_path / "shop.db")))
    async def boxed(order: dict[str, Any], ctx: Context) -> None: ...

    without, with_ = ({each.point: each for each in crashes(consumer, CHANNELS)} for consumer in service.consumers)
    assert list(without) == POINTS
    assert "only after it has returned without an error" in without["before-settle"].then
    assert "may be published twice" in without["before-settle"].then
    assert list(with_) == [*POINTS[:3], "in-relay", *POINTS[3:]]
    assert "rows of the same transaction" in with_["before-settle"].then
    assert "it is a duplicate and its handler does not run" in with_["before-settle"].then
    assert "same alo-id" in with_["in-relay"].then
    assert not with_["in-relay"].repeats


# ----------------------------------------------------------------------------------------------------------- and the others


def test_transactions_leave_no_moment_between_a_copy_and_its_settlement() -> None:
    late = msgspec.structs.replace(CHANNELS, settled_within=1.0)
    told = explained(late, retry=["5s"], transactions=True)
    found = {crash.point: crash for crash in told.crashes}
    assert list(found) == POINTS
    for point in ("hop-before-settle", "dead-letter-before-settle"):
        assert "There is no such moment" in found[point].then
        assert "two" not in found[point].then
    assert found["after-settle"].then == "Nothing is repeated."
    assert not any("recorded within" in text for text in told.delivery)
    assert any("Other effects of the handler are not part of it" in text for text in told.delivery)


def test_what_is_lost_without_dead_letters_is_said() -> None:
    assert "dead_letter=None" in text(explained(dead_letter=None))
    assert "it is lost" in text(explained(dead_letter=None))
    assert "it is lost" not in text(explained())


@pytest.mark.parametrize(
    ("capabilities", "channel", "concurrency", "says", "says_not"),
    [
        (CHANNELS, Queue("q"), 1, "None: messages may be handled in any order.", "in order"),
        (NATIVE, Queue("q"), 1, "fifo=True would", "hands out"),
        (NATIVE, Queue("q", fifo=True), 1, "One handler runs at a time", "overtaken"),
        (NATIVE, Queue("q", fifo=True), 4, "4 handlers run at once", "One handler"),
        (NATIVE, Queue("q", fifo=True), 1, "holds up the later ones of its key", "overtaken"),
        (msgspec.structs.replace(CHANNELS, order=Ordering.STREAM), Queue("q"), 1, "is overtaken", "holds up"),
    ],
)
def test_order(capabilities: Capabilities, channel: Any, concurrency: int, says: str, says_not: str) -> None:
    found = " ".join(explained(capabilities, channel=channel, concurrency=concurrency, retry=["5s"]).order)
    assert says in found
    assert says_not not in found


@pytest.mark.parametrize(
    ("order", "settings", "says"),
    [
        (Ordering.KEY, {"ordered": True}, "Messages of one message key run one at a time"),
        (Ordering.KEY, {"ordered": True}, "up to 16 keys run in parallel in each process"),
        (Ordering.KEY, {"ordered": True}, "one of them has all of a key. When keys move to another process"),
        (
            Ordering.KEY,
            {"ordered": "customer"},
            "It needs producers to give all messages of one such key the same message key",
        ),
        (Ordering.GROUP, {"ordered": True}, "while one has a message of a key, the broker gives no other one the next"),
        (
            Ordering.STREAM,
            {"ordered": True},
            "one of them at a time has anything of orders.billing, and the others stand by",
        ),
        (
            Ordering.KEY,
            {"ordered": True, "retry": ["5s"]},
            "waits in its place, and later messages of its key wait behind it",
        ),
        (Ordering.KEY, {"ordered": True}, "When a message is given up, its key goes on without it."),
        (Ordering.KEY, {"ordered": Ordered(park=True)}, "later messages of its key follow it into the dead letters"),
        (Ordering.KEY, {"ordered": True}, "A message that is redriven comes later than it was published"),
    ],
)
def test_order_per_key(order: Ordering, settings: dict[str, Any], says: str) -> None:
    found = explained(msgspec.structs.replace(CHANNELS, order=order), **settings)
    assert says in " ".join(found.order)
    assert all(attempt.where == "" for attempt in found.attempts)


@pytest.mark.parametrize(
    ("single_file", "says"),
    [
        (False, "up to 16 keys run in parallel in each process"),
        (True, "up to 4 keys run in parallel, over all processes"),
    ],
)
def test_order_over_the_parts_of_a_channel(single_file: bool, says: str) -> None:
    capabilities = msgspec.structs.replace(
        CHANNELS, order=Ordering.STREAM, single_active=True, parts=True, single_file=single_file
    )
    channel = Topic("orders", partitions=4, single_active=True)
    found = " ".join(explained(capabilities, channel=channel, ordered=True).order)
    assert says in found
    assert "in the same one of 4 parts, orders.p0.billing to orders.p3.billing, and one process at a time" in found
    assert "stand by" not in found


def test_a_hop_of_an_ordered_consumer_is_no_copy() -> None:
    found = explained(msgspec.structs.replace(CHANNELS, order=Ordering.KEY), ordered=True, retry=["5s"])
    (hop,) = (crash for crash in found.crashes if crash.point == "hop-before-settle")
    assert "it waits in its place, in this process alone" in hop.then


def test_who_gets_a_message() -> None:
    assert "Every group of topic orders" in text(explained())
    assert "share its messages" in text(explained(channel=Queue("q")))


def test_a_batch_says_what_its_failure_repeats() -> None:
    service = Service("billing")

    @service.batch_consumer(Queue("q"), max_messages=50)
    async def store(batch: list[dict[str, Any]]) -> None: ...

    assert "batches of up to 50" in text(explain(service.consumers[0], CHANNELS, drain=1.0))


@pytest.mark.parametrize(
    ("handler", "timeout", "says"),
    [
        (handle, "30s", "it is cancelled and has failed"),
        (stuck, "30s", "a thread cannot be stopped"),
        (handle, None, "no timeout= is set"),
    ],
)
def test_timeouts(handler: Any, timeout: str | None, says: str) -> None:
    assert says in text(explained(handler=handler, failure=FailurePolicy(timeout=timeout)))


def test_the_flood_guard_is_told_where_there_is_one() -> None:
    assert "More than 100 in a row or 50% of the last 200" in text(explained())
    none = FailurePolicy(dead_letter=DeadLetterPolicy(max_share=None, max_consecutive=None))
    assert "in a row" not in text(explained(failure=none))


def test_a_broker_that_was_not_asked_is_told_from_one_that_says_nothing() -> None:
    assert "it was not asked" in text(explained())
    assert "does not tell its settings" in text(explained(facts=[]))
    assert "tells nothing by which" in text(explained(facts=[Fact("orders", Trait.RETENTION, "r", "5s", 5.0)]))
    volatile = Fact("here", Trait.VOLATILE, "appendonly", "no")
    assert "appendonly=no: nothing of it is on a disk; a restart of the broker loses" in text(
        explained(facts=[volatile])
    )


def test_releases_cost_attempts_only_where_they_are_counted() -> None:
    counting = msgspec.structs.replace(NATIVE, counts_releases=True)
    assert "costs no attempt: since the broker counts every hand-out, it is published again" in text(
        explained(counting, retry=["5s"])
    )
    in_line = Queue[Any]("orders", fifo=True)
    assert "costs one of its attempts: the broker counts every hand-out" in text(
        explained(counting, channel=in_line, retry=["5s"])
    )
    assert "costs no attempt" in text(explained(counting))
    assert "costs no attempt" in text(explained(NATIVE, retry=["5s"]))


def test_a_lease_that_nothing_prolongs_is_told() -> None:
    shared = open_adapter("kafka://localhost?share.groups=true&share.lock=20s").capabilities
    told = text(explained(shared, retry=["5s"]))
    assert "stays with its worker for 20s, which nothing prolongs" in told
    assert "It comes again when its connection is closed or its lease is over, within 20s" in told


URLS = {
    "kafka": "kafka://localhost",
    "rabbitmq": "rabbitmq://localhost",
    "sqs": "sqs://eu-west-1",
    "nats": "nats://localhost",
    "pubsub": "pubsub://project",
    "redis": "redis://localhost",
    "sqlite": "sqlite:///shop.db",
    "memory": "memory://",
}


@pytest.mark.parametrize("scheme", URLS)
def test_every_broker_is_explained_without_being_asked(scheme: str) -> None:
    capabilities = open_adapter(URLS[scheme]).capabilities
    found = explained(capabilities, retry=["5s", "30s"])
    assert [each.wait for each in found.attempts] == [0.0, 5.0, 30.0]
    for part in msgspec.structs.astuple(found):
        assert part
    everything = text(found)
    assert scheme not in everything.lower(), "an explanation follows from what a broker can, not from its name"
    assert "None " not in everything.replace("None: messages", "")
    assert ".." not in everything.replace("(...)", "")


# --------------------------------------------------------------------------------------------------------- command line

APP = """
from atleastonce import Queue, Service, Topic

service = Service("billing", broker="sqlite:///shop.db")
long = Service("long", broker="rabbitmq://localhost")

@service.consumer(Topic("orders"), retry=["5s"])
async def charge(order: dict) -> None: ...

@long.consumer(Queue("q"), retry=["60d"])
async def handle(order: dict) -> None: ...
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("ALO_BROKER", raising=False)
    (tmp_path / "explainapp.py").write_text(APP)
    yield tmp_path
    sys.modules.pop("explainapp", None)


def test_the_command_asks_nobody(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "explainapp:service"]) == 0
    out = capfd.readouterr().out
    assert "explainapp.charge reads orders.billing" in out
    assert "2: after waiting 5s; 5s200ms after the first failure" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    assert not (place / "shop.db").exists()


def test_live_adds_the_settings(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "explainapp:service", "--live", "--broker", "sqlite:///shop.db?synchronous=normal"]
    assert run(words) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "a power cut loses what was confirmed last" in out
    assert "it was not asked" not in out


def test_json(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "explainapp:service", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["service"], report["live"]) == ("billing", False)
    (handler,) = report["handlers"]
    assert [crash["point"] for crash in handler["crashes"]] == POINTS
    assert handler["attempts"][1] == {"number": 2, "after": pytest.approx(5.2), "wait": 5.0, "where": ""}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["explainapp"], 2, "write module:attribute"),
        (["explainapp:service", "--broker", "kafak://x"], 2, 'did you mean "kafka://"?'),
        (["explainapp:service", "--live", "--no-wait", "--broker", "rabbitmq://127.0.0.1:1/"], 1, "127.0.0.1:1"),
        (["explainapp:long"], 2, "shorten the retry delay 60d"),
    ],
)
def test_bad_input_gets_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert run(["explain", *words]) == code
    out, err = capfd.readouterr()
    assert not out
    assert says in err
    assert err.count("\n") == 1


async def test_a_service_without_handlers_has_nothing_to_explain() -> None:
    with pytest.raises(ConfigurationError, match="has no handlers"):
        await Service("empty", broker="memory://").explain()
