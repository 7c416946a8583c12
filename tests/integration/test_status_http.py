"""The status over HTTP: what probes, Prometheus and people are answered, and what harms nobody."""

from __future__ import annotations

# ruff: noqa: ASYNC110 - the status is asked for again and again, as probes do
import asyncio
import contextlib
import uuid
from typing import Any, NamedTuple

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from atleastonce import CircuitBreaker, ConfigurationError, FailurePolicy, Queue, Service
from atleastonce.observe import http as observe_http
from atleastonce.observe.http import StatusServer

DEADLINE = 30.0
LOCAL = "127.0.0.1:0"


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid.uuid4().hex}"


class Got(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.fields["content-type"] == "application/json"
        return msgspec.json.decode(self.body)


async def said(server: StatusServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(DEADLINE):
            return await reader.read()
    finally:
        writer.close()


async def get(server: StatusServer, path: str, method: str = "GET") -> Got:
    answer = await said(server, f"{method} {path} HTTP/1.1\r\nHost: here\r\nUser-Agent: test\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert fields["connection"] == "close"
    return Got(int(first.split()[1]), fields, body)


async def until_answered(server: StatusServer, path: str, status: int) -> Got:
    async with asyncio.timeout(DEADLINE):
        while (found := await get(server, path)).status != status:
            await asyncio.sleep(0.02)  # polling a condition with a deadline
    return found


def shop(url: str, queue: Queue[str]) -> tuple[Service, asyncio.Event]:
    service, gate = Service("shop", broker=url), asyncio.Event()

    @service.consumer(
        queue,
        hot_keys=True,
        failure=FailurePolicy(in_place=None),
        circuit=CircuitBreaker(failures=2, open_for="60s", on=(ConnectionError,)),
    )
    async def handle(text: str) -> None:
        if text == "hold":
            await gate.wait()
        if text == "down":
            raise ConnectionError("the warehouse is away")

    return service, gate


async def test_a_service_is_told_from_its_start_to_its_end(memory_url: str) -> None:
    work: Queue[str] = Queue("work", str)
    service, gate = shop(memory_url, work)
    async with StatusServer(service, LOCAL) as server:
        assert (await get(server, "/healthz")).status == 200, "what has not started is not dead"
        found = await get(server, "/readyz")
        assert (found.status, found.body) == (503, b"service shop does not run\n")
        before = (await get(server, "/status")).json()
        assert before == {"service": "shop", "ready": False, "readers": [], "lag": None, "lag_age_s": None}
        async with service:
            assert (await get(server, "/readyz")).body == b"ok\n"
            for text in ["hold", *["ok"] * 20]:
                await service.broker.publish(work, text, key="c-7")
            async with asyncio.timeout(DEADLINE):
                while service.status()[0].counts["done"] < 20:
                    await asyncio.sleep(0.01)  # polling a condition with a deadline
            status = (await get(server, "/status")).json()
            (reader,) = status["readers"]
            assert (status["ready"], reader["state"], reader["in_flight"]) == (True, "running", 1)
            assert reader["counts"]["done"] == 20
            assert reader["hot_keys"][0]["key"] == "b'c-7'"
            assert {(row["channel"], row["role"]) for row in status["lag"]} == {
                ("work", "main"),
                ("work.dlq", "dead-letter"),
            }
            assert {"waiting", "in_flight", "oldest_age_s", "true_lag"} <= status["lag"][0].keys()
            assert 0 <= status["lag_age_s"] < DEADLINE
            metrics = await get(server, "/metrics")
            samples = {
                (sample.name, sample.labels.get("event")): sample.value
                for family in text_string_to_metric_families(metrics.body.decode())
                for sample in family.samples
            }
            assert metrics.fields["content-type"].startswith("text/plain")
            assert samples["atleastonce_messages_total", "done"] == 20
            gate.set()
        assert (await get(server, "/readyz")).status == 503


async def test_a_pause_on_purpose_is_ready_and_a_drain_is_not(memory_url: str) -> None:
    work: Queue[str] = Queue("work", str)
    service, gate = shop(memory_url, work)
    async with StatusServer(service, LOCAL) as server:
        await service.start()
        for _ in range(3):
            await service.broker.publish(work, "down")
        async with asyncio.timeout(DEADLINE):
            while service.status()[0].state != "paused":
                await asyncio.sleep(0.01)  # polling a condition with a deadline
        assert (await get(server, "/readyz")).status == 200
        assert (await get(server, "/healthz")).status == 200
        (reader,) = (await get(server, "/status")).json()["readers"]
        assert "the warehouse is away" in reader["detail"]
        await service.resume()
        await service.broker.publish(work, "hold")
        async with asyncio.timeout(DEADLINE):
            while not service.status()[0].in_flight:
                await asyncio.sleep(0.01)  # polling a condition with a deadline
        stopping = asyncio.create_task(service.stop())
        draining = await until_answered(server, "/readyz", 503)
        assert draining.body.startswith(b"work (")
        assert (await get(server, "/healthz")).status == 200, "it ends by itself"
        gate.set()
        await stopping


async def test_an_error_that_ends_the_service_is_no_health(memory_url: str) -> None:
    work: Queue[str] = Queue("work", str)
    service = Service("shop", broker=memory_url)

    @service.consumer(work)
    async def handle(text: str) -> None:
        raise SystemExit(3)

    async with StatusServer(service, LOCAL) as server:
        await service.start()
        await service.broker.publish(work, "x")
        found = await until_answered(server, "/healthz", 503)
        assert b"stopping, SystemExit(3)" in found.body
        await service.stop()


async def test_a_broker_that_is_away_holds_up_no_answer() -> None:
    service = Service("shop", broker="nats://127.0.0.1:9", wait=None)

    @service.consumer(Queue("work", str))
    async def handle(text: str) -> None: ...

    async with StatusServer(service, LOCAL) as server:
        starting = asyncio.create_task(service.start())
        found = await until_answered(server, "/readyz", 503)
        while b"starting" not in found.body:
            found = await get(server, "/readyz")
        assert (await get(server, "/healthz")).status == 200
        status = (await get(server, "/status")).json()
        assert (status["lag"], status["ready"]) == (None, False)
        starting.cancel()
        await asyncio.wait([starting])


async def test_what_is_no_question_for_it_is_told_so(memory_url: str) -> None:
    service, _ = shop(memory_url, Queue("work", str))
    async with StatusServer(service, LOCAL) as server:
        missing = await get(server, "/")
        assert (missing.status, missing.body) == (404, b"there are /status, /healthz, /readyz, /metrics\n")
        posted = await get(server, "/status", "POST")
        assert (posted.status, posted.fields["allow"]) == (405, "GET, HEAD")
        head = await get(server, "/healthz?verbose=1", "HEAD")
        assert (head.status, head.body, head.fields["content-length"]) == (200, b"", "3")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / SPDY/3\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        "GET /\u00e4 HTTP/1.1\r\n\r\n".encode(),
    ],
)
async def test_what_is_no_http_is_hung_up_on(memory_url: str, request_: bytes) -> None:
    service, _ = shop(memory_url, Queue("work", str))
    async with StatusServer(service, LOCAL) as server:
        with contextlib.suppress(ConnectionError):  # hung up on before all of it was sent
            assert await said(server, request_) == b""
        assert (await get(server, "/healthz")).status == 200


async def test_who_says_nothing_is_hung_up_on_and_keeps_nobody_out(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_http, "_PATIENCE", 0.3)
    monkeypatch.setattr(observe_http, "_MOST", 5)
    service, _ = shop(memory_url, Queue("work", str))
    async with StatusServer(service, LOCAL) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
        async with asyncio.timeout(DEADLINE):
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
        assert (await get(server, "/healthz")).status == 200
        held = await asyncio.open_connection("127.0.0.1", server.port)
    held[1].close()
    assert server.port == 0


async def test_an_address_that_cannot_be_listened_at_is_one_sentence(memory_url: str) -> None:
    service, _ = shop(memory_url, Queue("work", str))
    async with StatusServer(service, LOCAL) as server:
        with pytest.raises(ConfigurationError, match=r"cannot be served at 127\.0\.0\.1:.*in use"):
            async with StatusServer(service, f"127.0.0.1:{server.port}"):
                pass
    for address in ("9090", ":9090", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000", ""):
        with pytest.raises(ConfigurationError, match="is no address to listen at; give HOST:PORT"):
            StatusServer(service, address)


def test_an_ipv6_address_may_be_in_brackets() -> None:
    assert observe_http._read(f"[{uuid.UUID(int=1).int:x}::1]:9090") == ("1::1", 9090)
