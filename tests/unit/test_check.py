"""What a start refuses, `Service.check` and ``atleastonce check`` say in the same words, and nothing is made by looking."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from front_kit import FakeAdapter

from atleastonce import ConfigurationError, FailurePolicy, PermissionDenied, Queue, Service, Topic, check, connect_sync
from atleastonce.channels import Channel
from atleastonce.check import Rule, Severity
from atleastonce.cli.app import run
from atleastonce.contract import Ability, Capabilities, Drift, Leasing, Level, Ordering

PLAIN = FakeAdapter.capabilities


def can(**differs: Any) -> Capabilities:
    return msgspec.structs.replace(PLAIN, **differs)


def service_for(*channels: Channel[Any], create: bool = True, **settings: Any) -> Service:
    service = Service("billing", broker="memory://", create=create)
    for channel in channels:
        service.consumer(channel, **settings)(handle)
    return service


async def handle(order: dict[str, Any]) -> None: ...


def use(fake: FakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.broker.open_adapter", lambda *_: fake)


# ------------------------------------------------------------------------------------------------------- policy

POLICIES = [
    ({"retry": ["5s", "1h"]}, can(delay=Ability(Level.NATIVE, 900.0)), []),
    (
        {"retry": ["5s", "1h"]},
        can(delay=Ability(Level.EMULATED, 900.0)),
        [("refuse", "q: this broker delays by at most 15m; shorten the retry delay 1h")],
    ),
    ({"failure": FailurePolicy(timeout="1h")}, can(), []),
    (
        {"failure": FailurePolicy(timeout="30m", in_place=None)},
        can(lease=Leasing.EXTENDABLE, lease_limit=1800.0),
        [],
    ),
    (
        {"failure": FailurePolicy(timeout="1h")},
        can(lease=Leasing.EXTENDABLE, lease_limit=1800.0),
        [("refuse", "q: a handler may run for 1h, and this broker leaves a message with its worker for 30m at most")],
    ),
    (
        {"failure": FailurePolicy(timeout="1m")},
        can(lease=Leasing.FIXED, lease_seconds=30.0, lease_limit=30.0),
        [("refuse", "q: a handler may run for 1m, and this broker leaves a message with its worker for 30s at most")],
    ),
    (
        {"failure": FailurePolicy(timeout="1h")},
        can(lease=Leasing.SESSION, lease_limit=1800.0),
        [("warn", "for 30m at most; shorten timeout=, or raise the broker's limit")],
    ),
]


@pytest.mark.parametrize(("settings", "capabilities", "expected"), POLICIES)
def test_a_policy_is_held_against_what_the_broker_can(
    settings: dict[str, Any], capabilities: Capabilities, expected: list[tuple[str, str]]
) -> None:
    (consumer,) = service_for(Queue("q"), **settings).consumers
    found = check.policy(consumer, capabilities)
    assert [finding.severity for finding in found] == [kind for kind, _ in expected]
    for finding, (_, text) in zip(found, expected, strict=True):
        assert text in finding.text
        assert "\n" not in finding.text


@pytest.mark.parametrize("channel", [Queue("orders", fifo=True), Topic("orders", fifo=True)])
def test_order_is_refused_where_there_is_none(channel: Channel[Any]) -> None:
    (consumer,) = service_for(channel).consumers
    (finding,) = check.policy(consumer, can(order=Ordering.NONE))
    assert finding.severity == "refuse"
    assert "leave fifo away" in finding.text
    for order in (Ordering.STREAM, Ordering.KEY, Ordering.GROUP):
        assert check.policy(consumer, can(order=order)) == []


# ----------------------------------------------------------------------------------------------------- topology


@pytest.mark.parametrize(
    ("drift", "create", "code", "text"),
    [
        (
            Drift("q", "missing", "a topic", "nothing", breaks=True),
            True,
            "channel-to-be-made",
            "q: missing on the broker (a topic); it will be created at the start",
        ),
        (
            Drift("q", "missing", "a topic", "nothing", breaks=True),
            False,
            "channel-missing",
            "q: missing on the broker (a topic); create it there, or let the service do it with create=True",
        ),
        (
            Drift("q", "retention.ms", "90000", "60000", breaks=True),
            True,
            "setting-breaks",
            "q: retention.ms is 60000, wanted 90000; change it on the broker or in the code",
        ),
        (
            Drift("q", "single_active", "True", "unsupported; use fifo=True", breaks=True),
            True,
            "setting-unsupported",
            "q: single_active=True is unsupported; use fifo=True",
        ),
        (
            Drift("q", "priority", "9", "unsupported"),
            True,
            "setting-ignored",
            "q: priority=9 is unsupported; leave priority away",
        ),
        (
            Drift("q", "x-max-length", "10", ""),
            True,
            "setting-differs",
            "q: x-max-length is unset, wanted 10; change it on the broker or in the code",
        ),
    ],
)
def test_each_difference_says_what_to_change(drift: Drift, create: bool, code: str, text: str) -> None:
    (finding,) = check.topology([drift, drift], create=create)
    assert (finding.code, finding.text) == (code, text)
    (rule,) = [rule for rule in check.RULES if rule.code == code]
    assert (finding.severity, finding.why) == (rule.severity, rule.why)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("partitions", "write partitions=4 in the code"),
        ("fifo", "write fifo=4 in the code"),
        ("kind", "rename one of them"),
    ],
)
def test_settings_have_remedies_of_their_own(setting: str, text: str) -> None:
    (finding,) = check.topology([Drift("q", setting, "2", "4")], create=True)
    assert finding.text.startswith(f"q: {setting} is 4, wanted 2; ")
    assert text in finding.text


SEVERITIES: list[tuple[Severity, str]] = [("warn", "a"), ("refuse", "b"), ("note", "c")]


def test_a_start_refuses_before_it_warns(caplog: pytest.LogCaptureFixture) -> None:
    differs, refused, note = (
        Rule("code", severity, "", "why", "policy").found(subject, "what", "change") for severity, subject in SEVERITIES
    )
    with caplog.at_level(logging.WARNING):
        with pytest.raises(ConfigurationError, match=r"^b: what; change$"):
            check.enforce([differs, refused, note])
        assert not caplog.messages
        check.enforce([differs, note])
    assert caplog.messages == ["a: what; change: why"]


# ------------------------------------------------------------------------------------------------------ service


@pytest.mark.parametrize(
    ("fifo", "drifts"),
    [(True, []), (False, [Drift("q", "kind", "queue", "topic", breaks=True)])],
    ids=["policy", "topology"],
)
async def test_start_and_check_say_the_same(fifo: bool, drifts: list[Drift], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAdapter()
    fake.drifts = drifts
    use(fake, monkeypatch)
    service = service_for(Queue("q", fifo=fifo))
    (finding,) = await service.check()
    assert finding.severity == "refuse"
    with pytest.raises(ConfigurationError) as refused:
        await service.start()
    assert str(refused.value) == finding.text
    assert fake.closed >= fake.opened, "a connection was left open"


async def test_a_check_creates_nothing_and_shows_a_shared_difference_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAdapter()
    fake.drifts = [Drift("orders", "partitions", "2", "4")]
    use(fake, monkeypatch)
    service = Service("billing", broker="memory://")
    service.consumer(Topic("orders"), group="one")(handle)
    service.consumer(Topic("orders"), group="two")(handle)
    assert [finding.severity for finding in await service.check()] == ["warn"]
    assert [create for _, create in fake.declared] == [False, False]
    assert fake.closed == fake.opened == 1


async def test_a_name_that_the_broker_cannot_have_is_a_finding_and_the_others_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeAdapter()
    fake.declares.append(ConfigurationError("one: too long for this broker; shorten it"))
    fake.drifts = [Drift("two", "partitions", "2", "4")]
    use(fake, monkeypatch)
    found = await service_for(Queue("one"), Queue("two")).check()
    assert [finding.severity for finding in found] == ["refuse", "warn"]
    assert found[0].text == "one: too long for this broker; shorten it"


async def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAdapter()
    use(fake, monkeypatch)
    (finding,) = await service_for(Queue("q", fifo=True)).check(offline=True)
    assert finding.severity == "refuse"
    assert (fake.opened, fake.declared) == (0, [])


async def test_what_keeps_the_check_from_looking_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAdapter()
    fake.opens.append(PermissionDenied("no"))
    use(fake, monkeypatch)
    with pytest.raises(PermissionDenied):
        await service_for(Queue("q")).check()
    assert fake.closed
    with pytest.raises(ConfigurationError, match="has no handlers"):
        await Service("empty", broker="memory://").check()


# ------------------------------------------------------------------------------------------------- command line

APP = """
from atleastonce import Queue, Service, Topic

service = Service("billing", broker="sqlite:///shop.db")
strict = Service("strict", broker="sqlite:///shop.db", create=False)
long = Service("long", broker="sqlite:///shop.db")
empty = Service("empty", broker="sqlite:///shop.db")

@service.consumer(Topic("orders"), retry=["5s"])
@strict.consumer(Topic("orders"), retry=["5s"])
async def charge(order: dict) -> None: ...

@long.consumer(Queue("q" * 198))
async def handle(order: dict) -> None: ...
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("ALO_BROKER", raising=False)
    (tmp_path / "checkapp.py").write_text(APP)
    yield tmp_path
    sys.modules.pop("checkapp", None)


def test_what_will_be_created_is_no_problem(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the first one has created nothing
        assert run(["check", "checkapp:service"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert "note: orders: missing on the broker (topic); it will be created at the start" in lines
        assert all(line.startswith("note: ") for line in lines[:-1]), lines
        assert lines[-1] == (
            "service billing on sqlite:///shop.db: policies and broker checked, nothing has to be changed"
        )


def test_what_is_missing_is_a_problem_for_a_service_that_creates_nothing(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "checkapp:strict"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert (
        "refuse: orders: missing on the broker (topic); create it there, or let the service do it with create=True"
        in lines
    )
    assert lines[-1].endswith(f"policies and broker checked, {(len(lines) - 1) // 2} to be changed")
    assert run(["check", "checkapp:strict", "--offline"]) == 0
    assert "policies checked, nothing has to be changed" in capfd.readouterr().out


def test_drift_is_a_problem_and_json_says_it(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with connect_sync("sqlite:///other.db") as connection:
        connection.publish(Queue("orders"), {})
    assert run(["check", "checkapp:service", "--broker", "sqlite:///other.db", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert {name: report[name] for name in ("service", "broker", "offline", "consumers", "ok")} == {
        "service": "billing",
        "broker": "sqlite:///other.db",
        "offline": False,
        "consumers": ["orders.billing"],
        "ok": False,
    }
    (problem,) = [finding for finding in report["findings"] if finding["severity"] != "note"]
    assert (problem["severity"], problem["code"], problem["setting"]) == ("refuse", "setting-breaks", "kind")
    assert (problem["subject"], problem["what"]) == ("orders", "kind is queue, wanted topic")
    assert "rename one of them" in problem["change"]


def test_a_derived_name_that_is_too_long_is_found_offline(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "checkapp:long", "--offline"]) == 1
    assert "use 1 to 200 letters" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["checkapp"], 2, "write module:attribute"),
        (["checkapp:empty"], 2, "service empty has no handlers"),
        (["checkapp:service", "--broker", "kafak://x"], 2, 'did you mean "kafka://"?'),
        (["checkapp:service", "--broker", "rabbitmq://127.0.0.1:1/", "--no-wait"], 1, "127.0.0.1:1"),
    ],
)
def test_bad_input_gets_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    assert run(["check", *words]) == code
    out, err = capfd.readouterr()
    assert not out
    assert text in err
    assert err.count("\n") == 1
