"""Networks between a consumer and its store: silent, slow, cut, and such that only the replies are lost; and stores that are full.

Whatever it is: the source pauses, no attempt is burnt, and each message has its effect once.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from once_kit import Database, Order, counts, settled, until
from small_disk import Disk, Memory, NoDisk, mounted, mysql_on, postgres_on, redis_on
from throttle import throttled

from atleastonce import Context, FailurePolicy, Inbox, Lease, Queue, Service
from atleastonce.brokers import Running
from atleastonce.stores import open_store
from atleastonce.testing.brokers import PrivateBroker
from atleastonce.testing.proxy import FaultProxy

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120, func_only=True)]

INBOXES = [("postgres", "inbox"), ("postgres", "inbox batch"), ("mysql", "inbox"), ("mysql", "inbox batch")]
LEASES = [("postgres", "lease"), ("mysql", "lease"), ("redis", "lease"), ("dynamodb", "lease")]
ALL = pytest.mark.parametrize(("store", "mode"), [*INBOXES, *LEASES])
CONCURRENCY = 4


class Shop:
    """A consumer whose store is behind a proxy, and what came of it."""

    def __init__(self, url: str, direct: str, mode: str, prefix: str = "") -> None:
        options: dict[str, Any] = {"timeout": "1s", "connect_timeout": "1s"}
        kind = direct.partition(":")[0]
        if kind == "sqlite":
            options = {}
        elif kind == "dynamodb":
            options = {"create": True, "timeout": "1s", "margin": 1.5}
        else:
            options |= {"prefix": prefix or f"f{uuid.uuid4().hex[:8]}"} | ({} if kind == "redis" else {"create": True})
        self.store = open_store(url, options)
        self.mode = mode
        self.database = None
        if "inbox" in mode:
            where = direct.removeprefix("sqlite:///") if kind == "sqlite" else direct
            self.database = Database("postgres" if kind == "postgresql" else kind, where)
        self.queue: Queue[Order] = Queue("orders", Order)
        self.service = Service("shop", broker=f"memory://{uuid.uuid4().hex}")
        self.runs: Counter[int] = Counter()
        self.attempts: set[int] = set()
        self.inside = 0
        self.open = asyncio.Event()
        self.open.set()
        self.published = 0
        asked: Any = Inbox(self.store) if self.database is not None else Lease(self.store)  # type: ignore[arg-type]
        policy: dict[str, Any] = {"idempotency": asked, "failure": FailurePolicy(in_place=None, chain=None)}
        if mode.endswith("sync"):
            self.service.consumer(self.queue, concurrency=CONCURRENCY, **policy)(self.on_a_thread)
        elif mode.endswith("batch"):
            self.service.batch_consumer(self.queue, max_messages=5, max_wait="20ms", **policy)(self.many)
        else:
            self.service.consumer(self.queue, concurrency=CONCURRENCY, **policy)(self.one)

    async def one(self, order: Order, ctx: Context) -> None:
        await self.handle([order], [ctx])

    def on_a_thread(self, order: Order, ctx: Context) -> None:
        assert self.database is not None
        self.attempts.add(ctx.attempt)
        self.database.execute_sync(ctx, self.database.insert, (order.n,))

    async def many(self, orders: list[Order], contexts: list[Context]) -> None:
        await self.handle(orders, contexts)

    async def handle(self, orders: list[Order], contexts: list[Context]) -> None:
        self.attempts.update(ctx.attempt for ctx in contexts)
        for order, ctx in zip(orders, contexts, strict=True):
            if self.database is not None:
                await self.database.effect(ctx, order.n)
            self.runs[order.n] += 1
        self.inside += 1
        await self.open.wait()
        self.inside -= 1

    async def publish(self, count: int) -> None:
        first, self.published = self.published, self.published + count
        await self.service.broker.publish_many(
            self.queue, [Order(n) for n in range(first, self.published)], id=lambda order: f"o{order.n}"
        )

    @property
    def ended(self) -> int:
        return counts(self.service)["done"] + counts(self.service)["duplicates"]

    @property
    def paused(self) -> bool:
        return any(each.state == "paused" and "store unavailable" in each.detail for each in self.service.status())

    async def accounted(self) -> None:
        """All has ended, with one effect each and no attempt burnt."""
        await until(lambda: self.ended == self.published and settled(self.service), self.service, within=60)
        effects = self.runs if self.database is None else self.database.effects()
        assert effects == Counter(range(self.published))
        assert self.attempts == {1}
        assert not counts(self.service)["dead"] + counts(self.service)["retried"]


Through = Callable[[str, str], Any]


@pytest.fixture
def through(request: pytest.FixtureRequest, toxiproxy_broker: Running) -> Through:
    """A shop whose store is reached through a proxy."""

    @asynccontextmanager
    async def made(store: str, mode: str) -> AsyncIterator[tuple[FaultProxy, Shop]]:
        if store == "dynamodb":  # an emulator
            url = request.getfixturevalue("sqs_url").replace("sqs://", "dynamodb://test:test@")
            url += f"/f{uuid.uuid4().hex[:8]}"
        else:
            url = request.getfixturevalue(f"{store}_url")
        parts = urlsplit(url)
        async with FaultProxy(toxiproxy_broker.url, f"{parts.hostname}:{parts.port}") as proxy:
            user = parts.netloc.rpartition("@")[0]
            shop = Shop(parts._replace(netloc=f"{user}@{proxy.address}" if user else proxy.address).geturl(), url, mode)
            async with shop.service:
                yield proxy, shop
        if shop.database is not None:
            shop.database.query(f"DROP TABLE {shop.database.table}")

    return made


@pytest.mark.parametrize(("store", "mode"), [*INBOXES, ("postgres", "inbox sync"), ("mysql", "inbox sync"), *LEASES])
async def test_a_store_that_goes_silent(through: Through, store: str, mode: str) -> None:
    """Nothing is refused, nothing is answered: noticed by the store's own time limit, not by the kernel's."""
    async with through(store, mode) as (proxy, shop):
        await shop.publish(40)
        await until(lambda: shop.ended >= 5, shop.service)
        async with proxy.black_hole():
            await shop.publish(40)
            await until(lambda: shop.paused, shop.service)
        await shop.accounted()
        # Its relay asks for itself, and may hear later that the store is back.
        await until(lambda: {each.state for each in shop.service.status()} == {"running"}, shop.service)


@ALL
async def test_a_slow_store(through: Through, store: str, mode: str) -> None:
    """Within its time limit it is slow, not away."""
    async with through(store, mode) as (proxy, shop):
        await shop.publish(10)
        await shop.accounted()
        async with proxy.slow(0.04):  # a call of the store is several round trips, together within its second
            await shop.publish(30)
            while shop.ended < shop.published:
                assert not shop.paused
                await asyncio.sleep(0.02)
        await shop.accounted()


@ALL
async def test_connections_to_the_store_that_are_reset(through: Through, store: str, mode: str) -> None:
    async with through(store, mode) as (proxy, shop):
        for _ in range(3):
            await shop.publish(20)
            await until(lambda: shop.ended >= shop.published - 15, shop.service)
            await proxy.reset()
        await shop.publish(20)
        await shop.accounted()


@pytest.mark.parametrize(("store", "mode"), LEASES)
async def test_a_reply_that_is_lost_after_the_completion(through: Through, store: str, mode: str) -> None:
    """The handlers are at their end when the replies begin to be lost, so what is lost are those to the completions. (An inbox asks
    a question before it commits, which is lost instead: ``test_once_guarantees`` loses its commits'.)"""
    async with through(store, mode) as (proxy, shop):
        await shop.publish(10)
        await shop.accounted()
        shop.open.clear()
        await shop.publish(20)
        await until(lambda: shop.inside >= CONCURRENCY, shop.service)
        async with proxy.deaf():
            shop.open.set()
            await until(lambda: shop.paused, shop.service)
            assert not settled(shop.service)
        await shop.accounted()


# -------------------------------------------------------------------------------------------------------------- disk full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        with mounted(tmp_path / "small") as made:
            yield made
    except NoDisk as why:
        pytest.skip(str(why))


class Room(Protocol):
    """What a store needs to write, and what can be taken from it."""

    def fill(self) -> None: ...

    def free(self) -> None: ...


async def until_full(shop: Shop, room: Room, *words: str) -> None:
    """A consumer runs into the end of its store's room, waits, says why with one of ``words``, and goes on when there is room."""
    async with shop.service:
        await shop.publish(20)
        await shop.accounted()
        await asyncio.to_thread(room.fill)
        details: list[str] = []
        while not details:
            await shop.publish(50)
            await asyncio.sleep(0.1)
            assert shop.published < 5000, "it never ran into the end"
            details = [each.detail for each in shop.service.status() if each.state == "paused" and each.detail]
        assert any(word in details[0] for word in words or ("space", "full")), details
        await asyncio.to_thread(room.free)
        await shop.accounted()


DISK_MODES = pytest.mark.parametrize("mode", ["inbox", "inbox batch", "lease"])


@DISK_MODES
async def test_a_full_disk_of_postgresql(postgres_url: str, disk: Disk, mode: str) -> None:
    try:
        with postgres_on(disk, postgres_url) as url:
            await until_full(Shop(url, url, mode), disk)
    except NoDisk as why:
        pytest.skip(str(why))


@DISK_MODES
async def test_a_full_disk_of_mysql(mysql_url: str, disk: Disk, mode: str) -> None:
    prefix = f"f{uuid.uuid4().hex[:8]}"
    try:
        with mysql_on(disk, mysql_url, prefix):
            await until_full(Shop(mysql_url, mysql_url, mode, prefix), disk)
    except NoDisk as why:
        pytest.skip(str(why))


@DISK_MODES
async def test_a_full_disk_of_sqlite(disk: Disk, mode: str) -> None:
    url = f"sqlite:///{disk.place}/shop.db"
    await until_full(Shop(url, url, mode), disk)


async def test_a_full_disk_of_redis(private_broker: PrivateBroker, tmp_path: Path) -> None:
    """A Redis that cannot write its append-only file refuses all writes (MISCONF)."""
    with private_broker("redis") as server:
        try:
            with redis_on(tmp_path / "small", server, sync="everysec") as disk:
                await until_full(Shop(server.url, server.url, "lease"), disk, "MISCONF")
        except NoDisk as why:
            pytest.skip(str(why))


class _Ends:
    """A disk whose end is that of the server on it, which is started again when there is room."""

    def __init__(self, disk: Disk, server: Running) -> None:
        self.fill = disk.fill
        self._disk, self._server = disk, server

    def free(self) -> None:
        assert not self._server.is_alive(), "it has not ended itself"
        self._disk.free()
        self._server.start()


async def test_a_full_disk_of_a_redis_that_syncs_always(private_broker: PrivateBroker, tmp_path: Path) -> None:
    """It ends itself, rather than confirm what it could not write. What it had confirmed is there when it starts again."""
    with private_broker("redis") as server:
        try:
            with redis_on(tmp_path / "small", server, sync="always") as disk:
                await until_full(Shop(server.url, server.url, "lease"), _Ends(disk, server), "onnect", "closed")
        except NoDisk as why:
            pytest.skip(str(why))


async def test_a_redis_whose_memory_is_full(private_broker: PrivateBroker) -> None:
    """With ``maxmemory-policy noeviction`` it refuses writes (OOM); with any other it would forget claims, and is refused."""
    with private_broker("redis") as server:
        await until_full(Shop(server.url, server.url, "lease"), Memory(server), "maxmemory")


async def test_a_dynamodb_whose_capacity_is_used_up(sqs_url: str) -> None:
    """Writes are refused (``ProvisionedThroughputExceededException``), beyond what boto3 itself tries again."""
    parts = urlsplit(sqs_url)
    with throttled(f"{parts.hostname}:{parts.port}") as proxy:
        url = f"dynamodb://test:test@{proxy.address}/f{uuid.uuid4().hex[:8]}"
        await until_full(Shop(url, url, "lease"), proxy, "throughput")
        assert proxy.refused


class _Table:
    """One that somebody drops, and makes again."""

    def __init__(self, shop: Shop) -> None:
        self._store: Any = shop.store

    def fill(self) -> None:
        self._store._client.delete_table(TableName=self._store._table)

    def free(self) -> None:
        asyncio.run(self._store.init())


async def test_a_dynamodb_table_that_is_gone(sqs_url: str) -> None:
    """Nobody's attempt: its messages wait until people have made it again. (What was remembered in it is gone.)"""
    url = sqs_url.replace("sqs://", "dynamodb://test:test@") + f"/f{uuid.uuid4().hex[:8]}"
    shop = Shop(url, url, "lease")
    await until_full(shop, _Table(shop), "ResourceNotFound", "not found")
