"""Puts this folder's `sqs_kit` within reach of its tests, and names that no other run uses."""

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atleastonce.brokers import Running
from atleastonce.channels import Queue, Topic

if TYPE_CHECKING:
    from sqs_kit import Guarded

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def queue() -> Callable[..., Queue[object]]:
    """Queues under names of this test alone: the broker is shared."""
    run = uuid.uuid4().hex[:8]
    return lambda name="q", **more: Queue(f"sqs.{name}.{run}", **more)


@pytest.fixture
def topic() -> Callable[..., Topic[object]]:
    """Topics under names of this test alone."""
    run = uuid.uuid4().hex[:8]
    return lambda name="t", **more: Topic(f"sqs.{name}.{run}", **more)


@pytest.fixture(scope="module")
def guarded(sqs_broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Guarded"]:
    """See `Guarded`. Beside the shared broker, whose installation it uses."""
    from sqs_kit import guarding

    if sqs_broker.origin != "native":
        pytest.skip("needs ministack as it is installed here, not a service that the environment names")
    with guarding(tmp_path_factory.mktemp("guarded")) as running:
        yield running


def pytest_configure(config: pytest.Config) -> None:
    pytest.importorskip("boto3", reason="boto3 is not installed")
