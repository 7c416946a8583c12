"""Puts this folder's `kafka_kit` within reach of its tests, whichever way pytest was started; and a broker with rights."""

import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kafka_servers import Server, guarded

from atleastonce.brokers import Unavailable
from atleastonce.testing.brokers import required


@pytest.fixture(scope="session")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """TLS, passwords and rights; for the whole run, since it takes seconds to start."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    try:
        with guarded(tmp_path_factory.mktemp("guarded")) as running:
            yield running
    except Unavailable as missing:
        pytest.fail(str(missing)) if required(["kafka"]) else pytest.skip(str(missing))


@pytest.fixture
def name() -> str:
    """Of a queue that no other test has."""
    return f"rights-{uuid.uuid4().hex[:8]}"
