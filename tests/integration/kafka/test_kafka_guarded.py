"""TLS, passwords and rights, on a broker that has all three."""

from __future__ import annotations

import asyncio
import time

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from kafka_kit import WINDOW, Recorder, declared, member, message, opened, publish
from kafka_servers import USERS, Server

from atleastonce.channels import Source
from atleastonce.contract import Code, Outgoing, Topology
from atleastonce.errors import BrokerUnavailable, PermissionDenied

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server(guarded_server: Server) -> Server:
    return guarded_server


def url(server: Server, user: str, password: str | None = None, *, trusted: bool = True, more: str = "") -> str:
    return server.url(user, password or USERS[user], trusted=trusted, more=more)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_messages_go_over_tls_with_a_password(server: Server, mechanism: str) -> None:
    at = url(server, "alice", more=f"&sasl.mechanisms={mechanism}")
    async with opened(at) as adapter:
        source = await declared(adapter)
        await publish(adapter, source.channel, [message(b"%d" % n) for n in range(20)])
        async with member(at, source) as one:
            await one.ack(await one.take(20))
        assert (await adapter.backlog(source)).waiting == 0


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_denied_at_once_and_not_shown(server: Server, mechanism: str) -> None:
    begin = time.monotonic()
    with pytest.raises(PermissionDenied) as denied:
        async with opened(url(server, "alice", "wr0ng-secret", more=f"&sasl.mechanisms={mechanism}")):
            pass
    assert time.monotonic() - begin < 15
    assert "wr0ng-secret" not in str(denied.value)


async def test_a_server_that_nobody_vouches_for_is_not_spoken_to(server: Server) -> None:
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        async with opened(url(server, "alice", trusted=False)):
            pass


async def test_who_may_count_and_not_read_learns_no_age_and_why(server: Server) -> None:
    async with opened(url(server, "alice")) as owner, opened(url(server, "bob")) as adapter:
        source = await declared(owner)
        await publish(owner, source.channel, [message(b"x")])
        rights = [
            AclBinding(
                kind,
                source.channel.name,  # the group of a queue is called as the queue is
                ResourcePatternType.LITERAL,
                "User:bob",
                "*",
                AclOperation.DESCRIBE,
                AclPermissionType.ALLOW,
            )
            for kind in (ResourceType.TOPIC, ResourceType.GROUP)
        ]
        assert owner._admin is not None
        await owner._admin.ask(
            "giving rights", lambda client, seconds: client.create_acls(rights, request_timeout=seconds)
        )
        deadline = time.monotonic() + 15
        while (found := await adapter.dated_backlog(source)).waiting is None:  # rights spread in a while
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)
        assert (found.waiting, found.oldest_age) == (1, None)
        assert "TOPIC_AUTHORIZATION_FAILED" in found.detail


async def test_who_has_no_rights_is_told_which(server: Server) -> None:
    async with opened(url(server, "alice")) as owner, opened(url(server, "bob")) as adapter:
        source = await declared(owner)
        (outcome,) = await adapter.send([Outgoing(source.channel, message(b"x"))])
        assert not outcome.ok
        assert outcome.fault is not None
        assert outcome.fault.code is Code.PERMISSION, outcome.fault
        with pytest.raises(PermissionDenied):
            await adapter.declare(Topology(sources=(Source(source.channel),)))
        with pytest.raises(PermissionDenied, match="AUTHORIZATION_FAILED"):
            await adapter.subscribe(source, WINDOW, Recorder())
