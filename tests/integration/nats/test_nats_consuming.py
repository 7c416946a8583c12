"""Reading from NATS: statuses told apart, consumers that vanish and come back, connections that end in every way there is."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from nats_kit import (
    PATIENCE,
    Listening,
    Proxy,
    all_of,
    eventually,
    message,
    opened,
    outgoing,
    prepared,
    raw,
    reading,
    send,
    server,
    take,
)

from atleastonce import Queue, Topic
from atleastonce.adapters import open_adapter
from atleastonce.channels import Source
from atleastonce.contract import ACK, RELEASE, Code, Outgoing, Retry, Status, Topology
from atleastonce.errors import BrokerUnavailable, ConnectionLost, NotFound, PermissionDenied

MakeQueue = Callable[..., Queue[object]]
MakeTopic = Callable[..., Topic[object]]


def flat(channel: Queue[object] | Topic[object]) -> str:
    return channel.name.replace(".", "~")


# -------------------------------------------------------------------------------------------------- foreign messages


async def test_a_foreign_header_that_is_no_utf8_harms_nothing(nats_url: str, queue: MakeQueue) -> None:
    """And neither does what is no header at all. Everything comes out, and goes into a dead letter, byte for byte."""
    home, dead = queue(), queue("dead")
    block = (
        b"NATS/1.0\r\nLatin: caf\xe9\r\nno colon\r\nGap:tight\r\nspaced:   three\r\nLatin: again\r\nna\xefve: x\r\n\r\n"
    )
    async with opened(nats_url) as adapter:
        await prepared(adapter, home, dead)
        await send(adapter, outgoing(home, body=b"before"))
        replies = adapter._link.replies
        assert replies is not None
        line = b"HPUB %b %d %d\r\n" % (home.name.encode(), len(block), len(block) + 4)
        replies.wire.put(line + block + b"body\r\n")
        await send(adapter, outgoing(home, body=b"after"))
        before, foreign, after = await all_of(adapter, home)
        assert (before.body, after.body) == (b"before", b"after")
        assert foreign.message.headers.items() == (
            ("Latin", b"caf\xe9"),
            ("Gap", "tight"),
            ("spaced", "  three"),
            ("Latin", "again"),
            ("na\udcefve", "x"),
        )
        assert foreign.message.id == f"{home.name}-2"
        await send(adapter, [Outgoing(dead, message(b"body", headers=foreign.message.headers.items()))])
        (moved,) = await all_of(adapter, dead)
        assert moved.message.headers.items()[:-1] == foreign.message.headers.items()  # the last is the id


async def test_the_producers_own_message_id_is_the_id(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        await client.jetstream().publish(home.name, b"{}", headers={"Nats-Msg-Id": "theirs-7"})
        (delivery,) = await all_of(adapter, home)
        assert delivery.message.id == "theirs-7"


# ------------------------------------------------------------------------------------------------- statuses of requests


async def test_requests_that_expire_are_followed_by_others(nats_url: str, queue: MakeQueue) -> None:
    """408 ends a request and nothing else."""
    home = queue()
    async with opened(nats_url, pull_expires=1.0) as adapter:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, listener=listener)
        assert list(await subscription.receive(10, 3.5)) == []
        await send(adapter, sent := outgoing(home))
        assert [d.message.id for d in await take(subscription, 1, ack=True, within=3)] == [sent[0].message.id]
        assert listener.states == ["connected"]


async def test_a_consumer_that_was_silent_for_a_while_costs_no_delivery(nats_url: str, queue: MakeQueue) -> None:
    """Heartbeats stay away, so it is looked at and asked anew; what was on its way all the time is still taken."""
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url, pull_expires=1.0) as adapter, opened(nats_url) as other:
        await prepared(adapter, home)
        subscription = await reading(adapter, home)
        assert list(await subscription.receive(10, 0.2)) == []
        proxy.hold()
        await send(other, sent := outgoing(home, 10))
        assert list(await subscription.receive(10, 2.0)) == []  # much longer than its heartbeats allow
        proxy.release()
        came = await take(subscription, 10, ack=True, within=5)
        assert [(each.message.id, each.count) for each in came] == [(item.message.id, 1) for item in sent]


async def test_a_deleted_consumer_is_told_within_seconds(nats_url: str, queue: MakeQueue) -> None:
    """409 Consumer Deleted."""
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, listener=listener)
        receiving = asyncio.create_task(subscription.receive(10, 30))
        await eventually(lambda: waiting(client, home), "the request waits at the consumer")
        await client.jetstream().delete_consumer(flat(home), flat(home))
        with pytest.raises(NotFound):
            await asyncio.wait_for(receiving, 5)
        assert listener.losses == [None]
        with pytest.raises(NotFound):
            await reading(adapter, home)
        await prepared(adapter, home)  # what vanished is made again
        await send(adapter, outgoing(home))
        await take(await reading(adapter, home), 1, ack=True)


async def waiting(client: object, home: Queue[object]) -> bool:
    info = await client.jetstream().consumer_info(flat(home), flat(home))  # type: ignore[attr-defined]
    return bool(info.num_waiting)


async def test_a_deleted_stream_is_told_within_seconds_to_reader_and_publisher(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        subscription = await reading(adapter, home)
        receiving = asyncio.create_task(subscription.receive(10, 30))
        await eventually(lambda: waiting(client, home), "the request waits at the consumer")
        await client.jetstream().delete_stream(flat(home))
        with pytest.raises(NotFound):
            await asyncio.wait_for(receiving, 5)
        (outcome,) = await adapter.send(outgoing(home))
        assert outcome.fault is not None
        assert outcome.fault.code is Code.NOT_FOUND


async def test_a_reader_without_a_waiting_request_finds_out_too(nats_url: str, queue: MakeQueue) -> None:
    """503: nobody listens where requests go. Nothing else would tell, for the consumer knew of nobody."""
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        subscription = await reading(adapter, home)
        await client.jetstream().delete_stream(flat(home))
        with pytest.raises(NotFound):
            await asyncio.wait_for(subscription.receive(10, 30), 5)


async def test_a_verdict_never_reaches_the_heir_of_a_deleted_stream(nats_url: str, queue: MakeQueue) -> None:
    """A verdict names a stream, a consumer and a sequence. In a stream that was made again it names another message."""
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter, opened(nats_url) as other:
        await prepared(other, home)
        await send(other, outgoing(home, 3))
        subscription = await reading(adapter, home)
        old = await take(subscription, 3)
        proxy.refusing = True
        proxy.cut()
        await other.delete(Topology(channels=(home,), sources=(Source(home),)))
        await prepared(other, home)
        await send(other, fresh := outgoing(home, 3))
        heir = await reading(other, home)
        new = await take(heir, 3)
        assert [each.sequence for each in new] == [each.sequence for each in old]
        proxy.refusing = False
        with pytest.raises(ConnectionLost, match="made again"):
            await asyncio.wait_for(subscription.receive(10, 2 * PATIENCE), PATIENCE)
        outcomes = await subscription.settle([(each, ACK) for each in old])
        assert {outcome.fault.code for outcome in outcomes if outcome.fault} == {Code.STALE}
        assert len(outcomes) == 3
        await heir.settle([(each, RELEASE) for each in new])
        assert [each.message.id for each in await take(heir, 3, ack=True)] == [each.message.id for each in fresh]


# ------------------------------------------------------------------------------------------------------- settlements


async def test_what_waits_for_a_retry_holds_up_nobody(nats_url: str, queue: MakeQueue) -> None:
    """With the window as ``max_ack_pending`` five delayed retries would stop the queue: they count as unacknowledged."""
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 20))
        subscription = await reading(adapter, home, 5)
        for _ in range(4):
            batch = await take(subscription, 5)
            assert all(outcome.ok for outcome in await subscription.settle([(each, Retry(60)) for each in batch]))
        await send(adapter, sent := outgoing(home))
        assert [each.message.id for each in await take(subscription, 1, ack=True)] == [sent[0].message.id]


async def test_a_late_acknowledgement_is_not_sent_because_the_broker_would_take_it(
    nats_url: str, queue: MakeQueue
) -> None:
    """JetStream confirms it, whoever has the message by then: no answer of its can tell a stale one. Our clock does."""
    home = queue()
    async with opened(nats_url, ack_wait=1.0) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        await send(adapter, outgoing(home))
        (zombie,) = await (await client.jetstream().pull_subscribe_bind(flat(home), flat(home))).fetch(1)
        subscription = await reading(adapter, home)
        (ours,) = await take(subscription, 1)
        assert ours.count == 2
        await zombie.ack_sync()  # does not raise: accepted
        backlog = await adapter.backlog(Source(home))
        assert (backlog.waiting, backlog.in_flight) == (0, 0), "a zombie's acknowledgement has ended our delivery"

        await send(adapter, outgoing(home))
        (late,) = await take(subscription, 1)
        async with raw(nats_url) as peer:
            fetching = await peer.jetstream().pull_subscribe_bind(flat(home), flat(home))
            (theirs,) = await fetching.fetch(1, timeout=10)
            (outcome,) = await subscription.settle([(late, ACK)])
            assert outcome.status is Status.REJECTED
            assert outcome.fault is not None
            assert outcome.fault.code is Code.STALE
            assert (await adapter.backlog(Source(home))).detail, "theirs was settled by us"
            await theirs.ack_sync()


@pytest.mark.parametrize("acks", ["confirmed", "flushed"])
async def test_leases_are_kept_in_lists_as_long_as_they_are_renewed(nats_url: str, queue: MakeQueue, acks: str) -> None:
    home = queue()
    async with opened(nats_url, ack_wait=1.0, acks=acks) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 50))
        subscription, other = await reading(adapter, home, 50), await reading(adapter, home, 50)
        held = await take(subscription, 50)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            outcomes = await subscription.extend(held, 1.0)
            assert all(outcome.ok for outcome in outcomes)
            assert list(await other.receive(50, 0.3)) == []
        assert all(outcome.ok for outcome in await subscription.settle([(each, ACK) for each in held]))
        backlog = await adapter.backlog(Source(home))
        assert (backlog.waiting, backlog.in_flight) == (0, 0)


async def test_what_was_fetched_and_not_started_reaches_a_peer_at_once(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, opened(nats_url) as peer:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 100))
        leaving = await reading(adapter, home, 100)
        (started,) = (await leaving.receive(1, 5))[:1]
        staying = await reading(peer, home, 100)
        begun = time.monotonic()
        await leaving.close()
        came = await take(staying, 99, ack=True)
        assert time.monotonic() - begun < 2
        assert started.message.id not in {each.message.id for each in came}


async def test_two_readers_share_a_queue_and_neither_asks_for_more_than_its_window(
    nats_url: str, queue: MakeQueue
) -> None:
    home = queue()
    async with opened(nats_url) as one, opened(nats_url) as two:
        await prepared(one, home)
        readers = [await reading(each, home, 10) for each in (one, two)]
        empty = [await reader.receive(10, 0.05) for reader in readers]  # both ask, and wait
        assert empty == [(), ()]
        await send(one, outgoing(home, 100))

        async def held() -> bool:
            return (await one.backlog(Source(home))).waiting == 100 or (await raw_pending(nats_url, home)) == 20

        await eventually(held, "each reader has its window, and nothing more is out")
        for reader in readers:
            assert len(await take(reader, 10)) == 10


async def raw_pending(url: str, home: Queue[object]) -> int:
    async with raw(url) as client:
        info = await client.jetstream().consumer_info(flat(home), flat(home))
        return int(info.num_ack_pending or 0)


# ------------------------------------------------------------------------------------------------------- connections


async def test_a_cut_connection_costs_no_delivery(nats_url: str, queue: MakeQueue) -> None:
    """Verdicts go to subjects: they outlive the connection, and nothing is handed out twice."""
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 10))
        listener = Listening()
        subscription = await reading(adapter, home, 10, listener)
        held = await take(subscription, 10)
        for cuts in (1, 2, 3):
            proxy.cut()
            wanted = ["connected", *["disconnected", "connected"] * cuts]
            await eventually(
                partial(states_are, listener, wanted), "the listener is told of the end and of the beginning"
            )
        assert proxy.connections == 4
        assert all(outcome.ok for outcome in await subscription.settle([(each, ACK) for each in held]))
        await send(adapter, sent := outgoing(home))
        (last,) = await take(subscription, 1, ack=True)
        assert (last.message.id, last.count) == (sent[0].message.id, 1)
        assert listener.losses == []


def states_are(listener: Listening, wanted: list[str]) -> bool:
    return listener.states == wanted


async def test_a_settlement_whose_answer_is_lost_is_unknown(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home))
        subscription = await reading(adapter, home)
        (held,) = await take(subscription, 1)
        proxy.hold()
        settling = asyncio.create_task(subscription.settle([(held, ACK)]))
        await asyncio.sleep(0)
        proxy.cut()
        (outcome,) = await asyncio.wait_for(settling, PATIENCE)
        assert outcome.status is Status.UNKNOWN
        proxy.release()
        (again,) = await asyncio.wait_for(subscription.settle([(held, ACK)]), PATIENCE)
        assert again.ok


async def test_a_black_hole_is_noticed_and_left(nats_url: str, queue: MakeQueue) -> None:
    """nats-py's defaults take four to six minutes."""
    home = queue()
    options = {"ping_interval": 0.3, "send_timeout": 20.0}
    async with Proxy(nats_url) as proxy, opened(proxy.url, **options) as adapter:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, listener=listener)
        proxy.hold(both=True)
        begun = time.monotonic()
        (outcome,) = await adapter.send(outgoing(home))
        assert outcome.status is Status.UNKNOWN
        assert time.monotonic() - begun < 5
        proxy.cut()  # those in the hole stay there
        proxy.release()
        await eventually(lambda: listener.states[-1] == "connected", "there is another connection")
        await send(adapter, sent := outgoing(home))
        assert sent[0].message.id in {each.message.id for each in await take(subscription, 1, ack=True)}


@pytest.mark.parametrize(
    "line",
    [
        b"-ERR 'Unknown Protocol Operation'\r\n",
        b"-ERR 'Slow Consumer'\r\n",
        b"-ERR 'Stale Connection'\r\n",
        b"-ERR\r\n",
        b"what is this\r\n",
        b"HMSG a 1 x y\r\n",
    ],
)
async def test_whatever_the_server_says_the_client_comes_back(nats_url: str, queue: MakeQueue, line: bytes) -> None:
    """nats-py closes for good on some of these, and its reader ends without a word on others."""
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, listener=listener)
        proxy.say(line)
        await eventually(lambda: listener.states[1:] == ["disconnected", "connected"], "it has left and come back")
        await send(adapter, outgoing(home))
        await take(subscription, 1, ack=True)


async def test_what_the_server_merely_objects_to_ends_nothing(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter:
        await prepared(adapter, home)
        proxy.say(b"-ERR 'Permissions Violation for Publish to \"elsewhere\"'\r\n-ERR 'Invalid Subject'\r\n")
        await send(adapter, outgoing(home))
        assert proxy.connections == 1


async def test_a_peer_that_accepts_and_never_answers_is_unavailable_in_time() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    mute = await asyncio.start_server(nothing, "127.0.0.1", 0)
    async with mute:
        adapter = open_adapter(f"nats://127.0.0.1:{mute.sockets[0].getsockname()[1]}?connect_timeout=0.5")
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await adapter.open()
        assert time.monotonic() - begun < 3
        await adapter.close()


async def test_a_silent_server_ends_declarations_questions_and_settlements_in_time(
    nats_url: str, queue: MakeQueue
) -> None:
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url, request_timeout=0.5) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home))
        subscription = await reading(adapter, home)
        (held,) = await take(subscription, 1)
        proxy.hold()
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(prepared(adapter, home), 5)
        backlog = await asyncio.wait_for(adapter.backlog(Source(home)), 5)
        assert backlog.waiting is None
        assert backlog.detail
        (outcome,) = await asyncio.wait_for(subscription.settle([(held, ACK)]), 5)
        assert outcome.status is Status.UNKNOWN
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(reading(adapter, queue("other")), 5)
        proxy.release()


async def test_the_next_server_of_the_list_is_tried(nats_url: str, queue: MakeQueue) -> None:
    host = nats_url.removeprefix("nats://")
    async with opened(f"nats://127.0.0.1:1,{host}") as adapter:
        await prepared(adapter, queue())


# ------------------------------------------------------------------------------------------------- who may do what

LOGIN = """
authorization {
  users = [
    { user: admin, password: secret-1 }
    { user: reader, password: secret-2, permissions: {
        publish: { allow: ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.INFO.>", "$JS.ACK.>"] }
        subscribe: { allow: ["_INBOX.>"] } } }
  ]
}
"""


async def test_wrong_credentials_are_no_outage_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server(tmp_path, LOGIN) as host:
        for url in (f"nats://admin:hunter2@{host}", f"nats://hunter2@{host}", f"nats://{host}?token=hunter2"):
            adapter = open_adapter(url)
            with pytest.raises(PermissionDenied) as refused:
                await adapter.open()
            await adapter.close()
            shown = f"{refused.value} {refused.value!r} {adapter!r} {vars(adapter)!r} {caplog.text}"
            assert "hunter2" not in shown


async def test_a_reader_that_may_not_ask_is_denied_and_does_not_wait(tmp_path: Path) -> None:
    home = Queue[object]("orders")
    async with server(tmp_path, LOGIN) as host, opened(f"nats://admin:secret-1@{host}") as admin:
        await prepared(admin, home)
        async with opened(f"nats://reader:secret-2@{host}") as adapter:
            subscription = await reading(adapter, home)
            with pytest.raises(PermissionDenied):
                await asyncio.wait_for(subscription.receive(10, 30), 5)
            with pytest.raises(PermissionDenied):
                await asyncio.wait_for(prepared(adapter, Queue("another")), 5)


async def test_a_server_without_jetstream_is_named_as_that(tmp_path: Path) -> None:
    async with server(tmp_path, "", jetstream=False) as host:
        adapter = open_adapter(f"nats://{host}")
        with pytest.raises(BrokerUnavailable, match="JetStream"):
            await adapter.open()
        await adapter.close()


async def test_tls_checks_the_certificate(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    making = await asyncio.create_subprocess_exec(
        openssl,
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"),
        *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await making.wait() == 0
    home = Queue[object]("orders")
    async with server(tmp_path, f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}') as host:
        stranger = open_adapter(f"tls://{host}")
        with pytest.raises(BrokerUnavailable, match="certificate"):
            await stranger.open()
        await stranger.close()
        async with opened(f"tls://{host}?cafile={certificate}") as adapter:
            await prepared(adapter, home)
            await send(adapter, outgoing(home, 300, body=b"x" * 3000))
            await take(await reading(adapter, home, 300), 300, ack=True)
