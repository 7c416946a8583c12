"""atleastonce as a user writes it, with its defaults; and the adapter driven by hand, which shows what the engine adds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from atleastonce import Context, Queue, Service, Topic
from atleastonce.adapters import open_adapter
from atleastonce.broker import Broker, connect
from atleastonce.channels import Source
from atleastonce.contract import ACK, Topology, Window
from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_BATCH = 500
_LIST = 5000
# As many as the raw loop has in flight, where that is more than our default and each round trip is dear.
_IN_FLIGHT = {"pubsub": 4000}


def channel_of(job: Job) -> Queue[Order] | Topic[Order]:
    """A topic where the broker is a log; else a queue."""
    return Topic(job.channel, Order, partitions=4) if job.broker == "kafka" else Queue(job.channel, Order)


def source_of(job: Job) -> Source:
    channel = channel_of(job)
    return Source(channel, job.group if isinstance(channel, Topic) else None)


def run(job: Job) -> Result:
    if job.scenario == "publish_many":
        return asyncio.run(_publish_many(job))
    if job.scenario == "publish_each":
        return asyncio.run(_publish_each(job))
    if job.contender == "adapter":
        return asyncio.run(_adapter(job))
    return asyncio.run(_in_memory(job) if job.broker == "memory" else _service(job))


async def load(job: Job) -> None:
    """Fill the channel through ours, where nobody else can."""
    async with connect(job.url) as broker:
        await broker.publish_many(channel_of(job), [msgspec.json.decode(body(n)) for n in range(job.messages)])


async def declare(job: Job) -> None:
    """Make the channel as a service of ours would, dead letters and all, for every contender to use."""
    service = Service(job.group, broker=job.url)

    @service.consumer(channel_of(job))
    async def nothing(order: Order) -> None: ...

    async with service:
        pass


async def remaining(job: Job) -> int:
    """What waits or is unsettled; where the broker does not say, an error."""
    async with connect(job.url) as broker:
        backlog = await broker.backlog(channel_of(job), source_of(job).group)
    if backlog.waiting is None:
        raise RuntimeError(f"{job.channel}: the backlog is unknown: {backlog.detail}")
    return backlog.waiting + (backlog.in_flight or 0)


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""

    async def run() -> None:
        async with connect(job.url) as broker:
            await _feed(broker, job)

    asyncio.run(run())


async def _feed(broker: Broker, job: Job) -> None:
    begin = time.perf_counter()
    for n in range(job.messages):
        await asyncio.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
        await broker.publish(channel_of(job), msgspec.json.decode(stamped(n), type=Order))


def _consumer(job: Job, finished: Callable[[], None]) -> tuple[Service, Meter]:
    """A service whose handler meters, and calls ``finished`` with the last message."""
    meter = Meter(job, finished)
    handled = meter.handled
    service = Service(job.group, broker=job.url)
    channel = channel_of(job)
    window = _IN_FLIGHT.get(job.broker)

    if job.scenario == "batch":

        @service.batch_consumer(channel, max_messages=_BATCH, max_in_flight=window)
        async def many(orders: list[Order]) -> None:
            for order in orders:
                handled(order)

    elif job.scenario == "sync":

        @service.consumer(channel, concurrency=1, max_in_flight=window)  # the meter is not made for several threads
        def sync(order: Order) -> None:
            handled(order)

    elif job.scenario == "context":

        @service.consumer(channel, max_in_flight=window)
        async def one(order: Order, ctx: Context) -> None:
            _ = ctx.message.id
            handled(order)

    else:

        @service.consumer(channel, max_in_flight=window)
        async def one(order: Order) -> None:
            handled(order)

    return service, meter


async def _service(job: Job) -> Result:
    """What ``atleastonce run`` does: `Service.serve` in a process of its own."""
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()
    service, meter = _consumer(job, lambda: loop.call_soon_threadsafe(finished.set))
    serving = asyncio.create_task(service.serve(tune_gc=True))
    told = asyncio.create_task(finished.wait())
    await asyncio.wait([serving, told], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
        raise RuntimeError("the service ended before the last message")
    result = await _settled(service, meter)
    service.request_stop()
    await serving
    return result


async def _in_memory(job: Job) -> Result:
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()
    service, meter = _consumer(job, lambda: loop.call_soon_threadsafe(finished.set))
    async with connect(job.url) as broker:  # the same process, so the same broker
        await broker.declare(channel_of(job), source_of(job))
        if job.scenario != "latency":
            await broker.publish_many(channel_of(job), [msgspec.json.decode(body(n)) for n in range(job.messages)])
        async with service:
            if job.scenario == "latency":
                await _feed(broker, job)
            await finished.wait()
            result = await _settled(service, meter)
        left = (await broker.backlog(channel_of(job))).waiting
        if left:
            raise RuntimeError(f"{left} messages were not settled")
        return result


async def _settled(service: Service, meter: Meter) -> Result:
    while any(status.in_flight for status in service.status()):  # noqa: ASYNC110 - what is timed is not made to signal
        await asyncio.sleep(0.0005)
    return meter.result()


class _Listener:
    """For a subscription that no engine reads."""

    async def drain(self, streams: Any, grace: float) -> None: ...

    def lost(self, streams: Any) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...


async def _adapter(job: Job) -> Result:
    meter = Meter(job)
    handled = meter.handled
    decode = msgspec.json.Decoder(Order).decode
    adapter = open_adapter(job.url)
    await adapter.open()
    if job.broker == "memory":
        async with connect(job.url) as broker:
            await broker.publish_many(channel_of(job), [msgspec.json.decode(body(n)) for n in range(job.messages)])
    source = source_of(job)
    await adapter.declare(Topology(channels=(channel_of(job),), sources=(source,)))
    subscription = await adapter.subscribe(source, Window(1000, 64 * 2**20), _Listener())
    settling: asyncio.Task[Any] | None = None
    while not meter.done:
        batch = await subscription.receive(_BATCH, 5.0)
        for delivery in batch:
            _ = delivery.message.headers.get(ID_HEADER)
            handled(decode(delivery.message.body))
        if settling is not None:
            await settling
        settling = asyncio.create_task(_settle(subscription, batch))
        await asyncio.sleep(0)
    if settling is not None:
        await settling
    result = meter.result()
    await subscription.close()
    await adapter.close()
    return result


async def _settle(subscription: Any, batch: Any) -> None:
    outcomes = await subscription.settle([(delivery, ACK) for delivery in batch])
    if not all(outcome.ok for outcome in outcomes):
        raise RuntimeError("a settlement failed")


async def _publish_many(job: Job) -> Result:
    meter = Meter(job)
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    async with connect(job.url) as broker:
        await broker.publish(channel_of(job), orders[0])  # not timed: connection, declaration
        fields = dict(headers(0)[2:])
        meter.begin()
        for begin in range(0, len(orders), _LIST):
            outcomes = await broker.publish_many(channel_of(job), orders[begin : begin + _LIST], headers=fields)
            if not all(outcome.ok for outcome in outcomes):
                raise RuntimeError("a publish was not confirmed")
        return meter.result()


async def _publish_each(job: Job) -> Result:
    meter = Meter(job)
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    async with connect(job.url) as broker:
        channel, fields = channel_of(job), dict(headers(0)[2:])
        await broker.publish(channel, orders[0])
        rest = iter(orders)

        async def caller() -> None:
            for order in rest:
                begin = time.perf_counter()
                await broker.publish(channel, order, headers=fields)
                meter.delays.append(time.perf_counter() - begin)

        meter.begin()
        await asyncio.gather(*(caller() for _ in range(job.concurrency)))
        return meter.result()
