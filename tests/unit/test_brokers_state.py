"""Records of running brokers: written whole, read back, or not believed."""

import json
from pathlib import Path

import pytest

from atleastonce.brokers import state
from atleastonce.brokers.cache import cache_dir
from atleastonce.brokers.model import Command
from atleastonce.brokers.process import Identity

RECORD = state.Record(
    name="kafka",
    origin="native",
    url="kafka://127.0.0.1:19092",
    version="4.3.1",
    ports={"main": 19092, "controller": 19093},
    who=Identity(4711, "123456"),
    command=Command(["java"], {"HOME": "/x"}, "/x", stop_signal=2, grace=3.0),
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    state.write(tmp_path / "kafka", RECORD)
    assert state.read(tmp_path / "kafka") == RECORD


def test_a_container_has_no_process(tmp_path: Path) -> None:
    record = state.Record("nats", "container", "nats://127.0.0.1:4222", None, {"main": 4222}, container="abc")
    state.write(tmp_path, record)
    assert state.read(tmp_path) == record


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', "null"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "running.json").write_text(text)
    assert state.read(tmp_path) is None


def test_a_record_of_another_format_counts_as_none(tmp_path: Path) -> None:
    state.write(tmp_path, RECORD)
    raw = json.loads((tmp_path / "running.json").read_text())
    (tmp_path / "running.json").write_text(json.dumps({**raw, "format": state.FORMAT + 1}))
    assert state.read(tmp_path) is None


def test_an_interrupted_write_leaves_the_record_before(tmp_path: Path) -> None:
    state.write(tmp_path, RECORD)
    (tmp_path / "running.json.new").write_text('{"format": 1, "na')
    assert state.read(tmp_path) == RECORD


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ALO_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/atleastonce"),
        ({"HOME": "/home/x"}, "/home/x/.cache/atleastonce"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("ALO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
    assert state.default_state() == Path(expected) / "run"
