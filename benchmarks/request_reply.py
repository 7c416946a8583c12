"""Request-reply beside a raw client's own request loop, on one broker, in one run.

The raw loop is what one would write with the client library and nothing else: one inbox, a dictionary of futures by
correlation, a responder that decodes JSON, answers, and acknowledges. Each responder has a process of its own, on the same
kind of queue; answers are checked.

    python benchmarks/request_reply.py nats://127.0.0.1:4222 [--requests 2000] [--at-once 100] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from atleastonce import Queue, Service, connect

Ask = Callable[[int], Awaitable[int]]


class Question(msgspec.Struct):
    n: int


class Answer(msgspec.Struct):
    n: int


# ------------------------------------------------------------------------------------------------------------------- ours


async def serve_ours(url: str, name: str, ready: Any) -> None:
    service = Service("bench", broker=url)

    @service.responder(Queue(name, Question), concurrency=100)
    async def answer(question: Question) -> Answer:
        return Answer(question.n + 1)

    async with service:
        ready.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def ask_ours(url: str, name: str) -> AsyncIterator[Ask]:
    queue = Queue(name, Question)
    async with connect(url) as broker:

        async def ask(n: int) -> int:
            return (await broker.request(queue, Question(n), returns=Answer, timeout="30s")).n

        yield ask


# -------------------------------------------------------------------------------------------------------------------- nats


async def serve_nats(url: str, name: str, ready: Any) -> None:
    import nats

    client = await nats.connect(url)

    async def answer(message: Any) -> None:
        question = msgspec.json.decode(message.data, type=Question)
        await message.respond(msgspec.json.encode(Answer(question.n + 1)))

    await client.subscribe(name, queue="bench", cb=answer)
    await client.flush()
    ready.set()
    await asyncio.Event().wait()


@asynccontextmanager
async def ask_nats(url: str, name: str) -> AsyncIterator[Ask]:
    import nats

    client = await nats.connect(url)

    async def ask(n: int) -> int:
        message = await client.request(name, msgspec.json.encode(Question(n)), timeout=30)
        return msgspec.json.decode(message.data, type=Answer).n

    yield ask
    await client.close()


# ---------------------------------------------------------------------------------------------------------------- rabbitmq


async def _pika(url: str) -> Any:
    import pika
    from pika.adapters.asyncio_connection import AsyncioConnection

    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Any] = loop.create_future()
    address = url.replace("rabbitmq://", "amqp://", 1).rstrip("/") + "/%2F"
    AsyncioConnection(
        pika.URLParameters(address),
        on_open_callback=lambda connection: connection.channel(on_open_callback=opened.set_result),
        on_open_error_callback=lambda _, error: opened.set_exception(error),
        custom_ioloop=loop,
    )
    return await opened


async def _call(channel: Any, operation: str, **arguments: Any) -> Any:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    getattr(channel, operation)(callback=done.set_result, **arguments)
    return await done


async def serve_rabbitmq(url: str, name: str, ready: Any) -> None:
    import pika

    channel = await _pika(url)
    await _call(channel, "queue_declare", queue=name, durable=True, arguments={"x-queue-type": "quorum"})
    await _call(channel, "basic_qos", prefetch_count=100)

    def answer(_: Any, method: Any, properties: Any, body: bytes) -> None:
        question = msgspec.json.decode(body, type=Question)
        back = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish("", properties.reply_to, msgspec.json.encode(Answer(question.n + 1)), back)
        channel.basic_ack(method.delivery_tag)

    await _call(channel, "basic_consume", queue=name, on_message_callback=answer)
    ready.set()
    await asyncio.Event().wait()


@asynccontextmanager
async def ask_rabbitmq(url: str, name: str) -> AsyncIterator[Ask]:
    import pika

    channel = await _pika(url)
    waiting: dict[str, asyncio.Future[bytes]] = {}

    def answered(_: Any, __: Any, properties: Any, body: bytes) -> None:
        waiter = waiting.pop(properties.correlation_id, None)
        if waiter is not None:
            waiter.set_result(body)

    direct = "amq.rabbitmq.reply-to"
    await _call(channel, "basic_consume", queue=direct, on_message_callback=answered, auto_ack=True)

    async def ask(n: int) -> int:
        correlation = uuid.uuid4().hex
        waiter = waiting[correlation] = asyncio.get_running_loop().create_future()
        properties = pika.BasicProperties(reply_to=direct, correlation_id=correlation, delivery_mode=2)
        channel.basic_publish("", name, msgspec.json.encode(Question(n)), properties)
        async with asyncio.timeout(30):
            return msgspec.json.decode(await waiter, type=Answer).n

    yield ask
    channel.connection.close()
    await asyncio.sleep(0.1)


# ------------------------------------------------------------------------------------------------------------------- redis


async def serve_redis(url: str, name: str, ready: Any) -> None:
    import redis.asyncio as redis

    client = redis.from_url(url)
    await client.xgroup_create(name, "bench", id="0", mkstream=True)
    ready.set()
    while True:
        found = await client.xreadgroup("bench", "one", {name: ">"}, count=100, block=1000)
        for _, entries in found or ():
            async with client.pipeline(transaction=False) as pipe:
                for _, fields in entries:
                    question = msgspec.json.decode(fields[b"body"], type=Question)
                    answer = {
                        "body": msgspec.json.encode(Answer(question.n + 1)),
                        "correlation": fields[b"correlation"],
                    }
                    pipe.xadd(fields[b"reply-to"], answer)
                pipe.xack(name, "bench", *(id for id, _ in entries))
                pipe.xdel(name, *(id for id, _ in entries))
                await pipe.execute()


@asynccontextmanager
async def ask_redis(url: str, name: str) -> AsyncIterator[Ask]:
    import redis.asyncio as redis

    client, reader = redis.from_url(url), redis.from_url(url)
    inbox = f"{name}.inbox"
    waiting: dict[bytes, asyncio.Future[bytes]] = {}

    over = False

    async def read() -> None:
        last: Any = "0-0"
        while not over:  # a client that is cancelled while an answer comes may go on
            found = await reader.xread({inbox: last}, count=1000, block=1000)
            for _, entries in found or ():
                last = entries[-1][0]
                for _, fields in entries:
                    waiter = waiting.pop(fields[b"correlation"], None)
                    if waiter is not None:
                        waiter.set_result(fields[b"body"])

    reading = asyncio.create_task(read())

    async def ask(n: int) -> int:
        correlation = uuid.uuid4().hex.encode()
        waiter = waiting[correlation] = asyncio.get_running_loop().create_future()
        body = msgspec.json.encode(Question(n))
        await client.xadd(name, {"body": body, "correlation": correlation, "reply-to": inbox})
        async with asyncio.timeout(30):
            return msgspec.json.decode(await waiter, type=Answer).n

    yield ask
    over = True
    await reading
    await client.delete(inbox)  # and not what the responder still reads
    await client.aclose()
    await reader.aclose()


# ----------------------------------------------------------------------------------------------------------------- measure

RAW = {"nats": (serve_nats, ask_nats), "rabbitmq": (serve_rabbitmq, ask_rabbitmq), "redis": (serve_redis, ask_redis)}


def _serve(which: str, url: str, name: str, ready: Any) -> None:
    serve = serve_ours if which == "ours" else RAW[url.partition(":")[0]][0]
    asyncio.run(serve(url, name, ready))


async def _one_by_one(ask: Ask, count: int) -> list[float]:
    times = []
    for n in range(count):
        begin = time.perf_counter()
        assert await ask(n) == n + 1
        times.append(time.perf_counter() - begin)
    return times


async def _at_once(ask: Ask, count: int, width: int) -> tuple[float, float]:
    """Requests a second, and the asker's own processor time for each."""
    numbers = iter(range(count))

    async def caller() -> None:
        for n in numbers:
            assert await ask(n) == n + 1

    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(width)))
    return count / (time.perf_counter() - begin), (time.process_time() - cpu) / count


async def _round(which: str, url: str, name: str, requests: int, width: int) -> tuple[list[float], float, float]:
    asking = ask_ours if which == "ours" else RAW[url.partition(":")[0]][1]
    async with asking(url, name) as ask:
        await _one_by_one(ask, 50)
        times = await _one_by_one(ask, max(200, requests // 5))
        return times, *await _at_once(ask, requests, width)


def measure(url: str, requests: int, width: int, rounds: int) -> dict[str, Any]:
    """Raw and ours in turns, so that a slower minute of the machine is everybody's."""
    context = multiprocessing.get_context("spawn")
    times: dict[str, list[float]] = {"raw": [], "ours": []}
    rates: dict[str, list[float]] = {"raw": [], "ours": []}
    spent: dict[str, list[float]] = {"raw": [], "ours": []}
    for _ in range(rounds):
        for which in ("raw", "ours"):
            name, ready = f"bench.{uuid.uuid4().hex[:8]}", context.Event()
            server = context.Process(target=_serve, args=(which, url, name, ready), daemon=True)
            server.start()
            try:
                if not ready.wait(30):
                    raise SystemExit(f"{which}: the responder does not start")
                found, rate, cpu = asyncio.run(_round(which, url, name, requests, width))
            finally:
                server.kill()
                server.join()
            times[which] += found
            rates[which].append(rate)
            spent[which].append(cpu)
    report: dict[str, Any] = {"broker": url.partition(":")[0], "requests": requests, "at_once": width, "rounds": rounds}
    for which in ("raw", "ours"):
        cuts = statistics.quantiles(times[which], n=100)
        report[which] = {
            "p50_us": round(cuts[49] * 1e6, 1),
            "p99_us": round(cuts[98] * 1e6, 1),
            "per_second": round(statistics.median(rates[which])),
            "asker_cpu_us": round(statistics.median(spent[which]) * 1e6, 1),
        }
    report["p50_ratio"] = round(report["ours"]["p50_us"] / report["raw"]["p50_us"], 2)
    report["throughput_ratio"] = round(report["ours"]["per_second"] / report["raw"]["per_second"], 2)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(measure(given.url, given.requests, given.at_once, given.rounds), indent=2))


if __name__ == "__main__":
    main()
