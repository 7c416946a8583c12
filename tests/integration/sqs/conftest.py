"""Puts this folder's `sqs_kit` within reach of its tests, and names that no other run uses."""

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atleastonce.brokers import Running, sqs
from atleastonce.brokers.model import NotReady, Place
from atleastonce.brokers.ports import free_port
from atleastonce.brokers.progress import Silent
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
    from sqs_kit import Guarded

    if sqs_broker.origin != "native":
        pytest.skip("needs ministack as it is installed here, not a service that the environment names")
    port = free_port()
    folder = tmp_path_factory.mktemp("guarded")
    command = sqs.prepare(sqs.install(Silent()), Place(folder, {"main": port}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command.argv, env={**command.env, "AUTH": "true"}, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                sqs.list_queues("127.0.0.1", port)
                break
            except (NotReady, OSError):
                assert time.monotonic() < deadline, (folder / "log").read_text()
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield Guarded(port)
    finally:
        process.kill()
        process.wait()


def pytest_configure(config: pytest.Config) -> None:
    pytest.importorskip("boto3", reason="boto3 is not installed")
