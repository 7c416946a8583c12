"""PostgreSQL for the stores' tests: one server for the run, shared by its workers."""

import pytest

from atleastonce.brokers import Running
from atleastonce.testing.brokers import _obtain


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """``postgresql://...`` of a shared server."""
    running: Running = _obtain(request.config, "postgres")
    return running.url
