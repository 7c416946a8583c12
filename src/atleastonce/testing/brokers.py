"""Real brokers as pytest fixtures: started once per run, shared by all xdist workers, ended at its end.

Load it with ``pytest_plugins = ["atleastonce.testing.brokers"]`` in the top ``conftest.py``. A broker comes from the
environment (``ALO_KAFKA_URL``, ...), else from `atleastonce.brokers`. Where it cannot be had, the tests that ask for it are
skipped with the reason, or fail if ``ALO_REQUIRE`` names it; a name in that which is no broker's ends the run. Tests that use
one carry the mark ``broker``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from atleastonce.brokers import RequiredBrokersMissing, Running, Unavailable, session, up
from atleastonce.brokers.addresses import from_environment, required, variable

_HOME = pytest.StashKey[Path]()
_OWNED = pytest.StashKey[ExitStack]()
_INPUT = "atleastonce_brokers"

_BROKER_OF: dict[str, str] = {}
"""Which broker each fixture starts."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broker(name): needs the named real broker")
    try:
        required([])
    except ValueError as error:  # else all that it means would be skipped
        raise pytest.UsageError(str(error)) from None
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
        for name in {_BROKER_OF[fixture] for fixture in getattr(item, "fixturenames", ()) if fixture in _BROKER_OF}:
            item.add_marker(pytest.mark.broker(name))
            if limits and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(func_only=True))


def _shared(word: str, what: str, name: str | None = None) -> tuple[Any, Any]:
    """Two fixtures: ``<word>_broker``, a `Running` one for the whole run, and ``<word>_url``.

    Args:
        word: begins their names.
        what: it is.
        name: of the broker; default: ``word``.
    """
    broker_name = name or word

    def broker(request: pytest.FixtureRequest) -> Running:
        try:
            return up([broker_name], state_dir=_home(request.config), progress=False)[broker_name]
        except RequiredBrokersMissing as missing:
            pytest.fail(str(missing), pytrace=False)
        except Unavailable as missing:
            pytest.skip(f"no {broker_name}: {missing.reason}")

    def url(request: pytest.FixtureRequest) -> str:
        running: Running = request.getfixturevalue(f"{word}_broker")
        return running.url

    broker.__doc__ = f"{what}, shared: never stop it."
    url.__doc__ = f"The URL of ``{word}_broker``."
    _BROKER_OF[f"{word}_broker"] = _BROKER_OF[f"{word}_url"] = broker_name
    return pytest.fixture(scope="session")(broker), pytest.fixture(scope="session")(url)


kafka_broker, kafka_url = _shared("kafka", "Apache Kafka")
rabbitmq_broker, rabbitmq_url = _shared("rabbitmq", "RabbitMQ")
redis_broker, redis_url = _shared("redis", "Redis, or what ``ALO_REDIS_FLAVOUR`` names")
nats_broker, nats_url = _shared("nats", "NATS with JetStream")
sqs_broker, sqs_url = _shared("sqs", "SQS and SNS, or an emulator of them")
elasticmq_broker, elasticmq_url = _shared("elasticmq", "ElasticMQ, a second emulator of SQS")
pubsub_broker, pubsub_url = _shared("pubsub", "Google Pub/Sub's fake, or what ``ALO_PUBSUB_URL`` names")
google_pubsub_broker, google_pubsub_url = _shared("google_pubsub", "Google's emulator of Pub/Sub", "pubsub-google")
postgres_broker, postgres_url = _shared("postgres", "PostgreSQL")
mysql_broker, mysql_url = _shared("mysql", "MariaDB")
toxiproxy_broker, toxiproxy_url = _shared("toxiproxy", "toxiproxy; every test makes proxies of its own")


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


@contextmanager
def marked(name: str) -> Iterator[Path]:
    """A mark for processes of a test's own that no recipe starts, of the kind of broker ``name``: who bears it ends with
    the block. Where this process is killed before, the next run ends it, as it ends brokers."""
    with session([]) as owned:
        assert owned.state_dir is not None
        mark = owned.state_dir / name
        mark.mkdir()
        yield mark


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
