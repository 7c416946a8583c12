"""The demo loses nothing when its consumer processes are killed at random moments."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400, func_only=True)]


@pytest.fixture(scope="module")
def kill_demo() -> ModuleType:
    """The script beside this file."""
    spec = importlib.util.spec_from_file_location("kill_demo", Path(__file__).with_name("kill_demo.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_lost_on_sqlite(kill_demo: ModuleType, seed: int) -> None:
    account = kill_demo.run_demo(messages=1000, kills=2, seed=seed)
    assert account["kills"] == 2
    assert account["published"] == 1000


@pytest.mark.parametrize("broker", ["kafka_url", "rabbitmq_url"])
def test_nothing_is_lost_on_real_brokers(kill_demo: ModuleType, request: pytest.FixtureRequest, broker: str) -> None:
    account = kill_demo.run_demo(messages=1000, kills=2, seed=4, broker=request.getfixturevalue(broker))
    assert account["kills"] == 2
    assert account["published"] == 1000
