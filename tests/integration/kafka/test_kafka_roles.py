"""Who needs which rights, role by role, and what happens without them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from kafka_kit import opened
from kafka_rights import (
    ALTER_CONFIGS,
    CONFIGS,
    CREATE,
    DELETE,
    DESCRIBE,
    GROUP,
    IDS,
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
    without,
)
from kafka_servers import Server

from atleastonce import Context, FailurePolicy, Queue, Rejected, RequestTimeout, Service, connect
from atleastonce.channels import Source
from atleastonce.contract import Code, Topology
from atleastonce.errors import PermissionDenied

pytestmark = pytest.mark.timeout(120, func_only=True)


@pytest.mark.parametrize(
    "may", [[WRITE], [DESCRIBE], [READ], []], ids=lambda may: "-".join(o.name for o in may) or "nothing"
)
async def test_who_publishes_needs_write_alone(guarded_server: Server, name: str, may: list[Any]) -> None:
    queue = Queue[Any](name)
    async with owner(guarded_server, name):
        login = Login(guarded_server, [Right(TOPIC, name, operation) for operation in may])
        async with connect(login.url()) as broker:
            if WRITE in may:
                await broker.publish(queue, b"x")
                return
            for _ in range(2):  # the second one is refused as the first
                with pytest.raises((Rejected, PermissionDenied), match=name) as refused:
                    await broker.publish(queue, b"x")
                assert re.search("permission|TOPIC_AUTHORIZATION_FAILED", str(refused.value))


@pytest.mark.parametrize("may", [[DESCRIBE], []], ids=["seen", "unseen"])
async def test_a_topic_that_may_not_be_written_costs_its_neighbours_nothing(
    guarded_server: Server, name: str, may: list[Any]
) -> None:
    good, bad = Queue[Any](f"{name}.good"), Queue[Any](f"{name}.bad")
    async with owner(guarded_server, good.name, bad.name):
        login = Login(guarded_server, [Right(TOPIC, good.name, WRITE), *(Right(TOPIC, bad.name, each) for each in may)])
        async with opened(login.url()) as adapter:
            outcomes = await send(adapter, good, bad, good)
    assert [outcome.ok for outcome in outcomes] == [True, False, True]
    assert outcomes[1].fault.code is Code.PERMISSION
    assert bad.name in outcomes[1].fault.detail


@pytest.mark.parametrize(
    ("topic", "group", "counted", "dated"),
    [
        (READ, DESCRIBE, 1, True),
        (DESCRIBE, DESCRIBE, 1, False),
        (READ, None, None, False),
        (None, DESCRIBE, None, False),
    ],
)
async def test_lag_needs_describe_and_for_an_age_read(
    guarded_server: Server, name: str, topic: Any, group: Any, counted: int | None, dated: bool
) -> None:
    rights = [Right(kind, name, each) for kind, each in ((TOPIC, topic), (GROUP, group)) if each is not None]
    async with owner(guarded_server, name), opened(Login(guarded_server, rights).url()) as adapter:
        found = await adapter.dated_backlog(Source(Queue(name)))
    assert (found.waiting, found.oldest_age is not None) == (counted, dated)
    assert dated or re.search(rf"{name}.*AUTHORIZATION_FAILED", found.detail)


async def test_dead_letters_need_what_is_documented(guarded_server: Server, name: str) -> None:
    dead = f"{name}.dlq"
    async with owner(guarded_server, name, dead):
        looks = [Right(TOPIC, dead, READ), Right(GROUP, dead, DESCRIBE)]
        async with connect(Login(guarded_server, looks).url()) as broker:
            letters = broker.dead_letters(Queue(name))
            assert len([letter async for letter in letters.letters()]) == 1
            with pytest.raises(PermissionDenied, match=name):
                await letters.redrive()
            with pytest.raises(PermissionDenied, match=dead):
                await letters.purge()
        moves = [Right(TOPIC, dead, READ), Right(GROUP, dead, READ), Right(TOPIC, name, WRITE)]
        async with connect(Login(guarded_server, moves).url()) as broker:
            assert (await broker.dead_letters(Queue(name)).redrive()).redriven == 1
        async with connect(Login(guarded_server, [Right(TOPIC, dead, DELETE)]).url()) as broker:
            await broker.dead_letters(Queue(name)).purge()


async def test_declaring_needs_what_is_documented(guarded_server: Server, name: str) -> None:
    rights = [Right(TOPIC, name, each, prefixed=True) for each in (CREATE, DESCRIBE, CONFIGS)]
    home = Source(Queue(name, partitions=1))
    wanted = Topology(channels=(home.channel,), sources=(home,), dead_letters=(home.dead_letter_channel,))
    async with opened(Login(guarded_server, rights).url()) as adapter:
        assert list(await adapter.declare(wanted)) == []
        assert list(await adapter.declare(wanted, create=False)) == []
        assert await adapter.inspect(wanted)


# ------------------------------------------------------------------------------------------ transactions and the rest


async def test_transactions_need_their_ids_and_are_refused_before_anything_runs(
    guarded_server: Server, name: str
) -> None:
    rights = documented(name)
    queue, out = Queue[Any](name, partitions=1), Queue[Any](f"{name}.out", partitions=1)
    async with owner(guarded_server, name, out.name) as admin:
        work = Working(Login(guarded_server, rights).url(), queue, transactions=True)
        error = await work.refused()
        assert isinstance(error, PermissionDenied)
        assert re.search(rf"{name}.*TRANSACTIONAL_ID_AUTHORIZATION_FAILED", str(error))
        assert not work.ran
        healed = Working(
            Login(guarded_server, [*rights, Right(IDS, f"{name}.", WRITE, True)]).url(), queue, transactions=True
        )
        async with healed.service:

            async def dead() -> bool:
                return (await admin.backlog(Source(Queue(f"{name}.dlq")))).waiting >= 1

            await eventually(dead, "it went through its retry and is a dead letter")
        assert len(healed.ran) == 2


async def test_a_topic_that_may_not_be_written_costs_a_transaction_its_own_message_alone(
    guarded_server: Server, name: str
) -> None:
    queue, out = Queue[Any](name, partitions=1), Queue[Any](f"{name}-out", partitions=1)
    ids = Right(IDS, f"{name}.", WRITE, True)
    write = Right(TOPIC, out.name, WRITE)
    login = Login(guarded_server, [*documented(name), ids, write, Right(TOPIC, out.name, DESCRIBE)])
    service = Service("worker", broker=login.url())
    runs: list[bytes] = []

    @service.consumer(queue, transactions=True, failure=FailurePolicy(in_place=None))
    async def handle(body: bytes, context: Context) -> None:
        runs.append(body)
        if body == b"out":
            context.publish(out, b"y")

    async with owner(guarded_server, out.name) as admin, service:

        async def moved(count: int) -> bool:
            return await done(admin, Source(queue)) and len(runs) == count

        await service.broker.publish(queue, b"out")
        await eventually(lambda: moved(1), "it is handed off")
        login.revoke(write)
        for body in (b"out", b"in"):
            await service.broker.publish(queue, body)
        await eventually(lambda: moved(3), "both are done")
        (letter,) = [each async for each in service.broker.dead_letters(queue).letters()]
        assert "grant WRITE on it" in str(letter.message.headers.get("alo-error-message"))


@pytest.mark.parametrize("missing", [None, "read", "seen", "answer"])
async def test_requests_need_the_topic_of_answers(guarded_server: Server, name: str, missing: str | None) -> None:
    queue = Queue[Any](name, partitions=1)
    answers = {None: [READ, CREATE], "read": [DESCRIBE], "seen": [], "answer": [READ]}[missing]
    asks = [Right(TOPIC, name, WRITE), *(Right(TOPIC, "alo.replies", each) for each in answers)]
    rights = documented(name) + ([] if missing == "answer" else [Right(TOPIC, "alo.replies", WRITE)])
    service = Service("worker", broker=Login(guarded_server, rights).url())

    @service.responder(queue)
    async def handle(body: dict[str, int]) -> dict[str, int]:
        return {"n": body["n"] + 1}

    async with owner(guarded_server, "alo.replies"), service, connect(Login(guarded_server, asks).url()) as broker:
        if missing is None:
            assert await broker.request(queue, {"n": 1}, timeout="15s") == {"n": 2}
        elif missing == "answer":
            with pytest.raises(RequestTimeout):
                await broker.request(queue, {"n": 1}, timeout="3s")
            assert service.status()[0].counts["unheard"] == 1
        else:
            with pytest.raises(PermissionDenied, match=r"alo\.replies"):
                await broker.request(queue, {"n": 1}, timeout="15s")


@pytest.mark.parametrize("missing", [(), (READ,), (ALTER_CONFIGS,), (CONFIGS, ALTER_CONFIGS)])
async def test_share_groups_need_their_settings_too(guarded_server: Server, name: str, missing: Sequence[Any]) -> None:
    more = [Right(GROUP, name, each) for each in (CONFIGS, ALTER_CONFIGS)]
    rights = without([*documented(name), *more], *(Right(GROUP, name, each) for each in missing))
    work = Working(Login(guarded_server, rights).url("&share.groups=true"), Queue(name, partitions=1))
    if missing:
        error = await work.refused()
        assert isinstance(error, PermissionDenied)
        assert re.search(rf"{name}.*GROUP_AUTHORIZATION_FAILED", str(error))
        return
    work.healed = True
    async with work.service:
        await work.service.broker.publish(Queue(name), b"x")

        async def ran() -> bool:
            return bool(work.ran)

        await eventually(ran, "it reads")
