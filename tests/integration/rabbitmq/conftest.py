"""Puts this folder's `rabbitmq_kit` within reach of its tests, and names that no other run uses."""

import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atleastonce.channels import Queue, Source

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Callable[..., Source]:
    """Queues as sources, under names of this test alone: the broker is shared."""
    run = uuid.uuid4().hex[:8]
    return lambda name="q", **more: Source(Queue(f"rabbit.{name}.{run}", **more))


def pytest_configure(config: pytest.Config) -> None:
    pytest.importorskip("pika", reason="pika is not installed")


Sources = Callable[..., Any]
