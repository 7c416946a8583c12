"""``atleastonce topology plan`` and ``apply`` on every backend: what is missing is made, once; what differs is told and stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import topology_kit

from atleastonce import Queue, Service
from atleastonce.cli.app import run

pytestmark = pytest.mark.timeout(120, func_only=True)


@pytest.fixture
def service(backend_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """As ``shopapp:service``, on each backend in turn."""
    import types

    module = types.ModuleType("shopapp")
    module.service = topology_kit.shop(backend_url)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shopapp", module)
    monkeypatch.delenv("ALO_BROKER", raising=False)
    yield module.service  # type: ignore[attr-defined]
    import asyncio

    asyncio.run(topology_kit.remove(module.service))  # type: ignore[attr-defined]


def told(command: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert run(["topology", *command, "shopapp:service", "--no-wait", "--json"]) == code, capsys.readouterr()
    return json.loads(capsys.readouterr().out)


def test_apply_makes_what_plan_says_is_missing_and_then_nothing(
    service: Service, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = told(["plan"], capsys)
    assert before["ok"] is True
    missing = [(each["kind"], each["name"]) for each in before["resources"] if each["state"] == "missing"]
    assert missing
    assert len(missing) == len(before["resources"])
    assert told(["plan"], capsys) == before  # looking makes nothing
    assert not list(tmp_path.glob("*.db"))

    first = told(["apply"], capsys)
    assert [(each["kind"], each["name"]) for each in first["made"]] == missing
    assert (first["ok"], first["findings"]) == (True, [])
    assert told(["apply"], capsys)["made"] == []
    after = told(["plan"], capsys)
    assert {each["state"] for each in after["resources"]} <= {"there", "unknown"}
    assert [(each["kind"], each["name"]) for each in after["resources"]] == missing


def test_what_is_there_with_other_settings_is_told_and_stays(
    request: pytest.FixtureRequest, service: Service, backend_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = request.node.callspec.params["backend_url"]
    told(["apply"], capsys)
    changed: dict[str, dict[str, Any]] = {
        "kafka": {"partitions": 5},
        "rabbitmq": {"options": {"rabbitmq": {"x-max-length": 10}}},
        "sqs": {"options": {"sqs": {"VisibilityTimeout": 77}}},
        "nats": {"options": {"nats": {"max_msgs": 10}}},
        "pubsub": {"options": {"pubsub": {"subscription": {"ack_deadline_seconds": 99}}}},
    }
    if broker not in changed:
        pytest.skip("a queue there has no settings")
    mails = service.consumers[1].home.channel
    other = Service("billing", broker=backend_url, wait=0)
    other.consumer(Queue(mails.name, **changed[broker]))(service.consumers[1].binding.call)
    sys.modules["shopapp"].service = other  # type: ignore[attr-defined]
    for command in ("plan", "apply", "plan"):  # applying has changed nothing
        report = told([command], capsys, code=1)
        assert report["ok"] is False
        assert [finding["severity"] for finding in report["findings"]] == ["warn"]
    (differs,) = [each for each in report["resources"] if each["state"] == "differs"]
    assert len(differs["differences"]) == 1


def test_a_person_reads_signs_and_a_sum(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "plan", "shopapp:service"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("+ ") for line in lines[:-1])
    made = sum(line.startswith("+") for line in lines)
    assert lines[-1].endswith(f": {made} to be made, 0 there, 0 different")
    assert run(["topology", "apply", "shopapp:service"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": {made} made, 0 to be changed")
