"""A redrive that is killed at random moments loses nothing, and what is run again moves the rest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from leases import short

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400, func_only=True)]


@pytest.fixture(scope="module")
def kill_redrive() -> ModuleType:
    """The script beside this file."""
    spec = importlib.util.spec_from_file_location("kill_redrive", Path(__file__).with_name("kill_redrive.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_redrive"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("broker", ["sqlite", "kafka", "rabbitmq"])
async def test_every_id_comes_back_and_the_others_stay(
    kill_redrive: ModuleType, request: pytest.FixtureRequest, tmp_path: Path, broker: str, seed: int
) -> None:
    url = f"sqlite:///{tmp_path}/q.db" if broker == "sqlite" else request.getfixturevalue(f"{broker}_url")
    account = await kill_redrive.kill_and_resume(short(url), count=4000, kills=3, seed=seed)
    assert account["killed"] >= 1, "no run lived long enough to be killed"
    assert account["lost"] == account["strays"] == account["still_dead"] == []
    # A run that is killed repeats at most the batch that it had moved and not settled (on Kafka: not committed, a second).
    assert account["twice"] <= account["killed"] * 2000
