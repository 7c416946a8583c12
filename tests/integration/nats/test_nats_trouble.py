"""What others set, refuse and publish: large messages of former times, denied subjects, foreign streams, strange answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import AckPolicy, ConsumerConfig
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

from atleastonce import FailurePolicy, Queue, Service, Topic
from atleastonce.adapters import open_adapter
from atleastonce.brokers.ports import free_port
from atleastonce.channels import Source
from atleastonce.contract import ACK, Code, Drift, Outgoing, Status, Topology, Window
from atleastonce.errors import BrokerUnavailable, PermissionDenied

MakeQueue = Callable[..., Queue[object]]
MakeTopic = Callable[..., Topic[object]]


def flat(channel: Queue[object] | Topic[object]) -> str:
    return channel.name.replace(".", "~")


# ------------------------------------------------------------------------------------------------ larger than a request


async def test_what_was_stored_when_the_server_took_more_is_delivered_with_its_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A request with less room is refused, 409, for as long as that message is the next one."""
    home, port = Queue[object]("orders"), free_port()
    big = [message(b"x" * (1 << 21)), message(b"y" * (1 << 21))]
    small = [message(b"before"), message(b"between"), message(b"after")]
    sent = [small[0], big[0], small[1], big[1], small[2]]
    async with server(tmp_path, "max_payload: 4194304", port=port) as host, opened(f"nats://{host}") as adapter:
        await prepared(adapter, home)
        await send(adapter, [Outgoing(home, each) for each in sent])
    async with server(tmp_path, "max_payload: 65536", port=port) as host, opened(f"nats://{host}") as adapter:
        listener = Listening()
        subscription = await adapter.subscribe(Source(home), Window(10, 1 << 16), listener)
        begun = time.monotonic()
        got = [(await take(subscription, 1, ack=True))[0].message.id for _ in sent]
        assert time.monotonic() - begun < PATIENCE / 2
        assert got == [each.id for each in sent]
        assert listener.states == ["connected"]
        assert "one by one" in caplog.text
        await subscription.close()


async def test_a_consumer_whose_requests_may_bring_less_than_its_next_message_delivers_it(
    nats_url: str, queue: MakeQueue
) -> None:
    """Its own ``max_bytes`` limits what a request may ask for."""
    home = queue(options={"nats": {"consumer": {"max_bytes": 1000}}})
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        sent = [message(b"x" * size) for size in (10, 5000, 20, 300_000, 30)]
        await send(adapter, [Outgoing(home, each) for each in sent])
        subscription = await reading(adapter, home, 10)
        got = await take(subscription, len(sent), ack=True)
        assert [len(each.body) for each in got] == [10, 5000, 20, 300_000, 30]
        await subscription.close()


async def test_requests_that_are_refused_are_a_visible_state_and_new_limits_are_kept(
    nats_url: str, queue: MakeQueue
) -> None:
    """Somebody lowers the consumer's limits under a running reader."""
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, 100, listener)
        assert list(await subscription.receive(100, 0.1)) == []
        info = await client.jetstream().consumer_info(flat(home), flat(home))
        config = info.config
        config.max_batch = 5
        await client.jetstream().add_consumer(flat(home), config)
        await send(adapter, outgoing(home, 40))
        got = await take(subscription, 40, ack=True)
        assert len(got) == 40
        await subscription.close()


async def test_a_reader_that_is_refused_again_and_again_says_so(nats_url: str, queue: MakeQueue) -> None:
    """The proxy speaks for a server that takes no request: no leader, or whatever else it may find one day."""
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter, opened(nats_url) as other:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, listener=listener)
        assert list(await subscription.receive(10, 0.1)) == []
        block = b"NATS/1.0 409 Exceeded Something\r\n\r\n"
        inbox, sid = subscription._inbox + b"1", subscription._sid  # type: ignore[attr-defined]
        line = b"HMSG %b %b %d %d\r\n%b\r\n" % (inbox, sid, len(block), len(block), block)
        proxy.say(line)
        proxy.say(line)

        async def told() -> bool:
            await subscription.receive(10, 0.1)
            return "blocked" in listener.states

        await eventually(told, "the refusal is told")
        assert listener.states == ["connected", "blocked"], "it is told once"
        assert "409 Exceeded Something" in listener.conditions[-1][1]
        await send(other, outgoing(home))
        await take(subscription, 1, ack=True)
        assert listener.states == ["connected", "blocked", "unblocked"]
        await subscription.close()


# ------------------------------------------------------------------------------------------------------ what is denied

RIGHTS = """
authorization {
  users = [
    { user: admin, password: secret-1 }
    { user: mute, password: secret-2, permissions: {
        publish: { allow: ["orders", "$JS.API.>"] }, subscribe: { allow: ["_INBOX.>"] } } }
    { user: deaf, password: secret-3, permissions: {
        publish: { allow: [">"] }, subscribe: { allow: ["_INBOX_deaf.>"] } } }
  ]
}
"""


@pytest.mark.parametrize("acks", ["confirmed", "flushed"])
async def test_who_may_not_acknowledge_is_told_and_does_not_handle_the_same_for_ever(tmp_path: Path, acks: str) -> None:
    home = Queue[object]("orders")
    async with server(tmp_path, RIGHTS) as host, opened(f"nats://admin:secret-1@{host}") as admin:
        await prepared(admin, home)
        await send(admin, outgoing(home, 500))
        async with opened(f"nats://mute:secret-2@{host}", acks=acks) as adapter:
            listener = Listening()
            subscription = await reading(adapter, home, 500, listener)
            got = await take(subscription, 500)
            begun = time.monotonic()
            outcomes = await subscription.settle([(each, ACK) for each in got])
            assert {each.status for each in outcomes} == {Status.REJECTED}
            assert {each.fault.code for each in outcomes if each.fault} == {Code.PERMISSION}
            with pytest.raises(PermissionDenied, match=r"\$JS\.ACK\.orders\.orders"):
                await subscription.receive(10, 1.0)
            assert listener.states[-1] == "disconnected"
            assert listener.losses == [None]
            await subscription.close()
            assert time.monotonic() - begun < 3, "something waited for an answer that could not come"


async def test_a_service_that_may_not_acknowledge_ends_with_the_servers_words(tmp_path: Path) -> None:
    home = Queue[object]("orders")
    async with server(tmp_path, RIGHTS) as host, opened(f"nats://admin:secret-1@{host}") as admin:
        await prepared(admin, home, Queue("orders.dlq"))
        await send(admin, outgoing(home, 3))
        service = Service("worker", broker=f"nats://mute:secret-2@{host}")
        runs: list[bytes] = []

        @service.consumer(home, failure=FailurePolicy(in_place=None))
        async def handle(body: bytes) -> None:
            runs.append(body)

        begun = time.monotonic()
        with pytest.raises(PermissionDenied, match="ACK"):
            await asyncio.wait_for(service.serve(), PATIENCE)
        assert time.monotonic() - begun < PATIENCE / 2
        assert len(runs) == 3


async def test_who_may_not_listen_to_its_inbox_hears_why_no_answer_comes(tmp_path: Path) -> None:
    async with server(tmp_path, RIGHTS) as host:
        url = f"nats://deaf:secret-3@{host}"
        adapter, begun = open_adapter(url), time.monotonic()
        with pytest.raises(
            PermissionDenied, match=r'Permissions Violation for Subscription to "_INBOX\..*inbox_prefix'
        ):
            await adapter.open()
        assert time.monotonic() - begun < 2
        await adapter.close()
        home = Queue[object]("orders")
        async with opened(f"{url}?inbox_prefix=_INBOX_deaf") as good:  # what the message says to do
            await prepared(good, home)
            await send(good, outgoing(home))
            assert len(await all_of(good, home)) == 1


async def test_nothing_is_published_whose_confirm_could_not_be_heard(tmp_path: Path) -> None:
    """A reconnect may find other rights than the first connection had."""
    port, home = free_port(), Queue[object]("orders")
    open_rights = RIGHTS.replace('"_INBOX_deaf.>"', '"_INBOX.>"')
    async with server(tmp_path, open_rights, port=port) as host:
        adapter = open_adapter(f"nats://deaf:secret-3@{host}?send_timeout=1&request_timeout=1")
        await adapter.open()
        await adapter.declare(Topology(channels=(home,), sources=(Source(home),)))
    async with server(tmp_path, RIGHTS, port=port):

        async def told() -> bool:
            (outcome,) = await adapter.send(outgoing(home))
            assert outcome.status is Status.UNKNOWN
            assert outcome.fault is not None
            return "Permissions Violation" in outcome.fault.detail

        await eventually(told, "the refusal is told")
        assert "_INBOX" in (await adapter.backlog(Source(home))).detail
        await adapter.close()
        async with opened(f"nats://admin:secret-1@127.0.0.1:{port}") as admin:
            assert (await admin.backlog(Source(home))).waiting == 0


# ------------------------------------------------------------------------------------------------------ foreign streams


def breaking(drifts: object) -> set[str]:
    assert isinstance(drifts, list)
    return {each.setting for each in drifts if isinstance(each, Drift) and each.breaks}


async def test_a_foreign_stream_without_the_groups_subjects_breaks_the_groups_and_no_publisher(
    nats_url: str, topic: MakeTopic
) -> None:
    channel = topic()
    group = Source(channel, "billing")
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await client.jetstream().add_stream(name=f"F{flat(channel)}", subjects=[channel.name])
        only_publishing = await adapter.declare(Topology(channels=(channel,)))
        assert breaking(list(only_publishing)) == set()
        reading_too = await adapter.declare(Topology(channels=(channel,), sources=(group,)))
        assert "subjects" in breaking(list(reading_too))
        (drift,) = [each for each in reading_too if each.setting == "subjects"]
        assert f"_alo.{flat(channel)}.*" in drift.wanted
        # What it says is what helps.
        await client.jetstream().update_stream(
            name=f"F{flat(channel)}", subjects=[channel.name, f"_alo.{flat(channel)}.*"]
        )
        assert breaking(list(await adapter.declare(Topology(channels=(channel,), sources=(group,))))) == set()
        await send(adapter, outgoing(group))
        assert len(await all_of(adapter, group)) == 1


async def test_a_consumer_that_does_not_read_its_groups_own_subject_breaks(nats_url: str, topic: MakeTopic) -> None:
    """A redriven letter would be confirmed, and read by nobody."""
    channel = topic()
    group = Source(channel, "billing")
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await adapter.declare(Topology(channels=(channel,)))
        config = ConsumerConfig(durable_name="billing", filter_subject=channel.name, ack_policy=AckPolicy.EXPLICIT)
        await client.jetstream().add_consumer(flat(channel), config)
        drifts = await adapter.declare(Topology(channels=(channel,), sources=(group,)))
        assert "filter_subjects" in breaking(list(drifts))


async def test_a_stream_that_confirms_nothing_is_a_drift_that_breaks(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await client.jetstream().add_stream(name=flat(home), subjects=[home.name], no_ack=True)
        drifts = await adapter.declare(Topology(channels=(home,), sources=(Source(home),)))
        assert breaking(list(drifts)) == {"no_ack"}


@pytest.mark.parametrize(("limit", "breaks"), [(3, True), (1000, False)])
async def test_few_unacknowledged_are_a_drift_that_breaks(
    nats_url: str, queue: MakeQueue, limit: int, breaks: bool
) -> None:
    """That many retries that wait would stop the queue."""
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await adapter.declare(Topology(channels=(home,)))
        config = ConsumerConfig(
            durable_name=flat(home),
            filter_subject=home.name,
            ack_policy=AckPolicy.EXPLICIT,
            max_ack_pending=limit,
        )
        await client.jetstream().add_consumer(flat(home), config)
        drifts = await adapter.declare(Topology(channels=(home,), sources=(Source(home),)))
        assert {each.setting: (each.found, each.breaks) for each in drifts} == {"max_ack_pending": (str(limit), breaks)}


# ------------------------------------------------------------------------------------------------- strangers' messages


async def test_nothing_that_is_published_to_our_inboxes_ends_the_connection(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as stranger:
        await prepared(adapter, home)
        listener = Listening()
        subscription = await reading(adapter, home, 10, listener)
        assert list(await subscription.receive(10, 0.1)) == []
        replies = adapter._link.replies
        assert replies is not None
        answers, requests = replies._inbox.decode(), subscription._inbox.decode()  # type: ignore[attr-defined]
        deep = b'{"error":' + b"[" * 100_000
        for end in ("abc", "-1", "0", "9" * 3000, "99999999"):
            await stranger.publish(f"{answers}{end}", b"x")
        for number in range(1, 60):  # those that were given out, and those that will be
            for body in (b"", b"x", b"[]", b"{}", b'{"error":5}', b'{"error":{"code":"x"}}', b"\xff\xfe", deep):
                await stranger.publish(f"{answers}{number}", body)
        for status in ("", "what", "9" * 5000, "404", "409 \xff"):
            field = {"Nats-Pending-Messages": "9" * 5000, "Status": status}
            await stranger.publish(f"{requests}1", b"", headers=field)
        await stranger.publish(f"{requests}1", b"no reply, no status")
        for reply in ("not.an.ack", "$JS.ACK.a.b.1.x.1.1.1", "$JS.ACK", "a.b.c.d.1.2.3.4.5"):
            await stranger.publish(f"{requests}1", b"forged", reply=reply)
        await stranger.flush()
        await (
            replies.wire.ping()
        )  # all of it was read; what comes too early answers in a stream's place, and confirms nothing
        await send(adapter, outgoing(home, 3, body=b"true"))
        assert {each.body for each in await take(subscription, 3, ack=True)} == {b"true"}
        assert listener.states == ["connected"]
        assert replies.wire.lost is None
        await subscription.close()


async def test_an_answer_that_is_none_is_an_error_of_that_question_alone(nats_url: str, queue: MakeQueue) -> None:
    """Whoever listens to JetStream's own subjects may answer there."""
    home = queue()
    async with raw(nats_url) as stranger:
        body = b"{}"

        async def answer(request: Any) -> None:
            await request.respond(body)

        await stranger.subscribe("$JS.elsewhere.API.>", cb=answer)
        await stranger.flush()
        async with opened(nats_url, domain="elsewhere") as adapter:
            for strange in (b"x", b"[1]", b"\xff", b"[" * 100_000):
                body = strange
                with pytest.raises(BrokerUnavailable, match="an answer that is none"):
                    await adapter.declare(Topology(channels=(home,)))


async def test_a_silence_is_told_as_one() -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(PATIENCE)
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    adapter = open_adapter(f"nats://127.0.0.1:{port}?connect_timeout=0.3")
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}: no answer in time"):
        await adapter.open()
    await adapter.close()
    listening.close()
