"""Puts this folder's `pubsub_kit` within reach of its tests, and names that no other run uses."""

import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from atleastonce.channels import Queue, Topic

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def queue() -> Callable[..., Queue[object]]:
    """Queues under names of this test alone: the broker is shared."""
    run = uuid.uuid4().hex[:8]
    return lambda name="q", **more: Queue(f"pubsub.{name}.{run}", **more)


@pytest.fixture
def topic() -> Callable[..., Topic[object]]:
    """Topics under names of this test alone."""
    run = uuid.uuid4().hex[:8]
    return lambda name="t", **more: Topic(f"pubsub.{name}.{run}", **more)


def pytest_configure(config: pytest.Config) -> None:
    pytest.importorskip("google.pubsub_v1", reason="google-cloud-pubsub is not installed")
