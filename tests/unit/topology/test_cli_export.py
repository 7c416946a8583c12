"""``atleastonce topology export``: a document on stdout, remarks on stderr, one line for a mistake."""

from __future__ import annotations

import json
import sys
import types

import pytest
from topology_shop import URLS, service_on

from atleastonce import Service
from atleastonce.cli.app import run


@pytest.fixture(autouse=True)
def shopapp(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shopapp")
    module.service = service_on(URLS["kafka"])  # type: ignore[attr-defined]
    module.empty = Service("empty", broker=URLS["kafka"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shopapp", module)
    monkeypatch.delenv("ALO_BROKER", raising=False)


GOOD = [
    (["keda"], "kafka"),
    (["terraform"], "kafka"),
    (["terraform", "--provider", "confluent"], "kafka"),
    (["asyncapi", "--app-version", "3.0.1"], "kafka"),
    (["keda", "--min", "0", "--waiting", "10", "--within", "30s"], "rabbitmq"),
    (["rabbitmq"], "rabbitmq"),
    (["terraform"], "rabbitmq"),
    (["cloudwatch", "--oldest", "1h"], "sqs"),
    (["terraform"], "pubsub"),
    (["keda"], "redis"),
]


@pytest.mark.parametrize(("command", "broker"), GOOD)
def test_stdout_is_the_document_and_nothing_else(
    command: list[str], broker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["topology", "export", *command, "shopapp:service", "--broker", URLS[broker]]) == 0
    printed = capsys.readouterr()
    assert isinstance(json.loads(printed.out), dict)
    assert all(line.startswith("note: ") for line in printed.err.splitlines())
    assert "s3cret" not in printed.out + printed.err


def test_the_script_for_kafka_is_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "export", "kafka", "shopapp:service"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/sh\n")


BAD = [
    (
        ["rabbitmq", "shopapp:service"],
        "no export rabbitmq: it is for rabbitmq; possible here: keda, terraform, kafka, asyncapi",
    ),
    (["cloudwatch", "shopapp:service"], "no export cloudwatch: it is for sqs"),
    (["keda", "shopapp:service", "--broker", "memory://"], "is on memory, for which there is no export keda"),
    (["keda", "shopapp:empty"], "service empty has no handlers"),
    (["keda", "shopapp:service", "--deployment", "My_App"], "Kubernetes takes 1 to 63 small letters"),
    (["keda", "shopapp:service", "--within", "soon"], "--within"),
    (["keda", "shopapp:service", "--min", "-1"], "--min"),
    (["terraform", "shopapp:service", "--provider", "aws"], "for kafka there are kafka and confluent"),
    (["pulumi", "shopapp:service"], "pulumi"),
    (["keda", "shopapp:servic"], "did you mean shopapp:service or"),
]


@pytest.mark.parametrize(("command", "told"), BAD)
def test_a_mistake_is_one_line(command: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "export", *command]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert told in line
