"""Bad input on the command line: one line that names the thing and the remedy, and the right exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from atleastonce import BrokerUnavailable, ConfigurationError, MissingExtra, NotFound, connect_sync
from atleastonce.brokers import Unavailable
from atleastonce.cli.app import run
from atleastonce.cli.errors import describe, ended_by

APP = """
import msgspec
from atleastonce import Service, Topic, Queue

class Order(msgspec.Struct):
    order_id: int

orders = Topic("orders.created", Order)
service = Service("billing", broker="sqlite:///shop.db")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("ALO_BROKER", raising=False)
    before = set(sys.modules)
    (tmp_path / "shopapp.py").write_text(APP)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


BROKER, EMPTY = "sqlite:///q.db", "sqlite:///empty.db"
BAD = [
    (["run", "shopapp"], 2, "write module:attribute, like app:service"),
    (["run", "shopap:service"], 2, 'no module "shopap"; did you mean shopapp?'),
    (["run", "shopapp:servic"], 2, 'has no attribute "servic"; did you mean shopapp:service?'),
    (["run", "shopapp:orders"], 2, "shopapp:orders is a Topic, not a Service; services there: shopapp:service"),
    (["run", "shopapp.py:service"], 2, "like shopapp:service"),
    (["run", "shopapp:service"], 2, "service billing has no handlers"),
    (["run", "shopapp:service", "--log-level", "loud"], 2, "loud"),
    (["run", "twice:service"], 2, "twice.two and twice.one both handle orders.created.billing"),
    (["run", "annotation:service"], 2, "annotation.one: an annotation cannot be resolved"),
    (["run", "crash:service"], 2, "ZeroDivisionError at crash.py:2: division by zero"),
    (["run", "syntax:service"], 2, "SyntaxError at syntax.py:1"),
    (["run", "imports:service"], 2, 'imports "no_such_thing", which is not installed'),
    (["nope"], 2, "No such command"),
    (["publish", "q", "{}", "--queue"], 2, "no broker: give --broker"),
    (["publish", "q", "{}", "--broker", BROKER], 2, "say --queue or --topic"),
    (["publish", "q", "{}", "--broker", BROKER, "--queue", "--topic"], 2, "both was given"),
    (["publish", "q q", "{}", "--broker", BROKER, "--queue"], 2, "q q"),
    (["publish", "q", "{}", "--queue", "--broker", "kafak://x"], 2, 'did you mean "kafka://"?'),
    (["publish", "q", "{}", "--queue", "--broker", "localhost"], 2, "write it as scheme://host:port"),
    (["publish", "q", "{}", "--queue", "--broker", BROKER, "--header", "x"], 2, "write NAME=VALUE"),
    (["publish", "q", "{}", "--queue", "--broker", BROKER, "--header", "x=a\nb"], 2, "CR, LF or NUL"),
    (["publish", "q", "{}", "--queue", "--broker", BROKER, "--header", "x=a\0b"], 2, "CR, LF or NUL"),
    (["publish", "q", "{}", "--queue", "--broker", BROKER, "--header", "alo-id=1"], 2, "are the library's"),
    (["publish", "q", "{}", "--queue", "--broker", BROKER, "--delay", "soon"], 2, "is no duration"),
    (["publish", "q", "{}", "--queue", "--broker", f"{BROKER}?max_message_bytes=9"], 1, "send a reference"),
    (["publish", "q", "--queue", "--broker", BROKER, "--id", "1"], 2, "--id is for one message"),
    (["tail", "q", "--queue", "--group", "g", "--broker", BROKER], 2, "queue q has no groups"),
    (["tail", "t", "--topic", "--broker", EMPTY], 1, "there is no topic t at sqlite:///empty.db"),
    (["tail", "q", "--queue", "--broker", EMPTY], 1, "q"),
    (["tail", "t", "--topic", "--broker", BROKER], 2, 'sqlite file "q.db" does not exist; check the name'),
    (["tail", "q", "--queue", "--broker", BROKER], 2, 'sqlite file "q.db" does not exist'),
    (["dlq", "list", "--broker", BROKER, "--channel", "q"], 2, 'sqlite file "q.db" does not exist'),
    (["dlq", "list", "handled:service", "--broker", BROKER], 2, 'sqlite file "q.db" does not exist'),
    (["lag", "handled:service", "--broker", BROKER], 2, 'sqlite file "q.db" does not exist'),
    (["lag", "--broker", BROKER, "--queue", "--channel", "q"], 2, 'sqlite file "q.db" does not exist'),
    (["brokers", "up", "kafak"], 2, 'no broker "kafak"; there are kafka'),
    (["demo", "--messages", "0"], 2, "--messages"),
    (["demo", "--input", "none.jsonl"], 2, "none.jsonl: No such file"),
    (["demo", "--broker", "memory://"], 2, "cannot share memory://"),
    (["demo", "--broker", "x"], 2, "write it as scheme://host:port"),
]


@pytest.mark.parametrize(("words", "code", "text"), BAD, ids=[" ".join(words)[:60] for words, _, _ in BAD])
def test_bad_input_gets_one_line_and_its_exit_code(
    place: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    one = "from shopapp import *\n@service.consumer(orders)\ndef one(o: Order): ...\n"
    (place / "handled.py").write_text(one)
    (place / "twice.py").write_text(f"{one}@service.consumer(orders)\ndef two(o: Order): ...\n")
    (place / "annotation.py").write_text("from shopapp import *\n@service.consumer(orders)\ndef one(o: 'Nope'): ...\n")
    (place / "crash.py").write_text("x = 0\n1 / x\n")
    (place / "syntax.py").write_text("def (\n")
    (place / "imports.py").write_text("import no_such_thing\n")
    if EMPTY in words:
        with connect_sync(EMPTY):
            pass
    assert run(words) == code
    out, err = capfd.readouterr()
    assert not out
    assert text in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert words[0] not in ("tail", "dlq", "lag") or not (place / "q.db").exists(), "who looks makes nothing"


def test_a_misspelt_required_broker_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALO_REQUIRE", "kafak")
    assert run(["brokers", "up", "redis"]) == 2
    assert capfd.readouterr().err.startswith("atleastonce: ALO_REQUIRE names 'kafak': there are kafka, ")


def test_a_traceback_is_shown_on_request_only(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "crash.py").write_text("1 / 0\n")
    assert run(["run", "crash:service", "--traceback"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("atleastonce: module crash cannot be imported")
    assert run(["run", "crash:service"]) == 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (MissingExtra("kafka", "confluent_kafka"), 2),
        (NotFound("x"), 1),
        (BrokerUnavailable("x"), 1),
        (Unavailable("kafka", "x"), 1),
        (OSError(2, "No such file", "f"), 1),
        (RuntimeError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert describe(error)[1] == code
    assert ended_by(error) == code
    assert capfd.readouterr().err.count("\n") == 1


def test_secrets_are_masked_and_lines_joined(capfd: pytest.CaptureFixture[str]) -> None:
    ended_by(BrokerUnavailable("cannot reach\namqp://u:secret@host/?password=secret"))
    assert capfd.readouterr().err == "atleastonce: cannot reach amqp://u:***@host/?password=***\n"


def test_a_missing_extra_names_its_pip_command(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in [n for n in sys.modules if "adapters.kafka" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert run(["publish", "q", "{}", "--queue", "--broker", "kafka://localhost"]) == 2
    assert 'confluent_kafka is not installed; run: pip install "atleastonce[kafka]"' in capfd.readouterr().err


def test_publish_and_tail(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert run(["publish", "q", '{"a": 1}', "--queue", "--broker", BROKER, "--id", "i-1", "--key", "k"]) == 0
    assert capfd.readouterr().out == "i-1\n"

    (place / "lines").write_bytes(b'{"a":2}\n\nnope\n\xff\n[3]\n')
    with (place / "lines").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run(["publish", "q", "--queue", "--broker", BROKER, "--json"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == {"channel": "q", "published": 2, "rejected": 0, "unknown": 0, "bad": 2}
    assert [line.split(" ")[0] for line in err.splitlines()] == ["stdin:3:", "stdin:4:"]

    for _ in range(2):  # it is still there the second time
        assert run(["tail", "q", "--queue", "--broker", BROKER, "--json"]) == 0
        out, err = capfd.readouterr()
        messages = [json.loads(line) for line in out.splitlines()]
        assert [message["body"] for message in messages] == [{"a": 1}, {"a": 2}, [3]]
        assert messages[0]["id"] == "i-1"
        assert messages[0]["key"] == "k"
        assert "3 shown of 3 waiting; all stay" in err


def test_tail_shows_what_could_move_the_cursor_as_text(place: Path, capfd: Any) -> None:
    assert run(["publish", "q", "\x1b[2Jgone", "--queue", "--broker", BROKER]) == 0
    capfd.readouterr()
    assert run(["tail", "q", "--queue", "--broker", BROKER]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out


def test_help_without_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capfd.readouterr().out
    for command in ("run", "check", "demo", "publish", "tail", "doctor", "brokers"):
        assert command in out
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("atleastonce ")
