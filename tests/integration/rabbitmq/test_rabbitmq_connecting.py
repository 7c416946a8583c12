"""Opening, refusals and several hosts with a real RabbitMQ."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest
from rabbitmq_kit import Proxy, opened

from atleastonce.adapters import open_adapter
from atleastonce.channels import Queue
from atleastonce.contract import Code, Topology
from atleastonce.errors import BrokerUnavailable, NotFound, PermissionDenied


def changed(url: str, **parts: str) -> str:
    return urlsplit(url)._replace(**parts).geturl()


def address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}"


async def test_nobody_there(source: object) -> None:
    adapter = open_adapter("rabbitmq://guest:s3cret@127.0.0.1:1/")
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1.*refused") as caught:
        await adapter.open()
    assert "s3cret" not in str(caught.value)
    assert adapter.classify(caught.value).retryable
    await adapter.close()


async def test_a_wrong_password_is_no_outage(rabbitmq_url: str) -> None:
    adapter = open_adapter(changed(rabbitmq_url, netloc=f"guest:s3cret@{address(rabbitmq_url)}"))
    with pytest.raises(PermissionDenied, match="ACCESS_REFUSED") as caught:
        await adapter.open()
    assert "s3cret" not in str(caught.value)
    assert adapter.classify(caught.value).code is Code.PERMISSION
    await adapter.close()


async def test_a_virtual_host_that_is_not_there(rabbitmq_url: str) -> None:
    adapter = open_adapter(changed(rabbitmq_url, path="/nowhere"))
    with pytest.raises(NotFound, match="vhost nowhere not found"):
        await adapter.open()
    await adapter.close()


async def test_something_else_listens_there() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        adapter = open_adapter(f"rabbitmq://127.0.0.1:{port}/", {"connect_timeout": "1s"})
        with pytest.raises(BrokerUnavailable):
            await adapter.open()
        await adapter.close()


async def test_nobody_behind_a_proxy() -> None:
    """A proxy or balancer without a broker takes the connection and closes it."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        adapter = open_adapter(f"rabbitmq://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        with pytest.raises(BrokerUnavailable, match="closed before an answer; is a broker behind this address"):
            await adapter.open()
        await adapter.close()


async def test_the_next_host_is_tried(rabbitmq_url: str) -> None:
    several = changed(rabbitmq_url, netloc=f"guest:guest@127.0.0.1:1,{address(rabbitmq_url)}")
    async with opened(several) as adapter:
        assert list(await adapter.declare(Topology())) == []


async def test_opening_can_be_cancelled_and_leaves_nothing(rabbitmq_url: str) -> None:
    before = asyncio.all_tasks()
    async with Proxy(rabbitmq_url) as proxy:
        proxy.hold()
        adapter = open_adapter(proxy.url)
        opening = asyncio.create_task(adapter.open())
        await asyncio.sleep(0.1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        proxy.release()
        await adapter.open()
        await adapter.close()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("later", [0.0, 0.2], ids=["just connected", "waiting for an answer"])
async def test_an_attempt_that_is_given_up_hangs_up_and_is_no_surprise_to_the_loop(later: float) -> None:
    """A service is stopped while its broker takes connections and says nothing."""
    surprises: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: surprises.append(context))
    hello, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        hello.set()
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        adapter = open_adapter(f"rabbitmq://127.0.0.1:{port}/", {"connect_timeout": "1s"})
        opening = asyncio.create_task(adapter.open())
        async with asyncio.timeout(5):
            await hello.wait()
        await asyncio.sleep(later)  # so long the attempt has been at it
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(1):
            await gone.wait()
        await adapter.close()
        await asyncio.sleep(1.6)  # beyond the timer of the attempt: half as long again as connect_timeout
    assert surprises == []


async def test_a_goodbye_that_nobody_answers_ends(rabbitmq_url: str) -> None:
    async with Proxy(rabbitmq_url) as proxy:
        adapter = open_adapter(proxy.url, {"operation_timeout": 0.3})
        await adapter.open()
        proxy.hold()
        async with asyncio.timeout(5):
            await adapter.close()
            await adapter.close()


async def test_a_broker_that_has_fallen_silent_is_waited_for_once(rabbitmq_url: str) -> None:
    """One that goes down while a service starts answers neither the question nor the two goodbyes after it."""
    async with Proxy(rabbitmq_url) as proxy:
        adapter = open_adapter(proxy.url, {"operation_timeout": 5})
        await adapter.open()
        proxy.hold()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(BrokerUnavailable):
            await adapter.declare(Topology(channels=(Queue("never-made"),)))
        await adapter.close()
        assert asyncio.get_running_loop().time() - begun < 9.5, "each of the three was waited for"
