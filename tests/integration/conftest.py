"""The four backends as one parameter, so that a test of the service is a test of the service on each."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atleastonce import Queue, Topic

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database

BACKENDS = ["memory", "sqlite", "kafka", "rabbitmq", "redis", "nats", "pubsub", "sqs"]


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


@pytest.fixture(scope="session")
def shop_dsn(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    where = str(tmp_path / "shop.db") if request.param == "sqlite" else request.getfixturevalue("shop_dsn")
    made = Database(request.param, where)
    yield made
    if request.param == "postgres":
        made.query(f"DROP TABLE {made.table}")


@pytest.fixture
def mysql_database(mysql_url: str) -> Iterator[Database]:
    made = Database("mysql", mysql_url)
    yield made
    made.query(f"DROP TABLE {made.table}")


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def inbox_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """As `database`, and MySQL."""
    if request.param == "sqlite":
        return Database("sqlite", str(tmp_path / "shop.db"))
    made: Database = request.getfixturevalue(f"{request.param}_database")
    return made


@pytest.fixture
def postgres_database(shop_dsn: str) -> Iterator[Database]:
    made = Database("postgres", shop_dsn)
    yield made
    made.query(f"DROP TABLE {made.table}")
