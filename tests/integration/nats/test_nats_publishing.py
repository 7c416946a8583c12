"""Publishing to NATS: confirms, refusals, lost replies, and the duplicate window, which must never swallow a hop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats_kit import (
    PATIENCE,
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
from atleastonce.channels import Source
from atleastonce.contract import Code, Outgoing, Status, Topology
from atleastonce.errors import BrokerUnavailable
from atleastonce.message import HeaderValue, Message
from atleastonce.patterns.redrive import redrive

MakeQueue = Callable[..., Queue[object]]
MakeTopic = Callable[..., Topic[object]]


# ----------------------------------------------------------------------------------------------- the duplicate window


async def test_a_hop_back_into_its_stream_within_the_window_is_kept(nats_url: str, queue: MakeQueue) -> None:
    """The id alone as ``Nats-Msg-Id`` would lose it: confirmed, and nowhere."""
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        first = message(id="order-1")
        hops = [first]
        for number in range(1, 4):  # what a redrive writes, then what a second one does
            headers = first.headers.set({"alo-attempt": "1", "alo-redrives": str(number)})
            hops.append(Message(first.id, first.body, None, headers))
        for hop in hops:
            await send(adapter, [Outgoing(home, hop)])
        assert [delivery.message.headers.get("alo-redrives") for delivery in await all_of(adapter, home)] == [
            None,
            "1",
            "2",
            "3",
        ]


async def test_dead_letters_of_one_message_survive_being_redriven_at_once_again_and_again(
    nats_url: str, queue: MakeQueue
) -> None:
    """Queue to dead letters to queue, three times within the window, with one id all the way."""
    orders = queue("orders")
    home = Source(orders)
    runs: list[bytes] = []

    def have_run(times: int) -> bool:
        return len(runs) == times

    service = Service("workers", broker=nats_url)

    @service.consumer(orders, failure=FailurePolicy(in_place=None))
    async def handle(body: bytes) -> None:
        runs.append(body)
        if len(runs) < 4:
            raise ValueError("not yet")

    async with service:
        adapter = service.broker.adapter
        await service.broker.publish(orders, b"{}", id="order-1")
        for times in (1, 2, 3):
            await eventually(partial(have_run, times), f"it failed for the {times}. time")
            done = 0
            async with asyncio.timeout(PATIENCE):
                while not done:
                    done = (await redrive(adapter, home)).redriven
            assert done == 1
        await eventually(lambda: len(runs) == 4, "the redriven one is handled")
        backlog = await adapter.backlog(Source(home.dead_letter_channel))
        assert backlog.waiting == 0


async def test_the_same_copy_published_twice_is_one(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        copy = message(headers=[("alo-attempt", "2"), ("alo-error-at", "1700000000000")])
        await send(adapter, [Outgoing(home, copy)])
        await send(adapter, [Outgoing(home, copy)])
        assert len(await all_of(adapter, home)) == 1


async def test_one_id_for_two_groups_of_a_topic_reaches_both(nats_url: str, topic: MakeTopic) -> None:
    """Their private subjects lie in one stream, with one duplicate window."""
    channel = topic()
    groups = [Source(channel, "billing"), Source(channel, "shipping")]
    async with opened(nats_url) as adapter:
        await prepared(adapter, channel, *groups)
        same = message()
        await send(adapter, [Outgoing(group, same) for group in groups])
        await send(adapter, [Outgoing(channel, same)])
        for group in groups:
            assert [delivery.message.id for delivery in await all_of(adapter, group)] == [same.id, same.id]


async def test_a_lost_confirm_is_unknown_and_publishing_again_makes_no_second_one(
    nats_url: str, queue: MakeQueue
) -> None:
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url) as adapter, opened(nats_url) as other:
        await prepared(adapter, home)
        proxy.hold()
        batch = outgoing(home, 20)
        sending = asyncio.create_task(adapter.send(batch))

        async def stored() -> bool:
            return (await other.backlog(Source(home))).waiting == 20

        await eventually(stored, "the server has stored them")
        proxy.cut()
        outcomes = await asyncio.wait_for(sending, PATIENCE)
        assert {outcome.status for outcome in outcomes} == {Status.UNKNOWN}
        proxy.release()
        await send(adapter, batch)
        assert [d.message.id for d in await all_of(other, home)] == [item.message.id for item in batch]


# ------------------------------------------------------------------------------------------------------------ refusals


async def test_a_missing_stream_is_told_at_once_and_its_neighbours_go(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        begun = time.monotonic()
        good, missing, more = await adapter.send([*outgoing(home), *outgoing(queue("missing")), *outgoing(home)])
        assert time.monotonic() - begun < 2
        assert good.ok
        assert more.ok
        assert missing.status is Status.REJECTED
        assert missing.fault is not None
        assert missing.fault.code is Code.NOT_FOUND


async def test_what_the_server_would_hang_up_for_is_refused_before(tmp_path: Path, queue: MakeQueue) -> None:
    """``Maximum Payload Violation`` closes the connection under everybody else on it."""
    home = queue()
    async with (
        server(tmp_path, "max_payload: 20000") as host,
        opened(f"nats://{host}") as adapter,
    ):
        await prepared(adapter, home)
        assert adapter.capabilities.max_message_bytes == 20000 - 4096
        wide = [("h" * 100 + str(n), "v") for n in range(60)]  # within the limit, but not with what a block adds
        batch = [
            *outgoing(home, body=b"x"),
            *outgoing(home, body=b"x" * 17_000),
            *outgoing(home, body=b"x" * 9_500, headers=wide, key=b"\xff" * 1_500),
            *outgoing(home, body=b"y"),
        ]
        outcomes = await adapter.send(batch)
        assert [outcome.ok for outcome in outcomes] == [True, False, False, True]
        assert {outcome.fault.code for outcome in outcomes if outcome.fault} == {Code.TOO_LARGE}
        assert [delivery.body for delivery in await all_of(adapter, home)] == [b"x", b"y"]


async def test_a_full_work_queue_refuses_instead_of_dropping_what_waits(nats_url: str, queue: MakeQueue) -> None:
    home = queue(options={"nats": {"max_msgs": 3}})
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        outcomes = await adapter.send(outgoing(home, 5))
        assert [outcome.status for outcome in outcomes] == [Status.OK] * 3 + [Status.UNKNOWN] * 2
        assert outcomes[4].fault is not None
        assert outcomes[4].fault.code is Code.OVERLOADED
        await take(await reading(adapter, home), 3, ack=True)
        await send(adapter, outgoing(home))


async def test_a_message_over_the_streams_own_limit_is_too_large(nats_url: str, queue: MakeQueue) -> None:
    home = queue(options={"nats": {"max_msg_size": 1000}})
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        small, large = await adapter.send([*outgoing(home), *outgoing(home, body=b"x" * 2000)])
        assert small.ok
        assert large.status is Status.REJECTED
        assert large.fault is not None
        assert large.fault.code is Code.TOO_LARGE


PERMISSIONS = """
authorization {
  users = [
    { user: admin, password: secret-1 }
    { user: clerk, password: secret-2, permissions: {
        publish: { allow: ["allowed", "$JS.API.>", "$JS.ACK.>"] }
        subscribe: { allow: ["_INBOX.>"] } } }
  ]
}
"""


async def test_a_publish_that_is_not_allowed_is_told_at_once(tmp_path: Path) -> None:
    """The server drops it and says so on the side; nobody would ever confirm it."""
    allowed, forbidden = Queue[object]("allowed"), Queue[object]("for.bidden")
    async with server(tmp_path, PERMISSIONS) as host:
        async with opened(f"nats://admin:secret-1@{host}") as admin:
            await prepared(admin, allowed, forbidden)
        async with opened(f"nats://clerk:secret-2@{host}") as adapter:
            begun = time.monotonic()
            good, bad, more = await adapter.send([*outgoing(allowed), *outgoing(forbidden), *outgoing(allowed)])
            assert time.monotonic() - begun < 5
            assert good.ok
            assert more.ok
            assert bad.status is Status.REJECTED
            assert bad.fault is not None
            assert bad.fault.code is Code.PERMISSION


# ------------------------------------------------------------------------------------------------------------- headers

FOREIGN: list[tuple[str, HeaderValue]] = [
    ("lines", "one\r\ntwo"),
    ("bell", b"\x00\xff\r\n"),
    ("latin", b"caf\xe9"),
    ("blank", "  around  "),
    ("twice", "1"),
    ("twice", "2"),
    ("Nats-Msg-Id", "mine"),
    ("Nats-Expected-Last-Sequence", "999"),
    ("nats-ttl", "1s"),
    ("alo-key", "not the key"),
    ("alo-as-Nats-Msg-Id", "renamed already"),
    ("alo-b64-lines", "not base64 \xff"),
]


async def test_header_fields_come_out_as_they_went_in_and_act_on_nothing(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        sent = [Outgoing(home, message(key=b"\xff \r\n%", headers=[field])) for field in FOREIGN]
        sent.append(Outgoing(home, message(headers=FOREIGN)))
        await send(adapter, sent)
        for item, delivery in zip(sent, await all_of(adapter, home), strict=True):
            assert delivery.message.headers.items() == item.message.headers.items()
            assert delivery.message.key == item.message.key


async def test_a_null_header_value_is_refused_and_its_neighbours_go(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        outcomes = await adapter.send([*outgoing(home, headers=[("nothing", None)]), *outgoing(home)])
        assert [outcome.status for outcome in outcomes] == [Status.REJECTED, Status.OK]


async def test_raw_readers_see_plain_headers(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        sent = message(key=b"customer 7", headers=[("tenant", "blue")])
        await send(adapter, [Outgoing(home, sent)])
        flat = home.name.replace(".", "~")
        (found,) = await (await client.jetstream().pull_subscribe_bind(flat, flat)).fetch(1)
        assert found.headers == {
            "Nats-Msg-Id": sent.id,
            "alo-key": "customer 7",
            "tenant": "blue",
            "alo-id": sent.id,
        }
        await found.ack_sync()


# ------------------------------------------------------------------------------------------------------------- topology


async def test_a_stream_that_somebody_else_made_is_used_as_it_is(nats_url: str, queue: MakeQueue) -> None:
    home = queue("orders")
    stem = home.name.rpartition(".")[2]
    subject = f"SHOP{stem}.new"
    channel = Queue[object](home.name, options={"nats": {"subject": subject}})
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await client.jetstream().add_stream(name=f"SHOP{stem}", subjects=[f"SHOP{stem}.*"], max_age=3600)
        drifts = await adapter.declare(Topology(channels=(channel,), sources=(Source(channel),)))
        assert {drift.setting for drift in drifts} >= {"name", "retention", "max_age"}
        assert not any(drift.breaks for drift in drifts)
        await client.jetstream().publish(f"SHOP{stem}.old", b"not ours")
        await send(adapter, outgoing(channel, body=b"ours"))
        assert [delivery.body for delivery in await all_of(adapter, channel)] == [b"ours"]
        info = await client.jetstream().stream_info(f"SHOP{stem}")
        assert info.config.max_age == 3600, "declaring changed what somebody else made"


async def test_a_consumer_that_would_break_a_promise_is_reported_as_that(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    flat = home.name.replace(".", "~")
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await adapter.declare(Topology(channels=(home,)))
        await client.jetstream().add_consumer(
            flat, durable_name=flat, filter_subject=home.name, ack_policy="explicit", ack_wait=5, max_deliver=3
        )
        drifts = await adapter.declare(Topology(channels=(home,), sources=(Source(home),)))
        assert {drift.setting: (drift.found, drift.breaks) for drift in drifts if drift.breaks} == {
            "ack_wait": ("5s", True),
            "max_deliver": ("3", True),
        }


async def test_another_reader_of_a_work_queue_is_named(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    flat = home.name.replace(".", "~")
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await adapter.declare(Topology(channels=(home,)))
        await client.jetstream().add_consumer(flat, durable_name="theirs", ack_policy="explicit")
        (drift,) = await adapter.declare(Topology(channels=(home,), sources=(Source(home),)))
        assert drift.breaks
        assert drift.setting == "consumer"


async def test_only_a_stream_confirms(nats_url: str, queue: MakeQueue) -> None:
    """Whoever listens to a subject may answer on it, and has stored nothing."""
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as stranger:

        async def answer(request: Any) -> None:
            await request.respond(request.data)

        await stranger.subscribe(home.name, cb=answer)
        await stranger.flush()
        for body in (b"hello", b'{"ok":true}', b'{"error":null}'):
            (outcome,) = await adapter.send([Outgoing(home, message(body))])
            assert outcome.status is not Status.OK, f"{body!r} was taken for a confirmation"


async def test_a_server_without_tls_learns_no_password_where_tls_was_asked_for(nats_url: str) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"X","version":"2.15.0","headers":true,"jetstream":true,"max_payload":1048576,"proto":1}\r\n'
        )
        await writer.drain()
        heard.append(await reader.read(4096))
        writer.close()

    plain = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    async with plain:
        adapter = open_adapter(f"tls://bob:s3cret@127.0.0.1:{port}?connect_timeout=2")
        with pytest.raises(BrokerUnavailable, match="TLS"):
            await adapter.open()
        await adapter.close()
    assert b"s3cret" not in b"".join(heard)
