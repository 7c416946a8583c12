"""What doctor says about clients, brokers and combinations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atleastonce.brokers import NAMES
from atleastonce.cli import doctor
from atleastonce.cli.app import run


@pytest.fixture(autouse=True)
def no_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALO_BROKER", *(f"ALO_{name.upper()}_URL" for name in NAMES)):
        monkeypatch.delenv(name, raising=False)


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = doctor._installed

    def installed(distribution: str) -> str | None:
        name = distribution.replace("-", "_")
        return versions[name] if name in versions else real(distribution)

    monkeypatch.setattr(doctor, "_installed", installed)


def test_an_old_client_is_a_problem_and_a_missing_one_is_not(monkeypatch: Any, capfd: Any) -> None:
    pretend(monkeypatch, pika="1.2.9", nats_py=None)
    assert run(["doctor", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    by_name = {client["distribution"]: client for client in report["clients"]}
    assert by_name["nats-py"]["version"] is None
    assert by_name["nats-py"]["remedy"] == 'pip install "atleastonce[nats]"'
    assert 'run: pip install "atleastonce[rabbitmq]" --upgrade' in by_name["pika"]["problem"]
    assert [problem for problem in report["problems"] if problem.startswith("pika 1.2.9: older than 1.4.4")]


def test_versions_are_compared_as_numbers(monkeypatch: Any, capfd: Any) -> None:
    pretend(monkeypatch, nats_py="2.100.0", nats_core=None)
    run(["doctor", "--json"])
    report = json.loads(capfd.readouterr().out)
    assert not [problem for problem in report["problems"] if "nats-py" in problem]


def test_what_breaks_another_client_is_named(monkeypatch: Any, capfd: Any) -> None:
    pretend(monkeypatch, nats_core="0.2.0", nats_py="2.16.0")
    assert run(["doctor"]) == 1
    assert "nats-core 0.2.0 beside nats-py" in capfd.readouterr().out


def test_a_file_that_nobody_has_used_yet_is_told_and_not_made(monkeypatch: Any, tmp_path: Any, capfd: Any) -> None:
    pretend(monkeypatch, nats_core=None)
    path = tmp_path / "q.db"
    for there, state in ((False, "no file yet"), (True, "answers")):
        if there:
            assert run(["publish", "work", "1", "--queue", "--broker", f"sqlite:///{path}"]) == 0
        assert path.exists() is there
        assert run(["doctor", "--json", "--broker", f"sqlite:///{path}"]) == 0
        (asked,) = json.loads(capfd.readouterr().out.splitlines()[-1])["brokers"]
        assert (asked["problem"], asked["there"]) == (None, there)
        assert run(["doctor", "--broker", f"sqlite:///{path}"]) == 0
        assert f"q.db  {state}" in capfd.readouterr().out
        assert path.exists() is there


def test_brokers_are_asked_and_their_secrets_hidden(monkeypatch: Any, tmp_path: Any, capfd: Any) -> None:
    pretend(monkeypatch, nats_core=None)
    monkeypatch.setenv("ALO_BROKER", f"sqlite:///{tmp_path}/q.db")
    monkeypatch.setenv("ALO_KAFKA_URL", "kafak://u:secret@127.0.0.1:1")
    assert run(["doctor", "--json"]) == 1
    out = capfd.readouterr().out
    assert "secret" not in out
    asked = {each["name"]: each["problem"] for each in json.loads(out)["brokers"]}
    assert asked["ALO_BROKER"] is None
    assert not (tmp_path / "q.db").exists()
    assert "unknown scheme" in asked["ALO_KAFKA_URL"]
