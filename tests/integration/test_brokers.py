"""The native brokers themselves: they serve, on the loopback only, keep what they confirmed, and end completely."""

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atleastonce.brokers import NAMES, Provisioned, Running, StartFailed, down, session, status, up
from atleastonce.brokers.addresses import required, variable
from atleastonce.brokers.cache import cache_dir
from atleastonce.brokers.ports import listening
from atleastonce.brokers.process import family, identity_of

pytestmark = [
    pytest.mark.xdist_group("brokers"),  # they share one set, and kill it
    pytest.mark.timeout(600),  # the first run fetches and builds everything
    pytest.mark.slow,
]


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in {seconds:.0f} s: {what} did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def natively() -> Iterator[None]:
    """These tests are about the native way, whatever else this machine offers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.delenv(variable(name), raising=False)
        patch.setenv("ALO_BROKERS_FROM", "native")
        yield


@pytest.fixture(scope="module")
def own(natively: None) -> Iterator[Provisioned]:
    """All brokers, for this module alone."""
    with session(NAMES, progress=True) as found:
        yield found


def take(found: Provisioned, name: str) -> Running:
    """The broker, or a skip that says why there is none."""
    if name in found.unavailable and name not in required([name]):
        pytest.skip(str(found.unavailable[name]))
    return found[name]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A state directory of one's own, ended afterwards."""
    yield tmp_path / "state"
    down(state_dir=tmp_path / "state", purge=True)


@pytest.mark.parametrize("name", NAMES)
def test_it_serves(own: Provisioned, name: str) -> None:
    broker = take(own, name)
    assert broker.origin == "native"
    assert broker.is_alive()
    assert broker.healthy()
    assert broker.version
    assert broker.log
    assert broker.log.exists()
    assert json.loads(json.dumps(broker.report())) == {
        "url": broker.url,
        "version": broker.version,
        "from": "native",
    }


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who listens where is read from /proc")
@pytest.mark.parametrize("name", NAMES)
def test_it_listens_on_the_loopback_only(own: Provisioned, name: str) -> None:
    broker = take(own, name)
    sockets = listening(broker.pids)
    assert broker.port in {port for _, port in sockets}
    for address, port in sockets:
        ip = ipaddress.ip_address(address)
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        assert (mapped or ip).is_loopback, f"{name} listens on {address}:{port}"


# Kept through kill -9 are those that say so; pstest, toxiproxy and the SQS emulator live in memory.
def kafka_write(broker: Running) -> None:
    kafka = pytest.importorskip("confluent_kafka")
    admin = pytest.importorskip("confluent_kafka.admin")
    where = {"bootstrap.servers": f"127.0.0.1:{broker.port}"}
    client = admin.AdminClient(where)
    for future in client.create_topics([admin.NewTopic("kept", 1, 1)]).values():
        future.result(20)
    producer = kafka.Producer({**where, "acks": "all"})
    producer.produce("kept", b"kept")
    assert producer.flush(20) == 0


def kafka_read(broker: Running) -> bytes | None:
    kafka = pytest.importorskip("confluent_kafka")
    where = {"bootstrap.servers": f"127.0.0.1:{broker.port}", "group.id": "kept", "auto.offset.reset": "earliest"}
    consumer = kafka.Consumer(where)
    try:
        consumer.subscribe(["kept"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is not None and not message.error():
                value: bytes = message.value()
                return value
        return None
    finally:
        consumer.close()


def rabbitmq_write(broker: Running) -> None:
    pika = pytest.importorskip("pika")
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp(broker)))) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", "kept", b"kept", mandatory=True)
    # RabbitMQ 3.10 saves the register of its quorum queues half a second after the last change. Killed before, it
    # forgets which log belongs to a new queue, and confirmed messages with it: a property of the broker, not ours.
    assert broker.log
    registers = list((broker.log.parent / "data").rglob("quorum/*/names.dets"))
    until(lambda: any(b"kept" in register.read_bytes() for register in registers), "the queue is registered")


def rabbitmq_read(broker: Running) -> bytes | None:
    pika = pytest.importorskip("pika")
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp(broker)))) as connection:
        body: bytes | None = connection.channel().basic_get("kept", auto_ack=True)[2]
        return body


def amqp(broker: Running) -> str:
    return broker.url.replace("rabbitmq://", "amqp://").removesuffix("/") + "/%2F"


def nats_write(broker: Running) -> None:
    nats = pytest.importorskip("nats")

    async def write() -> None:
        client = await nats.connect(broker.url)
        await client.jetstream().add_stream(name="kept", subjects=["kept"])
        await client.jetstream().publish("kept", b"kept")
        await client.close()

    asyncio.run(write())


def nats_read(broker: Running) -> bytes | None:
    nats = pytest.importorskip("nats")

    async def read() -> bytes | None:
        client = await nats.connect(broker.url)
        message = await client.jetstream().get_msg("kept", 1)
        await client.close()
        data: bytes | None = message.data
        return data

    return asyncio.run(read())


def redis_call(broker: Running, command: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(1000)


def redis_write(broker: Running) -> None:
    assert redis_call(broker, b"SET kept kept") == b"+OK\r\n"


def redis_read(broker: Running) -> bytes | None:
    return redis_call(broker, b"GET kept").removeprefix(b"$4\r\n").strip()


def postgres_write(broker: Running) -> None:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(broker.url) as connection:
        connection.execute("create table kept as select 'kept' as value")


def postgres_read(broker: Running) -> bytes | None:
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(broker.url) as connection:
        value: str = connection.execute("select value from kept").fetchone()[0]
        return value.encode()


def mysql_connection(broker: Running) -> Any:
    pymysql = pytest.importorskip("pymysql")
    return pymysql.connect(host="127.0.0.1", port=broker.port, user="root", database="test", autocommit=True)


def mysql_write(broker: Running) -> None:
    with mysql_connection(broker) as connection, connection.cursor() as cursor:
        cursor.execute("create table kept as select 'kept' as value")


def mysql_read(broker: Running) -> bytes | None:
    with mysql_connection(broker) as connection, connection.cursor() as cursor:
        cursor.execute("select value from kept")
        value: str = cursor.fetchone()[0]
        return value.encode()


DURABLE = {
    "kafka": (kafka_write, kafka_read),
    "rabbitmq": (rabbitmq_write, rabbitmq_read),
    "nats": (nats_write, nats_read),
    "redis": (redis_write, redis_read),
    "postgres": (postgres_write, postgres_read),
    "mysql": (mysql_write, mysql_read),
}


@pytest.mark.parametrize("name", DURABLE)
def test_what_it_confirmed_survives_kill_9(own: Provisioned, name: str) -> None:
    broker = take(own, name)
    write, read = DURABLE[name]
    write(broker)
    before, pids = broker.url, broker.pids
    broker.kill()
    assert not broker.is_alive()
    assert not broker.healthy()
    assert not [pid for pid in pids if identity_of(pid)]
    broker.start()
    assert broker.url == before
    assert not broker.pids & pids
    assert read(broker) == b"kept"


@pytest.mark.parametrize("name", ["sqs", "pubsub", "toxiproxy"])
def test_it_comes_back_where_it_was(own: Provisioned, name: str) -> None:
    broker = take(own, name)
    before, pid = broker.url, broker.pid
    broker.restart()
    assert broker.url == before
    assert broker.pid != pid
    assert broker.healthy()


def test_a_paused_broker_keeps_its_connections_and_says_nothing(own: Provisioned) -> None:
    redis = take(own, "redis")
    with socket.create_connection(("127.0.0.1", redis.port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        redis.pause()
        try:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(100)
            assert redis.is_alive()
        finally:
            redis.resume()
        connection.settimeout(10)
        assert connection.recv(100) == b"+PONG\r\n"


def test_kafka_can_be_reached_through_a_proxy(own: Provisioned) -> None:
    """The second listener advertises the proxy, so that the client does not go around it."""
    kafka, toxiproxy = take(own, "kafka"), take(own, "toxiproxy")
    admin = pytest.importorskip("confluent_kafka.admin")
    proxy = {"name": "kafka", "listen": kafka.addresses["proxy"], "upstream": kafka.addresses["proxied"]}
    request = urllib.request.Request(f"{toxiproxy.url}/proxies", json.dumps(proxy).encode())
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 201
    client = admin.AdminClient({"bootstrap.servers": kafka.addresses["proxy"]})
    brokers = client.list_topics(timeout=20).brokers
    assert {f"{each.host}:{each.port}" for each in brokers.values()} == {kafka.addresses["proxy"]}


def test_up_is_idempotent_and_down_ends_everything(home: Path) -> None:
    first = up(["nats", "redis"], progress=False, state_dir=home)
    again = up(["nats", "redis"], progress=False, state_dir=home)
    assert {name: each.pid for name, each in again.items()} == {name: each.pid for name, each in first.items()}
    assert set(status(state_dir=home)) == {"nats", "redis"}
    pids = [each.pid for each in first.values()]
    assert sorted(down(["nats"], state_dir=home)) == ["nats"]
    assert set(status(state_dir=home)) == {"redis"}
    assert down(state_dir=home) == ["redis"]
    assert down(state_dir=home) == []
    assert not status(state_dir=home)
    assert not [pid for pid in pids if pid and identity_of(pid)]


def test_up_after_down_has_the_same_address_and_data(home: Path) -> None:
    redis = up(["redis"], progress=False, state_dir=home)["redis"]
    redis_write(redis)
    down(state_dir=home)
    back = up(["redis"], progress=False, state_dir=home)["redis"]
    assert back.url == redis.url
    assert redis_read(back) == b"kept"
    down(state_dir=home, purge=True)
    assert not (home / "redis").exists()


def test_a_broker_that_died_is_started_again(home: Path) -> None:
    nats = up(["nats"], progress=False, state_dir=home)["nats"]
    assert nats.pid
    os.kill(nats.pid, signal.SIGKILL)
    until(lambda: not nats.is_alive(), "nats is dead")
    assert not status(state_dir=home)
    back = up(["nats"], progress=False, state_dir=home)["nats"]
    assert back.url == nats.url
    assert back.pid != nats.pid


def run_python(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def test_two_processes_that_ask_at_once_get_one_broker(home: Path) -> None:
    code = "from atleastonce.brokers import up\nprint(up(['redis'], progress=False, state_dir={!r})['redis'].pid)"
    askers = [run_python(code.format(str(home))) for _ in range(3)]
    answers = [asker.communicate(timeout=60) for asker in askers]
    assert len({out for out, _ in answers}) == 1, answers
    assert answers[0][0].strip().isdigit(), answers


def test_what_a_killed_session_left_is_ended_by_the_next(own: Provisioned) -> None:
    name = "rabbitmq" if "rabbitmq" in own else "nats"  # rabbitmq leaves epmd, in a session of its own
    code = f"""
import time
from atleastonce.brokers import session
with session([{name!r}]) as found:
    print(found[{name!r}].log.parent, *found[{name!r}].pids, flush=True)
    time.sleep(600)
"""
    owner = run_python(code)
    assert owner.stdout is not None
    directory, *pids = owner.stdout.readline().split()
    owner.kill()
    owner.communicate()
    assert all(identity_of(int(pid)) for pid in pids), "the brokers should have outlived their owner"
    with session([], progress=False):
        assert not [pid for pid in pids if identity_of(int(pid))]
        assert not Path(directory).parent.exists()
    # The session of this module has a living owner, and was left alone.
    assert all(broker.is_alive() for broker in own.values())


def test_a_start_that_was_killed_half_way_is_ended_by_the_next(home: Path, own: Provisioned) -> None:
    take(own, "kafka")
    starter = run_python(f"from atleastonce.brokers import up\nup(['kafka'], progress=False, state_dir={str(home)!r})")
    until(lambda: bool(family(home / "kafka", None)), "a server is being started")
    starter.kill()
    starter.communicate()
    left = {each.pid for each in family(home / "kafka", None)}
    kafka = up(["kafka"], progress=False, state_dir=home)["kafka"]
    assert kafka.healthy()
    assert not left & kafka.pids
    assert not [pid for pid in left if identity_of(pid)]


def test_ctrl_c_ends_what_was_being_started(home: Path, own: Provisioned) -> None:
    take(own, "kafka")
    starter = run_python(f"from atleastonce.brokers import up\nup(['kafka'], progress=False, state_dir={str(home)!r})")
    until(lambda: bool(family(home / "kafka", None)), "a server is being started")
    starter.send_signal(signal.SIGINT)
    _, errors = starter.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert starter.returncode != 0
    assert not family(home / "kafka", None)


def test_a_start_that_fails_shows_the_end_of_the_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALO_REQUIRE", raising=False)  # a missing one is named, and not an error, here
    redis = up(["redis"], progress=False, state_dir=home)["redis"]
    redis_write(redis)
    down(state_dir=home)
    for file in (home / "redis" / "data" / "appendonlydir").glob("*.aof"):
        file.write_bytes(b"*1\r\n$3\r\nXXX\r\n" + b"no such file format" * 20)
    found = up(["redis"], progress=False, state_dir=home)
    failed = found.unavailable["redis"]
    assert isinstance(failed, StartFailed)
    assert "ended during its start" in failed.reason
    assert "reading the append only file" in failed.reason
    assert not status(state_dir=home)


def test_a_fixed_port_that_is_taken_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALO_REQUIRE", raising=False)  # a missing one is named, and not an error, here
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        with contextlib.suppress(OSError):  # taken by another: as good
            taken.bind(("127.0.0.1", 4222))
            taken.listen()
        found = up(["nats"], progress=False, state_dir=home, fixed_ports=True)
    assert "port 4222 (main) is taken" in found.unavailable["nats"].reason


def test_nothing_of_the_session_remains(natively: None) -> None:
    with session(["nats", "redis"], progress=False) as found:
        pids = {pid for broker in found.values() for pid in broker.pids}
        log = found["nats"].log
        assert log is not None
        home = log.parent.parent
        assert home.is_relative_to(cache_dir())
    assert not [pid for pid in pids if identity_of(pid)]
    assert not home.exists()
