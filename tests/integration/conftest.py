"""The four backends as one parameter, so that a test of the service is a test of the service on each."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from atleastonce import Queue, Topic

BACKENDS = ["memory", "sqlite", "kafka", "rabbitmq"]


@pytest.fixture(params=BACKENDS)
def backend_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each backend in turn; real brokers are started once per run."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/broker.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def topic() -> Callable[[str], Topic[object]]:
    """Topics with names of this run alone: the brokers are shared."""
    run = uuid.uuid4().hex[:8]
    return lambda name: Topic(f"{name}.{run}", partitions=2)


@pytest.fixture
def queue() -> Callable[[str], Queue[object]]:
    """Queues with names of this run alone."""
    run = uuid.uuid4().hex[:8]
    return lambda name: Queue(f"{name}.{run}", partitions=2)
