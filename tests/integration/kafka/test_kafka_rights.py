"""What a user may do: the rights that the documentation names are enough, and each that is missing is told by name."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from kafka_kit import opened
from kafka_rights import (
    CONFIGS,
    CREATE,
    GROUP,
    PATIENCE,
    READ,
    TOPIC,
    WRITE,
    Login,
    Right,
    Working,
    documented,
    done,
    eventually,
    owner,
    send,
    spelled,
    without,
)
from kafka_servers import Server

from atleastonce import Queue, Rejected, Topic
from atleastonce.channels import Channel, Source
from atleastonce.errors import PermissionDenied

pytestmark = pytest.mark.timeout(120, func_only=True)

FAILURES = (".retry.50ms", ".dlq", ".suspects")


# ------------------------------------------------------------------------------------------------ the documented ones


@pytest.mark.parametrize("more", ["", "&group.protocol=consumer"], ids=["classic", "kip-848"])
@pytest.mark.parametrize("group", [None, "billing"], ids=["queue", "topic"])
async def test_the_documented_rights_are_enough(
    guarded_server: Server, name: str, group: str | None, more: str
) -> None:
    """Retries, dead letters, a look at them, redrive and backlog."""
    group = group and f"{group}-{name}"
    channel: Channel[Any] = Queue(name, partitions=1) if group is None else Topic(name, partitions=1)
    home = Source(channel, group)
    login = Login(guarded_server, documented(name, group))
    work = Working(login.url(more), channel, group)
    async with work.service:
        broker = work.service.broker
        await broker.publish(channel, b"x")

        async def dead() -> bool:
            return (await broker.backlog(home.dead_letter_channel)).waiting == 1

        await eventually(dead, "it is in the dead letters")
        assert len(work.ran) == 2
        letters = broker.dead_letters(channel, group)
        assert len([letter async for letter in letters.letters()]) == 1
        work.healed = True
        assert (await letters.redrive()).redriven == 1

        async def done() -> bool:
            return len(work.ran) == 3 and not (await broker.backlog(home)).true_waiting

        await eventually(done, "it was redriven and is done")


def each_right() -> list[Any]:
    """Every right of every topic and group, and how its absence shows."""
    cases = [("", TOPIC, READ, "ends"), ("", TOPIC, WRITE, "publish"), ("", GROUP, READ, "ends")]
    for suffix in FAILURES:
        kept = suffix == ".dlq"  # nobody but a person reads it
        cases += [(suffix, TOPIC, READ, "redrive" if kept else "ends"), (suffix, TOPIC, WRITE, "ends")]
        cases += [(suffix, GROUP, READ, "redrive" if kept else "ends")]
    cases += [(suffix, TOPIC, CONFIGS, "ends") for suffix in (".retry.50ms", ".dlq")]
    return [
        pytest.param(*case, id=f"{case[1].name.lower()}{case[0] or '.home'}-{case[2].name.lower()}") for case in cases
    ]


@pytest.mark.parametrize(("suffix", "kind", "operation", "shows"), each_right())
async def test_each_right_that_is_missing_is_told_by_name(
    guarded_server: Server, name: str, suffix: str, kind: Any, operation: Any, shows: str
) -> None:
    topics = [name, *(name + each for each in FAILURES)]
    whole = spelled(documented(name), topics)
    missing = Right(kind, name + suffix, operation)
    queue = Queue[Any](name, partitions=1)
    async with Working(Login(guarded_server, whole).url(), queue).service:
        pass  # everything is there
    login = Login(guarded_server, without(whole, missing))
    async with opened(f"kafka://{guarded_server.plain}") as admin:
        await send(admin, queue, Queue(f"{name}.dlq"))
        work = Working(login.url(), queue)
        if shows == "ends":
            error = await work.refused()
            assert re.search(
                rf"{re.escape(name + suffix)}\b(?!\.).*(AUTHORIZATION_FAILED|grant {operation.name})", str(error)
            )
            # Its other readers may have begun.
            assert len(work.ran) <= 2 if suffix else not work.ran
            return
        work.healed = True
        async with work.service:
            await eventually(lambda: done(admin, Source(queue)), "its own message is done")
            if shows == "publish":
                with pytest.raises(Rejected, match=f"permission: topic {name}: .* grant WRITE"):
                    await work.service.broker.publish(queue, b"x")
                return
            with pytest.raises(PermissionDenied, match=rf"{re.escape(name)}\.dlq.*AUTHORIZATION_FAILED"):
                await work.service.broker.dead_letters(queue).redrive()


@pytest.mark.parametrize("suffix", ["", *FAILURES])
async def test_what_may_not_be_created_is_told_by_name(guarded_server: Server, name: str, suffix: str) -> None:
    whole = spelled(documented(name), [name, *(name + each for each in FAILURES)])
    login = Login(guarded_server, without(whole, Right(TOPIC, name + suffix, CREATE)))
    error = await Working(login.url(), Queue(name, partitions=1)).refused()
    assert isinstance(error, PermissionDenied)
    assert re.search(rf"creating topics: {re.escape(name + suffix)}: TOPIC_AUTHORIZATION_FAILED", str(error))


async def test_a_reader_whose_right_is_taken_away_ends(guarded_server: Server, name: str) -> None:
    login = Login(guarded_server, documented(name))
    queue = Queue[Any](name, partitions=1)
    work = Working(login.url(), queue)
    work.healed = True
    async with owner(guarded_server, name):
        serving = asyncio.create_task(work.service.serve())

        async def ran() -> bool:
            return bool(work.ran)

        await eventually(ran, "it reads")
        login.revoke(Right(TOPIC, name, READ))
        with pytest.raises(PermissionDenied, match=rf"{name}.*TOPIC_AUTHORIZATION_FAILED"):
            await asyncio.wait_for(serving, PATIENCE)
    assert len(work.ran) == 1


async def test_a_retry_channel_that_may_no_longer_be_written_holds_what_fails(
    guarded_server: Server, name: str
) -> None:
    """Its right says nothing of the messages: none is a dead letter, none runs again, and all go on when it is back."""
    queue, room = Queue[Any](name, partitions=1), f"{name}.retry.50ms"
    write = Right(TOPIC, room, WRITE)
    login = Login(guarded_server, spelled(documented(name), [name, *(name + each for each in FAILURES)]))
    work = Working(login.url(), queue)

    def told(count: str) -> int:
        return sum(status.counts.get(count, 0) for status in work.service.status())

    async with owner(guarded_server) as admin, work.service:
        login.revoke(write)
        await work.service.broker.publish_many(queue, [b"x"] * 20)

        async def refused() -> bool:
            return any(
                f"20 wait for a channel that takes no copies: permission: topic {room}" in status.detail
                for status in work.service.status()
            )

        await eventually(refused, "each copy is refused, and the status says why")
        assert (len(work.ran), told("dead"), told("retried")) == (20, 0, 20)
        work.healed = True
        login.grant(write)
        await eventually(lambda: done(admin, Source(queue)), "they are moved")

        async def over() -> bool:
            return told("done") == 20

        await eventually(over, "they ran once more")
        assert (len(work.ran), told("dead")) == (40, 0)
        assert not (await admin.backlog(Source(Queue(f"{name}.dlq")))).waiting
