"""Real brokers as pytest fixtures: started once per run, shared by all xdist workers, ended at its end.

Load it with ``pytest_plugins = ["atleastonce.testing.brokers"]`` in the top ``conftest.py``. A broker comes from the
environment (``ALO_KAFKA_URL``, ...), else from `atleastonce.brokers`. Where it cannot be had, the tests that ask for it are
skipped with the reason, or fail if ``ALO_REQUIRE`` names it. Tests that use one carry the mark ``broker``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from atleastonce.brokers import RequiredBrokersMissing, Running, Unavailable, session, up
from atleastonce.brokers.addresses import from_environment, required, variable

_HOME = pytest.StashKey[Path]()
_OWNED = pytest.StashKey[ExitStack]()
_INPUT = "atleastonce_brokers"

FIXTURES = {
    "kafka_broker": "kafka",
    "rabbitmq_broker": "rabbitmq",
    "toxiproxy_broker": "toxiproxy",
    "redis_broker": "redis",
    "postgres_broker": "postgres",
    "mysql_broker": "mysql",
    "nats_broker": "nats",
    "sqs_broker": "sqs",
    "elasticmq_broker": "elasticmq",
    "pubsub_broker": "pubsub",
    "google_pubsub_broker": "pubsub-google",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broker(name): needs the named real broker")
    given = getattr(config, "workerinput", {}).get(_INPUT)
    if given is not None:
        config.stash[_HOME] = Path(given)


def _home(config: pytest.Config) -> Path:
    """Where this run's brokers live. Their owner is the controlling process: brokers of a killed run are ended by the
    next."""
    if _HOME not in config.stash:
        owned = config.stash.setdefault(_OWNED, ExitStack())
        directory = owned.enter_context(session([])).state_dir
        assert directory is not None
        config.stash[_HOME] = directory
    return config.stash[_HOME]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell an xdist worker where the run's brokers live."""
    node.workerinput[_INPUT] = str(_home(node.config))  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OWNED in config.stash:
        config.stash[_OWNED].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that use a broker. Their time limit does not count its start: the first one downloads it."""
    limits = config.pluginmanager.hasplugin("timeout")
    for item in items:
        for name in {FIXTURES[fixture] for fixture in getattr(item, "fixturenames", ()) if fixture in FIXTURES}:
            item.add_marker(pytest.mark.broker(name))
            if limits and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(func_only=True))


def _obtain(config: pytest.Config, name: str) -> Running:
    try:
        return up([name], state_dir=_home(config), progress=False)[name]
    except RequiredBrokersMissing as missing:
        pytest.fail(str(missing), pytrace=False)
    except Unavailable as missing:
        pytest.skip(f"no {name}: {missing.reason}")


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest) -> Running:
    """Apache Kafka, shared: never stop it."""
    return _obtain(request.config, "kafka")


@pytest.fixture(scope="session")
def kafka_url(kafka_broker: Running) -> str:
    """``kafka://...`` of the shared broker."""
    return kafka_broker.url


@pytest.fixture(scope="session")
def rabbitmq_broker(request: pytest.FixtureRequest) -> Running:
    """RabbitMQ, shared: never stop it."""
    return _obtain(request.config, "rabbitmq")


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq_broker: Running) -> str:
    """``rabbitmq://...`` of the shared broker."""
    return rabbitmq_broker.url


@pytest.fixture(scope="session")
def toxiproxy_broker(request: pytest.FixtureRequest) -> Running:
    """toxiproxy, shared: every test makes proxies of its own."""
    return _obtain(request.config, "toxiproxy")


@pytest.fixture(scope="session")
def redis_broker(request: pytest.FixtureRequest) -> Running:
    """Redis, or what ``ALO_REDIS_FLAVOUR`` names; shared: never stop it."""
    return _obtain(request.config, "redis")


@pytest.fixture(scope="session")
def redis_url(redis_broker: Running) -> str:
    """``redis://...`` of the shared broker."""
    return redis_broker.url


@pytest.fixture(scope="session")
def postgres_broker(request: pytest.FixtureRequest) -> Running:
    """PostgreSQL, shared: never stop it."""
    return _obtain(request.config, "postgres")


@pytest.fixture(scope="session")
def postgres_url(postgres_broker: Running) -> str:
    """``postgresql://...`` of the shared server."""
    return postgres_broker.url


@pytest.fixture(scope="session")
def mysql_broker(request: pytest.FixtureRequest) -> Running:
    """MariaDB, shared: never stop it."""
    return _obtain(request.config, "mysql")


@pytest.fixture(scope="session")
def mysql_url(mysql_broker: Running) -> str:
    """``mysql://...`` of the shared server."""
    return mysql_broker.url


@pytest.fixture(scope="session")
def nats_broker(request: pytest.FixtureRequest) -> Running:
    """NATS with JetStream, shared: never stop it."""
    return _obtain(request.config, "nats")


@pytest.fixture(scope="session")
def nats_url(nats_broker: Running) -> str:
    """``nats://...`` of the shared broker."""
    return nats_broker.url


@pytest.fixture(scope="session")
def pubsub_broker(request: pytest.FixtureRequest) -> Running:
    """Google Pub/Sub's fake, or what ``ALO_PUBSUB_URL`` names; shared: never stop it."""
    return _obtain(request.config, "pubsub")


@pytest.fixture(scope="session")
def pubsub_url(pubsub_broker: Running) -> str:
    """``pubsub://...`` of the shared broker."""
    return pubsub_broker.url


@pytest.fixture(scope="session")
def sqs_broker(request: pytest.FixtureRequest) -> Running:
    """SQS and SNS, or an emulator of them, shared: never stop it."""
    return _obtain(request.config, "sqs")


@pytest.fixture(scope="session")
def sqs_url(sqs_broker: Running) -> str:
    """``sqs://...`` of the shared broker."""
    return sqs_broker.url


@pytest.fixture(scope="session")
def elasticmq_broker(request: pytest.FixtureRequest) -> Running:
    """ElasticMQ, a second emulator of SQS, shared: never stop it."""
    return _obtain(request.config, "elasticmq")


@pytest.fixture(scope="session")
def google_pubsub_broker(request: pytest.FixtureRequest) -> Running:
    """Google's emulator of Pub/Sub, a second one beside ``pubsub``, shared: never stop it."""
    return _obtain(request.config, "pubsub-google")


PrivateBroker = Callable[[str], AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def private_broker() -> PrivateBroker:
    """``with private_broker("kafka") as broker:`` gives a fresh one, to be killed, paused and restarted at will."""
    return own_broker


@contextmanager
def own_broker(name: str) -> Iterator[Running]:
    """A fresh broker that ends with the block; skips the test where there cannot be one."""
    if from_environment(name):
        why = f"{variable(name)} names a shared broker, which no test may kill"
        pytest.fail(why, pytrace=False) if required([name]) else pytest.skip(why)
    try:
        with session([name]) as running:
            yield running[name]
    except RequiredBrokersMissing as missing:
        pytest.fail(str(missing), pytrace=False)
    except Unavailable as missing:
        pytest.skip(f"no {name} of one's own: {missing.reason}")


class Killable:
    """A `Running` broker for coroutines: the event loop goes on while processes end and start."""

    def __init__(self, running: Running) -> None:
        self._running = running

    @property
    def url(self) -> str:
        return self._running.url

    async def kill(self) -> None:
        await asyncio.to_thread(self._running.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self._running.start)

    async def pause(self) -> None:
        await asyncio.to_thread(self._running.pause)

    async def resume(self) -> None:
        await asyncio.to_thread(self._running.resume)


@asynccontextmanager
async def killable(name: str) -> AsyncIterator[Killable]:
    """`own_broker` for a coroutine."""
    with ExitStack() as stack:
        yield Killable(await asyncio.to_thread(stack.enter_context, own_broker(name)))


def can_kill(name: str) -> bool:
    """Whether `own_broker` may give one: not where the environment names a broker that is shared."""
    return from_environment(name) is None
