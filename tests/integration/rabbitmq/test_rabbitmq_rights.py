"""What a user may do: the rights that the documentation names are enough, and each that is missing is told by name."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from rabbitmq_kit import opened, outgoing, prepared
from rabbitmq_rights import Host, Rights, documented, rights

from atleastonce import FailurePolicy, Queue, Rejected, RetryChain, Service, Topic, connect
from atleastonce.brokers import Running
from atleastonce.channels import Channel, Source
from atleastonce.contract import Topology
from atleastonce.errors import AtLeastOnceError, ConfigurationError, PermissionDenied

pytestmark = pytest.mark.timeout(120, func_only=True)

PATIENCE = 60.0
DEFAULT = "amq.default"
FAILURES = (".retry.50ms", ".dlq", ".suspects")


@pytest.fixture(scope="module")
def host(rabbitmq_broker: Running) -> Iterator[Host]:
    if "management" not in rabbitmq_broker.addresses:
        pytest.skip("no management API to make users with")
    made = Host(rabbitmq_broker)
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    return f"rights-{uuid.uuid4().hex[:8]}"


class Working:
    """A service whose handler fails until it is ``healed``; one retry."""

    def __init__(self, url: str, channel: Channel[Any], group: str | None = None, *, create: bool = True) -> None:
        self.url = url
        self.ran: list[bytes] = []
        self.healed = False
        self.service = Service("worker", broker=url, create=create)
        where = {} if group is None else {"group": group}

        @self.service.consumer(channel, failure=FailurePolicy(in_place=None, chain=RetryChain("50ms")), **where)
        async def handle(body: bytes) -> None:
            self.ran.append(body)
            if not self.healed:
                raise ValueError("no")

    async def refused(self) -> AtLeastOnceError:
        """What it ends with by itself."""
        with pytest.raises(AtLeastOnceError) as ended:
            await asyncio.wait_for(self.service.serve(), PATIENCE)
        assert not self.ran
        return ended.value


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"it never happened that {what}"
        await asyncio.sleep(0.05)


def all_of(name: str) -> Rights:
    """What a service needs on queue ``name``, spelled out."""
    queues = [name, *(name + each for each in FAILURES)]
    return rights(queues, [DEFAULT], queues)


def all_of_topic(name: str) -> Rights:
    """The same on topic ``name`` for group billing."""
    home = f"{name}.billing"
    queues = [home, *(home + each for each in FAILURES)]
    return rights([name, *queues], [DEFAULT, name, home], [name, *queues])


async def works(work: Working, channel: Channel[Any], group: str | None = None) -> None:
    """Retries, dead letters, a look at them, redrive and backlog."""
    home = Source(channel, group)
    async with work.service, connect(work.url, create=False) as broker:
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
            return len(work.ran) == 3 and (await broker.backlog(home)).waiting == 0

        await eventually(done, "it was redriven and is done")
        assert (await letters.purge()).purged == 0


@pytest.mark.parametrize("group", [None, "billing"], ids=["queue", "topic"])
async def test_the_documented_rights_are_enough(host: Host, name: str, group: str | None) -> None:
    channel: Channel[Any] = Queue(name) if group is None else Topic(name)
    await works(Working(host.user(documented(name)), channel, group), channel, group)


async def test_the_spelled_out_rights_are_enough(host: Host, name: str) -> None:
    await works(Working(host.user(all_of(name)), Queue(name)), Queue(name))
    topic = Topic[Any](f"{name}.t")
    await works(Working(host.user(all_of_topic(topic.name)), topic, "billing"), topic, "billing")


async def test_who_may_not_configure_needs_no_more_with_create_false(host: Host, name: str) -> None:
    async with Working(host.owner, Queue(name)).service:
        pass  # everything is there
    login = host.user(all_of(name)._replace(configure=frozenset()))
    await works(Working(login, Queue(name), create=False), Queue(name))


def each_right() -> list[Any]:
    missing = [("configure", each) for each in ("", *FAILURES)] + [("write", DEFAULT)]
    # The dead letters are declared without a way on, and read by nobody but a person.
    missing += [("read", each) for each in ("", ".retry.50ms", ".suspects")]
    return [pytest.param(*each, id=f"{each[0]}-{each[1] or 'home'}") for each in missing]


@pytest.mark.parametrize(("right", "what"), each_right())
async def test_each_right_that_is_missing_for_declaring_is_told_by_name(
    host: Host, name: str, right: str, what: str
) -> None:
    lacks = what if what == DEFAULT else name + what
    error = await Working(host.user(all_of(name).without(right, lacks)), Queue(name)).refused()
    assert isinstance(error, PermissionDenied)
    assert re.search(
        rf"ACCESS_REFUSED.*'{re.escape(lacks)}'.*needs configure and read on it, and write on amq", str(error)
    )


@pytest.mark.parametrize(
    ("right", "what", "said"),
    [
        ("configure", "", "configure"),
        ("write", ".billing", "to bind"),
        ("read", "", "to bind"),
        ("write", DEFAULT, DEFAULT),
    ],
)
async def test_each_right_that_is_missing_for_a_topic_is_told_by_name(
    host: Host, name: str, right: str, what: str, said: str
) -> None:
    lacks = what if what == DEFAULT else name + what
    error = await Working(host.user(all_of_topic(name).without(right, lacks)), Topic(name), "billing").refused()
    assert isinstance(error, PermissionDenied)
    assert re.search(rf"ACCESS_REFUSED.*'{re.escape(lacks)}'", str(error))
    assert said in str(error)


@pytest.mark.parametrize(
    ("right", "what", "kind", "said"),
    [
        ("configure", ".dlq", PermissionDenied, r"\.dlq.*needs configure"),
        ("read", "", PermissionDenied, "reading .*ACCESS_REFUSED"),
        ("write", DEFAULT, ConfigurationError, r"may not write it; grant write on amq\.default"),
    ],
)
async def test_who_lacks_a_right_on_what_exists_runs_nothing(
    host: Host, name: str, right: str, what: str, kind: type[AtLeastOnceError], said: str
) -> None:
    async with Working(host.owner, Queue(name)).service:
        pass
    async with opened(host.owner) as owner:
        await owner.send(outgoing(Queue(name)))
        lacks = what if what == DEFAULT else name + what
        error = await Working(host.user(all_of(name).without(right, lacks)), Queue(name)).refused()
        assert isinstance(error, kind)
        assert re.search(said, str(error))
        assert (await owner.backlog(Source(Queue(name)))).waiting == 1


async def test_who_may_not_read_suspects_ends_when_there_is_one(host: Host, name: str) -> None:
    async with Working(host.owner, Queue(name)).service:
        pass
    login = host.user(all_of(name).without("read", f"{name}.suspects"))
    async with opened(host.owner) as owner:
        await owner.send(outgoing(Queue(f"{name}.suspects")))
        error = await Working(login, Queue(name)).refused()
    assert isinstance(error, PermissionDenied)
    assert re.search(rf"reading {name}\.suspects: ACCESS_REFUSED", str(error))


async def test_a_reader_whose_right_is_taken_away_ends_at_its_reconnect(host: Host, name: str) -> None:
    login = host.user(all_of(name))
    work = Working(login, Queue(name))
    serving = asyncio.create_task(work.service.serve())

    async def reads() -> bool:
        return any(each.state == "running" for each in work.service.status())

    await eventually(reads, "it reads")
    host.allow(login, all_of(name).without("read", name))

    async def hung_up() -> bool:  # the management API hears of connections seconds later
        return serving.done() or await asyncio.to_thread(host.hang_up, login) > 1

    await eventually(hung_up, "its connections are ended")
    with pytest.raises(PermissionDenied, match=rf"reading {name}: ACCESS_REFUSED"):
        await asyncio.wait_for(serving, PATIENCE)


async def test_failures_that_cannot_be_moved_any_more_wait_and_run_once(
    host: Host, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    login = host.user(all_of(name))
    work = Working(login, Queue(name))
    async with work.service, opened(host.owner) as owner:
        host.allow(login, all_of(name).without("write", DEFAULT))  # no channel of it has published yet
        with caplog.at_level(logging.WARNING, "atleastonce.engine"):
            await owner.send(outgoing(Queue(name)))

            def refused() -> list[str]:
                return [each for each in caplog.messages if "could not be moved" in each and "permission" in each]

            async def twice() -> bool:
                return len(refused()) > 1

            await eventually(twice, "its copy was refused twice")
            assert len(work.ran) == 1
            assert "'amq.default'" in refused()[0]
            host.allow(login, all_of(name))

            async def dead() -> bool:
                return (await owner.backlog(Source(Queue(f"{name}.dlq")))).waiting == 1

            await eventually(dead, "it is moved once the right is back")


# ------------------------------------------------------------------------------------------------------------- roles


async def test_who_publishes_needs_the_exchange_alone(host: Host, name: str) -> None:
    queue, topic = Queue[Any](name), Topic[Any](f"{name}.t")
    async with opened(host.owner) as owner:
        await prepared(owner, Source(queue), Source(topic, "g"))
    for channel, exchange in ((queue, DEFAULT), (topic, topic.name)):
        async with connect(host.user(rights(write=[exchange])), create=False) as broker:
            await broker.publish(channel, b"x")
        async with connect(host.user(rights()), create=False) as broker:
            for _ in range(2):
                with pytest.raises(Rejected, match=rf"permission: ACCESS_REFUSED.*'{re.escape(exchange)}'"):
                    await broker.publish(channel, b"x")


async def test_a_delayed_publish_needs_its_room(host: Host, name: str) -> None:
    async with opened(host.owner) as owner:
        await prepared(owner, Source(Queue(name)))
    room = f"{name}.delay.5s"
    whole = rights([room], [DEFAULT], [room])
    async with connect(host.user(whole), create=False) as broker:
        await broker.publish(Queue(name), b"x", delay="5s")
    for right in ("configure", "read"):
        async with opened(host.owner) as owner:
            await owner.delete(Topology(channels=(Queue(room),)))
        async with connect(host.user(whole.without(right, room)), create=False) as broker:
            with pytest.raises(Rejected, match=rf"permission.*'{re.escape(room)}'"):
                await broker.publish(Queue(name), b"x", delay="5s")


async def test_lag_needs_nothing_and_dead_letters_what_is_documented(host: Host, name: str) -> None:
    dead = f"{name}.dlq"
    async with opened(host.owner) as owner:
        await prepared(owner, Source(Queue(name)), dead_letters=(Queue(dead),))
        await owner.send([*outgoing(Queue(name)), *outgoing(Queue(dead))])
    async with connect(host.user(rights()), create=False) as broker:
        assert (await broker.backlog(Queue(name))).waiting == 1
        with pytest.raises(PermissionDenied, match=dead):
            [letter async for letter in broker.dead_letters(Queue(name)).letters()]
    async with connect(host.user(rights(read=[dead])), create=False) as broker:
        letters = broker.dead_letters(Queue(name))
        assert len([letter async for letter in letters.letters()]) == 1
        moved = await letters.redrive()
        assert (moved.redriven, moved.failed) == (0, 1)
        assert moved.stopped
    async with connect(host.user(rights(write=[DEFAULT], read=[dead])), create=False) as broker:
        assert (await broker.dead_letters(Queue(name)).redrive()).redriven == 1
        await broker.publish(Queue(dead), b"x")
    async with connect(host.user(rights(read=[dead])), create=False) as broker:
        assert (await broker.dead_letters(Queue(name)).purge()).purged == 1


@pytest.mark.parametrize("missing", [None, "configure", "read", "answer"])
async def test_requests_need_their_inbox(host: Host, name: str, missing: str | None) -> None:
    answering = all_of(name)._replace(write=frozenset([] if missing == "answer" else [DEFAULT]))
    async with Working(host.owner, Queue(name)).service:
        pass
    inbox = r"^alo\.reply\..*$"
    asker = host.user(
        ("^$" if missing == "configure" else inbox, r"^amq\.default$", "^$" if missing == "read" else inbox)
    )
    service = Service("worker", broker=host.user(answering))

    @service.responder(Queue(name))
    async def handle(body: dict[str, int]) -> dict[str, int]:
        return {"n": body["n"] + 1}

    if missing == "answer":
        with pytest.raises(ConfigurationError, match=r"grant write on amq\.default"):
            await service.start()
        return
    async with service, connect(asker, create=False) as broker:
        if missing is None:
            assert await broker.request(Queue(name), {"n": 1}, timeout="15s") == {"n": 2}
        else:
            with pytest.raises(PermissionDenied, match=r"alo\.reply\."):
                await broker.request(Queue(name), {"n": 1}, timeout="15s")
